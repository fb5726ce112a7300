"""Verification where ONNX Runtime training runs the graphs."""

from __future__ import annotations

import onnx
import pytest
from graphs import Arrays, Entry, each

from onnx_clip_pass import GradientClipByNorm, clip_gradients
from onnx_clip_pass.verify import verify

ort = pytest.importorskip("onnxruntime")
if not hasattr(ort, "training"):
    pytest.skip("needs onnxruntime-training", allow_module_level=True)


@each(lambda e: e.runtime == "onnxruntime-training" and bool(e.gradients))
def test_rewrites_of_training_artifacts_are_right(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays
) -> None:
    found = verify(model, clip_gradients(model, GradientClipByNorm(0.1)), feeds=feeds)
    assert found.ok, found
    assert all(row.acted and row.passed for row in found.gradients)
