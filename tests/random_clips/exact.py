"""The formulas of the documentation in long double, written anew: nothing of `clips/` is used.

Each is given with how far off a graph may be by docs/numerics.md: a norm, relatively, by what is
stated there; an element by that, by the roundings of the product, and by those to its dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPS", "Exact", "Gradient", "Stage", "clipped"]

Array = NDArray[Any]
Long = NDArray[np.longdouble]
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}


@dataclass(frozen=True)
class Stage:
    """One formula: what it limits, to what, and how exactly.

    `limit` is the threshold as it acts, loss scale included; `low` the lower bound by value.
    `in_float64` says that all is computed in float64 because of the threshold, or of "wide".
    """

    form: str
    limit: float
    ord: float = 2.0
    axes: tuple[int, ...] | None = None
    per_sample: bool = False
    low: float | None = None
    eps: float = 1e-3
    precision: str = "auto"
    nonfinite: str = "propagate"
    in_float64: bool = False


@dataclass(frozen=True)
class Gradient:
    """A gradient as an array; the last axis of one `has_seeds` is that of seeds."""

    array: Array
    parameter: Array | None = None
    has_seeds: bool = False


@dataclass
class Exact:
    """A clipped gradient, and what a graph may differ by: `relative` and `absolute`.

    `is_kept` says which elements must be those of the gradient, bit for bit. `norm` is the largest
    that the first formula takes of it, `whole` that of its group, with their relative error;
    `clips` says whether one is above its limit, None if rounding decides.
    """

    array: Array
    relative: float = 0.0
    absolute: float = 0.0
    is_kept: NDArray[np.bool_] = field(default_factory=lambda: np.array(True))
    norm: float = 0.0
    whole: float | None = None
    norm_error: float = 0.0
    clips: bool | None = False
    long: Long = field(default_factory=lambda: np.array(0, np.longdouble))


def clipped(gradients: list[Gradient], stages: list[Stage]) -> list[Exact]:
    """What formulas, one after another, make of gradients; a global one takes all together."""
    found = [
        Exact(g.array, is_kept=np.ones(g.array.shape, bool), long=g.array.astype(np.longdouble))
        for g in gradients
    ]
    for number, stage in enumerate(stages):
        taken = [
            Gradient(e.array, g.parameter, g.has_seeds)
            for e, g in zip(found, gradients, strict=True)
        ]
        together = [taken] if stage.form == "global" else [[one] for one in taken]
        at = 0
        for group in together:
            _apply(group, found[at : at + len(group)], stage, is_first=number == 0)
            at += len(group)
    return found


def _apply(group: list[Gradient], found: list[Exact], stage: Stage, *, is_first: bool) -> None:
    with np.errstate(all="ignore"):
        norms = own = [_norm(g, stage) for g in group]
        if stage.form == "global":
            norms = _together(own, stage)
        finite = _finite(group, stage)
        error = max(_norm_error(g, stage, len(group)) for g in group)
        before = max(exact.relative for exact in found)  # errors of earlier formulas in the norm
        for g, exact, norm, is_finite in zip(group, found, norms, finite, strict=True):
            _limit(g, exact, norm, is_finite, stage, before, error, is_first=is_first)
        if is_first:
            for exact, norm, whole in zip(found, own, norms, strict=True):
                exact.norm = float(np.max(norm, initial=0.0))
                exact.whole = float(np.max(whole, initial=0.0)) if norms is not own else None


def _limit(
    g: Gradient,
    exact: Exact,
    norm: Long,
    is_finite: NDArray[np.bool_],
    stage: Stage,
    before: float,
    error: float,
    *,
    is_first: bool,
) -> None:
    x, dtype = g.array.astype(np.longdouble), str(g.array.dtype)
    work = 2.0**-53 if stage.in_float64 or dtype == "float64" else 2.0**-24
    error += before + 8 * work
    if before:  # what was rounded to the least of numbers
        length = norm[np.isfinite(norm) & (norm > 0)]
        error += exact.absolute * math.sqrt(g.array.size) / float(length.min(initial=np.inf))
    limit = _limit_of(g, stage)
    if stage.form == "value":
        low = -limit if stage.low is None else np.longdouble(stage.low)
        result = np.minimum(np.maximum(x, low), limit)
        kept = x >= low + np.abs(low) * error
        kept &= x <= limit - np.abs(limit) * error
        kept |= np.isnan(x)
        beyond = (x > limit + np.abs(limit) * error) | (x < low - np.abs(low) * error)
        clips = True if np.any(beyond) else False if np.all(kept) else None
    else:
        result = np.where((norm <= limit) | np.isposinf(limit), x, x * (limit / norm))
        kept = np.broadcast_to((norm <= limit * (1 - error)) | np.isposinf(limit), x.shape)
        above = norm > limit * (1 + error)
        below = norm <= limit * (1 - error)
        clips = True if np.any(above) else False if np.all(below) else None
    if stage.nonfinite != "propagate":
        is_finite = np.broadcast_to(is_finite, x.shape)
        result = np.where(is_finite, result, 0 if stage.nonfinite == "zero" else x)
        kept = np.where(is_finite, kept, stage.nonfinite == "keep")
    changes = not bool(np.all(kept))
    exact.long = result
    exact.array = np.asarray(result).astype(g.array.dtype)
    exact.array = np.where(kept, g.array, exact.array)  # with the sign of zero
    exact.is_kept = exact.is_kept & kept
    if changes:
        exact.relative += 2 * error + EPS[dtype] / 2
        exact.absolute += _SMALLEST[dtype]
    if is_first:
        exact.norm_error = error
        exact.clips = clips


def _over(g: Gradient, stage: Stage) -> tuple[int, ...]:
    """The axes of a gradient over which one norm reaches."""
    rank = g.array.ndim - int(g.has_seeds)
    if stage.axes is not None:
        return tuple(sorted(axis % rank for axis in stage.axes))
    return tuple(range(int(stage.per_sample), rank))


def _norm(g: Gradient, stage: Stage) -> Long:
    """The norms of its units, with the axes that they reach over of size 1."""
    ord = math.inf if stage.form == "value" else stage.ord
    return _p_norm(g.array.astype(np.longdouble), ord, _over(g, stage))


def _p_norm(x: Long, ord: float, over: tuple[int, ...]) -> Long:
    sizes = np.abs(x)
    if ord == math.inf:
        return np.asarray(np.max(sizes, axis=over, keepdims=True, initial=0))
    powers = sizes if ord == 1 else sizes * sizes if ord == 2 else sizes ** np.longdouble(ord)
    total = np.sum(powers, axis=over, keepdims=True)
    return np.asarray(total if ord == 1 else total ** (1 / np.longdouble(ord)))


def _together(norms: list[Long], stage: Stage) -> list[Long]:
    """The norm of all of a group, of each sample or seed if there are several, for each."""
    flat = np.stack([norm.ravel() for norm in norms])
    total = _p_norm(flat, stage.ord, (0,))[0]
    return [total.reshape(norm.shape) for norm in norms]


def _finite(group: list[Gradient], stage: Stage) -> list[NDArray[np.bool_]]:
    """Of each unit whether it is finite, and all that has its norm in common with it."""
    own = [
        np.isfinite(g.array.astype(np.longdouble)).all(axis=_over(g, stage), keepdims=True)
        for g in group
    ]
    if stage.form != "global":
        return own
    whole = np.stack([each.ravel() for each in own]).all(axis=0)
    return [whole.reshape(each.shape) for each in own]


def _limit_of(g: Gradient, stage: Stage) -> Long:
    limit = np.longdouble(stage.limit)
    if stage.form == "rms":
        count = math.prod(g.array.shape[axis] for axis in _over(g, stage))
        return np.asarray(limit * np.sqrt(np.longdouble(max(1, count))))
    if stage.form == "adaptive":
        assert g.parameter is not None
        norms = _p_norm(g.parameter.astype(np.longdouble), 2.0, _over(g, stage))
        if g.has_seeds:
            norms = norms[..., None]
        return np.asarray(limit * np.maximum(norms, np.longdouble(stage.eps)))
    return np.asarray(limit)


def _norm_error(g: Gradient, stage: Stage, count: int) -> float:
    """What docs/numerics.md states of a norm over so many elements (`Error`)."""
    ord = math.inf if stage.form == "value" else stage.ord
    over = _over(g, stage)
    size = math.prod(g.array.shape[axis] for axis in over)
    is_along = len(over) < g.array.ndim
    if ord == math.inf:
        return 0.0
    twice = 2 if ord == 1 else 1  # an L1 norm has twice the error
    added = 2 * twice * 3e-8 * min(count, 64)  # the sum over gradients
    in_float64 = str(g.array.dtype) == "float64" or stage.precision == "wide"
    if ord not in (1, 2):  # in float64, but for plain; not in docs/numerics.md
        unit = 2.0**-53 if stage.precision != "plain" or in_float64 else 2.0**-24
        found = ((size + 180) / ord + 180) * unit
    elif in_float64:
        found = max(1e-15, (6e-17 if is_along else 1.4e-17) * size) * twice
        added = added * 2.0**-29
    elif stage.precision == "plain":
        found = (3e-8 * size if is_along else 4e-7 + 4e-9 * size) * twice
    else:
        found = 1e-5
    if stage.form == "adaptive":  # a norm on either side
        found *= 2
    return found + (added if stage.form == "global" else 0.0)
