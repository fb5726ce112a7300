"""Damage done to the nodes that a rewrite adds: every kind of it to every node, one at a time.

Each mutant says what was done to which operator. What does not change a node (operands of a sum
exchanged) is no damage, and a mutant that is equal to another, or to the model itself, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnx_clip_pass.graph import graphs_and_functions
from onnx_clip_pass.record import read_record

__all__ = ["Mutant", "mutants_of"]

COMMUTES = {"Mul", "Sum", "Max", "Min", "Add"}
INSTEAD = {
    "Abs": ["Neg"],
    "Div": ["Mul", "Sub"],
    "IsNaN": ["IsInf"],
    "Less": ["Greater", "LessOrEqual", "GreaterOrEqual"],
    "Max": ["Min", "Sum"],
    "Min": ["Max", "Sum"],
    "Mul": ["Div", "Add"],
    "ReduceL1": ["ReduceL2", "ReduceMax", "ReduceSum"],
    "ReduceL2": ["ReduceL1", "ReduceMax", "ReduceSumSquare"],
    "ReduceMax": ["ReduceMin", "ReduceL2", "ReduceMean"],
    "ReduceMin": ["ReduceMax", "ReduceMean"],
    "ReduceSum": ["ReduceMax", "ReduceMean", "ReduceL2"],
    "ReduceSumSquare": ["ReduceL2", "ReduceSum", "ReduceL1"],
    "Sqrt": ["Abs"],
    "Sum": ["Max", "Min", "Mean"],
}
EVEN = {"Abs", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
NARROWER = {TensorProto.DOUBLE: TensorProto.FLOAT, TensorProto.FLOAT: TensorProto.FLOAT16}
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
FLOATS = {TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


class Mutant(NamedTuple):
    """A rewritten model with one piece of damage: `damage` to node `node`, an `op_type`."""

    node: str
    op_type: str
    damage: str
    model: ModelProto

    @property
    def words(self) -> str:
        return f"{self.op_type} {self.node}: {self.damage}"


def mutants_of(model: ModelProto) -> Iterator[Mutant]:
    """All mutants of a rewritten model that differ from it and from each other."""
    record = read_record(model)
    assert record is not None
    known = {model.SerializeToString(deterministic=True)}
    types = _types(model)
    for name in record.nodes:
        for damage, change in _damages(model, name, types):
            copy = ModelProto()
            copy.CopyFrom(model)
            body, at = _find(copy, name)
            op_type = body.node[at].op_type
            change(body, at)
            key = copy.SerializeToString(deterministic=True)
            if key not in known:
                known.add(key)
                yield Mutant(name, op_type, damage, copy)


Change = Callable[[Any, int], None]


def _damages(model: ModelProto, name: str, types: dict[str, int]) -> Iterator[tuple[str, Change]]:
    body, at = _find(model, name)
    node = body.node[at]
    op_type, inputs = node.op_type, list(node.input)
    for slot, value in enumerate(inputs):
        if types.get(value) == types.get(node.output[0]):
            yield f"dropped, input {slot} passed on", _passing_on(slot)
    for other in INSTEAD.get(op_type, []):
        yield f"made {other}", _made(other)
    if op_type not in COMMUTES and len(inputs) > 1:
        for slot in range(len(inputs) - 1):
            if types.get(inputs[slot]) == types.get(inputs[slot + 1]):
                yield f"inputs {slot} and {slot + 1} exchanged", _exchanged(slot)
    if op_type in ("Sum", "Max", "Min"):
        for slot in range(len(inputs)):
            yield f"without input {slot}", _without(slot)
            if slot:
                yield f"input {slot} twice", _taken_for(slot - 1, inputs[slot])
            else:
                yield f"input {slot} twice", _taken_for(len(inputs) - 1, inputs[slot])
    constants = _constants(model)
    for slot, value in enumerate(inputs):
        if value in constants:
            for words, array in _other_constants(constants[value]):
                yield f"input {slot} {words}", _constant(slot, array)
        elif types.get(value) in FLOATS:
            if op_type not in EVEN:
                yield f"input {slot} negated", _through(slot, "Neg")
            twin = _twin(model, body, value, types)
            if twin:
                yield f"input {slot} of another gradient", _taken_for(slot, twin)
    kind = types.get(node.output[0])
    is_held = op_type == "Cast" and types.get(inputs[0]) in (NARROWER.get(kind), *HALVES)
    if kind in NARROWER and not is_held:
        yield "narrowed", _narrowed(NARROWER[kind], kind)
    for attr in node.attribute:
        if attr.name == "axes":
            for axes in _other_axes(list(attr.ints)):
                yield f"over axes {axes}", _attribute("axes", axes)
        if attr.name == "perm":
            yield "axes as they are", _attribute("perm", sorted(attr.ints))


# -- pieces of damage --------------------------------------------------------------------------


def _passing_on(slot: int) -> Change:
    def change(body: Any, at: int) -> None:
        node = body.node[at]
        value = node.input[slot]
        node.op_type = "Identity"
        node.input[:] = [value]
        del node.attribute[:]

    return change


def _made(op_type: str) -> Change:
    def change(body: Any, at: int) -> None:
        body.node[at].op_type = op_type

    return change


def _exchanged(slot: int) -> Change:
    def change(body: Any, at: int) -> None:
        names = body.node[at].input
        names[slot], names[slot + 1] = names[slot + 1], names[slot]

    return change


def _without(slot: int) -> Change:
    def change(body: Any, at: int) -> None:
        del body.node[at].input[slot]

    return change


def _taken_for(slot: int, value: str) -> Change:
    def change(body: Any, at: int) -> None:
        body.node[at].input[slot] = value

    return change


def _constant(slot: int, array: Any) -> Change:
    def change(body: Any, at: int) -> None:
        tensor = numpy_helper.from_array(np.asarray(array), "mutated")
        body.node.insert(at, helper.make_node("Constant", [], ["mutated"], value=tensor))
        body.node[at + 1].input[slot] = "mutated"

    return change


def _through(slot: int, op_type: str) -> Change:
    def change(body: Any, at: int) -> None:
        value = body.node[at].input[slot]
        body.node.insert(at, helper.make_node(op_type, [value], ["mutated"]))
        body.node[at + 1].input[slot] = "mutated"

    return change


def _narrowed(narrow: int, kind: int) -> Change:
    def change(body: Any, at: int) -> None:
        name = body.node[at].output[0]
        body.node[at].output[0] = "mutated"
        body.node.insert(at + 1, helper.make_node("Cast", ["mutated"], ["narrow"], to=narrow))
        body.node.insert(at + 2, helper.make_node("Cast", ["narrow"], [name], to=kind))

    return change


def _attribute(name: str, value: Any) -> Change:
    def change(body: Any, at: int) -> None:
        attributes = body.node[at].attribute
        number = next(n for n, attr in enumerate(attributes) if attr.name == name)
        attributes[number].CopyFrom(helper.make_attribute(name, value))

    return change


# -- what there is -----------------------------------------------------------------------------


def _other_constants(array: Any) -> Iterator[tuple[str, Any]]:
    if array.dtype.kind in "iu":
        if array.size == 1:
            for value in {0, 1} - {int(array.item())}:
                yield f"made {value}", np.full_like(array, value)
        else:
            yield "reversed", array[::-1].copy()
            yield "without its last", array[:-1].copy()
        return
    with np.errstate(over="ignore"):  # of the largest number there is twice as much
        doubled = 2 * array
    others = {"doubled": doubled, "halved": array / 2, "negated": -array, "made nan": np.nan}
    for words, other in (others | {"made 0": 0, "made 1": 1}).items():
        changed = np.broadcast_to(other, array.shape).astype(array.dtype)
        if not np.array_equal(changed, array):
            yield words, changed


def _other_axes(axes: list[int]) -> Iterator[list[int]]:
    if len(axes) > 1:
        yield axes[:-1]
        yield axes[1:]
    else:
        yield [axis + 1 if axis == 0 else axis - 1 for axis in axes]


def _find(model: ModelProto, name: str) -> tuple[Any, int]:
    for body in graphs_and_functions(model):
        for at, node in enumerate(body.node):
            if node.name == name:
                return body, at
    raise KeyError(name)


def _constants(model: ModelProto) -> dict[str, Any]:
    found = {}
    for body in graphs_and_functions(model):
        for tensor in getattr(body, "initializer", ()):
            found[tensor.name] = numpy_helper.to_array(tensor)
        for node in body.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _twin(model: ModelProto, body: Any, value: str, types: dict[str, int]) -> str:
    """A value that is to another gradient what this one is to its own, made before it is read."""
    record = read_record(model)
    assert record is not None
    gradients = list(dict.fromkeys(entry.gradient for entry in record.clips))
    of = {old: new for new, old in record.renamed.items()}
    gradients += [of[name] for name in gradients if name in of]
    own = [name for name in gradients if value == name or f"clip/{name}/" in value]
    for name in own[:1]:
        for other in gradients:
            twin = value.replace(name, other)
            if twin != value and types.get(twin) == types.get(value):
                return twin
    return ""


def _types(model: ModelProto) -> dict[str, int]:
    """The dtypes of values, as far as the model and shape inference tell."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:
        inferred = model
    found: dict[str, int] = {}
    for body in graphs_and_functions(inferred):
        values = [*body.input, *body.output] if isinstance(body, GraphProto) else []
        for value in [*values, *body.value_info]:
            if value.type.tensor_type.elem_type:
                found[value.name] = value.type.tensor_type.elem_type
        for tensor in getattr(body, "initializer", ()):
            found[tensor.name] = tensor.data_type
        for node in body.node:
            if node.op_type == "Constant" and node.attribute[0].type == AttributeProto.TENSOR:
                found[node.output[0]] = node.attribute[0].t.data_type
    return found
