"""Trials of candidates by slopes: which fit, and how exactly; see `deciding`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.probe.bench import Bench, is_float
from onnx_clip_pass.probe.slopes import Arrays, Point, joint_slope, length_of

__all__ = ["Decision", "SlopeCheck", "Trial"]

_PATTERNS = 3  # random mixtures of all directions: two wrongs do not cancel in each
_ERRORS = 4.0  # estimates of an error are trusted to this factor
_CLEAR = 10.0  # what is at stake must be so many times what is allowed
_NOISE = 0.1  # above this part of a gradient, noise decides nothing
_FLAT = 1e-6  # a candidate this close to the span of others adds no direction to it
_BESIDE = 2  # random directions beside the candidates
_UNEVEN = 0.01
_TURN = 1.37  # a factor that no constant of an optimizer is
_PRECISION = {True: 1e-6, False: 3e-4}  # of a gradient read in float64, and in float32


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
    """How a value compares with the slopes of the loss by a parameter.

    The value is `factor` times the slope along itself; `orthogonal` estimates what the slopes
    have beside it, as a part of the slope along it, and is 0 where noise could make it.
    `error` is that of both: of the factor as a part of it.
    """

    gradient: str
    parameter: str
    factor: float
    orthogonal: float
    error: float


@dataclass(slots=True)
class _Asked:
    """A parameter, its candidates and the directions in which they differ.

    `names[i]` are candidates that are equal, in graph order; `coords[i, k]` is <candidate i,
    direction k>. The last direction is a random one, orthogonal to all of them.
    """

    parameter: str
    names: list[list[str]]
    sizes: NDArray[np.float64]
    directions: list[NDArray[np.float32]]
    coords: NDArray[np.float64]
    length: float

    @property
    def arrays_differ(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.names)

    def group(self, place: int) -> int:
        """The group of the candidate at a place, counted from the first or, below 0, the last."""
        flat = [number for number, names in enumerate(self.names) for _ in names]
        return flat[max(place, -len(flat)) if place < 0 else min(place, len(flat) - 1)]

    def is_first_on_its_ray(self, group: int) -> bool:
        """Whether no candidate before it is a multiple of it."""
        along = self.coords[group] / self.sizes[group]
        return all(
            abs(abs(self.coords[i] @ along) / self.sizes[i] - 1) > _FLAT for i in range(group)
        )


@dataclass(frozen=True, slots=True)
class _Scale:
    """A factor that gradients may have: 1, or that of an input, as it was turned and as fed."""

    turned: float = 1.0
    fed: float = 1.0
    knob: str = ""


class Trial:
    """One trial of all questions; `decisions` fills up."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.decisions: dict[str, Decision] = {}
        self._feeds = _uneven(bench.point(0).feeds, bench.parameters)
        self._rng = np.random.default_rng([seed, 17])
        self._precision = _PRECISION[bench.is_double]
        self._scales = [_Scale()]

    # -- reading candidates --------------------------------------------------------------------

    def turned(self) -> Arrays:
        """Feeds at which rates, seeds and states show; none of them is read by the loss."""
        feeds = dict(self._feeds)
        rng = np.random.default_rng(5)
        for name in self.bench.states:
            if not np.any(feeds[name]):
                drawn = rng.uniform(0.1, 1, size=feeds[name].shape)
                feeds[name] = np.asarray(drawn, feeds[name].dtype)
        for name in self.bench.knobs:
            fed = float(feeds[name].reshape(()))
            turned = fed * _TURN or _TURN - 1
            feeds[name] = np.full_like(feeds[name], turned)
            if fed > 0:
                self._scales += [
                    _Scale(turned, fed, name),
                    _Scale(1 / turned, 1 / fed, name),
                ]
        return feeds

    def ask(
        self, questions: Mapping[str, Sequence[str]], feeds: Arrays | None = None
    ) -> list[_Asked]:
        """Read the candidates and lay out the directions; what cannot be measured is decided.

        Args:
            questions: candidates by parameter.
            feeds: `turned`, or by default those in which only even parameters are changed.
        """
        wanted = list(dict.fromkeys(name for names in questions.values() for name in names))
        values = self._read(wanted, self._feeds if feeds is None else feeds)
        return [self._lay_out(parameter, names, values) for parameter, names in questions.items()]

    def _read(self, wanted: list[str], feeds: Arrays) -> Arrays:
        tries = [feeds, self._feeds] if feeds is not self._feeds else [feeds]
        values: Arrays = {}
        for number, each in enumerate(tries):
            try:
                ((_, values),) = self.bench.values(wanted, [Point(0, each)])
            except OnnxClipError:
                if number == len(tries) - 1:
                    raise
                continue
            if all(np.all(np.isfinite(array)) for array in values.values() if is_float(array)):
                break
        return values

    def _lay_out(self, parameter: str, names: Sequence[str], values: Arrays) -> _Asked:
        at = self.bench.parameters.get(parameter)
        asked = _Asked(parameter, [], np.zeros(0), [], np.zeros((0, 0)), 1.0)
        if at is None:
            self._leave(parameter, f"the loss {self.bench.loss!r} does not depend on it")
            return asked
        arrays: list[NDArray[np.float64]] = []
        for name in names:
            array = _as_parameter(values[name], at.shape)
            if array is None or not np.all(np.isfinite(array)) or not np.any(array):
                continue
            same = [i for i, other in enumerate(arrays) if np.array_equal(array, other)]
            if same:
                asked.names[same[0]].append(name)
            else:
                arrays.append(array)
                asked.names.append([name])
        if not arrays:
            self._leave(parameter, "no candidate has its size and is finite and other than zero")
            return asked
        drawn = [self._rng.normal(size=at.shape) for _ in range(_BESIDE)]
        for array in [*arrays, *drawn]:
            left = array / np.linalg.norm(array)
            for _ in range(2):  # twice, for what rounding leaves of the first
                for other in asked.directions:
                    left = left - np.vdot(other, left) * other
            if (rest := float(np.linalg.norm(left))) > _FLAT:
                asked.directions.append(np.asarray(left / rest, np.float32))
        asked.sizes = np.array([np.linalg.norm(array) for array in arrays])
        asked.coords = np.array(
            [[np.vdot(array, along) for along in asked.directions] for array in arrays]
        )
        asked.length = length_of(at)
        return asked

    # -- measuring -----------------------------------------------------------------------------

    def _mix(self, asked: Sequence[_Asked]) -> list[list[NDArray[np.float64]]]:
        """Random mixtures of all directions: how much of each, by pattern and parameter."""
        draw = self._rng
        return [
            [
                each.length * draw.choice([-1.0, 1.0], size) * draw.uniform(0.5, 1, size)
                for each in asked
                for size in [len(each.directions)]
            ]
            for _ in range(_PATTERNS)
        ]

    def _slope(
        self, asked: Sequence[_Asked], mixture: Sequence[NDArray[np.float64]], size: float
    ) -> tuple[float, float]:
        """The slope along a mixture, and four times its error; `size` is that of a gradient."""
        move = {}
        for each, parts in zip(asked, mixture, strict=True):
            along = np.zeros(each.directions[0].shape)
            for part, direction in zip(parts, each.directions, strict=True):
                along += part * direction
            move[each.parameter] = along
        found = joint_slope(
            self.bench.loss_at, self._feeds, move, self.bench.noise, self._precision * size / 10
        )
        return found.value, _ERRORS * found.error

    def _along_each(self, each: _Asked) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The slopes along every direction of one parameter, and what they may be off."""
        unit = np.eye(len(each.directions)) * each.length
        found = [self._slope([each], [row], each.length * each.sizes.min()) for row in unit]
        slopes, errors = np.array(found).T / each.length
        return slopes, errors

    # -- deciding ------------------------------------------------------------------------------

    def solve(self, asked: list[_Asked]) -> None:
        """Decide these together, or else each half, and at last one alone."""
        left: list[_Asked] | None = asked
        if len(asked) > 1:
            left = self._together(asked)
        if left is None:
            half = len(asked) // 2
            self.solve(asked[:half])
            self.solve(asked[half:])
        for each in left or ():
            self._alone(each)

    def _together(self, asked: list[_Asked]) -> list[_Asked] | None:
        """Decide by the slopes of all together; what they leave open, or None if no choice fits."""
        mixtures = self._mix(asked)
        # what each candidate adds to the slope of each pattern
        adds = [
            each.coords @ np.array([mixture[number] for mixture in mixtures]).T
            for number, each in enumerate(asked)
        ]
        size = _together([each.length * each.sizes.max() for each in asked])
        slopes, errors = np.array([self._slope(asked, mixture, size) for mixture in mixtures]).T
        deep = max(sum(map(len, each.names)) for each in asked)
        choices = {tuple(e.group(place) for e in asked): None for place in range(-deep, deep)}
        fitting = []
        for choice in choices:
            told = sum(add[group] for add, group in zip(adds, choice, strict=True))
            own = [e.length * e.sizes[group] for e, group in zip(asked, choice, strict=True)]
            for scale in self._scales:
                allowed = errors + self._precision * _together(own) / scale.turned
                if np.all(np.abs(told / scale.turned - slopes) <= allowed) and (
                    not scale.knob
                    or all(e.is_first_on_its_ray(i) for e, i in zip(asked, choice, strict=True))
                ):
                    fitting.append((choice, scale, allowed))
        exact = [each for each in fitting if not each[1].knob]
        if len(exact or fitting) != 1:
            return list(asked) if fitting else None
        ((choice, scale, allowed),) = exact or fitting
        left = []
        for each, group, add in zip(asked, choice, adds, strict=True):
            stakes = np.abs(np.delete(add - add[group], group, axis=0)) / scale.turned
            error = float(allowed.max() * scale.turned / (each.length * each.sizes[group]))
            if error > _NOISE or np.any(np.max(stakes / allowed, axis=1) < _CLEAR):
                left.append(each)
            else:
                self._name(each, group, scale, error)
        return left

    def _alone(self, each: _Asked) -> None:
        slopes, errors = self._along_each(each)
        size = float(np.linalg.norm(slopes))
        loss = self.bench.loss
        if not np.all(np.isfinite(errors)):
            return self._leave(each.parameter, f"{loss!r} is not finite beside the given point")
        if np.all(np.abs(slopes) <= errors):
            reason = (
                f"{loss!r} does not move with it here beyond rounding, so its slope says nothing"
            )
            return self._leave(each.parameter, reason)
        if np.linalg.norm(errors) > _NOISE * size:
            return self._leave(each.parameter, f"the slopes of {loss!r} by it are too noisy")
        for scales in (self._scales[:1], self._scales[1:]):
            found = []
            for group, told in enumerate(each.coords):
                for scale in scales:
                    off = np.abs(told / scale.turned - slopes)
                    blur = self._precision * each.sizes[group] / scale.turned
                    if np.all(off <= errors + blur) and (
                        not scale.knob or each.is_first_on_its_ray(group)
                    ):
                        found.append((float(np.linalg.norm(off)), group, scale))
            found.sort(key=lambda entry: entry[0])
            if len(found) > 1 and found[1][0] < _CLEAR * found[0][0]:
                names = " and ".join(repr(each.names[group][-1]) for _, group, _ in found)
                reason = f"{names} differ by less than the slopes of {loss!r} can tell"
                return self._leave(each.parameter, reason)
            if found:
                off, group, scale = found[0]
                error = max(off, float(np.linalg.norm(errors))) / size
                return self._name(each, group, scale, error)
        return self._leave(each.parameter, self._why_none(each, slopes, errors))

    def _why_none(
        self, each: _Asked, slopes: NDArray[np.float64], errors: NDArray[np.float64]
    ) -> str:
        said = []
        for names, told, size in zip(each.names, each.coords, each.sizes, strict=True):
            factor = float(told @ slopes / (slopes @ slopes))
            allowed = abs(factor) * errors + self._precision * size
            if np.all(np.abs(told - factor * slopes) <= allowed):
                said.append(f"{names[-1]!r} is {factor:.6g} times the slope of {self.bench.loss!r}")
        return "; ".join(said) or f"no candidate is parallel to the slope of {self.bench.loss!r}"

    def agree(self) -> None:
        """Take back what only a factor explains unless that factor is that of all."""
        named = [each for each in self.decisions.values() if each.gradient is not None]
        if len({each.factor for each in named}) > 1:
            for each in named:
                if each.factor != 1:
                    reason = f"{each.reason}, but other gradients have another factor"
                    self._leave(each.parameter, reason)

    def _name(self, each: _Asked, group: int, scale: _Scale, error: float) -> None:
        name, loss = each.names[group][-1], self.bench.loss
        reason = f"the slope of {loss!r} along it is its own norm within {error:.1g}"
        if scale.knob:
            reason = (
                f"it is {scale.fed:.6g} times the slope of {loss!r}, as input {scale.knob!r} "
                f"makes it, within {error:.1g}"
            )
        self.decisions[each.parameter] = Decision(each.parameter, name, scale.fed, error, reason)

    def _leave(self, parameter: str, reason: str) -> None:
        self.decisions[parameter] = Decision(parameter, None, 1.0, np.inf, reason)

    # -- checking ------------------------------------------------------------------------------

    def check(self, asked: list[_Asked], checks: dict[str, SlopeCheck]) -> None:
        """Compare the one candidate of each with the slopes, together and then one by one."""
        left = self._together(asked) if len(asked) > 1 else None
        alone = {each.parameter for each in (asked if left is None else left)}
        for each in asked:
            ((name,), *_) = each.names
            if each.parameter not in alone:
                error = self.decisions[each.parameter].error
                checks[name] = SlopeCheck(name, each.parameter, 1.0, 0.0, error)
            else:
                checks[name] = self._check_alone(name, each)

    def _check_alone(self, name: str, each: _Asked) -> SlopeCheck:
        slopes, errors = self._along_each(each)
        along, size = slopes[0], each.sizes[0]
        beside, doubt = np.linalg.norm(slopes[1:]), np.linalg.norm(errors[1:])
        rest = 0.0
        doubt += self._precision * abs(along)
        if beside > doubt:  # of all directions beside it, these few were drawn
            rest = beside * np.sqrt((each.directions[0].size - 1) / len(slopes[1:]))
        if abs(along) <= errors[0]:
            return SlopeCheck(name, each.parameter, np.inf, float(rest > 0), np.inf)
        error = errors[0] / abs(along) + self._precision
        orthogonal = float(rest / np.hypot(rest, along))
        return SlopeCheck(name, each.parameter, float(size / along), orthogonal, float(error))


def _uneven(feeds: Arrays, parameters: Iterable[str]) -> Arrays:
    """The feeds, but for parameters whose elements are all equal.

    Zeros and ones (biases, scales at the first step) hide decay and the like.
    """
    rng = np.random.default_rng(3)
    changed = dict(feeds)
    for name in parameters:
        at = feeds[name]
        if np.all(at == at.flat[0]):
            drawn = _UNEVEN * rng.normal(size=at.shape) * (abs(float(at.flat[0])) or 1)
            changed[name] = np.asarray(at + drawn, at.dtype)
    return changed


def _together(sizes: Iterable[float]) -> float:
    return float(np.linalg.norm(list(sizes)))


def _as_parameter(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """A gradient in the shape of its parameter, or None if it cannot be one."""
    if not is_float(array) or array.size != int(np.prod(shape)):
        return None
    wide = np.asarray(array, np.float64)
    return (
        wide.T
        if wide.shape == shape[::-1] and wide.ndim == 2 and wide.shape != shape
        else wide.reshape(shape)
    )
