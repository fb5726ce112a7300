"""How near to 1 coefficients must add up to be taken for shares of an average."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_clip_pass.gradients.numbers import POINTS, is_one

SUMS = {
    # 1.5 units in the last place at most: each share is rounded once, and their sum
    "rounded-to-float32": (float(np.float32(0.9)) + float(np.float32(0.1)), True),
    "rounded-the-other-way": (1 - 2.0**-23, True),
    "a-small-decay": (1 - 2e-5, False),
    "beyond": (1 + 2e-5, False),
}


@pytest.mark.parametrize(("total", "expected"), SUMS.values(), ids=SUMS)
def test_rounding_is_passed_over_and_a_decay_is_not(total: float, expected: bool):
    assert is_one(np.full(POINTS, total)) is expected


def test_a_sum_that_is_1_at_some_points_only_is_none():
    total = np.ones(POINTS)
    total[-1] = 0.9
    assert not is_one(total)
    assert not is_one(None)
