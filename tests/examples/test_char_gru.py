"""The example that is lost without a clip: its gradients are right, and it goes as its page says.

Runs where matplotlib is, in the session `examples`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("matplotlib", reason="the example draws")
pytest.importorskip("onnxruntime", reason="it trains")

FOLDER = Path(__file__).parents[2] / "examples" / "char_gru"

from onnx_clip_pass import (  # noqa: E402
    GradientClipByGlobalNorm,
    GradientClipByPercentile,
    ZClip,
    clip_gradients,
    find_gradients,
    verify,
)


@pytest.fixture(scope="module")
def example() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.delitem(sys.modules, "train", raising=False)
        import train

        yield train
        del sys.modules["train"]


def test_every_gradient_is_found_and_is_a_slope_of_the_loss(example: Any):
    letters = len(example.LETTERS)
    model = example.step.make(letters)
    weights = example.step.initial(letters, 0)
    assert {found.parameter.name for found in find_gradients(model)} == weights.keys()
    clipped = clip_gradients(model, GradientClipByGlobalNorm(0.1))
    feeds = weights | next(example.batches(0))
    found = verify(model, clipped, feeds=feeds, slopes="strict")
    assert found, found
    assert not any("was not checked" in note for note in found.notes), found


def test_without_a_clip_it_is_lost_and_with_rules_from_before_it_learns(
    example: Any, tmp_path: Path
):
    clips = {
        "no clip": math.inf,
        "clip_norm 1": 1.0,
        "suggested rules": example.suggested(3),
        "AutoClip": GradientClipByPercentile(),
        "ZClip": ZClip(),
    }
    runs = {name: {5.0: [example.train(clip, 3)]} for name, clip in clips.items()}
    assert max(runs["no clip"][5.0][0].losses) > 2 * example.GUESSING
    ends = {name: example.held_out(of_clip[5.0]).item() for name, of_clip in runs.items()}
    assert ends.pop("no clip") > 2.5
    assert max(ends.values()) < 2.2, ends
    picture = tmp_path / "runs.png"
    example.draw(runs, str(picture))
    assert picture.stat().st_size > 10_000
    assert len(list(example.table(runs))) == 7


def test_a_run_is_written_for_the_command_line(example: Any, tmp_path: Path):
    example.prepare(tmp_path, seed=0)
    onnx.checker.check_model(tmp_path / "step.onnx")
    assert len(list((tmp_path / "batches").iterdir())) == example.STEPS
    assert np.load(tmp_path / "batches" / "099.npz")["lr"] == example.RATES[0]


def test_what_is_prepared_replaces_no_step(example: Any, tmp_path: Path):
    (tmp_path / "step.onnx").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="give a folder without one"):
        example.prepare(tmp_path, 0)
    assert (tmp_path / "step.onnx").read_bytes() == b"mine"
