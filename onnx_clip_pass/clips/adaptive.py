"""Clipping each unit of a gradient by the norm of the same unit of its parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case
from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.norms import Norm, emit_norm, norm_of
from onnx_clip_pass.clips.numerics import Numerics
from onnx_clip_pass.clips.scaling import ScalingClip, normal_axes, shared_fault
from onnx_clip_pass.clips.settings import AXES, LIMIT, Number, setting
from onnx_clip_pass.clips.tape import Over, Tensor
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.selection import NeedClip

__all__ = ["AdaptiveGradientClip"]


class AdaptiveGradientClip(ScalingClip):
    r"""Limit each unit of a gradient to a part of the norm of its parameter's unit.

    .. math:: out_i = \begin{cases} g_i & \lVert g_i \rVert \le m_i \\
                                    m_i \, g_i / \lVert g_i \rVert & \text{otherwise}\end{cases}
              \qquad m_i = \lambda \max(\lVert w_i \rVert, \epsilon)

    with L2 norms over unit i of the gradient g and of its parameter w, as it is before the step,
    and lambda = `clipping`. optax and timm divide by max(norm(g_i), 1e-6), which is the same
    wherever lambda * eps is 1e-6 or more.

    A unit is what one output is computed from. In a graph it is read off the first node that takes
    the parameter (through Transpose, Cast and Identity):

    | node | weight | unit |
    |---|---|---|
    | MatMul, Gemm (right side) | (in, out); (out, in) with transB | a column; a row |
    | MatMul, Gemm (left side) | (out, in); (in, out) with transA | a row; a column |
    | Conv | (out, in / groups, ...) | all but the first axis |
    | ConvTranspose | (in, out / groups, ...) | all but the second axis |
    | Gather | (rows, ...) | one entry along its axis |
    | RNN, GRU, LSTM | (directions, out, in) | the last axis |

    A parameter with one axis longer than 1, or none, is one unit. For any other the rewrite asks
    for `axes`; and `apply`, which sees no graph, for every parameter of rank 2 and more. A
    parameter is widened from half precision as its gradient is, see `GradientClipByNorm`.

    Args:
        clipping: the largest ratio of the norms (the papers' lambda); positive.
        eps: the smallest norm that a unit of a parameter counts as; positive.
        need_clip: which parameters, see `GradientClipByNorm`; the papers leave out the last layer.
        axes: the axes over which a unit reaches, instead of what the graph says.

    Raises:
        OnnxClipError: `clipping` or `eps` is not a positive number, `axes` are no integers, or
            `need_clip` is no selection.

    Example:
        >>> import numpy as np
        >>> clip = AdaptiveGradientClip(0.5)
        >>> clip.apply({"b": np.array([3.0, 4.0])}, parameters={"b": np.array([0.0, 2.0])})
        {'b': array([0.6, 0.8])}

    References:
        Brock, De, Smith, Simonyan: High-performance large-scale image recognition without
        normalization (NFNets), 2021, https://arxiv.org/abs/2102.06171
        optax, `adaptive_grad_clip`; timm, `adaptive_clip_grad`.
    """

    reads_parameter = True

    summary = "each unit against its parameter"

    clipping: float = setting(LIMIT, "the largest ratio of gradient to parameter.", is_limit=True)
    eps: float = setting(
        Number(), "the least that a parameter counts as.", default=1e-3, is_always_told=True
    )
    need_clip: NeedClip = None
    axes: Sequence[int] | int | None = setting(AXES, "one norm over these axes: 0,2", default=None)

    @property
    def is_split(self) -> bool:
        return True

    @property
    def parameter_floor(self) -> float:
        return self.eps

    @property
    def label(self) -> str:
        return f"unit norm <= {self.clipping:g} of its parameter's"

    @property
    def bounds(self) -> str:
        return "each unit by its norm against that of its parameter"

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        shape = gradient.shape
        if shape is None:
            return "its shape is unknown, and the norms of its units need its rank"
        if self.axes is not None:
            try:
                normal_axes(self.axes, len(shape) - int(gradient.has_seeds))
            except OnnxClipError as error:
                return str(error)
        work = self.work_dtype(gradient.dtype, numerics)
        return shared_fault(gradient, opset, numerics, work, broadcasts=len(shape) > 0)

    def work_dtype(self, dtype: str, numerics: Numerics) -> int:
        kinds = [numerics.work_dtype(dtype, x) for x in (self.clipping, self.clipping * self.eps)]
        return max(kinds)  # DOUBLE is above FLOAT

    def emit_norm(self, to: Emitter, x: Tensor) -> Norm:
        return emit_norm(to, x, 2.0, self._over(to))

    def emit_limit(self, to: Emitter, norm: Norm, x: Tensor) -> Tensor | None:
        if self.is_identity and not to.has_runtime_threshold:
            return None
        site, shape, seeds = to.parameter, to.gradient.shape or (), int(to.gradient.has_seeds)
        assert site is not None
        at = to.relabelled(f"{to.gradient.name}/parameter")
        own = Tensor(site.name, site.dtype, shape[: len(shape) - seeds])
        length = emit_norm(at, at.cast(own, x.dtype, result="wide"), 2.0, self._over(to)).value
        length = at.cast(length, norm.value.dtype, result="length")
        least = at.op("Max", length, self.eps, result="at least")
        if seeds:
            least = at.unsqueeze(least, (len(shape) - 1,))
        return at.op("Mul", least, to.limit(self.clipping, least.dtype), result="limit")

    def norms(self, case: Case) -> NDArray[np.float64]:
        return norm_of(case.gradient.astype(np.float64), 2.0, self._axes_of(case))

    def limits(self, case: Case) -> NDArray[np.float64]:
        lengths = norm_of(np.asarray(case.parameter).astype(np.float64), 2.0, self._axes_of(case))
        if case.has_seeds:
            lengths = lengths[..., None]
        with np.errstate(over="ignore"):  # a limit beyond float64 is none
            return np.asarray(self.clipping * np.maximum(lengths, self.eps))

    def _axes_of(self, case: Case) -> tuple[int, ...]:
        shape = case.gradient.shape
        rank = len(shape) - int(case.has_seeds)
        axes = case.axes if self.axes is None else normal_axes(self.axes, rank)
        if axes is not None:
            return axes
        if sum(shape[axis] != 1 for axis in range(rank)) > 1:
            raise OnnxClipError(
                f"AdaptiveGradientClip: a gradient of shape {list(shape)} has units that nothing "
                f"tells here; pass axes=, those over which a unit reaches"
            )
        return tuple(range(rank))

    def _over(self, to: Emitter) -> Over:
        rank = len(to.gradient.shape or ()) - int(to.gradient.has_seeds)
        if self.axes is not None:
            return Over(normal_axes(self.axes, rank), keepdims=True)
        assert to.parameter is not None
        axes = to.parameter.axes
        return Over(tuple(range(rank)) if axes is None else axes, keepdims=True)
