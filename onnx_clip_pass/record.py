"""The note that a rewrite leaves in the model's metadata, and the way back.

The note is JSON under the key `onnx_clip_pass` of `ModelProto.metadata_props`. It says what was
clipped, how and by which version, and names every node, initializer and declared value that was
added and every name that was changed. All these names are new to the model, so that undoing is
removing the ones and renaming the others, wherever in the model they stand. A digest over what
was added, and over the note itself, tells whether another tool has changed either since.

Anyone can write a note and its digest, so nothing in it is trusted: its form is checked as a whole
(`Record` is the description of it), and undoing removes only what holds together as a rewrite
leaves it (`_forged`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict, get_type_hints

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.form import Count, FormError, read_json, reader_of
from onnx_clip_pass.graph import (
    Body,
    bodies_of,
    graphs_in,
    outermost,
    rename_in_attributes,
    take_back_imports,
)
from onnx_clip_pass.validity import blaming

__all__ = [
    "KEY",
    "OURS",
    "Record",
    "UncoveredEntry",
    "is_clipped",
    "read_record",
    "strip",
    "strip_if_clipped",
    "undo",
    "write_record",
]

KEY = "onnx_clip_pass"
OURS = "clip/"
"""How the names of nodes, constants and values begin that a rewrite adds."""
_FORMATS = (1, 2, 3)
"""Those that are read; the last is written."""
_SEALED = 3
"""The first format whose digest covers the record itself."""


_SINCE = "by another tool since, so they cannot be undone; start from the original model"


class _ClipEntry(TypedDict):
    """What every entry of `clips` has; its settings, which each clip names itself, stand beside."""

    gradient: str
    parameter: str
    graph: str
    clip: str


class _SteeredEntry(TypedDict, total=False):
    threshold_input: str


class UncoveredEntry(TypedDict):
    """A trained parameter that is not clipped since its gradient is not known."""

    parameter: str
    new: str
    formula: str
    candidates: list[str]
    why: str


@dataclass(slots=True)
class Record:
    """What a rewrite did; the types of the fields are the form that a record must have.

    `clips` has an entry for each gradient: its name, parameter, graph, clip and settings. `named`
    are the gradients that the caller named, with the parameters given for them; None if gradients
    were searched for.
    `renamed` maps each changed name to what it was; `nodes`, `initializers`, `values`, `inputs` and
    `outputs` are the names of what was added. `order` says of bodies (by their number in
    `bodies_of` the model before) whose nodes had to move in which runs (first, count) of their old
    numbers they stand now. `emitted` has the output, the quantity, the gradients and the group of
    each output that hands out a measure. `imports` says what was given an import of the default
    operator set: a function by domain, name and overload, or the model, as an empty list.

    `answers` are the gradients that slopes of the loss decided for, by parameter; `optimizer_ops`
    the operators that the caller knew, with the inputs that are the parameter and its gradient;
    `uncovered` has the trained parameters that are not clipped since their gradient is not known:
    their names, new values, candidates and reasons. These three are new in format 2; since format 3
    the digest covers the record.
    """

    version: str
    clips: list[Annotated[dict[str, Any], _ClipEntry, _SteeredEntry]]
    named: dict[str, str | None] | None = None
    norm_precision: str = "plain"
    nonfinite: str = "propagate"
    renamed: dict[str, str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    order: list[tuple[Count, list[tuple[Count, Count]]]] = field(default_factory=list)
    loss_scale: float | str = 1.0
    emitted: list[tuple[str, str, list[str], str]] = field(default_factory=list)
    measures_only: bool = False
    digest: str = ""
    format: Count = _FORMATS[-1]
    answers: dict[str, str] = field(default_factory=dict)
    optimizer_ops: dict[str, tuple[Count, Count]] = field(default_factory=dict)
    uncovered: list[UncoveredEntry] = field(default_factory=list)
    imports: list[list[str]] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """Return all of it by name, in the types of JSON; no imports if there are none."""
        found = {name: getattr(self, name) for name in Record.__slots__}
        if not self.imports:  # as it was written before there were any, and as the digest covers it
            del found["imports"]
        return found


def write_record(
    model: ModelProto, record: Record, added: Iterable[NodeProto | TensorProto]
) -> None:
    """Leave the record in the model, sealed by a digest.

    Args:
        model: what was rewritten.
        record: what was done.
        added: the nodes and initializers that were added.

    Raises:
        OnnxClipError: it would be none that can be read again.
    """
    record.digest = _digest_of(added, record)
    text = json.dumps(record.fields(), ensure_ascii=False, separators=(",", ":"))
    try:
        _parsed(text)
    except FormError as error:
        raise OnnxClipError(f"the note to leave in the model cannot be written: {error}") from error
    model.metadata_props.add(key=KEY, value=text)


def read_record(model: ModelProto) -> Record | None:
    """The record in a model; None if it has none.

    Raises:
        OnnxClipError: the metadata entry is there and is no record of a known format.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if not found:
        return None
    try:
        if len(found) > 1:
            raise FormError(f"there are {len(found)} such entries")
        return _parsed(found[0])
    except FormError as error:
        raise OnnxClipError(
            f"the metadata entry {KEY!r} is no record that this version can read ({error}); "
            f"remove the entry if another tool wrote it, else use the version that wrote it"
        ) from error


