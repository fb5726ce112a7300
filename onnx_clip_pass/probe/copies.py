"""Temporary copies of a model for probing: cut down, opened up, and in double precision.

ONNX Runtime has double kernels for most operators, though not for all (Conv has none on the CPU):
whoever asks for a double copy must be ready to do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
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
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnx_clip_pass.graph import graphs_in

__all__ = ["ancestors_in", "cut_down", "double_copy", "names_read"]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_RANDOM = ("Bernoulli", "RandomNormal", "RandomUniform")


def names_read(node: NodeProto) -> Iterator[str]:
    """What a node reads, the graphs nested in it included."""
    yield from filter(None, node.input)
    for _, graph in graphs_in(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from names_read(inner)


def ancestors_in(graph: GraphProto) -> Callable[[str], frozenset[str]]:
    """A function that tells all values that one is computed from, itself included."""
    makers = {name: tuple(names_read(node)) for node in graph.node for name in node.output if name}

    @cache
    def ancestors(name: str) -> frozenset[str]:
        seen, todo = {name}, [name]
        while todo:
            for source in makers.get(todo.pop(), ()):
                if source not in seen:
                    seen.add(source)
                    todo.append(source)
        return frozenset(seen)

    return ancestors


def cut_down(
    model: ModelProto, wanted: Iterable[str], fed: Mapping[str, NDArray[Any]]
) -> ModelProto:
    """A copy that gives the wanted values and computes nothing else.

    Initializers among `fed` become inputs of the dtype and shape of the array there.
    """
    wanted = list(wanted)
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_read(node))
    graph = GraphProto(name=model.graph.name, node=reversed(nodes))
    for tensor in model.graph.initializer:
        if tensor.name in needed and tensor.name not in fed:
            graph.initializer.add().CopyFrom(tensor)
    graph.sparse_initializer.extend(
        each for each in model.graph.sparse_initializer if each.values.name in needed
    )
    declared = {value.name: value for value in model.graph.input}
    graph.input.extend(value for value in declared.values() if value.name in needed)
    for name, array in fed.items():
        if name in needed and name not in declared:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    kept = {node_output for node in nodes for node_output in node.output}
    graph.value_info.extend(value for value in model.graph.value_info if value.name in kept)
    graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    return ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=graph,
    )


def double_copy(model: ModelProto) -> ModelProto:
    """A copy that computes in double precision whatever the model computes in a shorter float."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _widen_graph(copy.graph)
    for function in copy.functions:
        _widen_nodes(function)
    return copy


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _widen_type(value.type)
    _widen_nodes(graph)


def _widen_nodes(body: GraphProto | FunctionProto) -> None:
    if isinstance(body, FunctionProto) and hasattr(body, "value_info"):
        del body.value_info[:]
    for node in body.node:
        _state_dtype(node)
        for attr in node.attribute:
            if attr.type == AttributeProto.TENSOR:
                _widen_tensor(attr.t)
            elif attr.name in ("to", "dtype", "output_dtype") and attr.i in _FLOATS:
                attr.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attr.name in ("value_float", "value_floats"):
                numbers = attr.f if attr.name == "value_float" else list(attr.floats)
                tensor = numpy_helper.from_array(np.array(numbers, np.float64))
                attr.CopyFrom(helper.make_attribute("value", tensor))
        for _, graph in graphs_in(node):
            _widen_graph(graph)


def _state_dtype(node: NodeProto) -> None:
    """Say what an operator makes if its attributes leave it at the default, single precision."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        tensor = numpy_helper.from_array(np.zeros(1, np.float64))
        node.attribute.append(helper.make_attribute("value", tensor))
    elif node.op_type in _RANDOM and all(attr.name != "dtype" for attr in node.attribute):
        node.attribute.append(helper.make_attribute("dtype", TensorProto.DOUBLE))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _widen_type(kind: TypeProto) -> None:
    if kind.tensor_type.elem_type in _FLOATS:
        kind.tensor_type.elem_type = TensorProto.DOUBLE
