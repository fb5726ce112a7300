"""Which value is the gradient of which parameter, judged by slopes alone.

A value g is the gradient by W if <g, v> is the slope of the loss along v, for random directions v
at two points. What else the numbers may show, and the answer to it:

1. Slopes of zero prove nothing: the parameter is undecided.
2. Values that fit but differ from each other: the one that fits ten times better, or undecided.
3. Equal values, one computed from the other: the last counts, but for a clip between them, before
   which the gradient ends.
4. As many equal values as parameters that they fit, one computed from the other or not: one for
   each, by name, else by their order, lest one is left unclipped. Otherwise each value is that of
   each of the parameters.
5. Values that fit but for a positive factor: only if none fits exactly, if one factor serves every
   parameter, and if none is computed from another that fits exactly or with another factor (then
   it is a step or a moment, not a gradient).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.gradients.naming import is_named_after
from onnx_clip_pass.probe.slopes import Slope

__all__ = [
    "Fit",
    "Measure",
    "Undecided",
    "by_factor",
    "judge",
    "layouts",
    "moves",
    "project",
    "settle",
]

_ERRORS = 4.0  # estimates of an error are trusted to this factor
_NOISE = 0.1  # above this part of the slopes, noise decides nothing
_BETTER = 10.0


@dataclass(frozen=True, slots=True)
class Undecided:
    """A parameter that was given no gradient, and why."""

    parameter: str
    reason: str


@dataclass(frozen=True, slots=True)
class Measure:
    """What a value says of the slopes of one parameter: `says[i]`, being of the size `size[i]`.

    `precision` is what its own rounding may do to it, as a part of its size.
    """

    value: str
    layout: str
    says: NDArray[np.float64]
    size: NDArray[np.float64]
    precision: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A value that fits the slopes of a parameter, times a factor at each of the two points."""

    measure: Measure
    error: float
    factors: tuple[float, float] = (1.0, 1.0)
    is_telling: bool = True


Before = Callable[[str, str], bool | None]
"""Whether a value is computed from another; None if a way leads through a clip."""


def layouts(value: tuple[int, ...], parameter: tuple[int, ...]) -> Iterable[str]:
    """How a value of one shape can be the gradient of a parameter of the other."""
    if value == parameter:
        yield ""
    if len(value) == 2 and value == parameter[::-1]:
        yield "transposed"
    if value == (*parameter, 1):
        yield "with one seed"


def moves(slopes: Sequence[Slope]) -> bool:
    """Whether the loss depends on the parameter beyond all noise."""
    return any(abs(slope.value) > _ERRORS * slope.error for slope in slopes)


def judge(measure: Measure, slopes: Sequence[Slope], points: NDArray[np.int64]) -> Fit | None:
    """Whether a value fits; exactly (both factors are 1), or else but for its length."""
    slope = np.array([each.value for each in slopes])
    error = np.array([each.error for each in slopes])
    says, scale = measure.says, np.linalg.norm(slope)
    allowed = _ERRORS * error + measure.precision * measure.size
    if not (np.all(np.isfinite(says)) and np.all(np.isfinite(error)) and np.any(says)):
        return None
    if np.linalg.norm(allowed) > _NOISE * scale:
        return None
    off = np.abs(says - slope)
    if np.all(off <= allowed):
        return Fit(measure, float(np.max(off) / scale))
    factors, fitted, telling = [], np.zeros_like(slope), True
    for number in np.unique(points):
        here = points == number
        factors.append(float(says[here] @ slope[here] / max(slope[here] @ slope[here], 1e-300)))
        fitted[here] = factors[-1] * slope[here]
        telling = telling and int(here.sum()) > 1
    first, second = factors
    spread = _ERRORS * error * max(first, second) + measure.precision * measure.size
    if min(factors) <= 0 or np.any(np.abs(says - fitted) > spread):
        return None
    off = np.abs(says - fitted)
    return Fit(measure, float(np.max(off) / np.linalg.norm(fitted)), (first, second), telling)


