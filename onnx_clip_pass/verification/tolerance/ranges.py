"""The norms for which a precision is promised (docs/numerics.md, "Error")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips import Case, Formula, Numerics
from onnx_clip_pass.verification.tolerance import compare

__all__ = ["is_promised", "promised_range"]


def promised_range(
    pairs: Iterable[tuple[Formula, Case]], numerics: Numerics
) -> tuple[float, float]:
    """The least and the largest norm that all these formulas promise of these gradients."""
    found = [_range(*pair, numerics) for pair in pairs]
    return max(low for low, _ in found), min(top for _, top in found)


def is_promised(
    formula: Formula,
    cases: Sequence[Case],
    norms: Sequence[NDArray[np.float64]],
    total: float | None,
    numerics: Numerics,
) -> bool:
    """Return whether norms of gradients are in the range, `total` being that of a whole group.

    What is too short for it and within its limit is: its norm comes out shorter, if anything.
    """
    if formula.is_identity:
        return True
    ranges = [_range(formula, case, numerics) for case in cases]
    most = max(top for _, top in ranges)
    for case, own, (low, top) in zip(cases, norms, ranges, strict=True):
        whole = own if total is None else np.asarray(total)
        if np.any(own[np.isfinite(own)] > top) or np.any(whole[np.isfinite(whole)] > most):
            return False
        is_short = (whole > 0) & (whole < low)
        if is_short.any() and np.any(is_short & (whole > formula.limits(case))):
            return False
    return True


def _range(formula: Formula, case: Case, numerics: Numerics) -> tuple[float, float]:
    """Of the norms of a formula, for a gradient.

    Powers of a norm and of elements have to be held where they are added up: in float32, unless
    something takes elements to float64, or are taken as shares. A largest element is one that the
    gradient's dtype holds.
    """
    dtype, ord = str(case.gradient.dtype), formula.order
    precision = numerics.norm_precision
    in_float64 = dtype == "float64" or precision == "wide"
    is_widened = (
        in_float64
        or numerics.nonfinite != "propagate"
        or (ord not in (1, 2) and precision != "plain")
    )
    if ord == math.inf:
        return 0.0, compare.top(case.gradient)
    if dtype == "float64" and ord not in (1, 2):  # of shares in the largest element
        wide = np.finfo(np.float64)
        return float(wide.tiny / wide.eps), float(wide.max) / 2 / max(1, case.gradient.size)
    held = np.finfo(np.float64 if is_widened else np.float32)
    # what is a multiple of the smallest number keeps its precision above this
    least = float(held.tiny) / float(held.eps) * max(1, case.gradient.size)
    with np.errstate(over="ignore", under="ignore"):
        ends = np.array([least, float(held.max) / 2]) ** (1 / ord)
    most = float(ends[1])
    if not in_float64:  # the factor is float32, and loses its precision where it is not normal
        most = min(most, formula.limit_of_large(case) / float(np.finfo(np.float32).tiny))
    return float(ends[0]), most
