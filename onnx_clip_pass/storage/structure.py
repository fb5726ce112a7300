"""A model without the elements of its large tensors, and the way back to whole bytes.

Reading copies a file's bytes but for the payload of large tensors (initializers, but also tensors
in attributes, functions and `training_info`) and lets protobuf parse the rest. A tensor whose
payload is left out carries a *placeholder* instead: an unknown field with a token that is drawn
anew for each file, which stays with the message wherever it is copied. Names, dims and dtypes are
all there.

Writing serializes the structure and walks it once more: where a placeholder is found, the tensor's
record comes from the source file again. If nothing in the tensor has changed, that is the record as
it stood, byte for byte; else its changed fields and the old payload.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.damage import amount, fault_of, fault_of_small
from onnx_clip_pass.storage.messages import check_messages
from onnx_clip_pass.storage.source import Memory, Source
from onnx_clip_pass.storage.texts import explained
from onnx_clip_pass.storage.wire import (
    MERGING,
    MODEL,
    ONE_TENSOR,
    PAYLOAD,
    SUBMESSAGES,
    TENSOR,
    Field,
    MalformedError,
    fields,
    length_delimited,
)
from onnx_clip_pass.validity import blaming

__all__ = ["Piece", "Structure", "open_model", "read_structure"]

_LARGE = 1 << 9
"""Bytes from which a tensor's payload is left out. Shapes, axes and scalars are below."""
_BEGIN = 1 << 10  # bytes that tell a text
_PLACEHOLDER = (1 << 29) - 1  # the highest field number that there is
_MAX_STRUCTURE = 1 << 28
_MAX_DEPTH = 100

Piece = bytes | tuple[int, int]
"""Bytes as they are, or a range (start, end) of the source file."""


class DamagedError(Exception):
    """A tensor that does not fit what the file says of it; the text says which, and why."""


@dataclass(slots=True)
class _Tensor:
    """A tensor in the source: its record, the fields that are payload, and the rest of it."""

    start: int
    end: int
    payload: list[tuple[int, int]]
    rest: bytes


@dataclass(slots=True)
class Structure:
    """A parsed model whose large tensors have placeholders for payloads."""

    model: ModelProto
    source: Source
    may_have_external_data: bool
    _token: bytes
    _tensors: list[_Tensor] = field(default_factory=list)

    def pieces(self) -> list[Piece]:
        """The whole model again, as it now is, to be written in this order."""
        data = self.model.SerializeToString()
        placeholders = _positions(data, self._token)
        if not placeholders:
            return [data]
        pieces, _ = self._fill(data, MODEL, 0, len(data), placeholders)
        return _joined(pieces)

    def to_bytes(self) -> bytes:
        """The same in memory; the source is open."""
        return b"".join(
            piece if isinstance(piece, bytes) else self.source.at(*piece) for piece in self.pieces()
        )

    def _fill(
        self, data: bytes, kind: str, start: int, end: int, placeholders: list[int]
    ) -> tuple[list[Piece], int]:
        """The pieces of one message, and how many bytes they are."""
        pieces: list[Piece] = []
        length = 0
        done = start
        for each in fields(Memory(data), start, end):
            inner_kind = SUBMESSAGES.get(kind, {}).get(each.number)
            first = bisect_left(placeholders, each.value)
            if inner_kind is None or first == len(placeholders) or placeholders[first] >= each.end:
                continue
            if inner_kind == TENSOR:
                inner, inner_length = self._restore(data, each.value, each.end)
            else:
                inner, inner_length = self._fill(
                    data, inner_kind, each.value, each.end, placeholders
                )
            head = length_delimited(each.number, inner_length)
            pieces += [data[done : each.start], head, *inner]
            length += each.start - done + len(head) + inner_length
            done = each.end
        pieces.append(data[done:end])
        return pieces, length + end - done

    def _restore(self, data: bytes, start: int, end: int) -> tuple[list[Piece], int]:
        omitted = []  # several where protobuf has merged the records of one attribute
        rest = []
        for each in fields(Memory(data), start, end):
            content = data[each.value : each.end]
            if each.number == _PLACEHOLDER and content.startswith(self._token):
                index = int.from_bytes(content[len(self._token) :], "little")
                omitted.append(self._tensors[index])
            else:
                rest.append(data[each.start : each.end])
        now = b"".join(rest)
        if len(omitted) == 1 and now == omitted[0].rest:
            return [(omitted[0].start, omitted[0].end)], omitted[0].end - omitted[0].start
        payload = [span for tensor in omitted for span in tensor.payload]
        return [now, *payload], len(now) + sum(stop - begin for begin, stop in payload)


@contextmanager
def open_model(path: Path) -> Iterator[Structure]:
    """A model file, open for reading, and its structure.

    Raises:
        OnnxClipError: the file is missing, unreadable, a folder, in a text format, or no model.
    """
    with Source(path) as source:
        if source.is_folder:
            raise OnnxClipError(
                f"expected an .onnx file, but {str(path)!r} is a folder; pass the model in it "
                f"(of ONNX Runtime training artifacts: training_model.onnx)"
            )
        structure = read_structure(source)
        with blaming(lambda: read_structure(source).model, repr(str(path))):
            yield structure


