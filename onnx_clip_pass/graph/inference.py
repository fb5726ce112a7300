"""Types by onnx's shape inference, run on the structure of a model without its weights.

The inference of two operators can end the process, which no `except` sees: Slice where an axis has
a negative size, and Expand to a shape of more axes than memory holds. Negative sizes come out of
damaged types, but also of a kernel that is larger than its input. So these nodes are held back,
without the input that leads there, until an inference has shown that theirs are sound.

Two more do not survive attributes that no valid model has: Einsum never ends with an equation of
stray dots, and GatherND reads before its shapes with negative batch_dims. Where one is so, nothing
is inferred.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, helper, shape_inference

from onnx_clip_pass.graph.spec import FREE_INITIALIZERS
from onnx_clip_pass.graph.subgraphs import graphs_in
from onnx_clip_pass.graph.types import Shape, TensorType

__all__ = ["infer_types", "survives_inference"]

_LARGEST_SHAPE_TENSOR = 64
"""Elements of the largest initializer that is kept: shapes and axes, which inference reads."""

_MOST_FUNCTIONS = 1000
"""Functions that are looked into: onnx takes time that grows with the square of their number."""

_MOST_AXES = 64
"""Axes of the largest shape that an Expand is told; NumPy has no more either."""

_MOST_NODES = 200_000
"""Nodes of all inferences of one model together: one more is made for each Slice behind a Slice."""

_TERM = r"[A-Za-z ]*(\.\.\.)?[A-Za-z ]*"
_EQUATION = re.compile(rf"{_TERM}(,{_TERM})*(->{_TERM})?")

Types = dict[str, dict[str, TensorType]]
"""The types of the values of each graph, by the path of its `Scope`."""


def infer_types(model: ModelProto) -> Types:
    """The types of values that inference finds, by the path of the graph and by name.

    Raises:
        ValueError: a node is such that inference would not return.
        onnx.shape_inference.InferenceError: and other errors of onnx.
    """
    return _inferred(model)[0]


def survives_inference(model: ModelProto) -> bool:
    """True if onnx's inference is known to survive a whole model; raises as `infer_types` does."""
    return not _inferred(model)[1]


def _inferred(model: ModelProto) -> tuple[Types, list[_Held]]:
    """The types, and the nodes that were held back to the end."""
    structure = _structure_of(model)
    held = _hold(structure.graph.node, ("",))
    for function in structure.functions:  # the types in them are not told: they stay held
        _hold(function.node, ())
    for _ in range(2 + _MOST_NODES // max(len(structure.graph.node), 1)):
        inferred = shape_inference.infer_shapes(structure.SerializeToString())
        wanted = {node.decisive for node in held}
        types = _types_in(inferred.graph, wanted) if held else {}
        waiting = [node for node in held if not node.release_if_sound(types)]
        if len(waiting) == len(held):
            break
        held = waiting
    return _types_in(inferred.graph), held


@dataclass(frozen=True)
class _Held:
    """A Slice or Expand that waits for its inputs' types, and what its second input was."""

    node: NodeProto
    second: str
    paths: tuple[str, ...]  # of the graphs around it, the innermost first

    def release_if_sound(self, types: Types) -> bool:
        """Give the node its input back if inference is known to survive it."""
        sound = self._is_sound(types)
        if sound:
            self.node.input[1] = self.second
        return sound

    @property
    def decisive(self) -> str:
        """The name of the input whose shape decides: what is cut, or the shape to expand to."""
        return self.node.input[0] if self.node.op_type == "Slice" else self.second

    def _is_sound(self, types: Types) -> bool:
        shape = self._shape_of(self.decisive, types)
        if shape is None:
            return False
        if self.node.op_type == "Slice":  # a size that inference made up may turn out as anything
            return not any(
                dim is None or (isinstance(dim, str) and dim.startswith("unk__")) for dim in shape
            )
        return all(isinstance(dim, int) and dim <= _MOST_AXES for dim in shape)

    def _shape_of(self, name: str, types: Types) -> Shape | None:
        found = (types.get(path, {}).get(name) for path in self.paths)
        return next((known.shape for known in found if known is not None), None)


def _hold(nodes: Iterable[NodeProto], paths: tuple[str, ...]) -> list[_Held]:
    """Take from nodes the input that may end the process; those from which it was taken."""
    held: list[_Held] = []
    for number, node in enumerate(nodes):
        _check_attributes(node)
        if node.op_type in ("Slice", "Expand") and len(node.input) > 1:
            second = node.input[1]
            node.input[1] = ""
            held.append(_Held(node, second, paths))
        for key, inner in graphs_in(node):
            path = _path_in(paths[0] if paths else "", node, number, key)
            held += _hold(inner.node, (path, *paths))
    return held


def _check_attributes(node: NodeProto) -> None:
    for attribute in node.attribute if node.op_type in ("Einsum", "GatherND") else ():
        is_equation = attribute.name == "equation"
        if is_equation and not _EQUATION.fullmatch(attribute.s.decode(errors="replace")):
            raise ValueError(f"the equation {attribute.s!r} is none")
        if attribute.name == "batch_dims" and attribute.i < 0:
            raise ValueError(f"{attribute.i} is no number of dimensions")


def _path_in(path: str, node: NodeProto, number: int, key: str) -> str:
    return f"{path}/{node.op_type}[{number}].{key}".lstrip("/")


def _structure_of(model: ModelProto) -> ModelProto:
    structure = ModelProto(ir_version=max(model.ir_version, FREE_INITIALIZERS))
    structure.opset_import.extend(model.opset_import)
    if len(model.functions) <= _MOST_FUNCTIONS:
        structure.functions.extend(model.functions)
    graph = structure.graph
    graph.name = model.graph.name or "graph"
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    inputs = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if min(tensor.dims, default=0) < 0:
            continue  # damaged: nothing is known of it
        if math.prod(tensor.dims) <= _LARGEST_SHAPE_TENSOR and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return structure


def _types_in(graph: GraphProto, wanted: Collection[str] | None = None) -> Types:
    """The types of all values, or of those that are wanted, in a graph and those inside it."""
    types: Types = {}
    todo = [(graph, "")]
    for each, path in todo:  # grows while it is read
        found = types.setdefault(path, {})
        for tensor in each.initializer:
            if wanted is None or tensor.name in wanted:
                shape = tuple(dim if dim >= 0 else None for dim in tensor.dims)
                found[tensor.name] = TensorType(tensor.data_type, shape)
        for value in (*each.value_info, *each.input, *each.output):
            if wanted is None or value.name in wanted:
                known = TensorType.of(value.type)
                if known is not None:
                    found[value.name] = known
        for number, node in enumerate(each.node):
            todo += [(inner, _path_in(path, node, number, key)) for key, inner in graphs_in(node)]
    return types
