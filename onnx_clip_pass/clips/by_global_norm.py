"""Clipping all gradients of a group by the one norm of all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case, Formula
from onnx_clip_pass.clips.emitter import Emitter, Measured, SequenceLoops
from onnx_clip_pass.clips.norms import (
    Norm,
    emit_norm,
    emit_root,
    emit_together,
    norm_of,
    norm_word,
)
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.clips.parts import emit_total, is_spread
from onnx_clip_pass.clips.scaling import (
    emit_product,
    emit_scale,
    own_axes,
    scaled_down,
    shared_fault,
    widened,
)
from onnx_clip_pass.clips.settings import FLAG, LIMIT, NAME, ORDER, setting
from onnx_clip_pass.clips.tape import Over, Tensor
from onnx_clip_pass.clips.verdicts import emit_judged, emit_nothing
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FLOAT
from onnx_clip_pass.selection import NeedClip

__all__ = ["MOST_SUMMED_IN_FLOAT32", "GradientClipByGlobalNorm"]

_DEFAULT_GROUP = "default_group"
_NO_SAMPLES = "per_sample needs a gradient of known rank whose first axis is that of samples"
MOST_SUMMED_IN_FLOAT32 = 64
"""Norms joined in float32: so many roundings keep the root of a sum of squares below 4e-6."""


class GradientClipByGlobalNorm(Formula):
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
    group_name: str = setting(NAME, "the group.", default=_DEFAULT_GROUP, is_always_told=True)
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
        group = "" if self.group_name == _DEFAULT_GROUP else f" ({self.group_name})"
        return f"global {norm}{each} <= {self.clip_norm:g}{group}"

    @property
    def bounds(self) -> str:
        each = "each sample" if self.per_sample else "all gradients"
        return f"{each} of group {self.group_name!r} by one {norm_word(self.ord)} of all together"

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        shape = gradient.shape
        if self.per_sample and (shape is None or gradient.has_seeds or not shape):
            return _NO_SAMPLES
        work = self.work_dtype(gradient.dtype, numerics)
        return shared_fault(gradient, opset, numerics, work, broadcasts=self.per_sample)

    def clash(self, one: Gradient, other: Gradient) -> str | None:
        if one.has_seeds != other.has_seeds:
            return "one has a seed dimension and the other has none"
        if self.per_sample and one.shape and other.shape:
            sizes = (one.shape[0], other.shape[0])
            return _uneven({size for size in sizes if isinstance(size, int)})
        return None

    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        if self.per_sample:
            if any(case.has_seeds or not case.gradient.ndim for case in cases):
                raise OnnxClipError(_NO_SAMPLES)
            if what := _uneven({len(case.gradient) for case in cases}):
                raise OnnxClipError(f"these gradients cannot have one norm: {what}")
        norms, finite = [], []
        for case in cases:
            wide = case.gradient.astype(np.float64)
            axes = self._axes(case)
            norms += [self.norms(case).ravel()] * case.count
            over = tuple(range(wide.ndim)) if axes is None else axes
            finite.append(np.isfinite(wide).all(axis=over).ravel())
        if not cases:
            return []
        total = norm_of(np.stack(norms), self.ord, (0,))[0]
        is_finite = np.asarray(np.stack(finite).all(axis=0))
        return [self._scaled_down(case, total, is_finite, nonfinite) for case in cases]

    def norms(self, case: Case) -> NDArray[np.float64]:
        return norm_of(case.gradient.astype(np.float64), self.ord, self._axes(case))

    def _axes(self, case: Case) -> tuple[int, ...] | None:
        rank = case.gradient.ndim
        return own_axes(rank, has_seeds=case.has_seeds, per_sample=self.per_sample)

    def _scaled_down(
        self,
        case: Case,
        total: NDArray[np.float64],
        is_finite: NDArray[np.bool_],
        nonfinite: NonFinite,
    ) -> NDArray[Any]:
        rank = case.gradient.ndim
        shape = (1,) * (rank - 1) + (-1,) if case.has_seeds else (-1,) + (1,) * (rank - 1)
        shape = shape if rank else ()
        limit = np.asarray(self.clip_norm)
        return scaled_down(
            case.gradient, total.reshape(shape), limit, nonfinite, is_finite.reshape(shape)
        )

    def emit(self, members: Sequence[Emitter]) -> Measured | None:
        parts = [self._emit_part(to) for to in members]
        position = max(to.position for to in members)
        for to in members:
            to.position = position
        at = members[0].relabelled(self.group_name)
        total = self._emit_total(at, parts)
        scale = self._emit_scale(at, total.value)
        factors, odd = _Shared(at, scale), self._emit_verdict(at, total, parts)
        verdicts = None if odd is None else _Shared(at, odd)
        spread = is_spread(at, total.over)
        for to, x, power in parts:
            if to.is_measured:
                to.measured = Measured(emit_root(to, power, self.ord).value, scale, spread)
            rank, axes = len(to.gradient.shape or ()), 0
            if self.per_sample:
                axes = rank - 1
            elif to.keeps_rank and not to.gradient.has_seeds:  # the axis of seeds is the last
                axes = rank
            verdict = None if verdicts is None else verdicts.behind(BOOL, axes)
            emit_product(to, x, factors.behind(x.dtype, axes), verdict)
        return Measured(total.value, scale, spread)

    def emit_over(self, loops: SequenceLoops, sequence: str, result: str) -> None:
        """A loop for the norm of all, perhaps one for what is not finite, one for the products."""
        powers: list[Norm] = []

        def add(to: Emitter, so_far: Tensor) -> Tensor:
            powers.append(self._emit_part(to).power)
            power = to.cast(powers[0].value, DOUBLE, result="part")
            if self.ord not in (1, 2, math.inf):
                return emit_together(to, [(so_far, 1), (power, 1)], self.ord)
            return _join(to, "Max" if self.ord == math.inf else "Sum", [so_far, power])

        def add_nothing(to: Emitter, so_far: Tensor) -> Tensor:
            nothing = emit_nothing(to, powers[0], widened(to, self))
            return _join(to, "Sum", [so_far, to.cast(nothing, DOUBLE, result="zero")])

        total = loops.of_all(sequence, add)
        at = loops.of_main(self.group_name)
        norm = emit_root(at, powers[0]._replace(value=total), self.ord)
        scale, odd = self._emit_scale(at, norm.value), None
        if at.numerics.nonfinite != "propagate" and norm.is_finite:
            odd = emit_judged(at, at.op("Mul", norm.value, 0.0, result="nothing"))
        elif at.numerics.nonfinite != "propagate":
            odd = emit_judged(at, loops.of_all(sequence, add_nothing))
        loops.of_each(
            sequence, result, [lambda to: emit_product(to, widened(to, self), scale, odd)]
        )

    def _emit_part(self, to: Emitter) -> _Part:
        """The share of a gradient in the norm of all."""
        x, axes = widened(to, self), None
        if x.shape is not None:
            seeds = to.gradient.has_seeds
            axes = own_axes(len(x.shape), has_seeds=seeds, per_sample=self.per_sample)
        return _Part(to, x, emit_norm(to, x, self.ord, Over(axes), is_power=True))

    def _emit_scale(self, at: Emitter, total: Tensor) -> Tensor:
        """The factor of all gradients, whose norm together is `total`."""
        is_limited = at.has_runtime_threshold or not self.is_identity
        limit = at.limit(self.clip_norm, total.dtype) if is_limited else None
        return emit_scale(at, total, limit)

    def _emit_total(self, at: Emitter, parts: Sequence[_Part]) -> Norm:
        """The norm of all together."""
        is_finite = all(part.power.is_finite for part in parts)
        power = Norm(self._emit_sum(at, parts), is_finite, parts[0].power.over)
        return emit_root(at, power, self.ord)

    def _emit_sum(self, at: Emitter, parts: Sequence[_Part]) -> Tensor:
        """The power of the norm of all together."""
        if self.ord not in (1, 2, math.inf):
            powers = [part.power.value for part in parts]
            dtype = max(power.dtype for power in powers)  # DOUBLE is above FLOAT
            same = [at.cast(power, dtype, result="part") for power in powers]
            counts = [part.to.count for part in parts]
            if counts == [1]:
                return same[0]
            return emit_together(at, list(zip(same, counts, strict=True)), self.ord)
        counted = [self._counted(part) for part in parts]
        join = "Max" if self.ord == math.inf else "Sum"
        narrow = [power for power in counted if power.dtype == FLOAT]
        wide = [power for power in counted if power.dtype == DOUBLE]
        if wide or len(narrow) > MOST_SUMMED_IN_FLOAT32:
            for begin in range(0, len(narrow), MOST_SUMMED_IN_FLOAT32):
                part = _join(at, join, narrow[begin : begin + MOST_SUMMED_IN_FLOAT32])
                wide.append(at.cast(part, DOUBLE, result="part"))
        return _join(at, join, wide or narrow)

    def _counted(self, part: _Part) -> Tensor:
        """The power once for each parameter that the value is the gradient of."""
        to, power = part.to, part.power.value
        if to.count == 1 or self.ord == math.inf:
            return power
        return to.op("Mul", power, float(to.count), result="counted")

    def _emit_verdict(self, at: Emitter, total: Norm, parts: Sequence[_Part]) -> Tensor | None:
        """A bool, true if not all elements of all gradients are finite; None if nobody asks.

        The total tells if it cannot overflow; else 0 times every part of it, which is 0 or nan.
        """
        if at.numerics.nonfinite == "propagate":
            return None
        if total.is_finite:
            return emit_judged(at, at.op("Mul", total.value, 0.0, result="nothing"))
        zeros = []
        for to, x, power in parts:
            if power.is_finite:
                zero = to.op("Mul", power.value, 0.0, result="zero")
            else:
                zero = emit_nothing(to, power, x)
            zeros.append(to.cast(zero, DOUBLE, result="zero"))
        zero = emit_total(at, _join(at, "Sum", zeros), parts[0].power.over, "not finite")
        return emit_judged(at, zero)


class _Part(NamedTuple):
    """A gradient of a group, widened, and what it adds to the norm of all."""

    to: Emitter
    x: Tensor
    power: Norm


class _Shared:
    """A value of a whole group, made once for each dtype and rank that it meets."""

    def __init__(self, at: Emitter, value: Tensor) -> None:
        self._at = at
        self._value = value
        self._made: dict[tuple[int, int], Tensor] = {}

    def behind(self, dtype: int, axes: int) -> Tensor:
        """The value in this dtype, with so many axes of size 1 behind its own."""
        if (dtype, axes) not in self._made:
            if axes == 0:
                made = self._at.cast(self._value, dtype, result="factor")
            else:
                own = len(self._value.shape or ())
                made = self.behind(dtype, 0)
                made = self._at.unsqueeze(made, tuple(range(own, own + axes)))
            self._made[dtype, axes] = made
        return self._made[dtype, axes]


def _uneven(sizes: set[int]) -> str | None:
    """The reason that gradients of so many samples cannot have one norm for each, or None."""
    if len(sizes) < 2:
        return None
    return f"they have {' and '.join(map(str, sorted(sizes)))} samples"


def _join(at: Emitter, op_type: str, values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else at.op(op_type, *values, result="together")
