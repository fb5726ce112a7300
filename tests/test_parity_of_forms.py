"""Every form of clipping beside the libraries it comes from, on what they really gave.

All in float32. A framework's norm, its quotient and its product each round, of at most a few
hundred elements, and so do ours, in another order: 8 eps = 1e-6 of the largest element is all they
may differ by. Beyond that:

- PyTorch and Opacus divide by the norm plus 1e-6, which makes what is clipped, or within 1e-6 of
  being clipped, shorter by 1e-6 of the threshold.
- PyTorch's L3 norm overflows in float32 for elements above 7e12, so that zeros come out of the
  tensors named `large`; ours does not.
- optax and timm divide an adaptive gradient by max(norm, 1e-6): a unit shorter than that, in the
  case `next to nothing`, comes out shorter than the formula says.
- timm's L1 units have no counterpart with us.
"""

from __future__ import annotations

import numpy as np
import pytest
from forms import Case, cases

EPS = float(np.finfo(np.float32).eps)
EPSILON_OF_TORCH = 1e-6


def is_comparable(case: Case) -> bool:
    names = set(case.gradients)
    if case.form == "adaptive":
        return "next to nothing" not in names and case.settings.get("ord", 2) == 2
    return not (case.library == "torch" and case.settings.get("ord") == 3 and "large" in names)


def allowed(case: Case) -> float:
    bound = 8 * EPS
    if case.library in ("torch", "opacus") and "clip_norm" in case.settings:
        limit = case.settings["clip_norm"]
        bound += EPSILON_OF_TORCH / min(limit.values() if isinstance(limit, dict) else [limit])
    return bound


CASES = cases(is_comparable)


def test_nearly_all_that_was_recorded_is_compared():
    assert len(cases()) == 545
    assert len(CASES) >= 520


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.library}: {case.call}")
@pytest.mark.parametrize("way", ["by_graph", "by_apply"])
def test_ours_is_theirs(case: Case, way: str):
    assert case.difference(getattr(case, way)()) <= allowed(case)
