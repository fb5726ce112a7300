"""Tests for elements that are not finite, for the policies zero and keep."""

from __future__ import annotations

from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.norms import Norm
from onnx_clip_pass.clips.parts import emit_total
from onnx_clip_pass.clips.tape import Tensor
from onnx_clip_pass.graph.spec import BOOL

__all__ = ["emit_judged", "emit_nothing", "emit_verdict"]


def emit_verdict(to: Emitter, norm: Norm, x: Tensor) -> Tensor | None:
    """A bool for each norm, true if not all its elements are finite; None if nobody asks.

    The norm tells if it cannot overflow. That of float64 elements may, but that of 0 * x is 0, or
    nan.
    """
    if to.numerics.nonfinite == "propagate":
        return None
    if norm.is_finite:
        return emit_judged(to, to.op("Mul", norm.value, 0.0, result="nothing"))
    nothing = emit_total(to, emit_nothing(to, norm, x), norm.over, "not finite")
    return emit_judged(to, nothing)


def emit_judged(to: Emitter, nothing: Tensor) -> Tensor:
    """A bool, true if what is 0 or nan, as 0 * x is, comes from an x that is not finite.

    What is not finite is asked for, and what is not zero must stand last in a Where: of its
    choices, ONNX Runtime's CPU provider takes the last where the first is -0.0, or not chosen. No
    Not makes the bool, since its optimizations would leave that out and exchange the choices.
    """
    return to.op("IsNaN", nothing, result="not finite", dtype=BOOL)


def emit_nothing(to: Emitter, norm: Norm, x: Tensor) -> Tensor:
    """In the shape of the norm of `x`: 0, or nan where some of its elements are not finite."""
    nothing = to.op("Mul", x, 0.0, result="nothing")
    if norm.over.axes == ():
        return nothing
    return to.reduce("ReduceL2", nothing, norm.over, result="zero")
