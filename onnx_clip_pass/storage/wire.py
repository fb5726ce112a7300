"""The protobuf wire format, as far as finding the borders of fields needs it.

A message is a sequence of fields: a tag (field number and wire type, as a varint), then the value.
Specified at https://protobuf.dev/programming-guides/encoding/; the field numbers of ONNX at
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. No other module knows either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

__all__ = [
    "MERGING",
    "MODEL",
    "ONE_TENSOR",
    "PAYLOAD",
    "SUBMESSAGES",
    "TENSOR",
    "Bytes",
    "Field",
    "MalformedError",
    "encode_varint",
    "fields",
    "length_delimited",
]

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5
_MAX_VARINT = 10
_MAX_GROUPS = 100
_WINDOW = 1 << 16

MODEL: Final = "ModelProto"
TENSOR: Final = "TensorProto"

SUBMESSAGES: Final[dict[str, dict[int, str]]] = {
    MODEL: {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR, 15: "SparseTensorProto"},
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: TENSOR,
        6: "GraphProto",
        10: TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
}
"""The fields through which a tensor can be reached, by message and field number."""

MERGING: Final = frozenset({"AttributeProto", "SparseTensorProto"})
"""The messages with a field that holds one tensor; elsewhere tensors are repeated."""

ONE_TENSOR: Final = frozenset({
    ("AttributeProto", 5), ("SparseTensorProto", 1), ("SparseTensorProto", 2),
})  # fmt: skip
"""These fields, by message and number: several records of one are merged into one tensor."""

PAYLOAD: Final = frozenset({4, 5, 6, 7, 9, 10, 11})
"""The fields of a TensorProto that hold its elements (`float_data` … `raw_data`)."""


class MalformedError(ValueError):
    """Bytes that are no protobuf message; the text says where and why."""


class Field(NamedTuple):
    """A field from `start` (its tag) over `value` (its content) to `end`."""

    number: int
    is_length_delimited: bool
    start: int
    value: int
    end: int


class Bytes(Protocol):
    """A source of bytes that are read by position: a file or memory."""

    def at(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; fewer where they are not there."""


def fields(source: Bytes, start: int, end: int, *, at_least: int = 0) -> Iterator[Field]:
    """The fields of the message that lies from `start` to `end`.

    Args:
        source: where the bytes are.
        start: where the message begins.
        end: where it ends.
        at_least: pass over fields whose content is shorter; they are checked all the same.

    Raises:
        MalformedError: a field goes beyond the end, or is none.
    """
    at = start
    window, window_at = b"", start
    while at < end:
        if at + 2 * _MAX_VARINT > window_at + len(window):
            window, window_at = source.at(at, min(at + _WINDOW, end)), at
        low = at - window_at
        tag, low = _varint(window, low, window_at)
        wire_type = tag & 7
        if wire_type == _LENGTH:
            length, low = _varint(window, low, window_at)
            value = window_at + low
            stop = value + length
        else:
            value = window_at + low
            stop = _end_of_value(source, tag, value, end, 0)
        if stop > end or tag < 8:
            raise MalformedError(
                f"a field claims {stop - value} bytes at byte {value}, where {end - value} are left"
                if stop > end
                else f"field number 0 at byte {at}"
            )
        if stop - value >= at_least:
            yield Field(tag >> 3, wire_type == _LENGTH, at, value, stop)
        at = stop


def encode_varint(number: int) -> bytes:
    """A number in base 128, least significant group first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def length_delimited(number: int, length: int) -> bytes:
    """The header of `length` bytes of a string or submessage in field `number`."""
    return encode_varint(number << 3 | _LENGTH) + encode_varint(length)


def _end_of_value(source: Bytes, tag: int, value: int, end: int, depth: int) -> int:
    wire_type = tag & 7
    if wire_type == _FIXED64:
        return value + 8
    if wire_type == _FIXED32:
        return value + 4
    if wire_type == _GROUP:
        return _end_of_group(source, tag, value, end, depth + 1)
    if wire_type not in (_VARINT, _LENGTH):
        raise MalformedError(f"wire type {wire_type} at byte {value}")
    number, low = _varint(source.at(value, min(value + _MAX_VARINT, end)), 0, value)
    return value + low + (number if wire_type == _LENGTH else 0)


def _end_of_group(source: Bytes, opening: int, at: int, end: int, depth: int) -> int:
    if depth > _MAX_GROUPS:
        raise MalformedError(f"groups nested more than {_MAX_GROUPS} deep at byte {at}")
    while at < end:
        tag, low = _varint(source.at(at, min(at + _MAX_VARINT, end)), 0, at)
        at += low
        if tag & 7 == _END_GROUP:
            if tag >> 3 != opening >> 3:
                break
            return at
        at = _end_of_value(source, tag, at, end, depth)
    raise MalformedError(f"a group without an end at byte {at}")


def _varint(data: bytes, low: int, offset: int) -> tuple[int, int]:
    """The number at `low` of `data`, and where it ends; `offset` is where `data` lies."""
    number = 0
    for count, byte in enumerate(data[low : low + _MAX_VARINT]):
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, low + count + 1
    raise MalformedError(f"a varint without an end at byte {offset + low}")
