"""The common parts of clips that multiply gradients by one number for all of a group together."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case, Formula
from onnx_clip_pass.clips.emitter import Emitter, Measured, SequenceLoops
from onnx_clip_pass.clips.norms import Norm, emit_norm, emit_root, emit_together, norm_of
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.clips.parts import emit_total, is_spread
from onnx_clip_pass.clips.scaling import (
    emit_product,
    own_axes,
    scaled_down,
    shared_fault,
    widened,
)
from onnx_clip_pass.clips.tape import Over, Tensor
from onnx_clip_pass.clips.verdicts import emit_judged, emit_nothing
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FLOAT

__all__ = ["DEFAULT_GROUP", "MOST_SUMMED_IN_FLOAT32", "TogetherClip"]

DEFAULT_GROUP = "default_group"
_NO_SAMPLES = "per_sample needs a gradient of known rank whose first axis is that of samples"
MOST_SUMMED_IN_FLOAT32 = 64
"""Norms joined in float32: so many roundings keep the root of a sum of squares below 4e-6."""


class TogetherClip(Formula):
    """A clip that limits the one norm of all gradients of a group; of one, where it has no group.

    The norm is of the clip's `order`; where it `is_split`, it is of each sample, along the first
    axis of every gradient.
    """

    has_norm_for_each_seed = True
    """False where only gradients with one seed are clipped, whose norm is a number."""

    @abstractmethod
    def limit(self, total: NDArray[np.float64], cases: Sequence[Case]) -> NDArray[np.float64]:
        """The limit of the norm of these gradients together, which is `total`."""

    @abstractmethod
    def emit_scale(self, at: Emitter, total: Tensor) -> Tensor:
        """The factor of all gradients, whose norm together is `total`."""

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        shape = gradient.shape
        if self.is_split and (shape is None or gradient.has_seeds or not shape):
            return _NO_SAMPLES
        work = self.work_dtype(gradient.dtype, numerics)
        return shared_fault(gradient, opset, numerics, work, broadcasts=self.is_split)

    def clash(self, one: Gradient, other: Gradient) -> str | None:
        if one.has_seeds != other.has_seeds:
            return "one has a seed dimension and the other has none"
        if self.is_split and one.shape and other.shape:
            sizes = (one.shape[0], other.shape[0])
            return _uneven({size for size in sizes if isinstance(size, int)})
        return None

    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        if self.group is None and len(cases) > 1:
            return [self.reference([case], nonfinite)[0] for case in cases]
        if self.is_split:
            if any(case.has_seeds or not case.gradient.ndim for case in cases):
                raise OnnxClipError(_NO_SAMPLES)
            if what := _uneven({len(case.gradient) for case in cases}):
                raise OnnxClipError(f"these gradients cannot have one norm: {what}")
        finite = []
        for case in cases:
            wide = case.gradient.astype(np.float64)
            axes = self._axes(case)
            over = tuple(range(wide.ndim)) if axes is None else axes
            finite.append(np.isfinite(wide).all(axis=over).ravel())
        if not cases:
            return []
        total = self.total(cases)
        limit = self.limit(total, cases)
        is_finite = np.asarray(np.stack(finite).all(axis=0))
        return [self._scaled_down(case, total, limit, is_finite, nonfinite) for case in cases]

    def total(self, cases: Sequence[Case]) -> NDArray[np.float64]:
        """The norm of all gradients together, in float64; of each sample, or seed, one."""
        norms = [norm for case in cases for norm in [self.norms(case).ravel()] * self._times(case)]
        return np.asarray(norm_of(np.stack(norms), self.order, (0,))[0])

    def _times(self, of: Case | Emitter) -> int:
        """The times that a gradient counts: in a group once for each of its parameters."""
        return 1 if self.group is None else of.count

    def norms(self, case: Case) -> NDArray[np.float64]:
        return norm_of(case.gradient.astype(np.float64), self.order, self._axes(case))

    def _axes(self, case: Case) -> tuple[int, ...] | None:
        rank = case.gradient.ndim
        return own_axes(rank, has_seeds=case.has_seeds, per_sample=self.is_split)

    def _scaled_down(
        self,
        case: Case,
        total: NDArray[np.float64],
        limit: NDArray[np.float64],
        is_finite: NDArray[np.bool_],
        nonfinite: NonFinite,
    ) -> NDArray[Any]:
        rank = case.gradient.ndim
        shape = (1,) * (rank - 1) + (-1,) if case.has_seeds else (-1,) + (1,) * (rank - 1)
        shape = shape if rank else ()
        return scaled_down(
            case.gradient, total.reshape(shape), limit, nonfinite, is_finite.reshape(shape)
        )

    def emit(self, members: Sequence[Emitter]) -> Measured | None:
        parts = [self._emit_part(to) for to in members]
        position = max(to.position for to in members)
        for to in members:
            to.position = position
        at = members[0].relabelled(self.group or members[0].label)
        total = self._emit_total(at, parts)
        scale = self.emit_scale(at, total.value)
        factors, odd = _Shared(at, scale), self._emit_verdict(at, total, parts)
        verdicts = None if odd is None else _Shared(at, odd)
        spread = is_spread(at, total.over)
        for to, x, power in parts:
            if to.is_measured:
                to.measured = Measured(emit_root(to, power, self.order).value, scale, spread)
            rank, axes = len(to.gradient.shape or ()), 0
            if self.is_split:
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
            if self.order not in (1, 2, math.inf):
                return emit_together(to, [(so_far, 1), (power, 1)], self.order)
            return _join(to, "Max" if self.order == math.inf else "Sum", [so_far, power])

        def add_nothing(to: Emitter, so_far: Tensor) -> Tensor:
            nothing = emit_nothing(to, powers[0], widened(to, self))
            return _join(to, "Sum", [so_far, to.cast(nothing, DOUBLE, result="zero")])

        total = loops.of_all(sequence, add)
        at = loops.of_main(self.group or "")
        norm = emit_root(at, powers[0]._replace(value=total), self.order)
        scale, odd = self.emit_scale(at, norm.value), None
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
            seeds = to.gradient.has_seeds and self.has_norm_for_each_seed
            axes = own_axes(len(x.shape), has_seeds=seeds, per_sample=self.is_split)
        return _Part(to, x, emit_norm(to, x, self.order, Over(axes), is_power=True))

    def _emit_total(self, at: Emitter, parts: Sequence[_Part]) -> Norm:
        """The norm of all together."""
        is_finite = all(part.power.is_finite for part in parts)
        power = Norm(self._emit_sum(at, parts), is_finite, parts[0].power.over)
        return emit_root(at, power, self.order)

    def _emit_sum(self, at: Emitter, parts: Sequence[_Part]) -> Tensor:
        """The power of the norm of all together."""
        if self.order not in (1, 2, math.inf):
            powers = [part.power.value for part in parts]
            dtype = max(power.dtype for power in powers)  # DOUBLE is above FLOAT
            same = [at.cast(power, dtype, result="part") for power in powers]
            counts = [self._times(part.to) for part in parts]
            if counts == [1]:
                return same[0]
            return emit_together(at, list(zip(same, counts, strict=True)), self.order)
        counted = [self._counted(part) for part in parts]
        join = "Max" if self.order == math.inf else "Sum"
        narrow = [power for power in counted if power.dtype == FLOAT]
        wide = [power for power in counted if power.dtype == DOUBLE]
        if wide or len(narrow) > MOST_SUMMED_IN_FLOAT32:
            for begin in range(0, len(narrow), MOST_SUMMED_IN_FLOAT32):
                part = _join(at, join, narrow[begin : begin + MOST_SUMMED_IN_FLOAT32])
                wide.append(at.cast(part, DOUBLE, result="part"))
        return _join(at, join, wide or narrow)

    def _counted(self, part: _Part) -> Tensor:
        """The power once for each parameter that the value is the gradient of."""
        to, power, times = part.to, part.power.value, self._times(part.to)
        if times == 1 or self.order == math.inf:
            return power
        return to.op("Mul", power, float(times), result="counted")

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
