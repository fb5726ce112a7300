r"""The p-norm of a tensor, for any p > 0, as nodes and in float64.

.. math:: \lVert x \rVert_p = \Big(\sum_i |x_i|^p\Big)^{1/p}, \qquad
          \lVert x \rVert_\infty = \max_i |x_i|

The norm of a tensor is the norm of the norms of its rows, and that of several tensors the norm of
theirs; every form here rests on that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_clip_pass.clips.emitter import FIRST_BROADCASTING_MIN, Emitter
from onnx_clip_pass.clips.extremes import emit_largest
from onnx_clip_pass.clips.numerics import Reduction
from onnx_clip_pass.graph import Shape

__all__ = [
    "Norm",
    "emit_norm",
    "emit_root",
    "emit_together",
    "norm_of",
    "norm_word",
]

_DOUBLE = int(TensorProto.DOUBLE)
_HIGHEST_HELD_POWER = 8  # of any float32 in float64
_LEAST_HELD_POWER = 1 / 16  # below, the norm of 2 ** 40 numbers may be beyond float64 itself
_LIMITS: dict[int, np.finfo[Any]] = {
    _DOUBLE: np.finfo(np.float64),
    int(TensorProto.FLOAT): np.finfo(np.float32),
}


class Norm(NamedTuple):
    """A norm in the graph, or its p-th power.

    `is_finite` if it cannot overflow where all elements are finite. `axes` were reduced (None for
    all), and kept with size 1 if `keepdims`.
    """

    name: str
    dtype: int
    shape: Shape | None
    is_finite: bool
    axes: tuple[int, ...] | None
    keepdims: bool


def norm_word(ord: float) -> str:
    """How a norm is called: L2 norm."""
    return f"L{ord:g} norm"


def emit_norm(
    to: Emitter,
    x: str,
    work: int,
    ord: float,
    axes: tuple[int, ...] | None = None,
    *,
    shape: Shape | None,
    keepdims: bool = False,
    is_power: bool = False,
) -> Norm:
    """The norm of `x`, of dtype `work` and this shape, over `axes` or all of it.

    With `is_power` it is what is to be added up with that of other gradients: the square for L2,
    else the norm itself; it then always has the rank that `axes` and `keepdims` say.

    1. One element: Abs, since some CUDA kernels of ReduceL2 copy it, sign included. Where nobody
       knows whether it is one, Abs comes behind, and at opset 7, whose Min wants rank 0; a sum of
       squares is then one of products, which may be copied.
    2. Over some of the axes: in float64 where one reduction will not do.
    3. Else by `Numerics.reduction`.
    4. Where a policy asks whether all elements are finite, float32 elements are taken to float64,
       so that the norm tells.
    5. At opset 7, whose Min knows no float64, the norm comes back from there.
    6. A power that may leave float64's range is one of the elements' shares in the largest.
    """
    summed, left = _over(shape, axes), _left(shape, axes, keepdims=keepdims)
    broadcasts = to.opset >= FIRST_BROADCASTING_MIN or shape == ()
    keeps_rank = axes is None or (keepdims and shape is not None)
    if _is_single(summed) and broadcasts and keeps_rank and not is_power:
        norm = to.node("Abs", [x], result="norm", dtype=work, shape=shape)  # rule 1
        return Norm(norm, work, shape, True, axes=(), keepdims=True)
    if axes == () and not (is_power and ord == 2):
        norm = to.node("Abs", [x], result="norm", dtype=work, shape=shape)
        return Norm(norm, work, shape, True, axes, keepdims)
    choice = to.numerics.reduction(
        summed,
        in_float64=work == _DOUBLE,
        must_widen=to.numerics.nonfinite != "propagate",
        ord=ord,
    )
    if axes is not None and choice.rows is not None:  # rule 2
        choice = Reduction(widens=work != _DOUBLE)
    dtype = _DOUBLE if choice.widens else work
    x = to.cast(x, work, dtype, result="in float64", shape=shape)
    is_ordinary = ord in (1, 2, math.inf)
    is_widened = dtype == _DOUBLE and to.dtype != _DOUBLE
    is_held = is_widened and ord <= _HIGHEST_HELD_POWER
    has_shares = dtype == _DOUBLE and broadcasts and not is_ordinary and not is_held  # rule 6
    is_bounded = is_widened and ord >= _LEAST_HELD_POWER and (is_held or has_shares)
    cannot_overflow = ord == math.inf or is_bounded
    if axes == ():
        norm = to.node("Mul", [x, x], result="squares", dtype=dtype, shape=shape)
        return Norm(norm, dtype, shape, cannot_overflow, axes, keepdims)
    over = None if axes is None else list(axes)
    may_be_single = ord in (1, 2) and _may_be_single(summed)
    is_squared = may_be_single and ord == 2 and (is_power or dtype == _DOUBLE)  # rule 1
    if choice.rows is not None or is_squared:  # rule 3
        norm, dtype = _add_up(to, x, ord, over, choice, dtype, shape, left, keepdims=int(keepdims))
        if ord == 2 and not is_power:
            norm = to.node("Sqrt", [norm], result="norm", dtype=dtype, shape=left)
    elif is_ordinary:
        norm = _reduce(
            to,
            x,
            ord,
            over,
            dtype=dtype,
            full=shape,
            shape=left,
            keepdims=int(keepdims),
            is_power=is_power,
        )
        if may_be_single:
            norm = to.node("Abs", [norm], result="length", dtype=dtype, shape=left)
    else:
        norm = _from_powers(
            to, x, ord, axes, has_shares=has_shares, dtype=dtype, shape=shape, keepdims=keepdims
        )
    if to.opset < FIRST_BROADCASTING_MIN:  # rule 5
        norm = to.cast(norm, dtype, work, result="norm in float32", shape=left)
        dtype = work
    return Norm(norm, dtype, left, cannot_overflow, axes, keepdims)


def emit_root(to: Emitter, power: Norm, ord: float) -> Norm:
    """The norm of which `power` is what `emit_norm` gives as such.

    Where there are several it is no Sqrt: that of ONNX Runtime 1.20's CPU provider takes float32
    numbers four at a time, and the root of inf is then nan.
    """
    if ord != 2:
        return power
    name, dtype, shape, *_ = power
    if _is_single(shape):
        name = to.node("Sqrt", [name], result="norm", dtype=dtype, shape=shape)
    else:
        name = _raised(to, name, 1 / 2, result="norm", dtype=dtype, shape=shape)
    return power._replace(name=name)


def emit_together(
    to: Emitter,
    norms: Sequence[tuple[str, int]],
    ord: float,
    *,
    dtype: int,
    shape: Shape | None,
) -> str:
    """The norm of norms, each of which counts so many times; for any power that is no square.

    They are taken as shares in the largest, so that no power is beyond the range of `dtype`.
    """
    kind: dict[str, Any] = {"dtype": dtype, "shape": shape}
    largest = to.node("Max", [name for name, _ in norms], result="largest", **kind)
    unit = _unit(to, largest, **kind)
    powers = []
    for name, count in norms:
        share = to.node("Div", [name, unit], result="share", **kind)
        power = _raised(to, share, ord, result="power", **kind)
        if count > 1:
            sides = [power, to.constant(float(count), dtype)]
            power = to.node("Mul", sides, result="counted", **kind)
        powers.append(power)
    total = to.node("Sum", powers, result="together", **kind)
    root = _raised(to, total, 1.0 / ord, result="root", **kind)
    return to.node("Mul", [root, unit], result="norm", **kind)


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


def _add_up(
    to: Emitter,
    x: str,
    ord: float,
    axes: list[int] | None,
    choice: Reduction,
    dtype: int,
    shape: Shape | None,
    left: Shape | None,
    *,
    keepdims: int,
) -> tuple[str, int]:
    """The sum of |x| ** ord, for L1 and L2, by rows if the reduction has them; and its dtype.

    ReduceL2 and ReduceL1 would not need the powers as a tensor, but ONNX Runtime's CPU provider
    adds up their rows element by element, and those of ReduceSum by vector instructions.
    """
    if ord == 1:
        powers = to.node("Abs", [x], result="sizes", dtype=dtype, shape=shape)
    else:
        powers = to.node("Mul", [x, x], result="squares", dtype=dtype, shape=shape)
    rows, is_cut = choice.rows, isinstance(choice.rows, int)
    if isinstance(rows, int):
        powers, rows = to.rows(powers, rows, dtype=dtype), (1,)
    if rows is not None:
        kept = 0 if is_cut else keepdims
        rest = (None,) if is_cut else _left(shape, rows, keepdims=bool(kept))
        powers = to.reduce(
            "ReduceSum", powers, list(rows), result="sums", dtype=dtype, shape=rest, keepdims=kept
        )
        if choice.joins_in_float64:
            powers = to.cast(powers, dtype, _DOUBLE, result="sums in float64", shape=rest)
            dtype = _DOUBLE
    is_flat = is_cut and keepdims == 1
    total = to.reduce(
        "ReduceSum",
        powers,
        axes,
        result="total",
        dtype=dtype,
        shape=() if is_flat else left,
        keepdims=0 if is_flat else keepdims,
    )
    if is_flat:
        total = to.spread(total, dtype)
    return total, dtype


def _reduce(
    to: Emitter,
    x: str,
    ord: float,
    axes: list[int] | None,
    *,
    dtype: int,
    full: Shape | None,
    shape: Shape | None,
    keepdims: int,
    is_power: bool,
) -> str:
    """The L1, L2 or L-infinity norm, or the square of the L2 norm, by one operator."""
    kind: dict[str, Any] = {"dtype": dtype, "shape": shape, "keepdims": keepdims}
    if ord == 2:
        op_type = "ReduceSumSquare" if is_power else "ReduceL2"
        return to.reduce(op_type, x, axes, result="norm", **kind)
    if ord == 1:
        return to.reduce("ReduceL1", x, axes, result="norm", **kind)
    sizes = to.node("Abs", [x], result="sizes", dtype=dtype, shape=None)
    return emit_largest(to, sizes, axes, signed=x, result="norm", full=full, **kind)


def _from_powers(
    to: Emitter,
    x: str,
    ord: float,
    axes: tuple[int, ...] | None,
    *,
    has_shares: bool,
    dtype: int,
    shape: Shape | None,
    keepdims: bool,
) -> str:
    """The norm of a power other than 1, 2 and inf.

    With `has_shares` of shares in the largest element, where powers may leave the range of `dtype`.
    """
    over, left = None if axes is None else list(axes), _left(shape, axes, keepdims=keepdims)
    sizes, unit = to.node("Abs", [x], result="sizes", dtype=dtype, shape=shape), ""
    # what is combined with the elements again keeps the axes that were reduced
    is_kept = keepdims or (has_shares and axes is not None)
    kept = _left(shape, axes, keepdims=is_kept)
    kind: dict[str, Any] = {"dtype": dtype, "shape": kept}
    if has_shares:
        largest = emit_largest(
            to, sizes, over, result="largest one", full=shape, keepdims=int(is_kept), **kind
        )
        unit = _unit(to, largest, **kind)
        sizes = to.node("Div", [sizes, unit], result="shares", dtype=dtype, shape=shape)
    powers = _raised(to, sizes, ord, result="powers", dtype=dtype, shape=shape)
    total = to.reduce(
        "ReduceSum", powers, over, result="sum of powers", keepdims=int(is_kept), **kind
    )
    norm = _raised(to, total, 1.0 / ord, result="root" if has_shares else "norm", **kind)
    if has_shares:
        norm = to.node("Mul", [norm, unit], result="norm", **kind)
    if is_kept == keepdims:
        return norm
    return to.reduce(  # over axes of size 1
        "ReduceSum", norm, over, result="flat norm", dtype=dtype, shape=left, keepdims=0
    )


def _unit(to: Emitter, largest: str, *, dtype: int, shape: Shape | None) -> str:
    """What to measure in, so that no power of it overflows: the largest one, if it is normal."""
    kind: dict[str, Any] = {"dtype": dtype, "shape": shape}
    sides = [largest, to.constant(float(_LIMITS[dtype].tiny), dtype)]
    unit = to.node("Max", sides, result="normal", **kind)
    sides = [unit, to.constant(float(_LIMITS[dtype].max), dtype)]
    return to.node("Min", sides, result="unit", **kind)


def _raised(
    to: Emitter, x: str, exponent: float, *, result: str, dtype: int, shape: Shape | None
) -> str:
    sides = [x, to.constant(exponent, dtype)]
    return to.node("Pow", sides, result=result, dtype=dtype, shape=shape)


def _over(shape: Shape | None, axes: tuple[int, ...] | None) -> Shape | None:
    """The sizes of what is summed up for one norm."""
    if shape is None or axes is None:
        return shape
    return tuple(shape[axis] for axis in axes)


def _left(shape: Shape | None, axes: tuple[int, ...] | None, *, keepdims: bool) -> Shape | None:
    if axes is None and not keepdims:
        return ()
    if shape is None:
        return None
    over = range(len(shape)) if axes is None else axes
    if keepdims:
        return tuple(1 if axis in over else d for axis, d in enumerate(shape))
    return tuple(d for axis, d in enumerate(shape) if axis not in over)


def _is_single(shape: Shape | None) -> bool:
    return shape is not None and all(d == 1 for d in shape)


def _may_be_single(shape: Shape | None) -> bool:
    return shape is None or all(d == 1 or not isinstance(d, int) for d in shape)
