"""The number of messages in bytes, counted before protobuf makes objects of them.

An empty node takes two bytes in a file and a hundred times as many in memory, with what is known of
it; so a model is bounded by its messages, and not by its bytes alone.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError

__all__ = ["check_messages"]

_WORDS = {
    "NodeProto": (750_000, "nodes"),
    "ValueInfoProto": (750_000, "declared values"),
    "FunctionProto": (20_000, "functions"),
    "TrainingInfoProto": (1_000, "algorithms in training_info"),
    "": (4_000_000, "messages of protobuf"),
}
_MOST = {name: most for name, (most, _) in _WORDS.items()}
_RARE = ("FunctionProto", "TrainingInfoProto")
_Kind = tuple[str, dict[int, "_Kind"]]
"""The name of a message, and the kinds of the fields that hold messages by their tags."""


def check_messages(data: bytes, name: str) -> None:
    """Refuse a model of more messages than any that is trained has.

    What is malformed is left to protobuf, which says why.

    Args:
        data: the model without its weights.
        name: of its file, for the error.

    Raises:
        OnnxClipError: it has too many; the text says how many there may be.
    """
    kind = _kind(ModelProto.DESCRIPTOR, {})
    if len(data) < 2 * _MOST["NodeProto"]:  # each takes two bytes or more
        few: dict[int, _Kind] = {
            tag: (inner, {}) for tag, (inner, _) in kind[1].items() if inner in _RARE
        }
        kind = (kind[0], few)
    left = Counter(_MOST)
    with suppress(IndexError):
        _count(data, kind, left)
    for what, count in left.items():
        if count < 0 and what in _WORDS:
            most, words = _WORDS[what]
            raise OnnxClipError(
                f"{name} holds more than {most:,} {words}: more than any model needs, and each "
                f"takes far more memory than bytes of the file"
            )


def _kind(descriptor: Any, known: dict[str, _Kind]) -> _Kind:
    if descriptor.full_name not in known:
        fields: dict[int, _Kind] = {}
        known[descriptor.full_name] = (descriptor.name, fields)
        for field in descriptor.fields:
            if field.message_type is not None:
                fields[field.number << 3 | 2] = _kind(field.message_type, known)
    return known[descriptor.full_name]


def _count(data: bytes, kind: _Kind, left: Counter[str]) -> None:
    """Take the messages from those that are left, until one kind is used up."""
    at, end, fields = 0, len(data), kind[1]
    around: list[tuple[int, dict[int, _Kind]]] = []
    while True:
        while at >= end:
            if not around:
                return
            end, fields = around.pop()
        tag = data[at]
        at += 1
        if tag > 127:
            tag, at = _varint(data, at - 1)
        wire_type = tag & 7
        if wire_type == 2:
            size = data[at]
            at += 1
            if size > 127:
                size, at = _varint(data, at - 1)
            if tag not in fields:
                at += size
                continue
            around.append((end, fields))
            name, fields = fields[tag]
            end = min(at + size, end)
            left[""] -= 1
            left[name] -= name in _MOST
            if left[""] < 0 or left[name] < 0:
                return
        elif wire_type == 0:
            while data[at] > 127:
                at += 1
            at += 1
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] > 127:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
    return value | data[at] << shift, at + 1
