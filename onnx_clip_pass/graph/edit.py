"""Edits that keep a model valid: fresh names, nodes in topological order, shared constants.

An `Editor` works on a model of its own. Nothing that exists moves or is dropped: nodes are put
between others, values declared and constants added behind the existing ones, and reads and
producers renamed. What was added is kept in `added`, for the record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from onnx_clip_pass.graph import spec
from onnx_clip_pass.graph.ordering import in_order
from onnx_clip_pass.graph.scopes import BY_NAME, OUTPUT, Index, Read, Scope
from onnx_clip_pass.graph.subgraphs import graphs_and_functions
from onnx_clip_pass.graph.types import TensorType
from onnx_clip_pass.graph.versions import importer_of

__all__ = ["Added", "Editor", "rename_in_attributes"]

_STORAGE: dict[int, np.dtype[Any]] = {
    spec.FLOAT: np.dtype("<f4"),
    spec.DOUBLE: np.dtype("<f8"),
}
_NONE: Mapping[str, Any] = {}


@dataclass(slots=True)
class Added:
    """The additions of an editor in their order: messages, and names of values.

    `order` says of graphs (by their number in `graphs_and_functions` the model before) whose nodes
    had to move in which runs (first, count) of their old numbers the old nodes are now. `imports`
    says what was given an import of the default operator set: () the model, else a function by
    domain, name and overload.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    order: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    imports: list[tuple[str, ...]] = field(default_factory=list)


