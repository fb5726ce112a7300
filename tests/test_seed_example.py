"""The example of Paddle's GradientClipByNorm documentation, against what Paddle itself gives.

The numbers come from `recorded/paddle_seed.py`, so the tests need no Paddle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import ENTRIES, assert_identical, run

from onnx_clip_pass import GradientClipByNorm, clip_gradients

(SEED,) = (entry for entry in ENTRIES if entry.file == "seed/train_step.onnx")
_RECORDED = Path(__file__).parent / "recorded" / "paddle_seed.json"
CASES = json.loads(_RECORDED.read_text(encoding="utf-8"))["cases"]

# Both sides compute in float32 and sum in their own order: over 10 rows for a gradient of size 10
# and over 6 elements for its norm, some ulps each. An ulp is 1.2e-7 of a number, and a parameter
# is a difference of numbers below 1, which is what the absolute part is for.
ULPS = 8 * float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_gives_what_paddle_gives(case: dict[str, Any]) -> None:
    model = SEED.load()
    if case["clipped"]:
        clip = GradientClipByNorm(case["clip_norm"], need_clip=lambda p: p.name in case["clipped"])
        model = clip_gradients(model, clip)
    outputs = run(model, SEED.load_feeds())
    assert outputs.keys() <= case["gives"].keys()
    for name, value in outputs.items():
        np.testing.assert_allclose(value, case["gives"][name], rtol=ULPS, atol=ULPS, err_msg=name)


def test_paddle_saw_the_same_raw_gradients() -> None:
    """Else the two would agree on a step by accident, or differ for no fault of the clip."""
    recorded = CASES["no clip"]["gives"]
    for name, value in run(SEED.load(), SEED.load_feeds(), SEED.names).items():
        np.testing.assert_allclose(value, recorded[name], rtol=ULPS, err_msg=name)


@pytest.mark.parametrize("clip_norm", [1e30, float("inf"), 14.6])
def test_norms_within_the_threshold_change_no_bit(clip_norm: float) -> None:
    clipped = clip_gradients(SEED.load(), GradientClipByNorm(clip_norm))
    feeds = SEED.load_feeds()
    assert_identical(run(clipped, feeds), run(SEED.load(), feeds))


def test_only_the_selected_parameter_changes() -> None:
    clipped = clip_gradients(SEED.load(), GradientClipByNorm(1e-3, need_clip="fc_0.w_0"))
    feeds = SEED.load_feeds()
    before, after = run(SEED.load(), feeds), run(clipped, feeds)
    changed = [name for name, value in before.items() if value.tobytes() != after[name].tobytes()]
    assert changed == ["fc_0.w_0@NEW"]
