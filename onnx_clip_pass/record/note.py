"""The note in the model's metadata: writing and reading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import get_type_hints

from onnx import ModelProto, NodeProto, TensorProto

from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.form import FormError, read_json, reader_of
from onnx_clip_pass.record.entries import FORMATS, SEALED, Record

__all__ = [
    "KEY",
    "OURS",
    "digest_of",
    "is_clipped",
    "note_states",
    "read_record",
    "states_of",
    "write_record",
]

KEY = "onnx_clip_pass"
STATES = "onnx_clip_pass.states"
OURS = "clip/"
"""The beginning of the names of nodes, constants and values that a rewrite adds."""


def write_record(
    model: ModelProto,
    record: Record,
    nodes: Sequence[NodeProto] = (),
    initializers: Sequence[TensorProto] = (),
) -> None:
    """Leave the record in the model, sealed by a digest.

    Args:
        model: what was rewritten.
        record: what was done, but for the names of what was added.
        nodes: those that were added.
        initializers: those that were added.

    Raises:
        OnnxClipError: it would be none that can be read again.
    """
    record.nodes = [node.name for node in nodes]
    record.initializers = [tensor.name for tensor in initializers]
    record.digest = digest_of([*nodes, *initializers], record)
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


def note_states(model: ModelProto, states: Mapping[str, str]) -> None:
    """Say in a clip alone, which bears no record, which inputs and outputs are its states."""
    model.metadata_props.add(key=STATES, value=json.dumps(dict(states), ensure_ascii=False))


def states_of(model: ModelProto) -> dict[str, str]:
    """The inputs that are states of clips, each with the output that is its new value.

    Raises:
        OnnxClipError: the metadata entry is there and is none that onnx-clip wrote.
    """
    record = read_record(model)
    found = [entry.value for entry in model.metadata_props if entry.key == STATES]
    if record is not None or not found:
        return {} if record is None else record.states
    try:
        return dict(reader_of(dict[str, str])(read_json(found[0])))
    except FormError as error:
        raise OnnxClipError(
            f"the metadata entry {STATES!r} tells of no states ({error}); extract the clip again"
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
    if fields.get("format", SEALED) not in FORMATS:
        raise FormError(f"format: {shown(fields['format'])}, and 1 to {FORMATS[-1]} are known")
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


def digest_of(added: Iterable[NodeProto | TensorProto], record: Record) -> str:
    """A digest of added nodes and initializers, in whatever order they come, and of the record."""
    digest = hashlib.sha256()
    for message in sorted(added, key=lambda message: message.name):
        data = message.SerializeToString(deterministic=True)
        digest.update(b"%d:%b" % (len(data), data))
    if record.format >= SEALED:
        fields = record.fields() | {"digest": ""}
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()