class Editor:
    """Edits the model of `index` in place. Call `finish` once, when all edits are made."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.model = index.model
        self.added = Added()
        self._names = self.index.all_names()
        self._last: dict[str, int] = defaultdict(lambda: 1)  # the last number behind each wish
        self._pending: dict[int, list[tuple[int, NodeProto]]] = defaultdict(list)
        self._made: dict[str, list[AttributeProto]] = {}
        self._like: dict[TensorType, ValueInfoProto] = {}
        self._unsettled: set[int] = set()
        self._constants: dict[tuple[int, float | tuple[int, ...], int], str] = {}
        self._values: dict[str, float] = {}
        self._nested: list[Scope] = []  # kept, since what is made in a scope is known by its id

    def fresh(self, wish: str) -> str:
        """A name like `wish` that nothing in the model bears, in any graph or function."""
        name = wish
        while name in self._names:
            self._last[wish] += 1
            name = f"{wish}#{self._last[wish]}"
        self._names.add(name)
        return name

    def fresh_with(self, wish: str, suffix: str) -> tuple[str, str]:
        """Two such names, of which the second is the first with a suffix."""
        name = self.fresh(wish)
        while f"{name}{suffix}" in self._names:
            name = self.fresh(wish)
        self._names.add(f"{name}{suffix}")
        return name, f"{name}{suffix}"

    def insert(
        self,
        scope: Scope,
        position: int,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        name: str,
        attributes: Mapping[str, Any] = _NONE,
        *,
        unread: Sequence[str] = (),
    ) -> None:
        """Put a node of the default domain before the present node number `position`.

        `unread` are outputs behind the first, which the operator must have.
        """
        node = scope.proto.node.add()  # behind the others until all are put into order
        node.op_type, node.name = op_type, self.fresh(name)
        node.input.extend(inputs)
        node.output.extend([output, *unread])
        if attributes:
            node.attribute.extend(self._attributes(attributes))
        if id(scope.opsets) in self.index.assumed:
            self._import_default(scope)
        self._pending[id(scope)].append((position, node))
        self.added.nodes.append(node)

    def nested(self, graph: GraphProto, outer: Scope) -> Scope:
        """An empty graph as one of a node of `outer`: `insert` puts in a copy of what it is."""
        self._nested.append(Scope(graph, graph.name, outer, outer.opsets, set(), [], [], []))
        return self._nested[-1]

    def _import_default(self, scope: Scope) -> None:
        """Import the version of the default operator set that was assumed."""
        self.index.assumed.discard(id(scope.opsets))
        outer = scope
        while outer.outer is not None:
            outer = outer.outer
        owner: ModelProto | FunctionProto = self.model
        if isinstance(outer.proto, FunctionProto) and outer.proto.opset_import:
            owner = outer.proto
        owner.opset_import.append(helper.make_opsetid("", scope.opsets[""]))
        self.added.imports.append(importer_of(owner))

    def _attributes(self, attributes: Mapping[str, Any]) -> list[AttributeProto]:
        key = repr(attributes)
        if key not in self._made:
            self._made[key] = [helper.make_attribute(*each) for each in attributes.items()]
        return self._made[key]

    def constant(self, scope: Scope, value: float, dtype: int) -> str:
        """A shared constant of rank 0."""
        key = (id(scope), value, dtype)
        if key not in self._constants:
            label = f"{value:.9g}:{TensorType(dtype).dtype_name}"
            with np.errstate(over="ignore"):  # what is beyond the dtype is inf there: no bound
                array = np.array(value, _STORAGE[dtype])
            name = self._constants[key] = self._add_constant(scope, label, array, dtype)
            self._values[name] = value
        return self._constants[key]

    def value_of(self, name: str) -> float | None:
        """The number that a shared constant of rank 0 is; None if it is no such constant."""
        return self._values.get(name)

    def integers(self, scope: Scope, label: str, values: list[int]) -> str:
        """A shared constant of rank 1 and dtype int64: axes, a shape."""
        key = (id(scope), tuple(values), spec.INT64)
        if key not in self._constants:
            label = f"{label}:{','.join(map(str, values))}"
            array = np.array(values, "<i8")
            self._constants[key] = self._add_constant(scope, label, array, spec.INT64)
        return self._constants[key]

    def _add_constant(self, scope: Scope, label: str, array: NDArray[Any], dtype: int) -> str:
        """An initializer, or a Constant node where the graph can have none."""
        name = self.fresh(f"clip/{label}")
        tensor = TensorProto(dims=array.shape, data_type=dtype, raw_data=array.tobytes())
        if isinstance(scope.proto, GraphProto) and self.model.ir_version >= spec.FREE_INITIALIZERS:
            tensor.name = name
            scope.proto.initializer.append(tensor)
            self.added.initializers.append(tensor)
        elif dtype == spec.INT64 and (scope.opset or 0) < spec.CONSTANT_INTEGERS:
            number = self._add_constant(scope, f"{label}:float32", array.astype("<f4"), spec.FLOAT)
            self.insert(scope, 0, "Cast", [number], name, f"{name}/Cast", {"to": dtype})
        else:
            self.insert(scope, 0, "Constant", [], name, f"{name}/Constant", {"value": tensor})
        return name

    def declare(self, scope: Scope, name: str, tensor: TensorType) -> None:
        """Note the type of a new value, where the graph declares types."""
        if scope.is_function and (
            self.model.ir_version < spec.FUNCTION_TYPES or not hasattr(scope.proto, "value_info")
        ):
            return
        self._value(scope.proto.value_info, name, tensor)
        self.added.values.append(name)

    def _value(self, values: Any, name: str, tensor: TensorType) -> None:
        """Add a value of this type to those of a graph."""
        like = self._like.get(tensor)
        if like is None:
            shape = None if tensor.shape is None else list(tensor.shape)
            like = self._like[tensor] = helper.make_tensor_value_info("", tensor.dtype, shape)
        value = values.add()
        value.CopyFrom(like)
        value.name = name

    def add_input(self, name: str, default: float, dtype: int) -> None:
        """A rank-0 input of the model behind the others, with a default: a number of that name."""
        self._names.add(name)
        graph = self.model.graph
        self._value(graph.input, name, TensorType(dtype, ()))
        data = np.array(default, _STORAGE[dtype]).tobytes()
        tensor = graph.initializer.add(name=name, data_type=dtype, raw_data=data)
        self.added.inputs.append(name)
        self.added.initializers.append(tensor)

    def add_state(self, name: str, tensor: TensorType) -> None:
        """An input of the model behind the others, without a default; `name` is a fresh one."""
        self._value(self.model.graph.input, name, tensor)
        self.added.inputs.append(name)

    def add_output(self, name: str, tensor: TensorType) -> None:
        """Make a value of the main graph an output, behind the others."""
        self._value(self.model.graph.output, name, tensor)
        self.added.outputs.append(name)

    def rename_producer(self, scope: Scope, name: str, new: str) -> None:
        """Let the producer of `name` (a node or an initializer) call it `new`; readers stay."""
        if name in scope.producers:
            number, slot = scope.producers[name]
            scope.nodes[number].output[slot] = new
        else:
            scope.initializers[name].name = new

    def redirect(self, reads: Iterable[Read], name: str, new: str) -> None:
        """Let each of these reads of `name` read `new`."""
        for scope, number, slot in reads:
            if number == OUTPUT:
                if isinstance(scope.proto, GraphProto):
                    scope.proto.output[slot].name = new
                else:
                    scope.proto.output[slot] = new
            elif slot == BY_NAME:
                rename_in_attributes(scope.nodes[number], name, new)
            else:
                scope.nodes[number].input[slot] = new

    def unsettle(self, scope: Scope) -> None:
        """Say that nodes of this scope may now come before what they read."""
        self._unsettled.add(id(scope))

    def finish(self, advice: str = "") -> None:
        """Put the new nodes into topological order; `advice` is for those that form a cycle."""
        bodies = (
            list(graphs_and_functions(self.model)) if self._unsettled else []
        )  # as they stand now
        for scope in self.index.scopes:
            pending = self._pending.pop(id(scope), None)
            if not pending:
                continue
            new = [node for _, node in pending]
            merged = _merge(scope, pending)
            if id(scope) in self._unsettled:
                old = {id(node): number for number, node in enumerate(scope.nodes)}
                merged = in_order(scope, merged, advice=advice)
                moved = [old[id(node)] for node in merged if id(node) in old]
                if moved != sorted(moved):
                    number = next(n for n, body in enumerate(bodies) if body is scope.proto)
                    self.added.order.append((number, _runs(moved)))
            # Nothing is copied: a node that is taken out of a message still takes memory in it.
            order = {id(node): place for place, node in enumerate(merged)}
            places = iter([order[id(node)] for node in (*scope.nodes, *new)])
            scope.proto.node.sort(key=lambda _: next(places))
            scope.nodes[:] = merged


def rename_in_attributes(node: NodeProto, name: str, new: str) -> None:
    """Rename a tensor that a Gradient node names in its attributes xs, zs or y."""
    old_text, new_text = name.encode(), new.encode()
    for attr in node.attribute:
        if attr.name in ("xs", "zs"):
            for at, text in enumerate(attr.strings):
                if text == old_text:
                    attr.strings[at] = new_text
        elif attr.name == "y" and attr.s == old_text:
            attr.s = new_text


def _merge(scope: Scope, pending: list[tuple[int, NodeProto]]) -> list[NodeProto]:
    """Interleave: a pending node goes before the old node of its position, in given order."""
    pending.sort(key=lambda entry: entry[0])
    merged: list[NodeProto] = []
    done = 0
    for position, node in pending:
        merged += scope.nodes[done:position]
        merged.append(node)
        done = max(done, position)
    return merged + scope.nodes[done:]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """The numbers as runs of ascending ones: first and count."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
