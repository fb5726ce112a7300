"""Models with something wrong in them that still are protobuf messages: a few fields are changed.

Bytes that are changed at random rarely get past the parser; these do, and reach what looks at
nodes, types and names. All is drawn from one number, so that a case can be made again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["changed"]

TEXTS = ["", "\0", "x" * 5000, "W", "clip/W_grad/raw", "ai.onnx", "W_grad", "é\u202e"]
BYTES = [b"", b"\xff\xfe", b"W", b"x" * 1000]
FLOATS = [0.0, float("nan"), float("inf"), -1e38]
SMALL = [-1, 0, 1, 7, 2**31 - 1, -(2**31)]
LARGE = [*SMALL, 2**63 - 1, -(2**63)]
ANY = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_DOUBLE: FLOATS,
    FieldDescriptor.TYPE_INT32: SMALL,
    FieldDescriptor.TYPE_UINT64: [0, 2**64 - 1],
}


def changed(model: Message, number: int) -> str:
    """Change a model by what this number stands for; what was done."""
    rng = random.Random(number)
    return ", ".join(
        _change(*rng.choice(list(_fields(model))), rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))
    )


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field of every message in this one, whether it is set or not."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            value = getattr(message, field.name)
            if not isinstance(value, Message):
                for each in value:
                    yield from _fields(each)
            elif message.HasField(field.name):
                yield from _fields(value)


def _change(message: Message, field: FieldDescriptor, rng: random.Random) -> str:
    name = f"{type(message).__name__}.{field.name}"
    value = getattr(message, field.name)
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if isinstance(value, Message):
        if message.HasField(field.name) and rng.random() < 0.7:
            message.ClearField(field.name)
            return f"{name} cleared"
        value.SetInParent()
        return f"{name} set"
    if isinstance(value, str | bytes | int | float):
        if rng.random() < 0.2:
            message.ClearField(field.name)
            return f"{name} cleared"
        setattr(message, field.name, new := rng.choice(_values(field)))
        return f"{name} = {new!r:.40}"
    return f"{name} {_change_list(value, field, rng, is_message=is_message)}"


def _change_list(
    value: Any, field: FieldDescriptor, rng: random.Random, *, is_message: bool
) -> str:
    items = (
        [type(each).FromString(each.SerializeToString()) for each in value]
        if is_message
        else [*value]
    )
    how = rng.choice(["emptied", "one doubled", "reversed", "one more", "one less"])
    if how == "one more":
        if is_message:
            value.add()
        else:
            value.append(rng.choice(_values(field)))
        return how
    if how == "one doubled" and items:
        items.append(rng.choice(items))
    elif how == "reversed":
        items.reverse()
    elif how == "one less" and items:
        del items[rng.randrange(len(items))]
    elif how == "emptied":
        items.clear()
    del value[:]
    value.extend(items)
    return how


def _values(field: FieldDescriptor) -> list[Any]:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return [each.number for each in field.enum_type.values]
    return ANY.get(field.type, LARGE)