def settle(
    fits: dict[str, list[Fit]], before: Before, order: Sequence[str]
) -> tuple[list[tuple[Fit, str, str]], list[Undecided]]:
    """Fits to pairs: each with the parameter's name and a remark (rules 2 to 4).

    Args:
        fits: the values that fit, by parameter.
        before: see `Before`; called with the earlier value first.
        order: the names of all candidates, in the order of the graph's outputs.
    """
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    kept: dict[str, dict[str, Fit]] = {}
    undecided = []
    best: dict[str, list[Fit]] = {}
    for parameter, found in fits.items():
        equal = _best(found)
        if equal is None:
            names = " and ".join(sorted(repr(fit.measure.value) for fit in found))
            undecided.append(Undecided(parameter, f"{names} differ, but fit its slopes alike"))
        else:
            best[parameter] = equal
    sharing = Counter(_names(equal) for equal in best.values())
    for parameter, equal in best.items():
        ends = _ends(equal, before, sharing[_names(equal)])
        kept[parameter] = {fit.measure.value: fit for fit in ends}
        groups[frozenset(kept[parameter])].append(parameter)
    pairs = []
    for values, parameters in groups.items():
        ordered = sorted(values, key=order.index)
        if len(ordered) == len(parameters) > 1:
            for value, parameter in _assign(ordered, parameters):
                others = ", ".join(repr(p) for p in parameters if p != parameter)
                remark = f"equal to that of {others}, told apart by name or order"
                pairs.append((kept[parameter][value], parameter, remark))
        else:
            for parameter in parameters:
                others = ", ".join(repr(p) for p in parameters if p != parameter)
                remark = f"also the gradient of {others}" if others else ""
                pairs += [(kept[parameter][value], parameter, remark) for value in ordered]
    return pairs, undecided


def by_factor(
    fits: dict[str, list[Fit]],
    before: Before,
    allowed: set[str],
    knobs: Sequence[tuple[float, float]],
    sizes: set[int],
) -> tuple[dict[str, list[Fit]], list[Undecided]]:
    """The fits that one factor explains, of all that fit but for a factor (rule 5).

    Args:
        fits: of allowed values and of those they are computed from.
        before: see `Before`.
        allowed: the values that may be called gradients.
        knobs: factors that a seed of the backward pass would make at the two points.
        sizes: factors, or parts of one, that a mean in place of a sum would make.
    """
    undecided: list[Undecided] = []
    left = {
        parameter: _unscaled(parameter, found, before, allowed, knobs, undecided)
        for parameter, found in _telling(fits, knobs).items()
    }
    left = {parameter: found for parameter, found in left.items() if found}
    serving: list[Fit] = []
    for fit in next(iter(left.values()), []):
        serves = all(any(_alike(fit, other) for other in found) for found in left.values())
        if serves and not any(_alike(fit, other) for other in serving):
            serving.append(fit)
    if len(serving) != 1 or (len(left) == 1 and not _is_explained(serving[0], knobs, sizes)):
        for parameter, found in left.items():
            factors = ", ".join(
                f"{fit.measure.value!r} is {fit.factors[0]:.6g} times its gradient" for fit in found
            )
            reason = f"no single factor explains all parameters: {factors}"
            undecided.append(Undecided(parameter, reason))
        return {}, undecided
    return (
        {p: [fit for fit in found if _alike(fit, serving[0])] for p, found in left.items()},
        undecided,
    )


def _telling(
    fits: dict[str, list[Fit]], knobs: Sequence[tuple[float, float]]
) -> dict[str, list[Fit]]:
    """Without the scalars that fit any factor, unless theirs is that of others or of a knob."""
    known = [fit.factors for found in fits.values() for fit in found if fit.is_telling]
    return {
        parameter: [
            fit
            for fit in found
            if fit.is_telling
            or any(np.allclose(fit.factors, each, rtol=1e-3) for each in (*known, *knobs))
        ]
        for parameter, found in fits.items()
    }


