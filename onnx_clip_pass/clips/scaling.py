"""The common parts of clips that multiply a gradient by min(1, limit / norm)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import DTYPES, Case, Formula
from onnx_clip_pass.clips.emitter import FIRST_BROADCASTING_MIN, Emitter, Measured
from onnx_clip_pass.clips.norms import Norm
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.clips.parts import is_spread
from onnx_clip_pass.clips.tape import Tensor
from onnx_clip_pass.clips.verdicts import emit_verdict
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.graph.spec import DOUBLE

__all__ = [
    "ScalingClip",
    "emit_clipped",
    "emit_product",
    "emit_scale",
    "normal_axes",
    "own_axes",
    "scaled_down",
    "shared_fault",
    "widened",
]

_FIRST_OPSET = 7  # Div and Mul broadcast from here on
_FIRST_WHERE = 9
_FIRST_BFLOAT16 = 13


class ScalingClip(Formula):
    """A clip that limits norms of each gradient on its own."""

    def emit(self, members: Sequence[Emitter]) -> Measured | None:
        for to in members:
            x = widened(to, self)
            norm = self.emit_norm(to, x)
            scale = emit_scale(to, norm.value, self.emit_limit(to, norm, x))
            if to.is_measured:
                to.measured = Measured(norm.value, scale, is_spread(to, norm.over))
            emit_product(to, x, scale, emit_verdict(to, norm, x))
        return None

    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        return [self._reference_of(case, nonfinite) for case in cases]

    @abstractmethod
    def emit_norm(self, to: Emitter, x: Tensor) -> Norm:
        """The norms of `x`, which is the gradient in the dtype that it is clipped in."""

    def emit_limit(self, to: Emitter, norm: Norm, x: Tensor) -> Tensor | None:
        """The limit of the norms of `x`, in their dtype; None if there is none."""
        if self.is_identity and not to.has_runtime_threshold:
            return None
        assert self.threshold is not None
        return to.limit(self.threshold, norm.value.dtype)

    def _reference_of(self, case: Case, nonfinite: NonFinite) -> NDArray[Any]:
        return scaled_down(case.gradient, self.norms(case), self.limits(case), nonfinite)

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        return shared_fault(gradient, opset, numerics, self.work_dtype(gradient.dtype, numerics))


def scaled_down(
    gradient: NDArray[Any],
    norms: NDArray[np.float64],
    limits: NDArray[np.float64],
    nonfinite: NonFinite,
    is_finite: NDArray[np.bool_] | None = None,
) -> NDArray[Any]:
    """The gradient x itself where norm <= limit, else x * (limit / norm), rounded once.

    `is_finite` says of each norm whether what it was taken of is finite, for the policy.
    """
    wide = gradient.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # inf / inf is nan
        is_within = np.broadcast_to((norms <= limits) | (limits == np.inf), wide.shape)
        clipped = np.asarray(wide * (limits / norms)).astype(gradient.dtype)
    result = np.where(is_within, gradient, clipped)
    if nonfinite == "propagate":
        return np.asarray(result)
    if is_finite is None:
        is_finite = _all_finite(wide, norms.shape)
    held = np.broadcast_to(is_finite, wide.shape)
    return np.where(held, result, np.zeros_like(gradient) if nonfinite == "zero" else gradient)


def own_axes(rank: int, *, has_seeds: bool, per_sample: bool) -> tuple[int, ...] | None:
    """The axes that one norm reaches over: all (None) but those of samples and of seeds."""
    if not has_seeds and not per_sample:
        return None
    return tuple(range(int(per_sample), rank - int(has_seeds)))


def _all_finite(wide: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Of each norm of this shape, whether all the elements that it was taken of are finite."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    if wide.ndim == 0 or not shape:
        return np.asarray(np.isfinite(wide).all())
    return np.asarray(np.isfinite(wide).all(axis=axes, keepdims=True))


def shared_fault(
    gradient: Gradient, opset: int, numerics: Numerics, work: int, *, broadcasts: bool = False
) -> str | None:
    """The reason that no clip can serve this gradient at this opset, in dtype `work`, or None.

    `broadcasts` says that the norm is no single number.
    """
    if gradient.dtype not in DTYPES:
        return f"expected a floating tensor, but it is {gradient.dtype}"
    if opset < _FIRST_OPSET:
        return (
            f"opset {opset} is too old: clipping needs {_FIRST_OPSET} or later, where Div and "
            f"Mul broadcast; convert the model with onnx.version_converter first"
        )
    if opset < FIRST_BROADCASTING_MIN:
        if work == DOUBLE:
            is_wished = gradient.dtype != "float64" and numerics.norm_precision == "wide"
            whose = " of norm_precision='wide' (--norm-precision wide)" if is_wished else ""
            return (
                f"float64{whose} needs opset 8 or later: before, ONNX Runtime's CPU has no Min "
                f"for it"
            )
        if gradient.has_seeds:
            return "a seed dimension needs opset 8 or later, where Min broadcasts"
        if broadcasts:
            return "norms over some of the axes need opset 8 or later, where Min broadcasts"
    if opset < _FIRST_BFLOAT16 and gradient.dtype == "bfloat16":
        return f"bfloat16 needs opset {_FIRST_BFLOAT16} or later, not {opset}"
    if opset < _FIRST_WHERE and numerics.nonfinite != "propagate":
        return (
            f"nonfinite={numerics.nonfinite!r} needs opset {_FIRST_WHERE} or later, where "
            f"there is Where, not {opset}"
        )
    return None


def widened(to: Emitter, clip: Formula) -> Tensor:
    """The gradient in the dtype in which it is clipped."""
    return to.cast(to.source, clip.work_dtype(to.gradient.dtype, to.numerics), result="wide")


def emit_scale(to: Emitter, norm: Tensor, limit: Tensor | None) -> Tensor:
    """min(limit / norm, 1) for each norm; 1 without a limit.

    A limit that is computed may be inf, and so may the norm: their ratio is nan, the scale 1.
    """
    one = to.constant(1.0, norm.dtype)
    if limit is None:
        return one
    scale = to.op("Min", to.op("Div", limit, norm, result="ratio"), one, result="scale")
    unlimited = to.is_infinite(limit) if to.opset >= _FIRST_WHERE else None
    if unlimited is None:
        return scale
    return to.op("Where", unlimited, one, scale, result="scale if limited")


def emit_product(to: Emitter, x: Tensor, scale: Tensor, odd: Tensor | None) -> None:
    """Put in x * scale, the clipped gradient, and what the policy makes of what is `odd`."""
    if to.measures_only:
        return
    if odd is not None and to.numerics.nonfinite == "keep":
        scale, odd = to.op("Where", odd, 1.0, scale, result="kept"), None
    factor = to.cast(scale, x.dtype, result="factor")
    emit_clipped(to, "Mul", x, factor, odd, result="product")


def emit_clipped(
    to: Emitter, op_type: str, x: Tensor, other: Tensor, odd: Tensor | None, *, result: str
) -> None:
    """Put in op(x, other), or zero where `odd`, as the clipped gradient in its own dtype."""
    is_cast = x.dtype != to.source.dtype
    y = to.op(op_type, x, other, result=result if is_cast or odd is not None else "")
    if odd is not None:
        zero = to.spread(to.constant(0.0, x.dtype))
        y = to.op("Where", odd, zero, y, result="chosen" if is_cast else "")
    to.cast(y, to.source.dtype, result="")


def normal_axes(axes: Sequence[int] | int, rank: int) -> tuple[int, ...]:
    """Axes counted from 0, in order.

    Raises:
        OnnxClipError: an axis is beyond the rank, or twice there.
    """
    axes = [axes] if isinstance(axes, int) else axes
    found = sorted(axis + rank if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < rank for axis in found):
        raise OnnxClipError(f"axes {list(axes)} do not fit a gradient of rank {rank}")
    if len(set(found)) < len(found):
        raise OnnxClipError(f"axes {list(axes)} name one axis of a gradient of rank {rank} twice")
    return tuple(found)
