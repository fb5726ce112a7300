"""Coefficients as numbers: each is evaluated at a few points, the unknown ones drawn at random.

Whether `b` and `1 - b`, or `n / (n + 1)` and `1 / (n + 1)`, add up to 1 is decided by what they
are, not by how they are spelt: identities of rational functions hold if they hold at random points
(Schwartz 1980, "Fast probabilistic algorithms for verification of polynomial identities").
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from onnx_clip_pass.gradients.ops import ALIASES, PHI
from onnx_clip_pass.gradients.values import Values, size_of

__all__ = ["POINTS", "Sample", "array_of", "is_one", "is_share", "sample_numbers"]

Sample = NDArray[np.float64]
"""A number at each of the points."""

POINTS = 6

_UNARY: dict[str, Callable[[Sample], Sample]] = {
    "Abs": np.abs, "Ceil": np.ceil, "Cos": np.cos, "Exp": np.exp, "Floor": np.floor, "Log": np.log,
    "Neg": np.negative, "Reciprocal": np.reciprocal, "Round": np.round, "Sign": np.sign,
    "Sin": np.sin, "Sqrt": np.sqrt, "Square": np.square, "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0), "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Not": lambda x: (x == 0).astype(np.float64),
}  # fmt: skip
_BINARY: dict[str, Callable[[Sample, Sample], Sample]] = {
    "Add": np.add, "Div": np.divide, "Max": np.maximum, "Min": np.minimum, "Mod": np.mod,
    "Mul": np.multiply, "Pow": np.power, "Sub": np.subtract, "Sum": np.add,
    "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor, "Equal": np.equal,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal,
}  # fmt: skip


def is_share(coefficient: Sample | None) -> bool:
    """Return whether a coefficient is a part of a whole, not all or nothing as in a choice."""
    return coefficient is not None and not bool(np.all(np.isin(coefficient, (0, 1))))


def sample_numbers(values: Values) -> list[Sample | None]:
    """Evaluate every value of one element; None stands for larger ones.

    A number that other operators compute, a norm say, is drawn at random as inputs are. A constant
    tensor that is filled with one number counts as that number.
    """
    found: list[Sample | None] = [None] * len(values)
    with np.errstate(all="ignore"):
        for vertex in range(1, len(values)):
            op = values.op[vertex]
            if op == "ConstantOfShape":
                found[vertex] = _filled(values.value[vertex].node)
            elif op == "Expand":
                found[vertex] = found[values.takes[vertex][0]]
            elif values.is_scalar_like(vertex):
                made = _made(values, vertex, op, found)
                is_finite = made is not None and bool(np.all(np.isfinite(made)))
                found[vertex] = made if is_finite else _drawn(values, vertex)
    return found


def array_of(values: Values, vertex: int, most: int) -> NDArray[Any] | None:
    """Return the elements of a constant initializer in one row; None if they are not available.

    Those of large ones are left in the model's file, and more than `most` are not looked at.
    """
    at = values.behind(vertex)
    tensor = values.value[at].frame.scope.initializers.get(values.name(at))
    if tensor is None or not values.is_constant(at) or tensor.external_data:
        return None
    if (values.size(at) or 0) > most:
        return None
    try:
        return numpy_helper.to_array(tensor).reshape(-1)
    except (KeyError, TypeError, ValueError):
        return None


def is_one(total: Sample | None) -> bool:
    """Return whether coefficients add up to 1; both are rounded to the model's dtype."""
    return total is not None and bool(np.all(np.abs(total - 1) < 1e-5))


def _made(values: Values, vertex: int, op: str, known: list[Sample | None]) -> Sample | None:
    takes = values.takes[vertex]
    if not op or op == "Constant":
        return _constant(values, vertex)
    operands = [known[each] if each else None for each in takes]
    if op in ALIASES:
        return operands[0] if operands else None
    if op in ("Where", PHI) and len(operands) == 3:
        condition, first, second = operands
        if condition is None or first is None or second is None:
            return None
        return np.where(condition != 0, first, second)
    if op in _UNARY and len(operands) == 1 and operands[0] is not None:
        return np.asarray(_UNARY[op](operands[0]), np.float64)
    if op in _BINARY and len(operands) > 1 and all(each is not None for each in operands):
        made = operands[0]
        for each in operands[1:]:
            assert made is not None
            assert each is not None
            made = np.asarray(_BINARY[op](made, each), np.float64)
        return made
    return None


def _constant(values: Values, vertex: int) -> Sample | None:
    frame, name = values.value[vertex]
    node = values.value[vertex].node
    if node is not None:
        for attr in node.attribute:
            if attr.name == "value":
                return _number(attr.t)
            if attr.name in ("value_float", "value_int"):
                return np.full(POINTS, float(attr.f if attr.name == "value_float" else attr.i))
        return None
    if not values.is_constant(vertex):
        return None
    return _number(frame.scope.initializers[name])


def _filled(node: NodeProto | None) -> Sample | None:
    for attr in () if node is None else node.attribute:
        if attr.name == "value":
            return _number(attr.t)
    return np.zeros(POINTS)


def _number(tensor: TensorProto) -> Sample | None:
    if size_of(tuple(tensor.dims)) != 1 or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        return np.full(POINTS, float(numpy_helper.to_array(tensor).reshape(())))
    except (KeyError, TypeError, ValueError):  # a dtype that onnx does not know
        return None


def _drawn(values: Values, vertex: int) -> Sample:
    """Numbers between 0 and 1, or flags of which some are set; alike in every process.

    They are small, so that a product of two, such as a rate and a decay, is little beside 1.
    """
    frame, name = values.value[vertex]
    seed = zlib.crc32(f"{frame.scope.path}\0{name}\0{vertex}".encode())
    rng = np.random.default_rng(seed)
    known = values.types[vertex]
    if known is not None and known.dtype == TensorProto.BOOL:
        flags = np.zeros(POINTS)
        flags[rng.permutation(POINTS)[: POINTS // 2]] = 1
        return flags
    return rng.uniform(0.05, 0.3, POINTS)
