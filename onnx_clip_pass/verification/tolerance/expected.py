"""The results of recorded clips in float64, and how far off a graph may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips import (
    Case,
    Formula,
    NonFinite,
    Numerics,
    scheduled,
)
from onnx_clip_pass.clips.norms import norm_of
from onnx_clip_pass.clips.together import MOST_SUMMED_IN_FLOAT32
from onnx_clip_pass.verification.tolerance import compare
from onnx_clip_pass.verification.tolerance.ranges import is_promised

__all__ = [
    "History",
    "Member",
    "Outcome",
    "acting",
    "activating_scale",
    "clip_together",
    "enlarged",
    "least_acting_scale",
]

_MOST_POWERS = 120
_DIVIDED = 3.5  # half a unit for each: dividing, casting and multiplying; and as much again
_STRIDE = 4  # each factor that is tried takes as long as a check: by 16 first, then in between


@dataclass(frozen=True, slots=True)
class Member:
    """A gradient among those of its step: its formulas, thresholds times the loss scale.

    `is_given` says that the clip takes this very array, as it is; see `_roundings` for the others.
    """

    formulas: tuple[Formula, ...]
    case: Case
    unrolled_step: int
    has_runtime_threshold: bool
    is_given: bool = False

    @property
    def gradient(self) -> NDArray[Any]:
        """Before clipping."""
        return self.case.gradient

    def on(self, **arrays: Any) -> Member:
        """The same with another gradient, or parameter."""
        return replace(self, case=replace(self.case, **arrays))


class History(NamedTuple):
    """The norms so far behind a step; the last has a relative error, and may be `off` besides."""

    norms: NDArray[np.float64]
    precision: float
    off: float


@dataclass(slots=True)
class Outcome:
    """The result of the formulas for a gradient.

    `acts` says of each of them whether it changed the gradient, of one that bounds elements for
    each of its bounds, and nothing of those that never do. `scale` is the least factor: nan if an
    element is nan, None if one is infinite, or where nothing is ever clipped. `precision` is a
    relative error; `rounding` says by which part a norm of the gradient may differ where the
    runtime takes it before the gradient is rounded to half precision, see `_roundings`. `norms` are
    those of whole groups, and as that of no group the largest that the first formula limits, still
    times the loss scale, each with its relative error and its rounding. `is_promised` says whether
    all these norms are in the range for which a precision is promised. `history` is the new value
    of the state of a formula that has one, still times the loss scale.
    """

    clipped: NDArray[Any]
    acts: list[bool] = field(default_factory=list)
    scale: float | None = 1.0
    precision: float = 0.0
    rounding: float = 0.0
    norms: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    is_promised: bool = True
    history: History | None = None


def clip_together(members: Sequence[Member], numerics: Numerics) -> list[Outcome]:
    """Clip gradients of one graph and one iteration, formula after formula."""
    found = [Outcome(member.gradient) for member in members]
    for stage in _stages(members, numerics.nonfinite):
        _tell_stage(stage, [found[number] for number in stage.numbers], numerics)
    return found


def enlarged(members: Sequence[Member], factor: float) -> list[Member]:
    """The members with their gradients multiplied, in float64."""
    return [member.on(gradient=compare.wide(member.gradient) * factor) for member in members]


def activating_scale(
    members: Sequence[Member], numerics: Numerics, *, up: bool, sign: int = 1
) -> float:
    """The power of two, times `sign`, that scales gradients so that all are clipped, or none.

    Where a gradient has several clips, all of them act if there is such a factor. 0 if there is
    none at all, as for zeros.
    """
    if all(formula.is_identity for member in members for formula in member.formulas):
        return 0.0
    arrays = [member.gradient for member in members]
    taking = [bool(np.any(x)) and bool(np.isfinite(compare.wide(x)).all()) for x in arrays]
    if not any(taking) or not all(np.isfinite(compare.wide(x)).all() for x in arrays):
        return 0.0
    top = min(compare.top(x) for x in arrays) / 4
    largest = max(map(compare.largest, arrays))
    weaker = 0.0
    for power in sorted(range(_MOST_POWERS), key=lambda power: (power % _STRIDE, power)):
        factor = 2.0 ** (power if up else -power)
        if factor * largest >= top:
            continue
        margin = factor / 2 if up else factor * 2
        found = acting(enlarged(members, sign * margin), numerics)
        acts = [acts for acts, is_one in zip(found, taking, strict=True) if is_one]
        if not up:
            if not any(map(any, acts)):
                return sign * factor
        elif all(map(all, acts)):
            return sign * factor
        elif not weaker and all(map(any, acts)):
            weaker = factor
    return sign * weaker


def acting(members: Sequence[Member], numerics: Numerics) -> list[list[bool]]:
    """The `acts` of what `clip_together` finds, and nothing else of it: many are asked for."""
    acts: list[list[bool]] = [[] for _ in members]
    for stage in _stages(members, numerics.nonfinite):
        for number, case, after in zip(stage.numbers, stage.cases, stage.clipped, strict=True):
            acts[number] += stage.formula.acts(case.gradient, after)
    return acts


def least_acting_scale(members: Sequence[Member], numerics: Numerics) -> float:
    """The power of two that scales gradients so that some are clipped, and none by half of it.

    0 if there is none.
    """

    def acts(factor: float) -> bool:
        return any(map(any, acting(enlarged(members, factor), numerics)))

    factor = activating_scale(members, numerics, up=True)
    if factor == 1.0:  # they may be far beyond it
        factor = 2 * activating_scale(members, numerics, up=False)
    for _ in range(_MOST_POWERS if factor else 0):
        if acts(factor):
            if not acts(factor / 2):
                return factor
            factor /= 2
        else:
            factor *= 2
    return 0.0


class _Stage(NamedTuple):
    """One formula on all that it acts on together, by number, in the stage of each one's chain."""

    formula: Formula
    members: list[Member]
    numbers: list[int]
    at: list[int]
    cases: list[Case]
    clipped: list[NDArray[Any]]


