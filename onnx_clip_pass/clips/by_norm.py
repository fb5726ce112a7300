"""Clipping each gradient by its own L2 norm."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Clip, Emitter
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByNorm"]

_FIRST_OPSET = 7  # Div and Mul broadcast from here on
_FIRST_BROADCASTING_MIN = 8
_FIRST_AXES_AS_INPUT = 18
_DTYPES = {"float32", "float64"}


class GradientClipByNorm(Clip):
    r"""Limit the L2 norm of each gradient to `clip_norm`.

    .. math:: out = \begin{cases} x & \lVert x \rVert_2 \le c \\
                                  c \, x / \lVert x \rVert_2 & \text{otherwise}\end{cases}

    with c = `clip_norm` and the norm over all elements of one gradient. As nodes:
    `Mul(x, Min(Div(c, ReduceL2(x)), 1))`. No epsilon is added to the norm (PyTorch's
    `clip_grad_norm_` adds 1e-6), so a gradient within the threshold stays as it is, bit for bit.

    Where a gradient has onnx-ad's trailing seed dimension, each seed has a norm of its own.

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

    def reference(self, gradient: NDArray[Any]) -> NDArray[Any]:
        wide = gradient.astype(np.float64)
        norm = np.linalg.norm(wide.ravel())
        if norm <= self.clip_norm or self.is_identity:
            return gradient
        return np.asarray(wide * (self.clip_norm / norm)).astype(gradient.dtype)

    def fault(self, gradient: Gradient, opset: int) -> str | None:
        if gradient.dtype not in _DTYPES:
            return _dtype_fault(gradient)
        if not _is_held_by(gradient.dtype, self.clip_norm):
            return f"clip_norm {self.clip_norm:g} is beyond the range of {gradient.dtype}"
        if opset < _FIRST_OPSET:
            return (
                f"opset {opset} is too old: clipping needs {_FIRST_OPSET} or later, where Div and "
                f"Mul broadcast; convert the model with onnx.version_converter first"
            )
        if opset < _FIRST_BROADCASTING_MIN and gradient.dtype == "float64":
            return "float64 needs opset 8 or later: ONNX Runtime's CPU provider has no Min before"
        if opset < _FIRST_BROADCASTING_MIN and gradient.has_seeds:
            return "a gradient with a seed dimension needs opset 8 or later, where Min broadcasts"
        return None

    def emit(self, gradient: Gradient, to: Emitter) -> None:
        norm, shape = self._emit_norm(gradient, to)
        ratio = to.node("Div", [to.constant(self.clip_norm), norm], result="ratio", shape=shape)
        scale = to.node("Min", [ratio, to.constant(1.0)], result="scale", shape=shape)
        to.node("Mul", [to.source, scale])

    def _emit_norm(
        self, gradient: Gradient, to: Emitter
    ) -> tuple[str, tuple[int | str | None, ...]]:
        shape = gradient.shape
        if not gradient.has_seeds or shape is None or shape[-1] == 1:
            return to.node("ReduceL2", [to.source], result="norm", shape=(), keepdims=0), ()
        if len(shape) == 1:
            return to.node("Abs", [to.source], result="norm", shape=shape), shape
        axes = list(range(len(shape) - 1))
        per_seed = (*(1 for _ in axes), shape[-1])
        if to.opset < _FIRST_AXES_AS_INPUT:
            norm = to.node("ReduceL2", [to.source], result="norm", shape=per_seed, axes=axes)
        else:
            inputs = [to.source, to.axes(axes)]
            norm = to.node("ReduceL2", inputs, result="norm", shape=per_seed)
        return norm, per_seed


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


@lru_cache
def _is_held_by(dtype: str, number: float) -> bool:
    limits = np.finfo(dtype)
    return math.isinf(number) or float(limits.tiny) <= number <= float(limits.max)


def _dtype_fault(gradient: Gradient) -> str:
    if gradient.dtype in ("float16", "bfloat16"):
        return f"{gradient.dtype} gradients are not supported yet; float32 and float64 are"
    return f"expected a float32 or float64 tensor, but it is {gradient.dtype}"
