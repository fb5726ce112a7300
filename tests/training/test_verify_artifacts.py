"""Verification where ONNX Runtime training runs the graphs."""

from __future__ import annotations

import onnx
import pytest
from graphs import Arrays, Entry, each

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.verification import verify

ort = pytest.importorskip("onnxruntime")
if not hasattr(ort, "training"):
    pytest.skip("needs onnxruntime-training", allow_module_level=True)


CLIPS: dict[str, Clip] = {
    "norm": GradientClipByNorm(0.1),
    "global": GradientClipByGlobalNorm(0.1),
    "chain": Chain(GradientClipByValue(0.05), GradientClipByGlobalNorm(0.1)),
    "units": AdaptiveGradientClip(0.01),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@each(lambda e: e.runtime == "onnxruntime-training" and bool(e.gradients))
def test_rewrites_of_training_artifacts_are_right(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, clip: Clip
) -> None:
    if clip.reads_parameter and entry.file.startswith("ort_artifacts/param_plus_param"):
        with pytest.raises(OnnxClipError, match="units cannot be told"):
            clip_gradients(model, clip)
        return
    found = verify(model, clip_gradients(model, clip), feeds=feeds)
    assert found.ok, found
    assert all(row.acted and row.passed for row in found.gradients)
