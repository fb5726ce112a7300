"""Folders that `generate_artifacts` writes here and now, with the options that change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_clip_pass import GradientClipByNorm, clip_artifacts

ort = pytest.importorskip("onnxruntime", reason="onnxruntime-training is not installed")
if not hasattr(ort, "training"):
    pytest.skip("this is the stock onnxruntime, without training", allow_module_level=True)

from onnxruntime.training import artifacts, onnxblock  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402


def generate(folder: Path, optimizer: Any, opset: int = 15, **more: Any) -> None:
    """Artifacts of y = x W, with the mean of (y - target) ** 2 for a loss."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2, 3] x) => (float[2, 1] y)
        <float[3, 1] W = {{1, 2, 3}}> {{ y = MatMul(x, W) }}"""
    )
    folder.mkdir()
    artifacts.generate_artifacts(
        model,
        requires_grad=["W"],
        loss=artifacts.LossType.MSELoss,
        optimizer=optimizer,
        artifact_directory=folder,
        **more,
    )


def step(folder: Path, prefix: str = "") -> np.ndarray:
    """W after one step with learning rate 1."""
    state = CheckpointState.load_checkpoint(folder / f"{prefix}checkpoint")
    module = Module(
        folder / f"{prefix}training_model.onnx", state, folder / f"{prefix}eval_model.onnx"
    )
    optimizer = Optimizer(folder / f"{prefix}optimizer_model.onnx", module)
    optimizer.set_learning_rate(1.0)
    # y = [-3, 4] and the target is 0, so the gradient by y is 2/2 * y, and that by W the
    # transpose of x times y: [1 * -3, -2 * -3, 4/3 * 4] = [-3, 6, 16/3]
    x = np.array([[1, -2, 0], [0, 0, 4 / 3]], np.float32)
    module(x, np.zeros((2, 1), np.float32))
    optimizer.step()
    return np.array(state.parameters["W"].data).ravel()


GRADIENT = np.array([-3, 6, 16 / 3])
NORM = np.sqrt(9 + 36 + 256 / 9)
WEIGHTS = np.array([1, 2, 3])


@pytest.mark.parametrize("opset", [14, 15, 17])
@pytest.mark.parametrize("at", ["step", "micro-batch"])
def test_a_prefix_and_any_opset(tmp_path, opset, at):
    generate(tmp_path / "made", artifacts.OptimType.SGD, opset, prefix="foo_")
    clip_artifacts(tmp_path / "made", tmp_path / "clipped", GradientClipByNorm(2.0), at=at)
    # float32: some roundings of weights up to 3
    np.testing.assert_allclose(step(tmp_path / "made", "foo_"), WEIGHTS - GRADIENT, atol=3e-6)
    expected = WEIGHTS - GRADIENT * 2 / NORM
    np.testing.assert_allclose(step(tmp_path / "clipped", "foo_"), expected, atol=3e-6)


def test_a_norm_that_the_optimizer_clips_by_itself_takes_what_is_clipped_here(tmp_path):
    own = onnxblock.optim.SGD(clip_grad=onnxblock.optim.ClipGradNorm(1.0))
    generate(tmp_path / "made", own, nominal_checkpoint=True)
    report = clip_artifacts(tmp_path / "made", tmp_path / "clipped", GradientClipByNorm(0.5))
    assert "InplaceClipGradNorm" in report.warnings[0]
    # the runtime adds 1e-6 to the norm that it divides by
    np.testing.assert_allclose(step(tmp_path / "made"), WEIGHTS - GRADIENT / NORM, atol=3e-6)
    expected = WEIGHTS - GRADIENT * 0.5 / NORM
    np.testing.assert_allclose(step(tmp_path / "clipped"), expected, atol=3e-6)
    assert (tmp_path / "clipped" / "nominal_checkpoint").exists()


def test_emitted_norms_come_back_behind_the_loss(tmp_path):
    generate(tmp_path / "made", artifacts.OptimType.SGD)
    clip_artifacts(
        tmp_path / "made",
        tmp_path / "out",
        GradientClipByNorm(2.0),
        at="micro-batch",
        emit=["norm"],
    )
    state = CheckpointState.load_checkpoint(tmp_path / "out" / "checkpoint")
    module = Module(tmp_path / "out" / "training_model.onnx", state)
    x = np.array([[1, -2, 0], [0, 0, 4 / 3]], np.float32)
    loss, norm = module(x, np.zeros((2, 1), np.float32))
    np.testing.assert_allclose(loss, 12.5, rtol=1e-6)  # (9 + 16) / 2
    np.testing.assert_allclose(norm, NORM, rtol=1e-6)