def _stages(members: Sequence[Member], nonfinite: NonFinite) -> Iterator[_Stage]:
    """Apply the formulas of gradients, one after another."""
    cases = [member.case for member in members]
    chains = [member.formulas for member in members]
    for batch in scheduled(chains, [member.unrolled_step for member in members]):
        numbers, at = [number for number, _ in batch], [stage for _, stage in batch]
        formula, taken = chains[numbers[0]][at[0]], [cases[number] for number in numbers]
        clipped = formula.reference(taken, nonfinite)
        yield _Stage(formula, [members[n] for n in numbers], numbers, at, taken, clipped)
        for number, after in zip(numbers, clipped, strict=True):
            cases[number] = replace(cases[number], gradient=after)


def _tell_stage(stage: _Stage, found: list[Outcome], numerics: Numerics) -> None:
    """Tell the results of a stage, and how exactly they are known."""
    formula, members, _, stages, cases, clipped = stage
    scale = _scale(formula, cases)
    measured = [
        _measure(formula, case, numerics, is_exact=at > 0 or member.is_given)
        for member, case, at in zip(members, cases, stages, strict=True)
    ]
    earlier = max(outcome.precision for outcome in found)
    precision = max(each.precision for each in measured)
    whole = None
    if formula.group is not None:
        precision += _precision_of_sum(formula, cases, numerics)
        whole, off = _total(formula, cases, measured)
        for outcome in found:
            outcome.norms[formula.group] = whole, precision + earlier, off
    norms = [each.norms for each in measured]
    promised = is_promised(formula, cases, norms, whole, numerics)
    if not formula.is_elementwise:  # rounding once more keeps to the bounds
        precision += max(each.part for each in measured)
    if formula.history_size:
        _tell_history(stage, found, measured, whole)
        if numerics.nonfinite == "propagate" and not _has_norms(found):
            scale = 1.0
        precision = 2 * precision + _precision_of_limit(cases, numerics)  # the limit has it, too
    if any(member.has_runtime_threshold for member in members):
        precision += _precision_of_limit(cases, numerics)
    for number, (case, outcome) in enumerate(zip(cases, found, strict=True)):
        rounding = compare.epsilon(str(case.gradient.dtype))
        if stages[number] == 0:
            own = measured[number]
            ends = (float(each.max(initial=0.0)) for each in (own.norms, own.roundings))
            outcome.norms[""] = next(ends), own.precision, next(ends)
            outcome.rounding, rounding = own.part, 0.0
        if outcome.scale is not None:
            outcome.scale = None if scale is None else outcome.scale * scale
        outcome.acts += formula.acts(case.gradient, clipped[number])
        outcome.is_promised &= promised
        # an error of the gradient comes back in its norm, hence twice
        outcome.precision = 2 * (earlier + rounding) + precision
        outcome.clipped = clipped[number]


def _tell_history(
    stage: _Stage,
    found: Sequence[Outcome],
    measured: Sequence[_Measured],
    whole: float | None,
) -> None:
    """Tell the new histories: of a group it is one, as its norm."""
    for case, outcome, own in zip(stage.cases, found, measured, strict=True):
        if whole is not None and stage.formula.group is not None:
            norm, precision, off = outcome.norms[stage.formula.group]
        else:
            norm, precision = float(own.norms.max(initial=0.0)), own.precision
            off = float(own.roundings.max(initial=0.0))
        norms = stage.formula.remembered(np.asarray(norm), case.history)
        outcome.history = History(norms, precision + outcome.precision, off)


def _has_norms(found: Sequence[Outcome]) -> bool:
    """Return whether a norm was finite yet, by the one history of a stage."""
    history = found[0].history
    return history is not None and bool(np.isfinite(history.norms).any())


