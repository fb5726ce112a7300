"""Temporary copies of a model for probing: cut down, opened up, and in double precision.

ONNX Runtime has double kernels for most operators, though not for all (Conv and Erf have none on
the CPU): those stay in single precision, between casts. Whoever asks for a double copy must still
be ready to do without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    numpy_helper,
)

from onnx_clip_pass.graph import ancestors_in, graphs_in, versions_of
from onnx_clip_pass.graph.inference import infer_types
from onnx_clip_pass.graph.ordering import names_read
from onnx_clip_pass.graph.spec import (
    DOUBLE,
    FLOAT,
    FLOATING,
    LOCAL_FUNCTIONS,
    NOT_FLOATING,
)
from onnx_clip_pass.probe.erf import DOMAIN, erf_functions, is_erf

__all__ = ["cut_down", "double_copy", "sloping_into"]

_SHORTER = FLOATING - {DOUBLE}
_SINGLE_STATISTICS = ("LayerNormalization", "SimplifiedLayerNormalization")
_RANDOM = ("Bernoulli", "RandomNormal", "RandomUniform")


def sloping_into(graph: GraphProto, name: str) -> frozenset[str]:
    """The values by which a value may have a slope: integers, counts and conditions carry none."""
    return ancestors_in(graph.node, lambda node: not _is_whole(node))(name)


def _is_whole(node: NodeProto) -> bool:
    if node.op_type == "Cast":
        return any(attr.name == "to" and attr.i not in FLOATING for attr in node.attribute)
    return node.op_type in NOT_FLOATING or node.op_type == "Range"


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


def double_copy(model: ModelProto, single: Collection[str] = ()) -> ModelProto:
    """A copy that computes in double precision whatever the model computes in a shorter float.

    Args:
        model: a model that is cut down already.
        single: op types that stay in single precision, but for Erf, which can be had by others.
    """
    dtypes: dict[str, int] = {}
    if single:
        for found in infer_types(model).values():
            dtypes |= {name: kind.dtype for name, kind in found.items()}
        dtypes |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    copy = ModelProto()
    copy.CopyFrom(model)
    _widen_graph(copy.graph, single, dtypes)
    for function in copy.functions:
        if hasattr(function, "value_info"):
            del function.value_info[:]
        _widen_nodes(function, single, dtypes)
    if not {"Erf", "Gelu"}.isdisjoint(single):
        copy.ir_version = max(copy.ir_version, LOCAL_FUNCTIONS)
        for imports in (copy.opset_import, *(each.opset_import for each in copy.functions)):
            imports.append(helper.make_opsetid(DOMAIN, 1))
        opset = versions_of(copy.opset_import)[""]
        copy.functions.extend(erf_functions(opset))
    return copy


def _widen_graph(graph: GraphProto, single: Collection[str], dtypes: Mapping[str, int]) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _SHORTER:
            value.type.tensor_type.elem_type = DOUBLE
    _widen_nodes(graph, single, dtypes)


def _widen_nodes(
    graph: GraphProto | FunctionProto, single: Collection[str], dtypes: Mapping[str, int]
) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        if is_erf(node) and not {"Erf", "Gelu"}.isdisjoint(single):
            del node.attribute[:]
            node.domain = DOMAIN
            nodes.append(node)
        elif node.op_type in single:
            floats = [dtypes.get(name, FLOAT) in _SHORTER for name in node.input]
            nodes += _between_casts(node, floats, range(len(node.output)))
        elif node.op_type in _SINGLE_STATISTICS and len(node.output) > 1:
            _widen_node(node, single, dtypes)
            nodes += _between_casts(node, [], range(1, len(node.output)))
        else:
            _widen_node(node, single, dtypes)
            nodes.append(node)
    if len(nodes) > len(graph.node):
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)


def _between_casts(
    node: NodeProto, inputs: Sequence[bool], outputs: Iterable[int]
) -> Iterator[NodeProto]:
    """A node that takes some inputs in single precision and makes outputs so."""
    for slot, name in enumerate(node.input):
        if name and slot < len(inputs) and inputs[slot]:
            node.input[slot] = f"{name}/{node.output[0]}/{slot}/single"
            yield helper.make_node("Cast", [name], [node.input[slot]], to=FLOAT)
    names = [(slot, node.output[slot]) for slot in outputs if node.output[slot]]
    for slot, name in names:
        node.output[slot] = f"{name}/single"
    yield node
    for slot, name in names:
        yield helper.make_node("Cast", [node.output[slot]], [name], to=DOUBLE)


def _widen_node(node: NodeProto, single: Collection[str], dtypes: Mapping[str, int]) -> None:
    _state_dtype(node)
    for attr in node.attribute:
        if attr.type == AttributeProto.TENSOR:
            _widen_tensor(attr.t)
        elif attr.name in ("to", "dtype", "output_dtype") and attr.i in _SHORTER:
            attr.i = DOUBLE
        elif node.op_type == "Constant" and attr.name in ("value_float", "value_floats"):
            numbers = attr.f if attr.name == "value_float" else list(attr.floats)
            tensor = numpy_helper.from_array(np.array(numbers, np.float64))
            attr.CopyFrom(helper.make_attribute("value", tensor))
    for _, graph in graphs_in(node):
        _widen_graph(graph, single, dtypes)


def _state_dtype(node: NodeProto) -> None:
    """Say what an operator makes if its attributes leave it at the default, single precision."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        tensor = numpy_helper.from_array(np.zeros(1, np.float64))
        node.attribute.append(helper.make_attribute("value", tensor))
    elif node.op_type in _RANDOM and all(attr.name != "dtype" for attr in node.attribute):
        node.attribute.append(helper.make_attribute("dtype", DOUBLE))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _SHORTER:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
