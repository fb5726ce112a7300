"""The wire format: borders of fields, and the table of where tensors can be."""

from __future__ import annotations

import onnx
import pytest
from bytewise import sub, varint

from onnx_clip_pass.storage.source import Memory
from onnx_clip_pass.storage.wire import PAYLOAD, SUBMESSAGES, MalformedError, encode_varint, fields


def spans(data: bytes) -> list[tuple[int, int, int]]:
    return [(each.number, each.value, each.end) for each in fields(Memory(data), 0, len(data))]


def test_the_table_has_every_way_to_a_tensor_that_onnx_defines():
    messages = {}
    todo = [onnx.ModelProto.DESCRIPTOR]
    for message in todo:
        if message.name not in messages:
            inner = [field for field in message.fields if field.message_type]
            messages[message.name] = {field.number: field.message_type.name for field in inner}
            todo += [field.message_type for field in inner]
    reaching = {"TensorProto"}
    for _ in messages:
        reaching |= {name for name, inner in messages.items() if set(inner.values()) & reaching}
    assert {
        name: {number: kind for number, kind in messages[name].items() if kind in reaching}
        for name in reaching - {"TensorProto"}
    } == SUBMESSAGES


def test_the_fields_of_elements_are_those_of_onnx():
    names = {field.name: field.number for field in onnx.TensorProto.DESCRIPTOR.fields}
    elements = {number for name, number in names.items() if name.endswith("_data")}
    assert elements - {names["external_data"]} == PAYLOAD


@pytest.mark.parametrize("number", [0, 127, 128, 300, 2**31, 2**64 - 1])
def test_a_number_is_encoded_in_base_128(number: int):
    assert encode_varint(number) == varint(number)


def test_each_wire_type_ends_where_it_should():
    fixed64, string, fixed32 = b"\x11" + 8 * b"a", sub(3, b"abc"), b"\x25" + 4 * b"a"
    assert spans(b"\x08\x96\x01" + fixed64 + string + fixed32) == [
        (1, 1, 3),
        (2, 4, 12),
        (3, 14, 17),
        (4, 18, 22),
    ]


def test_a_group_with_a_group_in_it_is_one_field():
    inner = b"\x13" + sub(1, b"ab") + b"\x14"  # group 2
    outer = b"\x0b" + inner + b"\x08\x01" + b"\x0c"  # group 1
    assert spans(outer) == [(1, 1, len(outer))]


def test_a_length_in_more_bytes_than_it_needs_is_read():
    assert spans(b"\x0a\x83\x80\x00abc") == [(1, 4, 7)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a\x05abc", "claims 5 bytes at byte 2, where 3 are left"),
        (b"\x0a" + varint(2**31), "claims 2147483648 bytes"),
        (b"\x0a" + 12 * b"\xff", "varint without an end at byte 1"),
        (b"\xff", "varint without an end at byte 0"),
        (b"\x02\x00", "field number 0"),
        (b"\x0e", "wire type 6"),
        (b"\x0c", "wire type 4"),
        (b"\x0b\x08\x01", "group without an end"),
        (b"\x0b\x14", "group without an end"),
        (10_000 * b"\x0b" + 10_000 * b"\x0c", "groups nested more than 100 deep"),
    ],
    ids=["too long", "2 GB", "varint", "cut", "number 0", "type 6", "end", "open", "other", "deep"],
)
def test_bytes_that_are_no_message_are_refused_with_place_and_reason(data: bytes, reason: str):
    with pytest.raises(MalformedError, match=reason):
        spans(data)
