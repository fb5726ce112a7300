"""Comparing arrays, and how far apart they may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "allowed_ulps",
    "epsilon",
    "half_ulps",
    "is_half",
    "is_identical",
    "is_misrounded",
    "largest",
    "output_fault",
    "top",
    "ulps_apart",
    "wide",
]

Array = NDArray[Any]

_HALVES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}
_OWN_ROUNDING = 2.0
_OUTPUT_ROUNDING = 32.0
_SLACK = 4.0


def wide(array: Array) -> NDArray[np.float64]:
    """In float64."""
    return np.asarray(array, np.float64)


def is_identical(left: Array, right: Array) -> bool:
    """Same dtype, shape and bytes."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:  # strings
        return bool(np.array_equal(left, right))
    return bool(np.array_equal(_bytes(left), _bytes(right)))


def _bytes(array: Array) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def largest(array: Array) -> float:
    """The largest magnitude of what is finite, in float64; 0 if nothing is."""
    finite = wide(array)
    finite = finite[np.isfinite(finite)]
    return float(np.max(np.abs(finite), initial=0.0))


def top(array: Array) -> float:
    """The largest number that its dtype holds, or some smaller one for bfloat16."""
    if array.dtype == np.float16:
        return 65504.0
    return float(np.finfo(np.float64 if array.dtype == np.float64 else np.float32).max)


def ulps_apart(actual: Array, expected: Array) -> float:
    """The largest difference of two elements, in units in the last place of the expected one.

    Inf where shapes, dtypes, or the places of nan and inf differ.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return np.inf
    left, right = wide(actual), wide(expected)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return np.inf
    if not np.isfinite(left[finite]).all():
        return np.inf
    differences = np.abs(left[finite] - right[finite])
    return float(np.max(differences / _ulp(right[finite], str(expected.dtype)), initial=0.0))


def allowed_ulps(dtype: str, precision: float) -> float:
    """An error of the norm in ulps of the gradient's elements, and their own rounding.

    An ulp is between half an epsilon and an epsilon of its number, hence the 2.
    """
    return _OWN_ROUNDING + 2 * precision / epsilon(dtype)


def is_half(dtype: str) -> bool:
    """Return whether numbers of this dtype have half precision."""
    return dtype in _HALVES


def half_ulps(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """The distance that a number rounded to each of these, of half precision, may have had.

    As a part of the number it is no more than half an epsilon.
    """
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    return np.maximum(finite * _HALVES[dtype] / 2, _SMALLEST[dtype] / 2)


def is_misrounded(actual: Array, exact: NDArray[np.float64], precision: float) -> bool:
    """Return whether numbers are not those of their dtype that are next to the exact ones."""
    dtype = str(actual.dtype)
    if dtype == "float64" or actual.shape != exact.shape:
        return False
    left = wide(actual)
    taken = np.isfinite(left) & np.isfinite(exact)
    near = _ulp(exact[taken], dtype) / 2 + 2 * precision * np.abs(exact[taken])
    return bool(np.any(np.abs(left[taken] - exact[taken]) > near))


def _ulp(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    _, exponent = np.frexp(values)
    ulps: NDArray[np.float64] = np.ldexp(epsilon(dtype), exponent - 1)
    return np.maximum(ulps, _SMALLEST.get(dtype, 5e-324))


def epsilon(dtype: str) -> float:
    """The distance from 1 to the next number of that dtype."""
    return _HALVES[dtype] if dtype in _HALVES else float(np.finfo(dtype).eps)


def output_fault(actual: Array, expected: Array, moves: Iterable[Array]) -> str:
    """Return why an output behind a clip is not what it should be; empty if it is.

    What may differ is measured: `moves` are the output when every clipped gradient is moved within
    its own tolerance. 32 units of rounding of the largest element, and four times the largest
    change, may differ. No more of the moves are taken than it needs.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return (
            f"expected {expected.dtype} {list(expected.shape)}, but it is {actual.dtype} "
            f"{list(actual.shape)}"
        )
    if not _is_floating(expected):
        is_right = is_identical(actual, expected)
        is_right = is_right or any(not is_identical(moved, expected) for moved in moves)
        return "" if is_right else "its elements differ"
    left, right = wide(actual), wide(expected)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return "nan or inf at other indices"
    error = float(np.max(np.abs(left[finite] - right[finite]), initial=0.0))
    allowed = rounding = _OUTPUT_ROUNDING * epsilon(str(expected.dtype)) * largest(right)
    if error <= allowed:
        return ""
    for moved in moves:
        change = np.inf
        if moved.shape == expected.shape:
            change = largest(wide(moved)[finite] - right[finite])
        allowed = max(allowed, rounding + _SLACK * change)
        if error <= allowed:
            return ""
    return f"off by {error:.3g}, where {allowed:.3g} is allowed"


def _is_floating(array: Array) -> bool:
    return str(array.dtype) in _HALVES or np.issubdtype(array.dtype, np.floating)
