"""Types by onnx's shape inference, run on the structure of a model without its weights."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, helper, shape_inference

from onnx_clip_pass.graph.bodies import graphs_in
from onnx_clip_pass.graph.types import TensorType

__all__ = ["infer_types"]

_LARGEST_SHAPE_TENSOR = 64
"""Elements of the largest initializer that is kept: shapes and axes, which inference reads."""

_MOST_FUNCTIONS = 1000
"""Functions that are looked into: onnx takes time that grows with the square of their number."""


def infer_types(model: ModelProto) -> dict[str, dict[str, TensorType]]:
    """The inferred types of the values of each graph, by the path of its `Scope`."""
    data = _structure_of(model).SerializeToString()  # the copy is gone before the next is made
    inferred = shape_inference.infer_shapes(data)
    types: dict[str, dict[str, TensorType]] = {}
    _collect(inferred.graph, "", types)
    return types


def _structure_of(model: ModelProto) -> ModelProto:
    structure = ModelProto(ir_version=max(model.ir_version, 4))
    structure.opset_import.extend(model.opset_import)
    if len(model.functions) <= _MOST_FUNCTIONS:
        structure.functions.extend(model.functions)
    graph = structure.graph
    graph.name = model.graph.name or "graph"
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    inputs = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if 0 <= size <= _LARGEST_SHAPE_TENSOR and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return structure


def _collect(graph: GraphProto, path: str, types: dict[str, dict[str, TensorType]]) -> None:
    found = types.setdefault(path, {})
    for value in (*graph.value_info, *graph.input, *graph.output):
        known = TensorType.of(value.type)
        if known is not None:
            found[value.name] = known
    for number, node in enumerate(graph.node):
        for key, inner in graphs_in(node):
            _collect(inner, f"{path}/{node.op_type}[{number}].{key}".lstrip("/"), types)