def _unscaled(
    parameter: str,
    found: list[Fit],
    before: Before,
    allowed: set[str],
    knobs: Sequence[tuple[float, float]],
    undecided: list[Undecided],
) -> list[Fit]:
    """Without what is computed from a value that fits with another factor.

    Which of the two is the gradient, only the factor of a seed can tell.
    """
    scaled = {
        fit.measure.value: other.measure.value
        for fit in found
        for other in found
        if not _alike(fit, other) and before(other.measure.value, fit.measure.value) is not False
    }
    left = [fit for fit in found if fit.measure.value in allowed - scaled.keys()]
    blocked = sorted(allowed & scaled.keys())
    if blocked and not (left and all(_is_explained(fit, knobs, set()) for fit in left)):
        reason = (
            f"{blocked[0]!r} is a multiple of {scaled[blocked[0]]!r}, from which it is computed: "
            f"one may be a step or a moment; name the gradient"
        )
        undecided.append(Undecided(parameter, reason))
        return []
    return left


def _is_explained(fit: Fit, knobs: Sequence[tuple[float, float]], sizes: set[int]) -> bool:
    """Whether a factor is one that a seed or a batch makes: asked where one parameter judges."""
    if any(np.allclose(fit.factors, knob, rtol=1e-3) for knob in knobs):
        return True
    first, second = fit.factors
    whole = max(first, 1 / first)
    return (
        abs(first - second) < 1e-3 * first
        and abs(whole - round(whole)) < 1e-3 * whole
        and round(whole) in sizes
    )


def _alike(fit: Fit, other: Fit) -> bool:
    """Whether two fits have the same factors, as far as their precision tells."""
    precision = 10 * max(fit.measure.precision, other.measure.precision, fit.error, other.error)
    pairs = zip(fit.factors, other.factors, strict=True)
    return all(abs(a - b) <= precision * max(a, b) for a, b in pairs)


def _best(found: list[Fit]) -> list[Fit] | None:
    """The fits equal to the best one; None if another is about as good (rule 2)."""
    best = min(found, key=lambda fit: fit.error)
    floor = best.measure.precision * 1e-3
    equal = []
    for fit in found:
        apart = np.abs(fit.measure.says - best.measure.says)
        if np.all(apart <= max(floor, 1e-9) * best.measure.size):
            equal.append(fit)
        elif fit.error < _BETTER * max(best.error, 1e-12):
            return None
    return equal


def _names(fits: list[Fit]) -> frozenset[str]:
    return frozenset(fit.measure.value for fit in fits)


def _ends(equal: list[Fit], before: Before, sharing: int) -> list[Fit]:
    """Of equal values the last on each way, or the last before a clip (rule 3).

    All of them before a clip if they are as many as the parameters `sharing` them (rule 4).
    """
    values = [fit.measure.value for fit in equal]
    behind_clip = {b for a in values for b in values if a != b and before(a, b) is None}
    open_ = [fit for fit in equal if fit.measure.value not in behind_clip]
    if len(_names(open_)) == sharing:
        return open_
    names = [fit.measure.value for fit in open_]
    ends = [
        fit
        for fit in open_
        if not any(before(fit.measure.value, name) for name in names if name != fit.measure.value)
    ]
    return list({fit.measure.value: fit for fit in ends}.values())


def _assign(values: list[str], parameters: list[str]) -> list[tuple[str, str]]:
    """Equal values to as many parameters: by name where each has one, else in order (rule 4)."""
    named = [[v for v in values if is_named_after(v, parameter)] for parameter in parameters]
    firsts = [found[0] for found in named if len(found) == 1]
    if len(set(firsts)) == len(parameters):
        return list(zip(firsts, parameters, strict=True))
    return list(zip(values, parameters, strict=True))


def project(array: NDArray[Any], layout: str, along: NDArray[np.float64]) -> float:
    """<g, v>, the value being laid out as `layout` says."""
    wide = np.asarray(array, np.float64)
    return float(np.sum((wide.T if layout == "transposed" else wide.reshape(along.shape)) * along))
