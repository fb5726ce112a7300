r"""The p-norm of a tensor, for any p > 0, as nodes and in float64.

.. math:: \lVert x \rVert_p = \Big(\sum_i |x_i|^p\Big)^{1/p}, \qquad
          \lVert x \rVert_\infty = \max_i |x_i|

The norm of a tensor is the norm of the norms of its rows, and that of several tensors the norm of
theirs; every form here rests on that.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_clip_pass.arguments import as_number
from onnx_clip_pass.clips.emitter import FIRST_BROADCASTING_MIN, Emitter, Quantity
from onnx_clip_pass.clips.numerics import Reduction
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.graph import Shape

__all__ = [
    "Norm",
    "check_ord",
    "emit_is_finite",
    "emit_largest",
    "emit_least",
    "emit_norm",
    "emit_nothing",
    "emit_root",
    "norm_of",
    "norm_word",
]

_DOUBLE, _BOOL = int(TensorProto.DOUBLE), int(TensorProto.BOOL)
_HIGHEST_HELD_POWER = 8  # of any float32 in float64


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


def check_ord(ord: object) -> float:
    """A norm's order as a number, or a refusal."""
    number = as_number(ord)
    if not number > 0:
        raise OnnxClipError(
            f"ord must be a positive number or inf, as 1, 2 or inf, not {shown(ord)}"
        )
    return number


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

    With `is_power` it is norm ** ord (the norm itself for L1 and L-infinity), to be added up with
    that of other gradients, and then always has the rank that `axes` and `keepdims` say.

    1. One element: Abs, since some CUDA kernels of ReduceL2 copy it, sign included. Where nobody
       knows whether it is one, Abs comes behind, and at opset 7, whose Min wants rank 0; a sum of
       squares is then one of products, which may be copied.
    2. Over some of the axes: in float64 where one reduction will not do.
    3. Else by `Numerics.reduction`.
    4. Where a policy asks whether all elements are finite, float32 elements are taken to float64,
       so that the norm tells.
    5. At opset 7, whose Min knows no float64, the norm comes back from there.
    """
    summed, left = _over(shape, axes), _left(shape, axes, keepdims=keepdims)
    broadcasts = to.opset >= FIRST_BROADCASTING_MIN or shape == ()
    keeps_rank = axes is None or (keepdims and shape is not None)
    if _is_single(summed) and broadcasts and keeps_rank and not is_power:
        norm = to.node("Abs", [x], result="norm", dtype=work, shape=shape)  # rule 1
        return Norm(norm, work, shape, True, axes=(), keepdims=True)
    if axes == () and not (is_power and ord not in (1, math.inf)):
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
    cannot_overflow = ord == math.inf or (choice.widens and ord <= _HIGHEST_HELD_POWER)
    if axes == ():
        sizes = to.node("Abs", [x], result="sizes", dtype=dtype, shape=shape)
        sides = [sizes, to.constant(ord, dtype)]
        norm = to.node("Pow", sides, result="power", dtype=dtype, shape=shape)
        return Norm(norm, dtype, shape, cannot_overflow, axes, keepdims)
    over = None if axes is None else list(axes)
    may_be_single = ord in (1, 2) and _may_be_single(summed)
    is_squared = may_be_single and ord == 2 and (is_power or dtype == _DOUBLE)  # rule 1
    if choice.rows is not None or is_squared:  # rule 3
        norm, dtype = _add_up(to, x, ord, over, choice, dtype, shape, left, keepdims=int(keepdims))
        if ord == 2 and not is_power:
            norm = to.node("Sqrt", [norm], result="norm", dtype=dtype, shape=left)
    else:
        norm = _reduce(
            to,
            x,
            ord,
            over,
            result="norm",
            dtype=dtype,
            shape=left,
            keepdims=int(keepdims),
            is_power=is_power,
        )
        if may_be_single:
            norm = to.node("Abs", [norm], result="length", dtype=dtype, shape=left)
    if to.opset < FIRST_BROADCASTING_MIN:  # rule 5
        norm = to.cast(norm, dtype, work, result="norm in float32", shape=left)
        dtype = work
    return Norm(norm, dtype, left, cannot_overflow, axes, keepdims)


def emit_root(to: Emitter, power: Norm, ord: float) -> Norm:
    """The norm of which `power` is the power."""
    if ord in (1, math.inf):
        return power
    name, dtype, shape, *_ = power
    if ord == 2:
        name = to.node("Sqrt", [name], result="norm", dtype=dtype, shape=shape)
    else:
        sides = [name, to.constant(1.0 / ord, dtype)]
        name = to.node("Pow", sides, result="norm", dtype=dtype, shape=shape)
    return power._replace(name=name)


def emit_is_finite(to: Emitter, norm: Norm, x: str, work: int) -> Quantity | None:
    """Whether all elements are finite, as a bool for each norm; None if nobody asks.

    The norm tells if it cannot overflow. That of float64 elements may, but that of 0 * x is 0, or
    nan.
    """
    if to.numerics.nonfinite == "propagate":
        return None
    name, dtype, limit = norm.name, norm.dtype, math.inf
    if not norm.is_finite:
        name, dtype, limit = emit_nothing(to, norm, x, work), work, 1.0
    sides = [name, to.constant(limit, dtype)]
    less = to.node("Less", sides, result="finite", dtype=_BOOL, shape=norm.shape, takes=dtype)
    return Quantity(less, _BOOL, norm.shape)


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


def emit_largest(
    to: Emitter,
    sizes: str,
    axes: list[int] | None,
    *,
    signed: str = "",
    result: str,
    dtype: int,
    shape: Shape | None,
    keepdims: int,
) -> str:
    """The largest of numbers that are not negative: 0 if there is none, nan if one of them is.

    ReduceMax of ONNX Runtime's CPU provider passes over nan, and gives -inf for nothing; a sum, Min
    and Max do not. `signed` are the same numbers before their Abs, where there was one.
    """

    def reduce(op_type: str, value: str, result: str) -> str:
        return to.reduce(
            op_type, value, axes, result=result, dtype=dtype, shape=shape, keepdims=keepdims
        )

    largest = reduce("ReduceMax", sizes, "largest")
    length = reduce("ReduceL1", signed or sizes, "length")
    zero = to.constant(0.0, dtype)
    guard = to.node("Min", [length, zero], result="zero or nan", dtype=dtype, shape=shape)
    return to.node("Max", [largest, guard], result=result, dtype=dtype, shape=shape)


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
    result: str,
    dtype: int,
    shape: Shape | None,
    keepdims: int,
    is_power: bool,
) -> str:
    def reduce(op_type: str, value: str, result: str) -> str:
        return to.reduce(
            op_type, value, axes, result=result, dtype=dtype, shape=shape, keepdims=keepdims
        )

    if ord == 2:
        return reduce("ReduceSumSquare" if is_power else "ReduceL2", x, result)
    if ord == 1:
        return reduce("ReduceL1", x, result)
    sizes = to.node("Abs", [x], result="sizes", dtype=dtype, shape=None)
    if ord == math.inf:
        return emit_largest(
            to,
            sizes,
            axes,
            signed=x,
            result=result,
            dtype=dtype,
            shape=shape,
            keepdims=keepdims,
        )
    exponent = to.constant(ord, dtype)
    powers = to.node("Pow", [sizes, exponent], result="powers", dtype=dtype, shape=None)
    total = reduce("ReduceSum", powers, result if is_power else "sum of powers")
    if is_power:
        return total
    root = to.constant(1.0 / ord, dtype)
    return to.node("Pow", [total, root], result=result, dtype=dtype, shape=shape)


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
