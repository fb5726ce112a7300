r"""The p-norm of a tensor, for any p > 0, as nodes and in float64.

.. math:: \lVert x \rVert_p = \Big(\sum_i |x_i|^p\Big)^{1/p}, \qquad
          \lVert x \rVert_\infty = \max_i |x_i|

The norm of a tensor is the norm of the norms of its rows, and that of several tensors the norm of
theirs; every form here rests on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.emitter import FIRST_BROADCASTING_MIN, Emitter
from onnx_clip_pass.clips.extremes import emit_largest
from onnx_clip_pass.clips.numerics import Reach, Reduction
from onnx_clip_pass.clips.parts import emit_share, emit_whole
from onnx_clip_pass.clips.tape import ALL, Over, Tensor
from onnx_clip_pass.graph import Shape
from onnx_clip_pass.graph.spec import DOUBLE, FLOAT

__all__ = [
    "Norm",
    "emit_norm",
    "emit_root",
    "emit_together",
    "norm_of",
    "norm_word",
]

_HIGHEST_HELD_POWER = 8  # of any float32 in float64
_LEAST_HELD_POWER = 1 / 16  # below, the norm of 2 ** 40 numbers may be beyond float64 itself
_FIRST_FUSED = 9  # ONNX Runtime makes one node of a MatMul and a Transpose before it
_SIDE_BY_SIDE = 16  # elements behind an axis, so that a ReduceSum over it is faster than a ReduceL2
_LIMITS: dict[int, np.finfo[Any]] = {
    DOUBLE: np.finfo(np.float64),
    FLOAT: np.finfo(np.float32),
}


class Norm(NamedTuple):
    """A norm in the graph, or its p-th power, and what it was taken over.

    `is_finite` if it cannot overflow where all elements are finite.
    """

    value: Tensor
    is_finite: bool
    over: Over = ALL


def norm_word(ord: float) -> str:
    """The name of a norm: L2 norm."""
    return f"L{ord:g} norm"


def emit_norm(
    to: Emitter, x: Tensor, ord: float, over: Over = ALL, *, is_power: bool = False
) -> Norm:
    """The norm of `x`.

    With `is_power` it is what is to be added up with that of other gradients: the square for L2,
    else the norm itself; it then always has the rank that `over` says.

    1. One element: Abs, since some CUDA kernels of ReduceL2 copy it, sign included. Where nobody
       knows whether it is one, Abs comes behind, and at opset 7, whose Min wants rank 0; a sum of
       squares is then one of products, which may be copied.
    2. Else by `Numerics.reduction`.
    3. Where a policy asks whether all elements are finite, float32 elements are taken to float64,
       so that the norm tells.
    4. At opset 7, whose Min knows no float64, the norm comes back from there.
    5. A power that may leave float64's range is one of the elements' shares in the largest.

    Where workers have a part of `x` each, it is the norm of the whole, and a power that of the
    part.
    """
    if to.workers is not None and to.workers.share(over):
        wide = x if ord == math.inf else to.cast(x, to.workers.dtype, result="in float64")
        part = emit_norm(to.alone(), wide, ord, over, is_power=True)
        part = part._replace(value=emit_share(to, part.value, ord))
        return part if is_power else emit_root(to, part, ord)
    keeps_rank = over.axes is None or (over.keepdims and x.shape is not None)
    if keeps_rank and not is_power and _broadcasts(to, x) and _is_scalar_like(over.sizes(x.shape)):
        over = Over((), keepdims=True)
    if over.axes == () and not (is_power and ord == 2):
        return Norm(to.op("Abs", x, result="norm"), True, over)  # rule 1
    way = _way(to, x, ord, over)
    wide = to.cast(x, DOUBLE, result="in float64") if way.widens else x
    form = _form(to, wide, ord, over, way, is_power=is_power)
    norm = form(to, wide, ord, over, way)
    if to.opset < FIRST_BROADCASTING_MIN:
        norm = to.cast(norm, x.dtype, result="norm in float32")  # rule 4
    return Norm(norm, _is_bounded(to, wide, ord), over)


def _way(to: Emitter, x: Tensor, ord: float, over: Over) -> Reduction:
    """The reduction that keeps the stated precision, by rules 2 and 3."""
    return to.numerics.reduction(
        over.sizes(x.shape),
        in_float64=x.dtype == DOUBLE,
        must_widen=to.numerics.nonfinite != "propagate",
        ord=ord,
        reach=_reach(over, x),
    )


def _reach(over: Over, x: Tensor) -> Reach:
    if over.axes is None:
        return "all"
    shape, count = x.shape or (), len(over.axes)
    if count and set(over.axes) == {*range(len(shape) - count, len(shape))}:
        return "last"
    behind = [d for d in shape[over.axes[0] + 1 :] if isinstance(d, int)] if count == 1 else []
    is_known = count == 1 and len(behind) == len(shape) - 1 - over.axes[0]
    return "one" if is_known and math.prod(behind) >= _SIDE_BY_SIDE else "some"


def _form(
    to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction, *, is_power: bool
) -> _Form:
    """The form for `x` as it is reduced, by rules 1, 2 and 5."""
    if over.axes == ():
        return _emit_squares
    may_be_copied = ord == 2 and _may_be_scalar_like(over.sizes(x.shape))
    if way.rows is not None or (may_be_copied and (is_power or x.dtype == DOUBLE)):
        return _emit_sum if is_power or ord == 1 else _emit_root_of_sum
    if ord in _BY_ONE:
        return _emit_sum_square if is_power and ord == 2 else _BY_ONE[ord]
    if x.dtype == DOUBLE and _broadcasts(to, x) and not _is_held(to, x, ord):
        return _emit_from_shares
    return _emit_from_powers


def _broadcasts(to: Emitter, x: Tensor) -> bool:
    return to.opset >= FIRST_BROADCASTING_MIN or x.shape == ()


def _is_held(to: Emitter, x: Tensor, ord: float) -> bool:
    """True if powers of the elements cannot leave the range of float64, to which they came."""
    return _is_widened(to, x) and ord <= _HIGHEST_HELD_POWER


def _is_widened(to: Emitter, x: Tensor) -> bool:
    return x.dtype == DOUBLE and to.source.dtype != DOUBLE


def _is_bounded(to: Emitter, x: Tensor, ord: float) -> bool:
    """True if the norm of finite elements cannot overflow."""
    if _is_widened(to, x) and ord >= _LEAST_HELD_POWER:
        return _is_held(to, x, ord) or _broadcasts(to, x)
    return ord == math.inf


def emit_root(to: Emitter, power: Norm, ord: float) -> Norm:
    """The norm of which `power` is what `emit_norm` gives as such, of all workers together.

    Where there are several it is no Sqrt: that of ONNX Runtime 1.20's CPU provider takes float32
    numbers four at a time, and the root of inf is then nan.
    """
    power = power._replace(value=emit_whole(to, power.value, ord, power.over))
    if ord != 2:
        return power
    if _is_scalar_like(power.value.shape):
        return power._replace(value=to.op("Sqrt", power.value, result="norm"))
    return power._replace(value=to.op("Pow", power.value, 1 / 2, result="norm"))


def emit_together(to: Emitter, norms: Sequence[tuple[Tensor, int]], ord: float) -> Tensor:
    """The norm of norms, each of which counts so many times; for any power that is no square.

    They are taken as shares in the largest, so that no power is beyond the range of their dtype.
    """
    unit = _unit(to, to.op("Max", *(norm for norm, _ in norms), result="largest"))
    powers = []
    for norm, count in norms:
        power = to.op("Pow", to.op("Div", norm, unit, result="share"), ord, result="power")
        if count > 1:
            power = to.op("Mul", power, float(count), result="counted")
        powers.append(power)
    total = to.op("Sum", *powers, result="together")
    return to.op("Mul", to.op("Pow", total, 1.0 / ord, result="root"), unit, result="norm")


def norm_of(
    wide: NDArray[np.float64], ord: float = 2.0, axes: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """The norm in float64, of elements of any magnitude; reduced axes are kept with size 1."""
    sizes = np.abs(wide)
    over = tuple(range(wide.ndim)) if axes is None else axes
    largest = np.max(sizes, axis=over, keepdims=True, initial=0.0)
    if ord == math.inf:
        return np.asarray(largest)
    unit = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    with np.errstate(over="ignore", under="ignore"):  # only where the norm is beyond float64
        powers = np.sum((sizes / unit) ** ord, axis=over, keepdims=True)
        return np.asarray(unit * powers ** (1.0 / ord))


_Form = Callable[[Emitter, Tensor, float, Over, Reduction], Tensor]


def _emit_squares(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    return to.op("Mul", x, x, result="squares")


def _emit_sum(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    """The sum of |x| ** ord, for L1 and L2, by rows if the reduction has them.

    ReduceL2 and ReduceL1 would not need the powers as a tensor, but ONNX Runtime's CPU provider
    adds up their rows element by element, and those of ReduceSum by vector instructions.
    """
    if way.multiplied and isinstance(way.rows, int) and to.opset >= _FIRST_FUSED:
        sums = to.row_products(x, way.rows)
    else:
        sums = to.op("Abs", x, result="sizes") if ord == 1 else to.op("Mul", x, x, result="squares")
        sums = _emit_row_sums(to, sums, over, way)
    if way.joins_in_float64:
        sums = to.cast(sums, DOUBLE, result="sums in float64")
    if isinstance(way.rows, int) and over.axes is None and over.keepdims:
        return to.spread(to.reduce("ReduceSum", sums, ALL, result="total"))
    return to.reduce("ReduceSum", sums, over, result="total")


def _emit_row_sums(to: Emitter, sums: Tensor, over: Over, way: Reduction) -> Tensor:
    """The sums of powers over each row, or the powers if there are no rows."""
    if isinstance(way.rows, int):
        count = len(over.axes or ())
        axis = min(over.axes or (0,)) + max(count, 2) - 1
        rows = to.rows(sums, way.rows, over)
        return to.reduce("ReduceSum", rows, Over((axis,), count > 1), result="sums")
    if way.rows:
        before = 0 if over.axes is None else min(over.axes)
        axes = tuple(before + axis for axis in way.rows)
        keepdims = over.keepdims or over.axes is not None
        return to.reduce("ReduceSum", sums, Over(axes, keepdims), result="sums")
    return sums


def _emit_root_of_sum(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    total = _emit_sum(to, x, ord, over, way)
    if total.dtype == DOUBLE:
        return to.op("Sqrt", total, result="norm")
    return emit_root(to, Norm(total, True, over), ord).value


def _emit_l1(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    return _without_sign(to, x, over, to.reduce("ReduceL1", x, over, result="norm"))


def _emit_l2(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    return _without_sign(to, x, over, to.reduce("ReduceL2", x, over, result="norm"))


def _without_sign(to: Emitter, x: Tensor, over: Over, norm: Tensor) -> Tensor:
    """The norm where it may be a copy of one element, by rule 1."""
    return to.op("Abs", norm, result="length") if _may_be_scalar_like(over.sizes(x.shape)) else norm


def _emit_sum_square(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    return to.reduce("ReduceSumSquare", x, over, result="norm")


def _emit_largest(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    return emit_largest(to, to.op("Abs", x, result="sizes"), over, signed=x, result="norm")


_BY_ONE: dict[float, _Form] = {1: _emit_l1, 2: _emit_l2, math.inf: _emit_largest}
"""The orders whose norm one operator gives."""


def _emit_from_powers(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    """The norm of a power other than 1, 2 and inf, where all powers are within the dtype."""
    powers = to.op("Pow", to.op("Abs", x, result="sizes"), ord, result="powers")
    total = to.reduce("ReduceSum", powers, over, result="sum of powers")
    return to.op("Pow", total, 1.0 / ord, result="norm")


def _emit_from_shares(to: Emitter, x: Tensor, ord: float, over: Over, way: Reduction) -> Tensor:
    """The same, of shares in the largest element, whose powers leave the range of no dtype."""
    # what is combined with the elements again keeps the axes that were reduced
    kept = over._replace(keepdims=over.keepdims or over.axes is not None)
    sizes = to.op("Abs", x, result="sizes")
    unit = _unit(to, emit_largest(to, sizes, kept, result="largest one"))
    powers = to.op("Pow", to.op("Div", sizes, unit, result="shares"), ord, result="powers")
    total = to.reduce("ReduceSum", powers, kept, result="sum of powers")
    norm = to.op("Mul", to.op("Pow", total, 1.0 / ord, result="root"), unit, result="norm")
    if kept == over:
        return norm
    return to.reduce("ReduceSum", norm, over, result="flat norm")  # over axes of size 1


def _unit(to: Emitter, largest: Tensor) -> Tensor:
    """The unit of the shares, so that no power of one overflows: the largest, if it is normal."""
    limits = _LIMITS[largest.dtype]
    normal = to.op("Max", largest, float(limits.tiny), result="normal")
    return to.op("Min", normal, float(limits.max), result="unit")


def _is_scalar_like(shape: Shape | None) -> bool:
    return shape is not None and all(d == 1 for d in shape)


def _may_be_scalar_like(shape: Shape | None) -> bool:
    return shape is None or all(d == 1 or not isinstance(d, int) for d in shape)
