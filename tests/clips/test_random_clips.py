"""Random clips of random gradients, held against the formulas in long double (`random_clips`).

ONNX_CLIP_RUNS says how many, ONNX_CLIP_SEED from which seed on. A fault names its seed:
`python tests/random_clips --seed 17` tries that one again, `20000 --first 0` so many.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

import random_clips.trying
from random_clips import newest_opset, tried

from onnx_clip_pass import clip_gradients

NIGHTLY = bool(os.environ.get("ONNX_CLIP_NIGHTLY"))
RUNS = int(os.environ.get("ONNX_CLIP_RUNS") or (3000 if NIGHTLY else 80))
# The same in every run, so that a run tells about the change; nightly ones are new.
FIRST = int(os.environ.get("ONNX_CLIP_SEED") or (random.randrange(1 << 40) if NIGHTLY else 0))
NEWEST = newest_opset()
MOST_REFUSED = 0.2  # of 20,000 it is 0.11

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant,
    reason="a long double is no more exact than float64 here",
)


def test_each_clip_gives_what_the_formula_gives():
    found = [tried(seed, NEWEST) for seed in range(FIRST, FIRST + RUNS)]
    refused = [words for words, faults in found if faults == ["refused"]]
    wrong = {words: faults for words, faults in found if faults and faults != ["refused"]}
    assert not wrong, "\n  ".join(
        line for words, faults in wrong.items() for line in (words, *faults)
    )
    assert len(refused) <= MOST_REFUSED * RUNS + 5, refused


def test_a_wrong_limit_is_seen(monkeypatch: pytest.MonkeyPatch):
    """Twice as high: nothing is wrong where nothing is clipped."""

    def wrong(model: Any, clip: Any, **options: Any) -> Any:
        return clip_gradients(model, clip.scaled(2.0), **options)

    monkeypatch.setattr(random_clips.trying, "clip_gradients", wrong)
    found = [tried(seed, NEWEST)[1] for seed in range(60)]
    assert sum(bool(faults) and faults != ["refused"] for faults in found) > 15
