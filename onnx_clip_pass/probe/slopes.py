"""Slopes of the loss by central differences, each with an estimate of its own error.

Along a direction v, D(h) = (L(W + h v) - L(W - h v)) / 2h differs from the true slope by the third
derivative times h^2, by rounding of L over h, and at a kink by something that no step size cures.
Two step sizes, h and h/2, show the first and the last; the second is known from the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Point", "Slope", "direction", "slope_along"]

Arrays = dict[str, NDArray[Any]]
Loss = Callable[[Mapping[str, NDArray[Any]]], float]

_STEPS = {8: (1e-5, 1e-6, 1e-4), 4: (1e-2, 3e-3, 3e-2)}  # by the itemsize of the dtype
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
