"""Long series made short without losing their peaks, for drawings of a limited width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["greatest", "thinned"]

_Floats = NDArray[np.float64]


def thinned(values: Sequence[float] | NDArray[Any], buckets: int) -> list[int]:
    """The places of the values that a line over so many pixels needs, in order.

    Of each bucket of neighbouring values these are the first, the least, the greatest and the last
    finite one, by which a line of straight pieces covers the same pixels as one of all values (M4:
    Jugel, Jerzak, Hackenbroich and Markl, VLDB 2014), and the first that is not finite.

    Args:
        values: of any number; nan and inf are allowed.
        buckets: how many, 1 or more; where there are no more values than five for each, all stay.

    Example:
        >>> thinned([1, 1, 1, 9, 1, 1, 1, 1, 1, 1, 0, 1], 2)
        [0, 3, 5, 6, 10, 11]
    """
    found: _Floats = np.asarray(values, np.float64)
    if len(found) <= 5 * buckets:
        return list(range(len(found)))
    kept: set[int] = set()
    for part in np.array_split(np.arange(len(found)), buckets):
        finite = part[np.isfinite(found[part])]
        if len(finite):
            inner = found[finite]
            kept |= {finite[0], finite[-1], finite[inner.argmin()], finite[inner.argmax()]}
        if len(finite) < len(part):
            kept.add(part[~np.isfinite(found[part])][0])
    return sorted(map(int, kept))


def greatest(values: NDArray[Any], rows: int, columns: int) -> _Floats:
    """A matrix with no more rows and columns, each element the greatest of those it stands for.

    Args:
        values: (rows, steps); inf for what is not finite, which is the greatest of all, and nan for
            what is not known, which is less than anything.
        rows: the most that there may be.
        columns: the most that there may be.
    """
    found = np.asarray(values, np.float64)
    for axis, most in enumerate((rows, columns)):
        if found.shape[axis] > most:
            starts = np.linspace(0, found.shape[axis], most, endpoint=False).astype(int)
            found = np.fmax.reduceat(found, starts, axis=axis)
    return found