@dataclass(frozen=True, slots=True)
class _Measured:
    """The norms of a gradient, how far off each may be (`_roundings`), and their precision."""

    norms: NDArray[np.float64]
    roundings: NDArray[np.float64]
    precision: float

    @property
    def part(self) -> float:
        """The largest part of a norm by which it may be off."""
        if not self.roundings.any():
            return 0.0
        taken = np.isfinite(self.norms) & (self.norms > 0)
        return float(np.max(self.roundings[taken] / self.norms[taken], initial=0.0))


def _measure(formula: Formula, case: Case, numerics: Numerics, *, is_exact: bool) -> _Measured:
    norms = _norms(formula, case)
    roundings = np.zeros_like(norms) if is_exact else _roundings(formula, case, norms)
    precision = 0.0
    if not formula.is_elementwise:
        dtype, size = str(case.gradient.dtype), case.gradient.size // max(norms.size, 1)
        is_along = formula.is_split or case.has_seeds
        precision = numerics.bound(dtype, size, formula.order, is_along=is_along)
        precision *= 1 + formula.reads_parameter
        precision += _DIVIDED * (2.0**-52 if _is_wide([case], numerics) else 2.0**-23)
    return _Measured(norms, roundings, precision)


def _scale(formula: Formula, cases: Sequence[Case]) -> float | None:
    """The least factor; nan if an element is nan, None if one is infinite."""
    wide = [replace(case, gradient=compare.wide(case.gradient)) for case in cases]
    if not all(np.isfinite(case.gradient).all() for case in wide):
        is_nan = any(np.isnan(case.gradient).any() for case in wide)
        return math.nan if is_nan and not formula.is_identity else None
    least = 1.0
    for case, array in zip(wide, formula.reference(wide, "propagate"), strict=True):
        taken = case.gradient != 0
        least = min(least, float(np.min(array[taken] / case.gradient[taken], initial=1.0)))
    return least


def _norms(formula: Formula, case: Case) -> NDArray[np.float64]:
    """The norms that the formula limits."""
    with np.errstate(over="ignore"):
        return formula.norms(case)


def _total(
    formula: Formula, cases: Sequence[Case], measured: Sequence[_Measured]
) -> tuple[float, float]:
    """The largest norm of a whole group, and how far off it may be."""

    def total(sign: int) -> float:
        norms = [m.norms + sign * m.roundings if sign else m.norms for m in measured]
        pairs = zip(norms, cases, strict=True)
        joined = np.stack([norm.ravel() for norm, case in pairs for _ in range(case.count)])
        return float(norm_of(joined, formula.order, (0,)).max(initial=0.0))

    whole = total(0)
    if not any(each.roundings.any() for each in measured):
        return whole, 0.0
    return whole, float(_farthest(np.asarray(whole), total(1), total(-1)))


def _roundings(formula: Formula, case: Case, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much each norm may differ since the gradient is rounded, or is not.

    ONNX Runtime's CPU provider has no kernels in half precision for most operators. It computes the
    gradient in float32, rounds it, and widens it again for our nodes; the two Casts it then takes
    out, with optimizations disabled too. So the norm is that of the gradient before it is rounded,
    while who reads the gradient sees it rounded: each element by up to 2**-11 of it in float16, or
    2**-8 in bfloat16, or half of the smallest number.
    """
    dtype = str(case.gradient.dtype)
    if not compare.is_half(dtype):
        return np.zeros_like(norms)
    sizes = np.abs(compare.wide(case.gradient))
    halves = compare.half_ulps(sizes, dtype)
    return _farthest(
        norms,
        *(
            _norms(formula, replace(case, gradient=np.maximum(sizes + sign * halves, 0.0)))
            for sign in (1, -1)
        ),
    )


def _farthest(
    norms: NDArray[np.float64], *ends: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """The largest distance of these ends; 0 where it is not finite."""
    with np.errstate(invalid="ignore"):  # inf - inf is nan
        found = np.max([np.abs(end - norms) for end in ends], axis=0)
    return np.where(np.isfinite(found), found, 0.0)


def _precision_of_sum(formula: Formula, cases: Sequence[Case], numerics: Numerics) -> float:
    """Of adding up the powers of norms: in float32 no more than so many."""
    if formula.order == math.inf:
        return 0.0
    is_wide = _is_wide(cases, numerics)
    eps = 2.0**-52 if is_wide else 2.0**-23
    count = len(cases) if is_wide else min(len(cases), MOST_SUMMED_IN_FLOAT32)
    return eps * (count + 2) / (2 * formula.order)


def _precision_of_limit(cases: Sequence[Case], numerics: Numerics) -> float:
    """Of a threshold that is an input, times a factor and a loss scale.

    The input, the factor, and two products are rounded by half a unit each, to float64 if that is
    what all the gradients are clipped in: an input that is the threshold of one of them is float64
    then.
    """
    return 2 * (2.0**-52 if _is_wide(cases, numerics) else 2.0**-23)


def _is_wide(cases: Sequence[Case], numerics: Numerics) -> bool:
    """Return whether these gradients are clipped in float64."""
    return numerics.norm_precision == "wide" or all(
        case.gradient.dtype == np.float64 for case in cases
    )
