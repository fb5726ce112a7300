"""Whether what a norm was taken of is finite, for the policies zero and keep."""

from __future__ import annotations

import math

from onnx import TensorProto

from onnx_clip_pass.clips.emitter import Emitter, Quantity
from onnx_clip_pass.clips.norms import Norm
from onnx_clip_pass.graph import Shape

__all__ = ["emit_judged", "emit_nothing", "emit_verdict"]

_BOOL = int(TensorProto.BOOL)


def emit_verdict(to: Emitter, norm: Norm, x: str, work: int) -> Quantity | None:
    """Whether not all elements are finite, as a bool for each norm; None if nobody asks.

    The norm tells if it cannot overflow. That of float64 elements may, but that of 0 * x is 0, or
    nan.
    """
    if to.numerics.nonfinite == "propagate":
        return None
    name, dtype, limit = norm.name, norm.dtype, math.inf
    if not norm.is_finite:
        name, dtype, limit = emit_nothing(to, norm, x, work), work, 1.0
    return emit_judged(to, name, limit, dtype=dtype, shape=norm.shape)


def emit_judged(
    to: Emitter, name: str, limit: float, *, dtype: int, shape: Shape | None
) -> Quantity:
    """Whether a number is not below the limit: nan is not.

    What is not finite is asked for, and what is not zero must stand last in a Where: of its
    choices, ONNX Runtime's CPU provider takes the last where the first is -0.0, or not chosen.
    """
    sides = [name, to.constant(limit, dtype)]
    less = to.node("Less", sides, result="finite", dtype=_BOOL, shape=shape, takes=dtype)
    name = to.node("Not", [less], result="not finite", dtype=_BOOL, shape=shape)
    return Quantity(name, _BOOL, shape)


def emit_nothing(to: Emitter, norm: Norm, x: str, work: int) -> str:
    """In the shape of the norm of `x`: 0, or nan where some of its elements are not finite."""
    zeros = [x, to.constant(0.0, work)]
    nothing = to.node("Mul", zeros, result="nothing", dtype=work, shape=to.gradient.shape)
    if norm.axes == ():
        return nothing
    axes = None if norm.axes is None else list(norm.axes)
    keepdims = int(norm.keepdims)
    return to.reduce(
        "ReduceL2", nothing, axes, result="zero", dtype=work, shape=norm.shape, keepdims=keepdims
    )
