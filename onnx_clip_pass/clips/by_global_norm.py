"""Clipping all gradients of a group by the one norm of all of them together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case
from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.norms import norm_word
from onnx_clip_pass.clips.scaling import emit_scale
from onnx_clip_pass.clips.settings import FLAG, LIMIT, NAME, ORDER, setting
from onnx_clip_pass.clips.tape import Tensor
from onnx_clip_pass.clips.together import DEFAULT_GROUP, TogetherClip
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByGlobalNorm"]


class GradientClipByGlobalNorm(TogetherClip):
    r"""Limit the norm of all gradients of a group together to `clip_norm`.

    .. math:: N = \Big(\sum_k \lVert x_k \rVert_p^p\Big)^{1/p}, \qquad
              out_k = \begin{cases} x_k & N \le c \\ c \, x_k / N & \text{otherwise}\end{cases}

    with c = `clip_norm`, p = `ord`, and the sum over the gradients of the group (a maximum for
    p = inf). All are multiplied by the same number, so the direction of the step stays. No
    epsilon is added to the norm. A value that is the gradient of two parameters counts once for
    each. Every clipped gradient depends on all gradients of the group.
    Where a graph holds several steps, each has a norm of its own.

    The sum is formed in float64 where a gradient is float64, where a norm needs it, or where there
    are more than 64. Gradients in half precision are widened to float32, clipped, and rounded once.
    A group with nan or inf in one of its gradients is treated as one gradient.

    Args:
        clip_norm: the largest norm, in the gradients' own unit; positive, or inf for no clipping.
        need_clip: which parameters, see `GradientClipByNorm`; the others do not count.
        group_name: gradients clipped under the same name have their norm in common.
        ord: of the norm, any p > 0 or inf.
        per_sample: the first axis of each gradient holds one gradient for each sample of a batch;
            each sample has its norm over all gradients of the group.

    Raises:
        OnnxClipError: `clip_norm` or `ord` is not a positive number, `group_name` is no text, or
            `need_clip` is no selection.

    Example:
        >>> import numpy as np
        >>> GradientClipByGlobalNorm(1.0).apply({"w": np.array([3.0]), "b": np.array([4.0])})
        {'w': array([0.6]), 'b': array([0.8])}

    References:
        PaddlePaddle, `paddle.nn.ClipGradByGlobalNorm`; PyTorch, `torch.nn.utils.clip_grad_norm_`;
        TensorFlow, `tf.clip_by_global_norm`; optax, `clip_by_global_norm` and
        `per_example_global_norm_clip`; Opacus.
        Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2013,
        https://arxiv.org/abs/1211.5063
    """

    summary = "all gradients by the one norm of all together"

    clip_norm: float = setting(LIMIT, "the largest norm.", is_limit=True, option_default=1.0)
    need_clip: NeedClip = None
    group_name: str = setting(NAME, "the group.", default=DEFAULT_GROUP, is_always_told=True)
    ord: float = setting(ORDER, "1, 2, inf or any other.", default=2.0)
    per_sample: bool = setting(
        FLAG, "the first axis is that of samples, each clipped on its own.", default=False
    )

    @property
    def order(self) -> float:
        return self.ord

    @property
    def is_split(self) -> bool:
        return self.per_sample

    @property
    def group(self) -> str:
        return self.group_name

    @property
    def label(self) -> str:
        norm = "norm" if self.ord == 2 else norm_word(self.ord)
        each = " per sample" if self.per_sample else ""
        group = "" if self.group_name == DEFAULT_GROUP else f" ({self.group_name})"
        return f"global {norm}{each} <= {self.clip_norm:g}{group}"

    @property
    def bounds(self) -> str:
        each = "each sample" if self.per_sample else "all gradients"
        return f"{each} of group {self.group_name!r} by one {norm_word(self.ord)} of all together"

    def limit(self, total: NDArray[np.float64], cases: Sequence[Case]) -> NDArray[np.float64]:
        return np.asarray(self.clip_norm)

    def emit_scale(self, at: Emitter, total: Tensor) -> Tensor:
        is_limited = at.has_runtime_threshold or not self.is_identity
        limit = at.limit(self.clip_norm, total.dtype) if is_limited else None
        return emit_scale(at, total, limit)
