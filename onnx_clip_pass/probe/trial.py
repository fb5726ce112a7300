"""Trials of candidates by slopes: which fit, and how exactly; see `deciding`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.probe.harness import Harness, is_float
from onnx_clip_pass.probe.pairing import laid_out, layouts
from onnx_clip_pass.probe.slopes import Arrays, Point, length_of, slope_along

__all__ = ["ERRORS", "NOISE", "Decision", "SlopeCheck", "Trial", "precision_of"]

ERRORS = 4.0
"""Estimates of an error are trusted to this factor."""

NOISE = 0.1
"""Above this part of a gradient, noise decides nothing."""

_PATTERNS = 3  # random mixtures of all directions: two wrongs do not cancel in each
_CLEAR = 10.0  # what is at stake must be so many times what is allowed
_SAME = 1e-4  # of the precision: as equal as two ways to compute one value
_FLAT = 1e-6  # a candidate this close to the span of others adds no direction to it


@dataclass(frozen=True, slots=True)
class Decision:
    """The candidate that is the gradient of a parameter, or why none is named.

    `factor` says how many times the slope of the loss the gradient is at the given feeds: 1 but
    for a seed of the backward pass. `error` is relative to the gradient.
    """

    parameter: str
    gradient: str | None
    factor: float
    error: float
    reason: str


@dataclass(frozen=True, slots=True)
class SlopeCheck:
    """The comparison of a value with the slopes of the loss by a parameter.

    The value is `factor` times the slope along itself; `orthogonal` estimates what the slopes
    have beside it, as a part of the slope along it, and is 0 where noise could make it.
    `error` is that of both: of the factor as a part of it.
    """

    gradient: str
    parameter: str
    factor: float
    orthogonal: float
    error: float


@dataclass(slots=True, eq=False)
class _Asked:
    """A parameter, its candidates and the directions in which they differ.

    `names[i]` are candidates that are equal, in graph order; `coords[i, k]` is <candidate i,
    direction k>. The last directions are random ones, orthogonal to all candidates.
    """

    parameter: str
    length: float
    names: list[list[str]]
    sizes: NDArray[np.float64]
    directions: list[NDArray[np.float32]]
    coords: NDArray[np.float64]
    precision: float

    def group(self, place: int) -> int:
        """The group of the candidate at a place, counted from the first or, below 0, the last."""
        flat = [number for number, names in enumerate(self.names) for _ in names]
        return flat[max(place, -len(flat)) if place < 0 else min(place, len(flat) - 1)]

    def may_be(self, group: int, scale: _Scale) -> bool:
        """True if a candidate may have a factor: only the first of those that are parallel."""
        along = self.coords[group] / self.sizes[group]
        parallel = np.abs(self.coords[:group] @ along) / self.sizes[:group]
        return not scale.scalar or bool(np.all(np.abs(parallel - 1) > _FLAT))


class _Scale(NamedTuple):
    """A factor that gradients may have: 1, or that of an input, as it was changed and as fed."""

    varied: float = 1.0
    fed: float = 1.0
    scalar: str = ""


def precision_of(array: NDArray[Any]) -> float:
    """The share of rounding in a gradient, as a part of it."""
    return {8: 1e-6, 4: 3e-4}.get(array.dtype.itemsize, 0.03)


class Trial:
    """One trial of all questions.

    `decisions` fills up; `equal` has all candidates that are equal to the one that is named.
    """

    def __init__(self, harness: Harness, seed: int, *, by_scalars: bool = False) -> None:
        self.harness = harness
        self.decisions: dict[str, Decision] = {}
        self.equal: dict[str, list[str]] = {}
        self._feeds = harness.point(2).feeds
        self._rng = np.random.default_rng([seed, 17])
        self._by_scalars = by_scalars
        self._scales = [_Scale()]

    # -- reading candidates --------------------------------------------------------------------

    def ask(
        self, questions: Mapping[str, Sequence[str]], point: Point, beside: int = 1
    ) -> list[_Asked]:
        """Read the candidates at a point and lay out the directions, with random ones beside.

        What cannot be measured is decided, and not among what is returned.
        """
        for name, varied in point.scalars.items() if self._by_scalars else ():
            if (fed := self.harness.feeds[name].item()) > 0:
                self._scales.append(_Scale(varied, fed, name))
                self._scales.append(_Scale(1 / varied, 1 / fed, name))
        values: Arrays = {}
        wanted = list(dict.fromkeys(name for names in questions.values() for name in names))
        for each in (point, Point(2, self._feeds)):
            with suppress(OnnxClipError):  # with rates that it was not made for
                ((_, values),) = self.harness.values(wanted, [each])
                if all(np.all(np.isfinite(array)) for array in values.values() if is_float(array)):
                    break
        asked = [self._lay_out(name, found, values, beside) for name, found in questions.items()]
        return [each for each in asked if each is not None]

    def _lay_out(
        self, parameter: str, names: Sequence[str], values: Arrays, beside: int
    ) -> _Asked | None:
        at = self.harness.parameters.get(parameter)
        if at is None:
            self._leave(parameter, f"the loss {self.harness.loss!r} does not depend on it")
            return None
        arrays: list[NDArray[np.float64]] = []
        groups: list[list[str]] = []
        sizes: list[float] = []
        precision = 0.0
        for name in names:
            for layout in layouts(values[name].shape, at.shape):
                array = laid_out(values[name], layout, at.shape)
                size = float(np.linalg.norm(array))
                if not (is_float(values[name]) and np.isfinite(size) and size > 0):
                    continue
                precision = max(precision, precision_of(values[name]))
                least = _SAME * precision * size
                for other, of_other, group in zip(arrays, sizes, groups, strict=True):
                    if abs(size - of_other) <= least and np.linalg.norm(array - other) <= least:
                        group.append(name)
                        break
                else:
                    arrays.append(array)
                    groups.append([name])
                    sizes.append(size)
        # a state that is zero hides what it is added to: the gradient is what does without it
        for group in groups if self.harness.zeros else ():
            group[:] = [n for n in group if self._is_stateless(n)] or group
        if not arrays:
            reason = "no candidate has its size and is finite and other than zero"
            self._leave(parameter, reason)
            return None
        directions: list[NDArray[np.float32]] = []
        for array in [*arrays, *(self._rng.normal(size=at.shape) for _ in range(beside))]:
            left: Any = array / np.linalg.norm(array)
            for along in directions:
                left = left - float(np.vdot(along, left)) * along
            if (rest := float(np.linalg.norm(left))) > _FLAT:
                directions.append(np.asarray(left / rest, np.float32))
        coords = np.array([[np.vdot(array, along) for along in directions] for array in arrays])
        return _Asked(
            parameter, length_of(at), groups, np.array(sizes), directions, coords, precision
        )

    def _is_stateless(self, name: str) -> bool:
        return self.harness.zeros.isdisjoint(self.harness.ancestors(name))

    # -- deciding ------------------------------------------------------------------------------

    def solve(self, asked: list[_Asked]) -> None:
        """Decide these together, or else each half, and at last one alone."""
        if len(asked) == 1:
            self._alone(asked[0])
        elif asked and (left := self._together(asked)) == asked:
            self.solve(asked[: len(asked) // 2])
            self.solve(asked[len(asked) // 2 :])
        elif asked:
            for each in left:
                self._alone(each)

    def _slopes(
        self, asked: Sequence[_Asked], mixtures: Iterable[Sequence[NDArray[np.float64]]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The slopes along mixtures of the directions of each, and what they may be off."""
        harness, found = self.harness, []
        enough = 0.1 * _norm(each.precision * each.length * np.median(each.sizes) for each in asked)
        for mixture in mixtures:
            move = {
                each.parameter: sum(a * v for a, v in zip(own, each.directions, strict=True))
                for each, own in zip(asked, mixture, strict=True)
            }
            slope = slope_along(harness.loss_at, self._feeds, move, harness.noise, enough)
            found.append((slope.value, ERRORS * slope.error))
        slopes, errors = np.array(found).T
        return slopes, errors

    def _along_each(self, each: _Asked) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The slopes along every direction of one parameter, and what they may be off."""
        rows = np.eye(len(each.directions)) * each.length
        slopes, errors = self._slopes([each], [[row] for row in rows])
        return slopes / each.length, errors / each.length

    def _together(self, asked: list[_Asked]) -> list[_Asked]:
        """Decide by slopes of all together; what they leave open, which is all if none fits."""
        mixtures = []
        for _ in range(_PATTERNS):
            drawn = [self._rng.uniform(-1, 1, len(each.directions)) for each in asked]
            mixtures.append(
                [e.length * (a + np.sign(a)) for e, a in zip(asked, drawn, strict=True)]
            )
        # what each candidate adds to the slope along each mixture
        adds = [each.coords @ np.array(own).T for each, *own in zip(asked, *mixtures, strict=True)]
        slopes, errors = self._slopes(asked, mixtures)
        deep = max(sum(map(len, each.names)) for each in asked)
        choices = {tuple(e.group(place) for e in asked): None for place in range(-deep, deep)}
        fitting = []
        for choice in choices:
            chosen = list(zip(asked, choice, strict=True))
            told = sum(add[group] for add, group in zip(adds, choice, strict=True))
            blur = _norm(each.precision * each.length * each.sizes[group] for each, group in chosen)
            for scale in self._scales:
                allowed = errors + 2 * blur / scale.varied
                if np.all(np.abs(told / scale.varied - slopes) <= allowed) and all(
                    each.may_be(group, scale) for each, group in chosen
                ):
                    fitting.append((chosen, scale, allowed))
        fitting = [each for each in fitting if not each[1].scalar] or fitting
        if len(fitting) != 1:
            return asked
        ((chosen, scale, allowed),) = fitting
        left = []
        for (each, group), add in zip(chosen, adds, strict=True):
            stakes = np.abs(np.delete(add - add[group], group, axis=0)) / scale.varied
            error = float(allowed.max() * scale.varied / (each.length * each.sizes[group]))
            if error > NOISE or np.any(np.max(stakes / allowed, axis=1) < _CLEAR):
                left.append(each)
            else:
                self._name(each, group, scale, error)
        return left

    def _alone(self, each: _Asked) -> None:
        slopes, errors = self._along_each(each)
        size, off, loss = _norm(slopes), _norm(errors), f"{self.harness.loss!r}"
        if np.all(np.abs(slopes) <= errors):
            return self._leave(each.parameter, f"{loss} does not move with it beyond its noise")
        if not off <= NOISE * size:
            return self._leave(each.parameter, f"the slopes of {loss} by it are too noisy")
        fitting, parallel = [], []
        for group, told in enumerate(each.coords):
            for scale in self._scales:
                apart = np.abs(told / scale.varied - slopes)
                blur = each.precision * each.sizes[group] / scale.varied
                if np.all(apart <= errors + blur) and each.may_be(group, scale):
                    fitting.append((_norm(apart), group, scale))
            factor = float(told @ slopes / size**2)
            allowed = abs(factor) * errors + each.precision * each.sizes[group]
            if np.all(np.abs(told - factor * slopes) <= allowed):
                parallel.append((group, factor))
        fitting = sorted([fit for fit in fitting if not fit[2].scalar] or fitting)
        if not fitting and len(parallel) == 1 and len(each.names) > 1 and parallel[0][1] > 0:
            ((group, factor),) = parallel  # the others point elsewhere, whatever scales them all
            return self._name(each, group, _Scale(factor, factor), off / size)
        if not fitting:
            told_of = [
                f"{each.names[group][-1]!r} is {factor:.6g} times the slope of {loss}"
                for group, factor in parallel
            ]
            none = f"no candidate is parallel to the slope of {loss}"
            return self._leave(each.parameter, "; ".join(told_of) or none)
        if len(fitting) > 1 and fitting[1][0] < _CLEAR * fitting[0][0]:
            names = " and ".join(repr(each.names[group][-1]) for _, group, _ in fitting)
            reason = f"{names} differ by less than the slopes of {loss} can tell"
            return self._leave(each.parameter, reason)
        least, group, scale = fitting[0]
        return self._name(each, group, scale, max(least, off) / size)

    def agree(self) -> None:
        """Take back what only a factor explains unless that factor is that of all."""
        named = [each for each in self.decisions.values() if each.gradient is not None]
        if len({each.factor for each in named}) > 1:
            for each in named:
                if each.factor != 1:
                    reason = f"{each.reason}, but other gradients have another factor"
                    self._leave(each.parameter, reason)

    def _name(self, each: _Asked, group: int, scale: _Scale, error: float) -> None:
        self.equal[each.parameter] = each.names[group]
        name, loss = each.names[group][-1], self.harness.loss
        reason = f"the slope of {loss!r} along it is its own norm within {error:.1g}"
        if scale.fed != 1:
            made = (
                f"as input {scale.scalar!r} makes it" if scale.scalar else "others point elsewhere"
            )
            size = f"{scale.fed:.6g} times the slope of {loss!r}"
            reason = f"it is {size}, {made}, within {error:.1g}"
        self.decisions[each.parameter] = Decision(each.parameter, name, scale.fed, error, reason)

    def _leave(self, parameter: str, reason: str) -> None:
        self.decisions[parameter] = Decision(parameter, None, 1.0, np.inf, reason)

    # -- checking ------------------------------------------------------------------------------

    def check(self, asked: list[_Asked]) -> list[SlopeCheck]:
        """Compare the one candidate of each with the slopes, together and then one by one."""
        left = self._together(asked) if len(asked) > 1 else asked
        return [
            self._check_alone(each)
            if each in left
            else SlopeCheck(
                each.names[0][0], each.parameter, 1.0, 0.0, self.decisions[each.parameter].error
            )
            for each in asked
        ]

    def _check_alone(self, each: _Asked) -> SlopeCheck:
        slopes, errors = self._along_each(each)
        pair, along, beside = (each.names[0][0], each.parameter), abs(slopes[0]), _norm(slopes[1:])
        if beside <= _norm(errors[1:]) + each.precision * along:
            beside = 0.0
        # of all directions beside it, these few were drawn
        beside *= float(np.sqrt((each.directions[0].size - 1) / max(len(slopes) - 1, 1)))
        if along <= errors[0]:
            return SlopeCheck(*pair, np.inf, float(beside > 0), np.inf)
        error = float(errors[0] / along + each.precision)
        orthogonal = float(beside / np.hypot(beside, along))
        return SlopeCheck(*pair, float(each.sizes[0] / slopes[0]), orthogonal, error)


def _norm(sizes: Iterable[float] | NDArray[np.float64]) -> float:
    return float(np.linalg.norm(list(sizes)))
