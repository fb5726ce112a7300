"""The largest and the least of numbers, as nodes: of none too, and of nan."""

from __future__ import annotations

from typing import Any

from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.graph import Shape

__all__ = ["emit_largest", "emit_least", "emit_maximum"]


def emit_largest(
    to: Emitter,
    sizes: str,
    axes: list[int] | None,
    *,
    signed: str = "",
    result: str,
    dtype: int,
    full: Shape | None,
    shape: Shape | None,
    keepdims: int,
) -> str:
    """The largest of numbers that are not negative: 0 if there is none, nan if one of them is.

    ReduceMax of ONNX Runtime's CPU provider passes over nan, and gives -inf for nothing; a sum, Min
    and Max do not. `signed` are the same numbers before their Abs, where there was one; `full` is
    their shape and `shape` that of the result.
    """
    kind: dict[str, Any] = {"dtype": dtype, "shape": shape}
    largest = emit_maximum(to, sizes, axes, result="largest", full=full, keepdims=keepdims, **kind)
    length = to.reduce(
        "ReduceL1", signed or sizes, axes, result="length", keepdims=keepdims, **kind
    )
    zero = to.constant(0.0, dtype)
    guard = to.node("Min", [length, zero], result="zero or nan", dtype=dtype, shape=shape)
    return to.node("Max", [largest, guard], result=result, dtype=dtype, shape=shape)


def emit_maximum(
    to: Emitter,
    x: str,
    axes: list[int] | None,
    *,
    result: str,
    dtype: int,
    full: Shape | None,
    shape: Shape | None,
    keepdims: int,
) -> str:
    """The largest of numbers, where none is nan; -inf if there is none.

    ONNX Runtime 1.20 refuses a ReduceMax of nothing, and not a ReduceMin.
    """
    kind: dict[str, Any] = {"dtype": dtype}
    if full is not None and all(isinstance(d, int) and d > 0 for d in full):
        return to.reduce(
            "ReduceMax", x, axes, result=result, shape=shape, keepdims=keepdims, **kind
        )
    negative = to.node("Neg", [x], result="negative", shape=full, **kind)
    least = to.reduce(
        "ReduceMin", negative, axes, result="least", shape=shape, keepdims=keepdims, **kind
    )
    return to.node("Neg", [least], result=result, shape=shape, **kind)


def emit_least(to: Emitter, scales: str, *, result: str, dtype: int) -> str:
    """The least of all numbers, none of which is above 1: 1 if there is none, nan if one is.

    Guarded as `emit_largest` is.
    """
    kind: dict[str, Any] = {"dtype": dtype, "shape": ()}
    least = to.reduce("ReduceMin", scales, None, result="least", keepdims=0, **kind)
    length = to.reduce("ReduceL1", scales, None, result="length", keepdims=0, **kind)
    sides = [length, to.constant(1.0, dtype)]
    guard = to.node("Max", sides, result="one or more, or nan", **kind)
    return to.node("Min", [least, guard], result=result, **kind)
