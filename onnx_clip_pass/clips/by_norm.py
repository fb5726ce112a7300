"""Clipping each gradient by its own L2 norm."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_clip_pass.clips.base import Clip, Emitter
from onnx_clip_pass.clips.numerics import NonFinite, Numerics, Reduction
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.graph import Shape
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByNorm"]

_FLOAT, _DOUBLE = int(TensorProto.FLOAT), int(TensorProto.DOUBLE)
_DTYPES = {"float16", "bfloat16", "float32", "float64"}
_FIRST_OPSET = 7  # Div and Mul broadcast from here on
_FIRST_BROADCASTING_MIN = 8
_FIRST_WHERE = 9
_FIRST_BFLOAT16 = 13
_FIRST_WITHOUT_CAST_ON_CUDA = 24  # nor Reshape


class GradientClipByNorm(Clip):
    r"""Limit the L2 norm of each gradient to `clip_norm`.

    .. math:: out = \begin{cases} x & \lVert x \rVert_2 \le c \\
                                  c \, x / \lVert x \rVert_2 & \text{otherwise}\end{cases}

    with c = `clip_norm` and the norm over all elements of one gradient. As nodes:
    `Mul(x, Min(Div(c, ReduceL2(x)), 1))`. No epsilon is added to the norm (PyTorch's
    `clip_grad_norm_` adds 1e-6), so a gradient within the threshold stays as it is, bit for bit.

    Gradients in half precision are widened to float32, clipped, and rounded once. How precisely the
    norm is computed, and what becomes of nan and inf, is said to `clip_gradients`. Where a gradient
    has onnx-ad's trailing seed dimension, each seed has a norm of its own.

    Args:
        clip_norm: the largest norm, in the gradient's own unit; positive, or inf for no clipping.
        need_clip: which parameters: a predicate on `Parameter`, a pattern, a list of patterns, or
            None for all.

    Raises:
        OnnxClipError: `clip_norm` is not a positive number, or `need_clip` is no selection.

    Example:
        >>> import numpy as np
        >>> clip = GradientClipByNorm(1.0, need_clip=lambda p: p.name == "w")
        >>> clip.apply({"w": np.array([3.0, 4.0]), "b": np.array([6.0, 8.0])})
        {'w': array([0.6, 0.8]), 'b': array([6., 8.])}

    References:
        PaddlePaddle, `paddle.nn.ClipGradByNorm` and `fluid.clip.GradientClipByNorm`.
        Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2013,
        https://arxiv.org/abs/1211.5063
    """

    def __init__(self, clip_norm: float, need_clip: NeedClip = None) -> None:
        super().__init__(need_clip)
        self.clip_norm = _positive(clip_norm)

    @property
    def label(self) -> str:
        return f"norm <= {self.clip_norm:g}"

    @property
    def is_identity(self) -> bool:
        return math.isinf(self.clip_norm)

    def settings(self) -> dict[str, Any]:
        return {"clip_norm": "inf" if self.is_identity else self.clip_norm}

    def reference(self, gradient: NDArray[Any], nonfinite: NonFinite = "propagate") -> NDArray[Any]:
        if str(gradient.dtype) not in _DTYPES:
            raise OnnxClipError(f"expected a floating array, but it is {gradient.dtype}")
        wide = gradient.astype(np.float64)
        if nonfinite != "propagate" and not np.isfinite(wide).all():
            return np.zeros_like(gradient) if nonfinite == "zero" else gradient
        norm = _norm(wide)
        if norm <= self.clip_norm or self.is_identity:
            return gradient
        with np.errstate(invalid="ignore"):  # inf / inf is nan, as in the formula
            return np.asarray(wide * (self.clip_norm / norm)).astype(gradient.dtype)

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        if gradient.dtype not in _DTYPES:
            return f"expected a floating tensor, but it is {gradient.dtype}"
        if opset < _FIRST_OPSET:
            return (
                f"opset {opset} is too old: clipping needs {_FIRST_OPSET} or later, where Div and "
                f"Mul broadcast; convert the model with onnx.version_converter first"
            )
        if opset < _FIRST_BROADCASTING_MIN:
            if self._work_dtype(gradient.dtype, numerics) == _DOUBLE:
                return (
                    "float64 needs opset 8 or later: before, ONNX Runtime's CPU has no Min for it"
                )
            if gradient.has_seeds:
                return "a seed dimension needs opset 8 or later, where Min broadcasts"
        if opset < _FIRST_BFLOAT16 and gradient.dtype == "bfloat16":
            return f"bfloat16 needs opset {_FIRST_BFLOAT16} or later, not {opset}"
        if opset < _FIRST_WHERE and numerics.nonfinite != "propagate":
            return (
                f"nonfinite={numerics.nonfinite!r} needs opset {_FIRST_WHERE} or later, where "
                f"there is Where, not {opset}"
            )
        return None

    def emit(self, gradient: Gradient, to: Emitter) -> None:
        work = self._work_dtype(gradient.dtype, to.numerics)
        x = to.cast(to.source, to.dtype, work, result="wide", shape=gradient.shape)
        norm = emit_norm(gradient, x, work, to)
        dtype, shape = norm.dtype, norm.shape
        if self.is_identity:  # here only to zero what is not finite
            scale = one = to.constant(1.0, dtype)
        else:
            limit, one = to.constant(self.clip_norm, dtype), to.constant(1.0, dtype)
            ratio = to.node("Div", [limit, norm.name], result="ratio", dtype=dtype, shape=shape)
            scale = to.node("Min", [ratio, one], result="scale", dtype=dtype, shape=shape)
        finite = emit_is_finite(norm, x, work, to)
        if finite and to.numerics.nonfinite == "keep":
            choices = [finite, scale, one]
            scale = to.node("Where", choices, result="kept", dtype=dtype, shape=shape)
        scale = to.cast(scale, dtype, work, result="factor", shape=shape)
        is_zeroed = bool(finite) and to.numerics.nonfinite == "zero"
        is_cast = work != to.dtype
        result = "product" if is_zeroed or is_cast else ""
        y = to.node("Mul", [x, scale], result=result, dtype=work, shape=gradient.shape)
        if is_zeroed:
            choices = [finite, y, to.constant(0.0, work)]
            result = "chosen" if is_cast else ""
            y = to.node("Where", choices, result=result, dtype=work, shape=gradient.shape)
        to.cast(y, work, to.dtype, result="", shape=gradient.shape)

    def _work_dtype(self, dtype: str, numerics: Numerics) -> int:
        """The dtype in which the product is formed: float32 wherever it is enough."""
        if dtype == "float64" or numerics.norm_precision == "wide":
            return _DOUBLE
        limits = np.finfo(np.float32)
        is_held = float(limits.tiny) <= self.clip_norm <= float(limits.max)
        return _FLOAT if is_held or self.is_identity else _DOUBLE


class Norm(NamedTuple):
    """A norm in the graph; `is_finite` if it cannot overflow where all elements are finite."""

    name: str
    dtype: int
    shape: Shape
    is_finite: bool


def emit_norm(gradient: Gradient, x: str, work: int, to: Emitter) -> Norm:
    """The L2 norm of `x`, which is the gradient in dtype `work`.

    1. One element: Abs, since some CUDA kernels of ReduceL2 copy it, sign included. Where nobody
       knows whether it is one, Abs comes behind, and at opset 7, whose Min wants rank 0.
    2. A seed dimension: a norm for each seed, in float64 where one ReduceL2 will not do.
    3. Else by `Numerics.reduction`.
    4. Where a policy asks whether all elements are finite, float32 elements are taken to float64,
       so that the norm tells.
    5. At opset 7, whose Min knows no float64, the norm comes back from there.
    """
    shape = gradient.shape
    broadcasts = to.opset >= _FIRST_BROADCASTING_MIN or shape == ()
    is_scalar_by_seeds = gradient.has_seeds and shape is not None and len(shape) == 1
    is_single = shape is not None and (all(d == 1 for d in shape) or is_scalar_by_seeds)
    if shape is not None and is_single and broadcasts:
        norm = to.node("Abs", [x], result="norm", dtype=work, shape=shape)  # rule 1
        return Norm(norm, work, shape, is_finite=True)
    axes: list[int] | None = None
    summed = shape
    if gradient.has_seeds and shape is not None and shape[-1] != 1:
        axes = list(range(len(shape) - 1))
        summed = shape[:-1]
    choice = to.numerics.reduction(
        summed,
        in_float64=work == _DOUBLE,
        must_widen=to.numerics.nonfinite != "propagate",
        can_cut=to.opset < _FIRST_WITHOUT_CAST_ON_CUDA,
    )
    if axes is not None and choice.rows is not None:  # rule 2
        choice = Reduction(widens=work != _DOUBLE)
    dtype = _DOUBLE if choice.widens else work
    x = to.cast(x, work, dtype, result="in float64", shape=shape)
    if isinstance(choice.rows, tuple):  # rule 3
        left = tuple(d for axis, d in enumerate(shape or ()) if axis not in choice.rows)
        x = to.reduce(
            "ReduceL2",
            x,
            list(choice.rows),
            result="row norms",
            dtype=dtype,
            shape=left,
            keepdims=0,
        )
    elif choice.rows is not None:
        x = to.rows(x, choice.rows, dtype=dtype)
        x = to.reduce(
            "ReduceL2", x, [1], result="row norms", dtype=dtype, shape=(None,), keepdims=0
        )
        x = to.cast(x, dtype, _DOUBLE, result="row norms in float64", shape=(None,))
        dtype = _DOUBLE
    kept: Shape = () if axes is None else (*(1 for _ in axes), (shape or (None,))[-1])
    keepdims = int(axes is not None)
    norm = to.reduce("ReduceL2", x, axes, result="norm", dtype=dtype, shape=kept, keepdims=keepdims)
    if _may_be_single(shape):
        norm = to.node("Abs", [norm], result="length", dtype=dtype, shape=kept)
    if to.opset < _FIRST_BROADCASTING_MIN:  # rule 5
        norm = to.cast(norm, dtype, work, result="norm in float32", shape=kept)
        dtype = work
    return Norm(norm, dtype, kept, is_finite=choice.widens)


def _may_be_single(shape: Shape | None) -> bool:
    return shape is None or all(d == 1 or not isinstance(d, int) for d in shape)


def emit_is_finite(norm: Norm, x: str, work: int, to: Emitter) -> str:
    """Whether all elements are finite, as a bool for each norm; "" if nobody asks.

    The norm tells if it cannot overflow. That of float64 elements may, but that of 0 * x is 0, or
    nan.
    """
    if to.numerics.nonfinite == "propagate":
        return ""
    boolean = int(TensorProto.BOOL)
    name, dtype, shape, is_finite = norm
    limit = math.inf
    if not is_finite and to.dtype == _DOUBLE:
        zeros = [x, to.constant(0.0, work)]
        nothing = to.node("Mul", zeros, result="nothing", dtype=work, shape=None)
        axes = list(range(len(shape) - 1)) if shape else None
        name = to.reduce(
            "ReduceL2",
            nothing,
            axes,
            result="zero",
            dtype=work,
            shape=shape,
            keepdims=int(bool(shape)),
        )
        limit = 1.0
    sides = [name, to.constant(limit, dtype)]
    return to.node("Less", sides, result="finite", dtype=boolean, shape=shape, takes=dtype)


def _norm(wide: NDArray[np.float64]) -> float:
    """The L2 norm in float64, of elements of any magnitude."""
    largest = float(np.max(np.abs(wide), initial=0.0))
    if not 0.0 < largest < math.inf:
        return math.nan if math.isnan(largest) else largest
    with np.errstate(over="ignore"):  # only where the norm itself is beyond float64
        return largest * float(np.linalg.norm((wide / largest).ravel()))


def _positive(clip_norm: object) -> float:
    try:
        number = float(clip_norm)  # type: ignore[arg-type]  # whatever a caller hands in
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(clip_norm, bool) or not number > 0:
        raise OnnxClipError(
            f"clip_norm must be a positive number, or inf for no clipping, not {clip_norm!r}"
        )
    return number
