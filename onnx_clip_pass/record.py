"""The note that a rewrite leaves in the model's metadata, and the way back.

The note is JSON under the key `onnx_clip_pass` of `ModelProto.metadata_props`. It says what was
clipped, how and by which version, and names every node, initializer and declared value that was
added and every name that was changed. All these names are new to the model, so that undoing is
removing the ones and renaming the others, wherever in the model they stand. A digest over what
was added tells whether another tool has changed it since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Body, bodies_of, graphs_in, outermost, rename_in_attributes

__all__ = [
    "KEY",
    "Record",
    "digest_of",
    "read_record",
    "strip",
    "strip_if_clipped",
    "undo",
    "write_record",
]

KEY = "onnx_clip_pass"
_FORMATS = (1, 2)
"""Those that are read; the last is written."""


@dataclass(slots=True)
class Record:
    """What a rewrite did.

    `clips` has an entry for each gradient: its name, parameter, graph, clip and settings. `named`
    are the gradients that the caller named, with the parameters given for them; None if gradients
    were searched for.
    `renamed` maps each changed name to what it was; `nodes`, `initializers`, `values`, `inputs` and
    `outputs` are the names of what was added. `order` says of bodies (by their number in
    `bodies_of` the model before) whose nodes had to move in which runs (first, count) of their old
    numbers they stand now. `emitted` has the output, the quantity, the gradients and the group of
    each output that hands out a measure.

    `answers` are the gradients that slopes of the loss decided for, by parameter; `optimizer_ops`
    the operators that the caller knew, with the inputs that are the parameter and its gradient;
    `uncovered` has the trained parameters that are not clipped since their gradient is not known:
    their names, new values, candidates and reasons. These three are new in format 2.
    """

    version: str
    clips: list[dict[str, Any]]
    named: dict[str, str | None] | None = None
    norm_precision: str = "plain"
    nonfinite: str = "propagate"
    renamed: dict[str, str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    order: list[Any] = field(default_factory=list)
    loss_scale: float | str = 1.0
    emitted: list[Any] = field(default_factory=list)
    measures_only: bool = False
    digest: str = ""
    format: int = _FORMATS[-1]
    answers: dict[str, str] = field(default_factory=dict)
    optimizer_ops: dict[str, Any] = field(default_factory=dict)
    uncovered: list[dict[str, Any]] = field(default_factory=list)


def write_record(model: ModelProto, record: Record) -> None:
    """Leave the record in the model."""
    fields = {name: getattr(record, name) for name in Record.__slots__}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    model.metadata_props.add(key=KEY, value=text)


def read_record(model: ModelProto) -> Record | None:
    """The record in a model; None if it has none.

    Raises:
        OnnxClipError: the metadata entry is there and is no record of a known format.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        return None
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
        record = Record(**fields)
        names = [*record.nodes, *record.initializers, *record.values]
        names += [*record.inputs, *record.outputs]
        if record.format not in _FORMATS or not all(
            isinstance(name, str) for name in (*names, *record.renamed, *record.renamed.values())
        ):
            raise ValueError(f"format {record.format!r}")
        words = (record.version, record.norm_precision, record.nonfinite, record.digest)
        if not all(isinstance(word, str) for word in words):
            raise ValueError("words that are no strings")
        if not all(isinstance(clip, dict) for clip in record.clips):
            raise ValueError("clips that are no objects")
        named = record.named or {}
        if not all(isinstance(word, str | None) for word in (*named, *named.values())):
            raise ValueError("gradients that are no names")
        if not all(isinstance(w, str) for w in (*record.answers, *record.answers.values())):
            raise ValueError("answers that are no names")
        for slots in record.optimizer_ops.values():
            if len(slots) != 2 or not all(type(slot) is int and slot >= 0 for slot in slots):
                raise ValueError("inputs of an optimizer that are none")
        if not all(isinstance(entry, dict) for entry in record.uncovered):
            raise ValueError("uncovered parameters that are no objects")
        for body, runs in record.order:
            if not all(
                type(n) is int and n >= 0 for n in (body, *(n for run in runs for n in run))
            ):
                raise ValueError("an order that is none")
        for output, quantity, gradients, group in record.emitted:
            if not all(isinstance(word, str) for word in (output, quantity, group, *gradients)):
                raise ValueError("outputs that are none")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OnnxClipError(
            f"the metadata entry {KEY!r} is no record that this version can read ({error}); "
            f"remove the entry if another tool wrote it, else use the version that wrote it"
        ) from error
    return record


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
    if not undo(original):
        raise OnnxClipError(
            "expected a model that onnx-clip has rewritten, but its metadata has no entry "
            f"{KEY!r}; there is nothing to undo"
        )
    return original


