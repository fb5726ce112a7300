"""Clipping each element of a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case, Formula
from onnx_clip_pass.clips.emitter import FIRST_BROADCASTING_MIN, Emitter, Measured
from onnx_clip_pass.clips.extremes import emit_maximum
from onnx_clip_pass.clips.norms import Norm, emit_norm, norm_of
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.clips.parts import emit_whole_largest, emit_whole_least
from onnx_clip_pass.clips.scaling import emit_clipped, shared_fault, widened
from onnx_clip_pass.clips.settings import Number, setting
from onnx_clip_pass.clips.tape import Over, Tensor
from onnx_clip_pass.clips.verdicts import emit_verdict
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByValue"]

_BOUND = Number(is_positive=False)
_POSITIVE = Number(", or inf for no clipping, where min is not given")
_TINY = float(np.finfo(np.float32).tiny)


class GradientClipByValue(Formula):
    r"""Limit each element of a gradient to the range from `min` to `max`.

    .. math:: out_i = \min(\max(x_i, min), max)

    As nodes: `Min(Max(x, min), max)`, which propagate nan (ONNX's Clip does not promise that). An
    infinite element becomes the bound. Half precision is clipped in float32, so the bound is
    rounded once, to the gradient's dtype.

    Args:
        max: the largest value, in the gradient's own unit; inf for no bound.
        min: the smallest value; `-max` if None.
        need_clip: which parameters, see `GradientClipByNorm`.

    Raises:
        OnnxClipError: the bounds are no numbers, the wrong way round, or both zero or the same
            infinity.

    Example:
        >>> import numpy as np
        >>> GradientClipByValue(0.5).apply({"w": np.array([-3.0, 0.25, 4.0])})
        {'w': array([-0.5 ,  0.25,  0.5 ])}

    References:
        PaddlePaddle, `paddle.nn.ClipGradByValue`; PyTorch, `torch.nn.utils.clip_grad_value_`;
        TensorFlow, `tf.clip_by_value`; Keras, `clipvalue`; optax, `clip`.
    """

    summary = "each element"
    is_elementwise = True

    max: float = setting(_BOUND, "the largest element.", is_limit=True)
    min: float | None = setting(
        _BOUND, "the smallest element. [default: -max]", default=None, is_limit=True
    )
    need_clip: NeedClip = None

    def __post_init__(self) -> None:
        if self.min is None:
            _POSITIVE.check("max", self.max)
        super().__post_init__()
        is_single = self.lowest == self.max and abs(self.max) in (0, math.inf)
        if not self.lowest <= self.max or is_single:
            raise OnnxClipError(
                f"expected min below max, and not both of them zero or the same infinity, not "
                f"min={self.min!r} and max={self.max!r}"
            )

    @property
    def order(self) -> float:
        return math.inf

    @property
    def lowest(self) -> float:
        """The smallest value that an element may have."""
        return -self.max if self.min is None else self.min

    @property
    def label(self) -> str:
        if self.min is None:
            return f"|element| <= {self.max:g}"
        return f"{self.min:g} <= element <= {self.max:g}"

    @property
    def bounds(self) -> str:
        return "each element by its value"

    @property
    def scales(self) -> bool:
        return self.lowest <= 0 <= self.max

    def norms(self, case: Case) -> NDArray[np.float64]:
        return norm_of(case.gradient.astype(np.float64), math.inf)

    def acts(self, before: NDArray[Any], after: NDArray[Any]) -> list[bool]:
        sides = (self.max, after < before), (-self.lowest, after > before)
        return [bool(np.any(beyond)) for bound, beyond in sides if bound != math.inf]

    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        return [self._reference_of(case, nonfinite) for case in cases]

    def _reference_of(self, case: Case, nonfinite: NonFinite) -> NDArray[Any]:
        x = case.gradient
        wide = x.astype(np.float64)
        clipped = np.minimum(np.maximum(wide, self.lowest), self.max).astype(x.dtype)
        result = np.where((wide < self.lowest) | (wide > self.max), clipped, x)
        if nonfinite == "propagate":
            return np.asarray(result)
        axes = tuple(range(wide.ndim - int(case.has_seeds)))
        is_finite = np.isfinite(wide).all(axis=axes, keepdims=True)
        return np.where(is_finite, result, np.zeros_like(x) if nonfinite == "zero" else x)

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        fault = shared_fault(gradient, opset, numerics, self.work_dtype(gradient.dtype, numerics))
        if fault is None and opset < FIRST_BROADCASTING_MIN:
            return f"clipping by value needs opset 8 or later, where Min broadcasts, not {opset}"
        return fault

    def emit(self, members: Sequence[Emitter]) -> Measured | None:
        for to in members:
            self._emit(to)
        return None

    def _emit(self, to: Emitter) -> None:
        x = widened(to, self)
        low, high = self._bounds(to, x.dtype)
        is_asked = to.is_measured or to.numerics.nonfinite != "propagate"
        largest = self._largest(to, x) if is_asked else None
        if largest is not None and to.is_measured:
            to.measured = self._measure(to, largest, x, low, high)
        if to.measures_only:
            return
        odd = None if largest is None else emit_verdict(to, largest, x)
        if odd is not None and to.numerics.nonfinite == "keep":
            low = to.op("Where", odd, -math.inf, low, result="bound")
            high = to.op("Where", odd, math.inf, high, result="bound")
            odd = None
        else:
            low, high = to.spread(low), to.spread(high)
        above = to.op("Max", x, low, result="from below")
        emit_clipped(to, "Min", above, high, odd, result="clipped")

    def _bounds(self, to: Emitter, dtype: int) -> tuple[Tensor, Tensor]:
        """The bounds in the graph; each of them in its own right where there are two."""
        low = to.limit(self.max, dtype, -1.0) if self.min is None else to.limit(self.min, dtype)
        return low, to.limit(self.max, dtype)

    def _largest(self, to: Emitter, x: Tensor) -> Norm:
        axes = tuple(range(len(x.shape) - 1)) if to.gradient.has_seeds and x.shape else None
        return emit_norm(to, x, math.inf, Over(axes, axes is not None or to.keeps_rank))

    def _measure(
        self, to: Emitter, largest: Norm, x: Tensor, low: Tensor, high: Tensor
    ) -> Measured:
        """The largest magnitude and the smallest factor that an element is multiplied by.

        The factor is min(1, max / largest element) on the one side, the like on the other. Where no
        element is on a side, and for a bound of zero, the smallest float stands in. ReduceMax and
        ReduceMin of ONNX Runtime's CPU provider ignore nan; the norm, taken for the 1, does not.
        """
        norm, over = largest.value, largest.over
        one = to.constant(1.0, norm.dtype)
        factors = [one, to.op("Max", norm, one, result="one or more, or nan")]
        for op_type, bound, value, tiny in (
            ("Max", high, self.max, _TINY),
            ("Min", low, self.lowest, -_TINY),
        ):
            least, end = to.constant(tiny, norm.dtype), x
            if over.axes != () and op_type == "Max":
                end = emit_maximum(to, x, over, result="end")
            elif over.axes != ():
                end = to.reduce("ReduceMin", x, over, result="end")
            whole = emit_whole_largest if op_type == "Max" else emit_whole_least
            end = whole(to, end, over)
            end = to.op(op_type, end, least, result="beyond")
            factors.append(to.op("Div", bound if value else least, end, result="side"))
        return Measured(norm, to.op("Min", *factors, result="scale"))