def is_clipped(model: ModelProto) -> bool:
    """Return whether a model bears a record.

    Raises:
        OnnxClipError: as `read_record` does.
    """
    return read_record(model) is not None


def _parsed(text: object) -> Record:
    """The record of a text.

    Raises:
        FormError: it is none.
    """
    fields = read_json(text)
    if not isinstance(fields, dict):
        raise FormError("no JSON object")
    form = get_type_hints(Record, include_extras=True)
    if fields.get("format", _SEALED) not in _FORMATS:
        raise FormError(f"format: {shown(fields['format'])}, and 1 to {_FORMATS[-1]} are known")
    if unknown := [name for name in fields if name not in form]:
        raise FormError(f"{shown(unknown[0])} is unknown")
    if missing := {"version", "clips"} - fields.keys():
        raise FormError(f"{min(missing)!r} is missing")
    found = {}
    for name, value in fields.items():
        try:
            found[name] = reader_of(form[name])(value)
        except FormError as error:
            raise error.inside(name) from None
    return Record(**found)


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
        is_undone = undo(original)
    if not is_undone:
        raise OnnxClipError(
            "expected a model that onnx-clip has rewritten, but its metadata has no entry "
            f"{KEY!r}; there is nothing to undo"
        )
    return original


def strip_if_clipped(model: ModelProto) -> ModelProto:
    """The model before any rewrite: itself if it bears no record."""
    return strip(model) if is_clipped(model) else model


def undo(model: ModelProto) -> bool:
    """Undo a rewrite in place; False if there is none."""
    record = read_record(model)
    if record is None:
        return False
    if _digest_of(_added_to(model, record), record) != record.digest:
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
    bodies: list[tuple[Body, list[NodeProto]]] = []
    todo = outermost(model)
    for number, body in enumerate(todo):  # grows while it is read
        bodies.append((body, _nodes_before(body, nodes, order.get(number))))
        todo += [graph for node in bodies[-1][1] for _, graph in graphs_in(node)]
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
    take_back_imports(model, {tuple(importer) for importer in record.imports})
    for at, entry in enumerate(model.metadata_props):
        if entry.key == KEY:
            del model.metadata_props[at]
            break
    return True


def _made_by(model: ModelProto, nodes: set[str]) -> set[str]:
    """The values that the nodes of these names make."""
    bodies = bodies_of(model, but_in=nodes)
    return {name for body in bodies for n in body.node if n.name in nodes for name in n.output}


def _forged(model: ModelProto, record: Record, made: set[str]) -> list[str]:
    """What the record says was added and cannot have been: the model's own, or made up.

    A digest proves nothing here, since whoever writes a record can write its digest as well.
    """
    steered = {entry.get("threshold_input") for entry in record.clips}
    measures = {output for output, *_ in record.emitted}
    results = {*made, *record.renamed}
    constants = {*record.initializers} - {*record.inputs}
    own = [
        *(("node", name) for name in record.nodes if not name.startswith(OURS)),
        *(("initializer", name) for name in constants if not name.startswith(OURS)),
        # an input has its default, and a clip that takes it
        *(("input", n) for n in record.inputs if n not in {*record.initializers} & steered),
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


def _digest_of(added: Iterable[NodeProto | TensorProto], record: Record) -> str:
    """A digest of added nodes and initializers, in whatever order they come, and of the record."""
    digest = hashlib.sha256()
    for message in sorted(added, key=lambda message: message.name):
        data = message.SerializeToString(deterministic=True)
        digest.update(b"%d:%b" % (len(data), data))
    if record.format >= _SEALED:
        fields = record.fields() | {"digest": ""}
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


def _added_to(model: ModelProto, record: Record) -> Iterator[NodeProto | TensorProto]:
    """What the model still has of the nodes and initializers that the record names."""
    nodes, initializers = set(record.nodes), set(record.initializers)
    for body in bodies_of(model):
        yield from (node for node in body.node if node.name in nodes)
        if isinstance(body, GraphProto):
            yield from (tensor for tensor in body.initializer if tensor.name in initializers)


def _is_read_by_others(model: ModelProto, record: Record, made: set[str]) -> bool:
    """Return whether a node that was not added, or an output, takes what undoing would remove."""
    nodes, handed_out = set(record.nodes), set(record.outputs)
    read: set[str] = set()
    for body in bodies_of(model, but_in=nodes):  # what is in an added node goes with it
        for node in body.node:
            if node.name not in nodes:
                read.update(node.input)
        if isinstance(body, GraphProto):
            read.update(value.name for value in body.output if value.name not in handed_out)
        else:
            read.update(body.output)
    kept = {*record.renamed, *record.renamed.values()}
    return not read.isdisjoint({*record.initializers, *made} - kept)
