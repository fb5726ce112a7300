"""The largest and the least of numbers, as nodes: of none too, and of nan."""

from __future__ import annotations

from onnx_clip_pass.clips.tape import ALL, Over, Tape, Tensor

__all__ = ["emit_largest", "emit_least", "emit_maximum"]


def emit_largest(
    to: Tape, sizes: Tensor, over: Over, *, signed: Tensor | None = None, result: str
) -> Tensor:
    """The largest of numbers that are not negative: 0 if there is none, nan if one of them is.

    ReduceMax of ONNX Runtime's CPU provider ignores nan, and gives -inf for nothing; a sum, Min
    and Max do not. `signed` are the same numbers before their Abs, where there was one.
    """
    largest = emit_maximum(to, sizes, over, result="largest")
    length = to.reduce("ReduceL1", signed or sizes, over, result="length")
    guard = to.op("Min", length, 0.0, result="zero or nan")
    return to.op("Max", largest, guard, result=result)


def emit_maximum(to: Tape, x: Tensor, over: Over, *, result: str) -> Tensor:
    """The largest of numbers, where none is nan; -inf if there is none.

    ONNX Runtime 1.20 refuses a ReduceMax of nothing, and not a ReduceMin.
    """
    if x.shape is not None and all(isinstance(d, int) and d > 0 for d in x.shape):
        return to.reduce("ReduceMax", x, over, result=result)
    negative = to.op("Neg", x, result="negative")
    return to.op("Neg", to.reduce("ReduceMin", negative, over, result="least"), result=result)


def emit_least(to: Tape, scales: Tensor, *, result: str) -> Tensor:
    """The least of all numbers, none of which is above 1: 1 if there is none, nan if one is.

    Guarded as `emit_largest` is.
    """
    least = to.reduce("ReduceMin", scales, ALL, result="least")
    length = to.reduce("ReduceL1", scales, ALL, result="length")
    guard = to.op("Max", length, 1.0, result="one or more, or nan")
    return to.op("Min", least, guard, result=result)
