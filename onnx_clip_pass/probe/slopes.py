"""Slopes of the loss by central differences, each with an estimate of its own error.

Along a direction v, D(h) = (L(W + h v) - L(W - h v)) / 2h differs from the true slope by the third
derivative times h^2, by rounding of L over h, and at a kink by something that no step size cures.
Two step sizes, h and h/2, show the first, extrapolate it away, and show the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Point", "Slope", "length_of", "noise_of", "quick_slope", "slope_along"]

Arrays = dict[str, NDArray[Any]]
Loss = Callable[[Mapping[str, NDArray[Any]]], float]

_FINE = (1e-3, 1e-5, 1e-7)  # steps, in the size of the parameters, for a loss in float64
_COARSE = (1, 3, 1 / 3, 9)  # times what noise asks for, for any other
_QUIET = 1e-12  # a loss with less noise, as a part of it, takes the fine steps
_QUICK = 1e-7
_CURVED = 1e-5  # what curvature may do to a quick slope
_ROUNDINGS = 4  # of the loss, in units of its last place


@dataclass(frozen=True, slots=True)
class Point:
    """The feeds at which slopes are taken, and the scalars in it that the loss does not read."""

    number: int
    feeds: Arrays
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope, and how far off it may be."""

    value: float
    error: float


def slope_along(
    loss: Loss, feeds: Arrays, move: Arrays, noise: float, enough: float = 0.0
) -> Slope:
    """The slope of the loss along one direction of several parameters together.

    Extrapolated from two step sizes at a time, until the error is `enough` or no step is left.

    Args:
        loss: the loss at the feeds it is given.
        feeds: where.
        move: by parameter, a direction about as long as the parameter: steps are parts of it.
        noise: of the loss, in its own unit; it tells how small steps may be.
        enough: the error that is small enough.
    """
    here = loss(feeds)
    rough = noise / max(abs(here), noise, 1e-30)
    fine = rough < _QUIET
    steps = _FINE if fine else tuple(each * rough**0.3 for each in _COARSE)
    found: list[Slope] = []
    for step in steps:
        slopes, bends = [], []
        for length in (step, step / 2):
            plus, minus = (loss(feeds | _moved(feeds, move, sign * length)) for sign in (1, -1))
            slopes.append((plus - minus) / (2 * length))
            bends.append((plus + minus - 2 * here) / length)
        wide, near = slopes
        rounding = 2 * noise / step
        # without a kink curvature halves with the step, and noise makes it no smaller
        kink = max(abs(bends[1] - bends[0] / 2) / 2 - rounding, 0.0)
        error = abs(near - wide) / 3 + kink + rounding
        if np.isfinite(error):
            found.append(Slope(near + (near - wide) / 3, float(error)))
        if found and found[-1].error <= enough and (fine or len(found) > 1):
            break
    if not found:
        return Slope(0.0, np.inf)
    best = min(found, key=lambda slope: slope.error)
    alike = [each for each in found if each.error < 10 * best.error]
    apart = max(abs(each.value - best.value) - each.error for each in alike)
    return Slope(best.value, max(best.error, apart))


def quick_slope(loss: Loss, feeds: Arrays, move: Arrays, noise: float, here: float) -> Slope:
    """The slope from one more run than that of `here`, as good as the loss is quiet and smooth."""
    slope = (loss(feeds | _moved(feeds, move, _QUICK)) - here) / _QUICK
    if noise > _QUIET * abs(here) or not np.isfinite(slope):
        return Slope(0.0, np.inf)
    return Slope(slope, _CURVED * abs(slope) + 2 * noise / _QUICK)


def noise_of(loss: Loss, feeds: Arrays, moved: Iterable[str]) -> float:
    """The distance of the loss from a smooth one by rounding, in the unit of the loss."""
    rng, here = np.random.default_rng(0), loss(feeds)
    names = [name for name in moved if feeds[name].dtype == np.float64]
    if not names:
        floats = [array for array in feeds.values() if array.dtype.kind not in "biuSU"]
        sizes = [array.dtype.itemsize for array in floats]
        eps = 2e-16 if set(sizes) == {8} else 1e-7 if min(sizes, default=4) >= 4 else 1e-3
        return _ROUNDINGS * eps * max(abs(here), 1e-30)
    found = [_ROUNDINGS * 2e-16 * max(abs(here), 1e-30)]
    for _ in range(3):  # steps so small that curvature is far below what float32 would round
        # each element by a part of itself, so that no mask of -1e9 reaches what it lets through
        move = {
            name: rng.normal(size=feeds[name].shape)
            * (np.abs(feeds[name]) if np.any(feeds[name]) else 1.0)
            for name in names
        }
        sides = [loss(feeds | _moved(feeds, move, step)) for step in (1e-8, -1e-8)]
        found.append(abs(sides[0] + sides[1] - 2 * here))
    return float(np.nanmax(found))


def length_of(value: NDArray[Any]) -> float:
    """The norm of a parameter; of one that is zero, the root of its size."""
    return _unit(value) * float(np.sqrt(value.size))


def _unit(value: NDArray[Any]) -> float:
    size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) if value.size else 0.0
    return size if size > 0 else 1.0


def _moved(feeds: Arrays, move: Arrays, step: float) -> Arrays:
    return {
        name: np.asarray(feeds[name] + step * along, feeds[name].dtype)
        for name, along in move.items()
    }