def strip_if_clipped(model: ModelProto) -> ModelProto:
    """The model before any rewrite: itself if it bears no record."""
    return model if read_record(model) is None else strip(model)


def undo(model: ModelProto) -> bool:
    """Undo a rewrite in place; False if there is none."""
    record = read_record(model)
    if record is None:
        return False
    if digest_of(_added_to(model, record)) != record.digest or _is_read_by_others(model, record):
        raise OnnxClipError(
            "the nodes that onnx-clip added to this model have been changed, renamed, removed or "
            "joined with others by another tool since, so they cannot be undone; start from the "
            "original model"
        )
    nodes, initializers = set(record.nodes), set(record.initializers)
    order = dict(record.order)
    bodies: list[tuple[Body, list[NodeProto]]] = []
    todo = outermost(model)
    for number, body in enumerate(todo):  # grows while it is read
        bodies.append((body, _nodes_before(body, nodes, order.get(number))))
        todo += [graph for node in bodies[-1][1] for _, graph in graphs_in(node)]
    made = {name for body, _ in bodies for n in body.node if n.name in nodes for name in n.output}
    # other tools declare more than we did
    values = {*record.values, *initializers, *made} - {*record.renamed.values()}
    for body, before in reversed(bodies):  # nested ones first: putting nodes back copies them
        if len(before) < len(body.node):
            del body.node[:]
            body.node.extend(before)
        _remove(getattr(body, "value_info", ()), values)
        if isinstance(body, GraphProto):
            for at in range(len(body.initializer) - 1, -1, -1):  # one by one: weights stay put
                if body.initializer[at].name in initializers:
                    del body.initializer[at]
        _rename_back(body, record.renamed)
    _remove(model.graph.input, set(record.inputs))
    _remove(model.graph.output, set(record.outputs))
    for at, entry in enumerate(model.metadata_props):
        if entry.key == KEY:
            del model.metadata_props[at]
            break
    return True


def _nodes_before(body: Body, names: set[str], runs: Any) -> list[NodeProto]:
    """The nodes but those of these names, in the order that they had.

    If another tool has added nodes or taken some away, they stay in the order in which they are.
    """
    kept = [node for node in body.node if node.name not in names]
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


def _rename_back(body: Body, names: dict[str, str]) -> None:
    for node in body.node:
        for ports in (node.input, node.output):
            for slot, name in enumerate(ports):
                if name in names:
                    ports[slot] = names[name]
        if node.op_type == "Gradient":
            for new, old in names.items():
                rename_in_attributes(node, new, old)
    if isinstance(body, FunctionProto):
        for slot, name in enumerate(body.output):
            if name in names:
                body.output[slot] = names[name]
        return
    for value in body.output:
        if value.name in names:
            value.name = names[value.name]
    for tensor in body.initializer:
        if tensor.name in names:
            tensor.name = names[tensor.name]


def digest_of(added: Iterable[NodeProto | TensorProto]) -> str:
    """A digest of added nodes and initializers, in whatever order they come."""
    digest = hashlib.sha256()
    for message in sorted(added, key=lambda message: message.name):
        data = message.SerializeToString(deterministic=True)
        digest.update(b"%d:%b" % (len(data), data))
    return digest.hexdigest()


def _added_to(model: ModelProto, record: Record) -> Iterator[NodeProto | TensorProto]:
    """What the model still has of the nodes and initializers that the record names."""
    nodes, initializers = set(record.nodes), set(record.initializers)
    for body in bodies_of(model):
        yield from (node for node in body.node if node.name in nodes)
        if isinstance(body, GraphProto):
            yield from (tensor for tensor in body.initializer if tensor.name in initializers)


def _is_read_by_others(model: ModelProto, record: Record) -> bool:
    """Return whether a node that was not added, or an output, takes what undoing would remove."""
    nodes = set(record.nodes)
    removed, handed_out = set(record.initializers), set(record.outputs)
    read: set[str] = set()
    for body in bodies_of(model, but_in=nodes):  # what is in an added node goes with it
        for node in body.node:
            if node.name in nodes:
                removed.update(node.output)
            else:
                read.update(node.input)
        if isinstance(body, GraphProto):
            read.update(value.name for value in body.output if value.name not in handed_out)
        else:
            read.update(body.output)
    kept = {*record.renamed, *record.renamed.values()}
    return not read.isdisjoint(removed - kept)
