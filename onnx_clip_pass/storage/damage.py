"""Tensors whose elements do not fit what the tensor says of itself.

The payload of a large tensor goes from file to file unread, and who wrote what cannot be read has
written a broken model. So its size is held against dims and dtype; only where numbers have no fixed
length are they looked at, to count them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
from onnx import TensorProto, helper

from onnx_clip_pass.storage.wire import Bytes, Field

__all__ = ["RAW", "amount", "fault_of", "fault_of_small"]

RAW = TensorProto.RAW_DATA_FIELD_NUMBER
_FIXED = {TensorProto.FLOAT_DATA_FIELD_NUMBER: 4, TensorProto.DOUBLE_DATA_FIELD_NUMBER: 8}
_VARIABLE = frozenset({
    TensorProto.INT32_DATA_FIELD_NUMBER,
    TensorProto.INT64_DATA_FIELD_NUMBER,
    TensorProto.UINT64_DATA_FIELD_NUMBER,
})  # fmt: skip
_LONGEST = 10  # bytes of a number of variable length
_WINDOW = 1 << 20
_COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_BITS |= {"FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
"""Of an element, where a byte is shared; not every version of onnx knows all these dtypes."""
_NAMES = {field.number: field.name for field in TensorProto.DESCRIPTOR.fields}


def amount(source: Bytes, each: Field) -> int | None:
    """The number of elements in a field of a tensor, or of bytes if it is `raw_data`.

    None if they are cut off: what follows could not be parsed.
    """
    size = each.end - each.value
    if each.number == RAW:
        return size
    if not each.is_length_delimited or each.number not in {*_FIXED, *_VARIABLE}:
        return 1
    if each.number in _FIXED:
        count, rest = divmod(size, _FIXED[each.number])
        return None if rest else count
    return _count_numbers(source, each.value, each.end)


def _count_numbers(source: Bytes, start: int, end: int) -> int | None:
    """The number of integers of variable length there; the last byte of each is below 128."""
    found, last = 0, start - 1
    for at in range(start, end, _WINDOW):
        window = np.frombuffer(source.at(at, min(at + _WINDOW, end)), np.uint8)
        ends = np.flatnonzero(window < 128) + at
        if len(ends):
            if np.diff(ends, prepend=last).max() > _LONGEST:
                return None
            found, last = found + len(ends), int(ends[-1])
    return found if last == end - 1 else None


def fault_of(tensor: TensorProto, amounts: Mapping[int, int]) -> str:
    """The reason why a tensor cannot hold so much; "" if it can.

    Args:
        tensor: the tensor, whose elements may be missing.
        amounts: what its fields hold, see `amount`; no field that is empty.
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("segment"):
        return ""
    known = _layout(tensor.data_type)
    if known is None or not amounts:  # weights may lie elsewhere, and come later
        return ""
    number, bits = known
    if any(size < 0 for size in tensor.dims):
        return f"has the dims {list(tensor.dims)}"
    count = math.prod(tensor.dims)
    packed = -(-count * bits // 8)  # in bytes, the last of them perhaps not full
    in_field = count * (2 if tensor.data_type in _COMPLEX else 1)
    if len(amounts) == 1:
        (field, found) = next(iter(amounts.items()))
        if field == RAW and found == packed and tensor.data_type != TensorProto.STRING:
            return ""
        if field == number and (found == in_field or (bits < 8 and found == packed)):
            return ""
    there = " and ".join(f"{found:,} in {_NAMES[field]}" for field, found in amounts.items())
    dtype = TensorProto.DataType.Name(tensor.data_type).lower()
    return (
        f"has dims {list(tensor.dims)} and dtype {dtype}, which take {packed:,} bytes in raw_data "
        f"or {in_field:,} numbers in {_NAMES[number]}, but has {there}"
    )


@cache
def _layout(dtype: int) -> tuple[int, int] | None:
    """The field for elements of this dtype, and their bits; None for one of a later version."""
    try:
        own = helper.tensor_dtype_to_field(dtype)
        bits = _BITS.get(TensorProto.DataType.Name(dtype))
        bits = bits or 8 * helper.tensor_dtype_to_np_dtype(dtype).itemsize
    except (KeyError, TypeError, ValueError):
        return None
    return TensorProto.DESCRIPTOR.fields_by_name[own].number, bits


def fault_of_small(tensors: Iterable[TensorProto]) -> tuple[str, str] | None:
    """The name of the first of these tensors that holds elements which do not fit it, and why."""
    for tensor in tensors:
        amounts = {}
        if tensor.raw_data:
            amounts[RAW] = len(tensor.raw_data)
        for number in (*_FIXED, *_VARIABLE, TensorProto.STRING_DATA_FIELD_NUMBER):
            if count := len(getattr(tensor, _NAMES[number])):
                amounts[number] = count
        if amounts and (fault := fault_of(tensor, amounts)):
            return tensor.name, fault
    return None
