"""Slopes of the loss by central differences, each with an estimate of its own error.

Along a direction v, D(h) = (L(W + h v) - L(W - h v)) / 2h differs from the true slope by the third
derivative times h^2, by rounding of L over h, and at a kink by something that no step size cures.
Two step sizes, h and h/2, show the first and the last; the second is known from the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arrays",
    "Point",
    "Slope",
    "direction",
    "joint_slope",
    "length_of",
    "noise_of",
    "slope_along",
]

Arrays = dict[str, NDArray[Any]]
Loss = Callable[[Mapping[str, NDArray[Any]]], float]

_STEPS = {8: (1e-5, 1e-6, 1e-4), 4: (1e-2, 3e-3, 3e-2)}  # by the itemsize of the dtype
_FINE = (1e-3, 1e-5, 1e-7)  # steps, in the size of the parameters, for a loss in float64
_COARSE = (1e-2, 3e-2, 3e-3, 1e-1)
_QUIET = 1e-12  # a loss with less noise, as a part of it, takes the fine steps
_ROUNDINGS = 8  # of the loss, in units of its last place
_ATTEMPTS = 3
_KINK = 0.02  # the two sides differ by this part of the slope, however small the step


@dataclass(frozen=True, slots=True)
class Point:
    """The feeds at which slopes are taken, and the parameters' size as a unit for steps."""

    number: int
    feeds: Arrays
    knobs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slope:
    """The slope along the direction that `attempt` draws, how far off it may be, and a warning."""

    value: float
    error: float
    attempt: int
    has_kink: bool = False


def direction(
    parameter: str, value: NDArray[Any], point: int, number: int, attempt: int
) -> NDArray[np.float64]:
    """A random direction, drawn anew alike whenever it is asked for, so that none is kept."""
    seeds = [*parameter.encode(), point, number, attempt]
    drawn = np.random.default_rng(seeds).normal(size=value.shape)
    return np.asarray(drawn * _unit(value), np.float64)


def slope_along(loss: Loss, point: Point, parameter: str, number: int) -> Slope:
    """The slope along direction `number`; if every step meets a kink, along another in its place.

    Args:
        loss: the loss at the feeds it is given.
        point: where.
        parameter: the input that is moved.
        number: which of its directions.
    """
    at = point.feeds[parameter]
    here = loss(point.feeds)
    tries = []
    for attempt in range(_ATTEMPTS):
        along = direction(parameter, at, point.number, number, attempt)
        tries.append(_best_slope(loss, point.feeds, parameter, along, here, attempt))
        if tries[-1].error <= 1e-2 * abs(tries[-1].value) and not tries[-1].has_kink:
            return tries[-1]
        if tries[-1].value == 0 and tries[-1].error < 1e-6 * abs(here):
            return tries[-1]  # the loss does not move at all: another direction shows no more
    return min(tries, key=lambda slope: slope.error)


def joint_slope(
    loss: Loss, feeds: Arrays, move: Arrays, noise: float, enough: float = 0.0
) -> Slope:
    """The slope of the loss along one direction of several parameters together.

    Extrapolated from two step sizes at a time, until the error is `enough` or no step is left.

    Args:
        loss: the loss at the feeds it is given.
        feeds: where.
        move: by parameter, a direction as long as the parameter itself: steps are parts of it.
        noise: of the loss, in its own unit; it tells how small steps may be.
        enough: the error that is small enough.
    """
    here = loss(feeds)
    steps = _FINE if noise < _QUIET * abs(here) else _COARSE
    found: list[Slope] = []
    for step in steps:
        sides = [
            [loss(feeds | _moved(feeds, move, sign * length)) for sign in (1, -1)]
            for length in (step, step / 2)
        ]
        wide, near = (
            (plus - minus) / (2 * length)
            for (plus, minus), length in zip(sides, (step, step / 2), strict=True)
        )
        bends = [
            (plus + minus - 2 * here) / length
            for (plus, minus), length in zip(sides, (step, step / 2), strict=True)
        ]
        # without a kink curvature halves with the step, and noise makes it no smaller
        kink = max(abs(bends[1] - bends[0] / 2) / 2 - 2 * noise / step, 0.0)
        error = abs(near - wide) / 3 + kink + 2 * noise / step
        if np.isfinite(error):
            found.append(Slope(near + (near - wide) / 3, float(error), 0))
        if found and found[-1].error <= enough and (steps is _FINE or len(found) > 1):
            break
    if not found:
        return Slope(0.0, np.inf, 0)
    best = min(found, key=lambda slope: slope.error)
    apart = max(abs(each.value - best.value) - each.error for each in found)
    return Slope(best.value, max(best.error, apart), 0)


def noise_of(loss: Loss, feeds: Arrays, moved: Iterable[str]) -> float:
    """How far rounding takes the loss from a smooth one, in the unit of the loss."""
    rng, here = np.random.default_rng(0), loss(feeds)
    names = [name for name in moved if feeds[name].dtype == np.float64]
    if not names:
        kinds = [feeds[name].dtype for name in moved]
        eps = max((np.finfo(k).eps if k.itemsize in _STEPS else 1e-3 for k in kinds), default=1e-3)
        return 4 * float(eps) * max(abs(here), 1e-30)
    found = [4 * float(np.finfo(np.float64).eps) * max(abs(here), 1e-30)]
    for _ in range(2):  # steps so small that curvature is far below what float32 would round
        move = {name: rng.normal(size=feeds[name].shape) * _unit(feeds[name]) for name in names}
        sides = [loss(feeds | _moved(feeds, move, step)) for step in (1e-8, -1e-8)]
        found.append(abs(sides[0] + sides[1] - 2 * here))
    return max(found)


def length_of(value: NDArray[Any]) -> float:
    """The norm of a parameter; of one that is zero, the root of its size."""
    return _unit(value) * float(np.sqrt(value.size))


def _moved(feeds: Arrays, move: Arrays, step: float) -> Arrays:
    return {
        name: np.asarray(feeds[name] + step * along, feeds[name].dtype)
        for name, along in move.items()
    }


def _unit(value: NDArray[Any]) -> float:
    size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) if value.size else 0.0
    return size if size > 0 else 1.0


def _best_slope(
    loss: Loss,
    feeds: Arrays,
    parameter: str,
    along: NDArray[np.float64],
    here: float,
    attempt: int,
) -> Slope:
    at = feeds[parameter]
    eps = float(np.finfo(at.dtype).eps) if at.dtype.itemsize in _STEPS else 1e-3
    best: Slope | None = None
    for step in _STEPS.get(at.dtype.itemsize, (0.1, 0.3)):
        sides = []
        for length in (step, step / 2):
            plus, minus = (
                loss(feeds | {parameter: np.asarray(at + sign * length * along, at.dtype)})
                for sign in (1, -1)
            )
            sides.append(((plus - here) / length, (here - minus) / length))
        wide, near = (float(np.mean(pair)) for pair in sides)
        rounding = _ROUNDINGS * eps * max(abs(here), 1e-30) / step
        bends = [right - left for right, left in sides]
        crossed = abs(bends[1] - bends[0] / 2)  # without a kink, curvature alone halves with h
        error = abs(wide - near) + crossed / 2 + rounding
        kinked = abs(bends[1]) > max(0.7 * abs(bends[0]), _KINK * abs(near), 8 * rounding)
        slope = Slope(near, error if np.isfinite(error) else np.inf, attempt, kinked)
        if best is None or slope.error < best.error:
            best = slope
        if slope.error <= 1e-6 * abs(near) or (near == 0 and wide == 0):
            break
    assert best is not None
    return best