def read_structure(source: Source) -> Structure:
    """Parse a model file without the payload of its large tensors.

    Raises:
        OnnxClipError: it is no ONNX model, is truncated, or too large without its weights.
    """
    name = repr(str(source.path))
    if source.size == 0:
        raise OnnxClipError(f"{name} is empty: expected an ONNX model")
    token = secrets.token_bytes(16)
    tensors: list[_Tensor] = []
    try:
        data = _strip_payloads(source, MODEL, 0, source.size, token, tensors, 0)
        check_messages(data, name)
        model = ModelProto.FromString(data)
        if small := fault_of_small(model.graph.initializer):
            raise DamagedError(f"tensor {small[0]!r} {small[1]}")
    except (MalformedError, DecodeError, RecursionError) as error:
        known = explained(source.path, source.at(0, _BEGIN))
        reason = known or f"{name} is no ONNX model, or it is truncated: {error}"
        raise OnnxClipError(reason) from error
    except DamagedError as error:
        raise OnnxClipError(f"{name} is damaged: {error}; nothing can read that") from error
    source.check_unchanged()
    if not model.HasField("graph"):
        known = explained(source.path, source.at(0, _BEGIN))
        raise OnnxClipError(known or f"{name} is no ONNX model: it has no graph")
    return Structure(model, source, b"location" in data, token, tensors)


def _strip_payloads(
    source: Source,
    kind: str,
    start: int,
    end: int,
    token: bytes,
    tensors: list[_Tensor],
    depth: int,
) -> bytes:
    """A message without the payload of the large tensors in it."""
    if depth > _MAX_DEPTH:
        raise MalformedError(f"messages nested more than {_MAX_DEPTH} deep at byte {start}")
    inner_kinds = SUBMESSAGES[kind]
    # A field that holds one tensor may come in several records, large and small, to be merged.
    at_least = 0 if kind in MERGING else _LARGE
    parts: list[bytes] = []
    done = start  # what lies before is in `parts`
    size = 0
    merged: dict[int, list[str]] = defaultdict(list)
    for each in fields(source, start, end, at_least=at_least):
        inner_kind = inner_kinds.get(each.number) if each.is_length_delimited else None
        if inner_kind is None:
            continue
        if inner_kind == TENSOR:
            is_part = kind in MERGING
            inner, fault = _with_placeholder(
                source, each.value, each.end, token, tensors, is_part=is_part
            )
            merged[each.number].append(fault)
        else:
            inner = _strip_payloads(
                source, inner_kind, each.value, each.end, token, tensors, depth + 1
            )
        size += each.start - done + len(inner)
        _check_size(size)
        parts += [source.at(done, each.start), length_delimited(each.number, len(inner)), inner]
        done = each.end
    for number, faults in merged.items():
        # Of several records of one tensor none need fit what the others say of it.
        if any(faults) and not (len(faults) > 1 and (kind, number) in ONE_TENSOR):
            raise DamagedError(next(filter(None, faults)))
    _check_size(size + end - done)
    parts.append(source.at(done, end))
    return b"".join(parts)


def _with_placeholder(
    source: Source, start: int, end: int, token: bytes, tensors: list[_Tensor], *, is_part: bool
) -> tuple[bytes, str]:
    """A tensor's fields but for its payload, and a placeholder for that; why they do not fit."""
    payload: list[tuple[int, int]] = []
    rest: list[bytes] = []
    amounts: Counter[int] = Counter()
    size = 0
    for each in fields(source, start, end):
        if each.number in PAYLOAD:
            amounts[each.number] += _amount(source, each)
            if payload and payload[-1][1] == each.start:
                payload[-1] = (payload[-1][0], each.end)
            else:
                payload.append((each.start, each.end))
        else:
            size += each.end - each.start
            _check_size(size)
            rest.append(source.at(each.start, each.end))
    # A long name or doc string does not make a tensor large: scalars keep their value, since the
    # finders read it. A small record is kept whole only if it is no part of a larger one.
    if not payload or (not is_part and sum(stop - at for at, stop in payload) < _LARGE):
        return source.at(start, end), ""
    # As protobuf will write these fields, to tell later whether they have been changed.
    tensor = onnx.TensorProto.FromString(b"".join(rest))
    canonical = tensor.SerializeToString()
    fault = fault_of(tensor, +amounts)
    content = token + encode_index(len(tensors))
    tensors.append(_Tensor(start, end, payload, canonical))
    omitted = canonical + length_delimited(_PLACEHOLDER, len(content)) + content
    return omitted, fault and f"tensor {tensor.name!r} {fault}"


def _amount(source: Source, each: Field) -> int:
    found = amount(source, each)
    if found is None:
        raise DamagedError(
            f"the elements of a tensor, {each.end - each.value:,} bytes at byte {each.value:,}, "
            f"end within a number"
        )
    return found


def encode_index(index: int) -> bytes:
    """A tensor's number behind the token of a placeholder."""
    return index.to_bytes(8, "little")


def _check_size(size: int) -> None:
    if size > _MAX_STRUCTURE:
        raise MalformedError(
            f"without its weights the model still has more than {_MAX_STRUCTURE >> 20} MiB"
        )


def _positions(data: bytes, token: bytes) -> list[int]:
    found = []
    at = data.find(token)
    while at >= 0:
        found.append(at)
        at = data.find(token, at + 1)
    return found


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same with neighbouring bytes, and neighbouring ranges, made one."""
    joined: list[Piece] = []
    buffer: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            buffer.append(piece)
            continue
        if any(buffer):
            joined.append(b"".join(buffer))
        elif joined and isinstance(joined[-1], tuple) and joined[-1][1] == piece[0]:
            piece = (joined.pop()[0], piece[1])
        buffer.clear()
        joined.append(piece)
    joined.append(b"".join(buffer))
    return joined
