"""The way back to the model before a rewrite; nothing that the record says is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.graph import (
    GraphOrFunction,
    graphs_and_functions,
    graphs_in,
    outermost,
    rename_in_attributes,
    take_back_imports,
)
from onnx_clip_pass.record.entries import Record
from onnx_clip_pass.record.note import KEY, OURS, digest_of, is_clipped, read_record
from onnx_clip_pass.validity import blaming

__all__ = ["strip", "strip_if_clipped", "undo"]

_SINCE = "by another tool since, so they cannot be undone; start from the original model"


def strip(model: ModelProto) -> ModelProto:
    """Undo a rewrite.

    Args:
        model: a model that `clip_gradients` or `onnx-clip rewrite` has made; it stays as it is.

    Returns:
        The model as it was before, equal to it as a protobuf message.

    Raises:
        OnnxClipError: the model bears no record, or what was added has been changed since.
    """
    check_model(model, "onnx.load, or the command onnx-clip strip")
    original = ModelProto()
    original.CopyFrom(model)
    with blaming(lambda: model, "this"):
        record = undo(original)
    if record is None:
        raise OnnxClipError(
            "expected a model that onnx-clip has rewritten, but its metadata has no entry "
            f"{KEY!r}; there is nothing to undo"
        )
    return original


def strip_if_clipped(model: ModelProto) -> ModelProto:
    """The model before any rewrite: itself if it bears no record."""
    return strip(model) if is_clipped(model) else model


def undo(model: ModelProto) -> Record | None:
    """Undo a rewrite in place; return the record of it, None if there is none."""
    record = read_record(model)
    if record is None:
        return None
    if digest_of(_added_to(model, record), record) != record.digest:
        raise OnnxClipError(
            "the nodes that onnx-clip added to this model, or its record of them, have been "
            f"changed, renamed, removed or joined with others {_SINCE}"
        )
    made = _made_by(model, set(record.nodes))
    if _is_read_by_others(model, record, made):
        raise OnnxClipError(
            f"what onnx-clip added to this model has been joined with other nodes {_SINCE}"
        )
    if forged := _forged(model, record, made):
        raise OnnxClipError(
            "the record in this model is none that onnx-clip wrote: it says that a rewrite added "
            f"{listed(forged)}, which a rewrite never adds so; start from the original model"
        )
    nodes, initializers = set(record.nodes), set(record.initializers)
    order = dict(record.order)
    graphs: list[tuple[GraphOrFunction, list[NodeProto]]] = []
    todo = outermost(model)
    for number, graph in enumerate(todo):  # grows while it is read
        graphs.append((graph, _nodes_before(graph, nodes, order.get(number))))
        todo += [graph for node in graphs[-1][1] for _, graph in graphs_in(node)]
    # other tools declare more than we did
    values = {*record.values, *initializers, *made} - {*record.renamed.values()}
    for graph, before in reversed(graphs):  # nested ones first: putting nodes back copies them
        if len(before) < len(graph.node):
            del graph.node[:]
            graph.node.extend(before)
        _remove(getattr(graph, "value_info", ()), values)
        if isinstance(graph, GraphProto):
            for at in range(len(graph.initializer) - 1, -1, -1):  # one by one: weights stay put
                if graph.initializer[at].name in initializers:
                    del graph.initializer[at]
        _rename_back(graph, record.renamed)
    _remove(model.graph.input, set(record.inputs))
    _remove(model.graph.output, set(record.outputs))
    take_back_imports(model, {tuple(importer) for importer in record.imports})
    for at, entry in enumerate(model.metadata_props):
        if entry.key == KEY:
            del model.metadata_props[at]
            break
    return record


def _made_by(model: ModelProto, nodes: set[str]) -> set[str]:
    """The values that the nodes of these names make."""
    graphs = graphs_and_functions(model, but_in=nodes)
    return {name for graph in graphs for n in graph.node if n.name in nodes for name in n.output}


def _forged(model: ModelProto, record: Record, made: set[str]) -> list[str]:
    """Names that the record says were added and cannot have been: the model's own, or made up.

    A digest proves nothing here, since whoever writes a record can write its digest as well.
    """
    thresholds = {entry.threshold_input for entry in record.clips}
    measures = {measure.output for measure in record.emitted} | {*record.states.values()}
    # an input has its default, and a clip that takes it, or is a state that has a new value
    inputs = {*record.initializers} & thresholds
    inputs |= {n for n, new in record.states.items() if n.startswith(OURS) and new in made}
    results = {*made, *record.renamed}
    constants = {*record.initializers} - {*record.inputs}
    own = [
        *(("node", name) for name in record.nodes if not name.startswith(OURS)),
        *(("initializer", name) for name in constants if not name.startswith(OURS)),
        *(("input", name) for name in record.inputs if name not in inputs),
        *(("input", name) for name in record.states if name not in record.inputs),
        *(("output", new) for new in record.states.values() if new not in record.outputs),
        *(("output", n) for n in record.outputs if n not in made or n not in measures),
        *(("value", name) for name in record.values if name not in results),
        # on one side of a clip there is what it makes
        *(
            ("name", new)
            for new, old in record.renamed.items()
            if not new.startswith(OURS) or not (new in made or old in made)
        ),
    ]
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    own += [("input", n) for n in record.inputs if n in numbers and numbers[n].dims]
    return [f"the {what} {name!r}" for what, name in own]


def _nodes_before(graph: GraphOrFunction, names: set[str], runs: Any) -> list[NodeProto]:
    """The nodes but those of these names, in the order that they had.

    If another tool has added nodes or taken some away, they stay in the order in which they are.
    """
    kept = [node for node in graph.node if node.name not in names]
    if runs is not None and sum(count for _, count in runs) == len(kept):
        numbers = [number for first, count in runs for number in range(first, first + count)]
        if sorted(numbers) == list(range(len(kept))):
            return [kept[at] for at in sorted(range(len(kept)), key=numbers.__getitem__)]
    return kept


def _remove(items: Any, names: set[str]) -> None:
    """Take the messages of these names out of a repeated field, in one go: they are many."""
    kept = [item for item in items if item.name not in names]
    if len(kept) < len(items):
        del items[:]
        items.extend(kept)


def _rename_back(graph: GraphOrFunction, names: dict[str, str]) -> None:
    for node in graph.node:
        for ports in (node.input, node.output):
            for slot, name in enumerate(ports):
                if name in names:
                    ports[slot] = names[name]
        if node.op_type == "Gradient":
            for new, old in names.items():
                rename_in_attributes(node, new, old)
    if isinstance(graph, FunctionProto):
        for slot, name in enumerate(graph.output):
            if name in names:
                graph.output[slot] = names[name]
        return
    for value in graph.output:
        if value.name in names:
            value.name = names[value.name]
    for tensor in graph.initializer:
        if tensor.name in names:
            tensor.name = names[tensor.name]


def _added_to(model: ModelProto, record: Record) -> Iterator[NodeProto | TensorProto]:
    """The nodes and initializers that the record names, as far as the model still has them."""
    nodes, initializers = set(record.nodes), set(record.initializers)
    for graph in graphs_and_functions(model):
        yield from (node for node in graph.node if node.name in nodes)
        if isinstance(graph, GraphProto):
            yield from (tensor for tensor in graph.initializer if tensor.name in initializers)


def _is_read_by_others(model: ModelProto, record: Record, made: set[str]) -> bool:
    """Return whether a node that was not added, or an output, takes what undoing would remove."""
    nodes, outputs = set(record.nodes), set(record.outputs)
    read: set[str] = set()
    for graph in graphs_and_functions(model, but_in=nodes):  # what is in an added node goes with it
        for node in graph.node:
            if node.name not in nodes:
                read.update(node.input)
        if isinstance(graph, GraphProto):
            read.update(value.name for value in graph.output if value.name not in outputs)
        else:
            read.update(graph.output)
    kept = {*record.renamed, *record.renamed.values()}
    return not read.isdisjoint({*record.initializers, *record.states, *made} - kept)
