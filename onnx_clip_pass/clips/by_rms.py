"""Clipping each gradient by its root mean square."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case
from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.norms import Norm, emit_norm, norm_of
from onnx_clip_pass.clips.parts import emit_share, emit_total
from onnx_clip_pass.clips.scaling import ScalingClip, own_axes
from onnx_clip_pass.clips.settings import LIMIT, setting
from onnx_clip_pass.clips.tape import Over, Tensor
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByRMS"]


class GradientClipByRMS(ScalingClip):
    r"""Limit the root mean square of each gradient to `threshold`.

    .. math:: out = \begin{cases} x & RMS(x) \le t \\ t \, x / RMS(x) & \text{otherwise}\end{cases}
              \qquad RMS(x) = \lVert x \rVert_2 / \sqrt n

    with t = `threshold` and n the number of elements; computed as the L2 norm against t * sqrt(n),
    so a threshold that suits one tensor suits tensors of any size. Half precision, nan and inf are
    treated as by `GradientClipByNorm`.

    Args:
        threshold: the largest root mean square, in the gradient's own unit; positive, or inf.
        need_clip: which parameters, see `GradientClipByNorm`.

    Raises:
        OnnxClipError: `threshold` is not a positive number, or `need_clip` is no selection.

    Example:
        >>> import numpy as np
        >>> GradientClipByRMS(1.0).apply({"w": np.array([2.0, -2.0, 2.0, -2.0])})
        {'w': array([ 1., -1.,  1., -1.])}

    References:
        optax, `clip_by_block_rms`.
        Shazeer, Stern: Adafactor, 2018, section 6, https://arxiv.org/abs/1804.04235
    """

    summary = "each gradient by its root mean square"

    threshold: float = setting(LIMIT, "the largest root mean square.", is_limit=True)
    need_clip: NeedClip = None

    @property
    def label(self) -> str:
        return f"RMS <= {self.threshold:g}"

    @property
    def bounds(self) -> str:
        return "each gradient by its own root mean square"

    def emit_norm(self, to: Emitter, x: Tensor) -> Norm:
        axes = None if x.shape is None else _axes(len(x.shape), has_seeds=to.gradient.has_seeds)
        return emit_norm(to, x, 2.0, Over(axes, axes is not None or to.keeps_rank))

    def emit_limit(self, to: Emitter, norm: Norm, x: Tensor) -> Tensor | None:
        if self.is_identity and not to.has_runtime_threshold:
            return None
        dtype, summed = norm.value.dtype, (x.shape or ())[: -1 if to.gradient.has_seeds else None]
        sizes = [d for d in summed if isinstance(d, int)]
        if to.workers is None and x.shape is not None and len(sizes) == len(summed):
            # of no elements too, the limit is not zero: 0 / 0 would be their scale
            return to.limit(self.threshold, dtype, math.sqrt(max(1, math.prod(sizes))))
        count = to.cast(to.size(x), dtype, result="elements")
        if to.gradient.has_seeds:
            seeds = to.cast(to.size(norm.value), dtype, result="seeds")
            count = to.op("Div", count, seeds, result="elements of one")
        count = emit_total(to, emit_share(to, count), norm.over, "elements")
        count = to.op("Max", count, 1.0, result="one or more")
        root = to.op("Sqrt", count, result="root of elements")
        return to.op("Mul", to.limit(self.threshold, dtype), root, result="limit")

    def norms(self, case: Case) -> NDArray[np.float64]:
        wide = case.gradient.astype(np.float64)
        return norm_of(wide, 2.0, _axes(wide.ndim, has_seeds=case.has_seeds))

    def limits(self, case: Case) -> NDArray[np.float64]:
        elements = case.gradient.shape[:-1] if case.has_seeds else case.gradient.shape
        return np.asarray(self.threshold * math.sqrt(max(1, math.prod(elements))))


def _axes(rank: int, *, has_seeds: bool) -> tuple[int, ...] | None:
    return own_axes(rank, has_seeds=has_seeds, per_sample=False)
