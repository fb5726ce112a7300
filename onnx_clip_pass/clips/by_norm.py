"""Clipping each gradient by its own norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case
from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.norms import Norm, emit_norm, norm_of, norm_word
from onnx_clip_pass.clips.numerics import Numerics
from onnx_clip_pass.clips.scaling import ScalingClip, normal_axes, own_axes, shared_fault
from onnx_clip_pass.clips.settings import AXES, FLAG, LIMIT, ORDER, setting
from onnx_clip_pass.clips.tape import Over, Tensor
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByNorm"]


class GradientClipByNorm(ScalingClip):
    r"""Limit the norm of each gradient to `clip_norm`.

    .. math:: out = \begin{cases} x & \lVert x \rVert_p \le c \\
                                  c \, x / \lVert x \rVert_p & \text{otherwise}\end{cases}

    with c = `clip_norm`, p = `ord` and the norm over all elements of one gradient. As nodes, for
    p = 2: `Mul(x, Min(Div(c, ReduceL2(x)), 1))`. No epsilon is added to the norm (PyTorch's
    `clip_grad_norm_` adds 1e-6), so a gradient within the threshold stays as it is, bit for bit.

    Gradients in half precision are widened to float32, clipped, and rounded once. How precisely the
    norm is computed, and what becomes of nan and inf, is said to `clip_gradients`. Where a gradient
    has onnx-ad's trailing seed dimension, each seed has a norm of its own.

    Args:
        clip_norm: the largest norm, in the gradient's own unit; positive, or inf for no clipping.
        need_clip: which parameters: a predicate on `Parameter`, a pattern, a list of patterns, or
            None for all.
        ord: of the norm, any p > 0 or inf.
        axes: the axes of the gradient over which one norm reaches, with a norm for each index of
            the others; None for all.
        per_sample: the first axis of each gradient holds one gradient for each sample of a batch,
            clipped on its own. Such gradients are not found: name them.

    Raises:
        OnnxClipError: `clip_norm` or `ord` is not a positive number, `need_clip` is no selection,
            or `axes` are no integers or come together with `per_sample`.

    Example:
        >>> import numpy as np
        >>> clip = GradientClipByNorm(1.0, need_clip=lambda p: p.name == "w")
        >>> clip.apply({"w": np.array([3.0, 4.0]), "b": np.array([6.0, 8.0])})
        {'w': array([0.6, 0.8]), 'b': array([6., 8.])}

    References:
        PaddlePaddle, `paddle.nn.ClipGradByNorm` and `fluid.clip.GradientClipByNorm`; PyTorch,
        `torch.nn.utils.clip_grad_norm_` (`norm_type`); TensorFlow, `tf.clip_by_norm` (`axes`);
        optax, `per_example_layer_norm_clip` (`per_sample`).
        Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2013,
        https://arxiv.org/abs/1211.5063
    """

    summary = "each gradient by its own norm"

    clip_norm: float = setting(LIMIT, "the largest norm.", is_limit=True, option_default=1.0)
    need_clip: NeedClip = None
    ord: float = setting(ORDER, "1, 2, inf or any other.", default=2.0)
    axes: Sequence[int] | int | None = setting(AXES, "one norm over these axes: 0,2", default=None)
    per_sample: bool = setting(
        FLAG, "the first axis is that of samples, each clipped on its own.", default=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axes is not None and self.per_sample:
            raise OnnxClipError(
                "axes and per_sample exclude each other: per_sample is all axes but the first"
            )

    @property
    def order(self) -> float:
        return self.ord

    @property
    def is_split(self) -> bool:
        return self.axes is not None or self.per_sample

    @property
    def label(self) -> str:
        norm = "norm" if self.ord == 2 else norm_word(self.ord)
        over = "" if self.axes is None else f" over axes {self.settings()['axes']}"
        return f"{norm}{over}{' per sample' if self.per_sample else ''} <= {self.clip_norm:g}"

    @property
    def bounds(self) -> str:
        what = "each sample of each gradient" if self.per_sample else "each gradient"
        over = "" if self.axes is None else f" over axes {self.settings()['axes']}"
        return f"{what} by its own {norm_word(self.ord)}{over}"

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        if self.is_split:
            if gradient.shape is None:
                return "its shape is unknown, and a norm over some of its axes needs its rank"
            try:
                self._axes(len(gradient.shape), has_seeds=gradient.has_seeds)
            except OnnxClipError as error:
                return str(error)
        work = self.work_dtype(gradient.dtype, numerics)
        return shared_fault(gradient, opset, numerics, work, broadcasts=self.is_split)

    def emit_norm(self, to: Emitter, x: Tensor) -> Norm:
        has_seeds, axes = to.gradient.has_seeds, None
        if x.shape is not None and not (has_seeds and x.shape[-1] == 1 and not self.is_split):
            axes = self._axes(len(x.shape), has_seeds=has_seeds)
        return emit_norm(to, x, self.ord, Over(axes, axes is not None or to.keeps_rank))

    def norms(self, case: Case) -> NDArray[np.float64]:
        wide = case.gradient.astype(np.float64)
        return norm_of(wide, self.ord, self._axes(wide.ndim, has_seeds=case.has_seeds))

    def _axes(self, rank: int, *, has_seeds: bool) -> tuple[int, ...] | None:
        if self.axes is not None:
            return normal_axes(self.axes, rank - int(has_seeds))
        if self.per_sample and rank - int(has_seeds) < 1:
            raise OnnxClipError("per_sample needs a gradient with a first axis for the samples")
        return own_axes(rank, has_seeds=has_seeds, per_sample=self.per_sample)
