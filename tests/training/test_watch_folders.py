"""Watching folders of artifacts: steps are those of the runtime's own interface, bit for bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import MODELS
from numpy.typing import NDArray

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    OnnxClipError,
    clip_artifacts,
    read_norms,
    watch,
)
from onnx_clip_pass.cli import main
from onnx_clip_pass.monitoring import training
from onnx_clip_pass.monitoring.keeping import steps_before

ort = pytest.importorskip("onnxruntime", reason="onnxruntime-training is not installed")
if not hasattr(ort, "training"):
    pytest.skip("this is the stock onnxruntime, without training", allow_module_level=True)

from onnxruntime.training import artifacts, onnxblock  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402

Arrays = dict[str, NDArray[Any]]
ARTIFACTS = MODELS / "ort_artifacts"
FOLDERS = sorted(path.name for path in ARTIFACTS.iterdir() if path.is_dir())
SGD, ADAMW = "mlp_mse_sgd", "transformer_block_mse_adamw"
CONVNET = "convnet_batchnorm_ce_adamw"
RATE = 0.01
ort.set_default_logger_severity(3)  # warns of a shape in every optimizer model that it makes


def batches_of(folder: str, count: int) -> list[Arrays]:
    """Batches like the one that lies there: the first half of each float is shifted along."""
    with np.load(ARTIFACTS / folder / "training_model.inputs.npz") as archive:
        feeds = {name: archive[name] for name in archive.files[:2]}
    rng = np.random.default_rng(5)
    return [
        {
            name: array + rng.normal(size=array.shape).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in feeds.items()
        }
        for _ in range(count)
    ]


class ByHand:
    """The loop that users of the training interface write."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.state = CheckpointState.load_checkpoint(folder / f"{prefix}checkpoint")
        self.module = Module(folder / f"{prefix}training_model.onnx", self.state)
        self.optimizer = Optimizer(folder / f"{prefix}optimizer_model.onnx", self.module)
        self.optimizer.set_learning_rate(RATE)

    def step(self, batches: list[Arrays]) -> tuple[float, Arrays]:
        """The mean loss of micro-batches, and the sums of their gradients."""
        losses = [
            self.module(*[batch[name] for name in self.module.input_names()]) for batch in batches
        ]
        sums = {
            name: np.array(parameter.grad)
            for name, parameter in self.state.parameters
            if parameter.requires_grad
        }
        self.optimizer.step()
        self.module.lazy_reset_grad()
        return float(np.mean(np.array(losses, np.float64))), sums

    @property
    def parameters(self) -> Arrays:
        return {name: np.array(parameter.data) for name, parameter in self.state.parameters}


def kept(path: Path, tmp_path: Path) -> Arrays:
    """The parameters of a checkpoint in a file of states."""
    with np.load(path) as archive:
        (tmp_path / "of states").write_bytes(archive["checkpoint"].tobytes())
    state = CheckpointState.load_checkpoint(tmp_path / "of states")
    return {name: np.array(parameter.data) for name, parameter in state.parameters}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_steps_are_those_by_hand_bit_for_bit(folder: str, micro_batches: int, tmp_path: Path):
    """1e-6: a norm in float32 of up to 288 elements has a few roundings of 6e-8."""
    batches = batches_of(folder, 5)
    found = watch(
        ARTIFACTS / folder,
        batches,
        steps=12,
        initial={"learning_rate": np.array(RATE)},
        micro_batches=micro_batches,
        states=tmp_path / "states.npz",
    )
    by_hand = ByHand(ARTIFACTS / folder)
    assert set(found.parameters) == {n for n, p in by_hand.state.parameters if p.requires_grad}
    for t in range(12):
        taken = [batches[(t * micro_batches + k) % 5] for k in range(micro_batches)]
        loss, sums = by_hand.step(taken)
        assert found.loss[t] == loss
        wide = [sums[name].astype(np.float64) for name in found.parameters]
        norms = [np.sqrt(np.sum(array * array)) for array in wide]
        np.testing.assert_allclose(found.norm[t], norms, rtol=1e-6)
        np.testing.assert_allclose(found.global_norm[t], np.linalg.norm(norms), rtol=1e-6)
        np.testing.assert_array_equal(found.rows[t].largest, [np.abs(x).max() for x in wide])
        np.testing.assert_allclose(
            found.rows[t].zeros, [np.mean(x == 0) for x in wide], atol=1e-7
        )  # a mean of float32
    assert_same(kept(tmp_path / "states.npz", tmp_path), by_hand.parameters)


def test_a_step_for_each_group_of_batches_and_the_last_one_goes_round():
    found = watch(ARTIFACTS / SGD, batches_of(SGD, 5), micro_batches=2)
    assert len(found) == 3
    assert found.head.micro_batches == 2


def test_micro_batches_that_end_within_a_step_are_no_step():
    found = watch(ARTIFACTS / SGD, iter(batches_of(SGD, 5)), micro_batches=2, steps=9)
    assert len(found) == 2
    assert found.notes == ("the batches ended after 2 steps",)


def test_a_clip_of_the_optimizer_model_is_measured(tmp_path: Path):
    """1e-6: norms in float32, and a scale that is rounded once."""
    limit, batches = 0.5, batches_of(ADAMW, 4)
    clip_artifacts(ARTIFACTS / ADAMW, tmp_path / "clipped", GradientClipByGlobalNorm(limit))
    found = watch(
        tmp_path / "clipped", batches, micro_batches=2, steps=6, initial={"learning_rate": RATE}
    )
    assert found.head.is_clipped
    by_hand = ByHand(tmp_path / "clipped")
    for t in range(6):
        _, sums = by_hand.step([batches[2 * t % 4], batches[(2 * t + 1) % 4]])
        whole = np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in sums.values()))
        assert whole > limit
        np.testing.assert_allclose(found.rows[t].scale, limit / whole, rtol=1e-6)
        np.testing.assert_allclose(found.global_norm[t], whole, rtol=1e-6)


def test_each_gradient_by_its_own_norm_is_measured_likewise(tmp_path: Path):
    clip_artifacts(ARTIFACTS / SGD, tmp_path / "clipped", GradientClipByNorm(1.0))
    (row,) = watch(tmp_path / "clipped", batches_of(SGD, 1)).rows
    assert row.clipped_norm is not None
    assert (row.norm > 1.0).any()
    assert (row.norm < 1.0).any()
    np.testing.assert_allclose(row.clipped_norm, np.minimum(row.norm, 1.0), rtol=1e-6)


def test_the_clip_of_the_runtime_itself_is_measured(tmp_path: Path):
    """Its scale is limit / (norm + 1e-6)."""
    folder = tmp_path / "artifacts"
    generate(folder, onnxblock.optim.SGD(clip_grad=onnxblock.optim.ClipGradNorm(1.0)))
    batch = {"x": np.array([[3, 0, 0], [0, 4, 0]], np.float32), "target": np.zeros((2, 1))}
    batch["target"] = batch["target"].astype(np.float32)
    found = watch(folder, [batch])
    assert found.loss == [36.5]  # (9 + 64) / 2
    # y = [3, 8], so the gradient is [9, 32, 0]
    np.testing.assert_allclose(found.norm, [[np.hypot(9, 32)]], rtol=1e-6)
    assert found.rows[0].clipped_norm is not None
    np.testing.assert_allclose(found.rows[0].clipped_norm, [1.0], rtol=1e-5)


def generate(folder: Path, optimizer: Any, **more: Any) -> None:
    """Artifacts of y = x W, with the mean of (y - target) ** 2 for a loss."""
    import onnx

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 15]>
        g (float[2, 3] x) => (float[2, 1] y)
        <float[3, 1] W = {1, 2, 3}> { y = MatMul(x, W) }"""
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


BATCH = {"x": np.ones((2, 3), np.float32), "target": np.zeros((2, 1), np.float32)}


def test_any_prefix_and_no_optimizer_model(tmp_path: Path):
    folder = tmp_path / "artifacts"
    generate(folder, None, prefix="my_")
    found = watch(folder, [BATCH], steps=3)
    assert len(set(found.loss)) == 1
    assert found.notes == ("there is no optimizer model: the weights stay as they are",)
    with pytest.raises(OnnxClipError, match="nothing is called 'learning_rate'"):
        watch(folder, [BATCH], initial={"learning_rate": np.array(0.1)})


def test_micro_batches_that_are_clipped_are_measured_behind_it(tmp_path: Path):
    clipped = tmp_path / "clipped"
    clip_artifacts(ARTIFACTS / SGD, clipped, GradientClipByNorm(0.3), at="micro-batch", emit="norm")
    found = watch(clipped, batches_of(SGD, 2), micro_batches=2)
    assert (found.norm <= 0.6 * (1 + 1e-6)).all()
    assert not found.head.is_clipped
    assert found.notes[0].startswith("each micro-batch is clipped before it is added up")


@pytest.mark.parametrize("folder", [ADAMW, CONVNET])
def test_a_run_is_gone_on_with_as_if_it_had_not_ended(folder: str, tmp_path: Path):
    place, batches = ARTIFACTS / folder, batches_of(folder, 5)
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    initial = {"learning_rate": np.array(RATE)}
    whole = watch(place, batches, steps=9, initial=initial, micro_batches=2)
    watch(place, batches, steps=4, initial=initial, micro_batches=2, to=path, states=states)
    assert steps_before(states) == 4
    on = watch(
        place,
        batches,
        steps=9,
        initial={name: np.ones_like(a) for name, a in kept(states, tmp_path).items()},
        micro_batches=2,
        to=path,
        states=states,
        resume=True,
    )
    np.testing.assert_array_equal(on.loss, whole.loss)
    np.testing.assert_array_equal(read_norms(path).norm, whole.norm)
    with pytest.raises(OnnxClipError, match="a step takes other batches"):
        watch(place, batches, steps=12, to=path, states=states, resume=True)


class _Cut(BaseException):
    """As an interrupt is: no Exception."""


@pytest.mark.parametrize("place", ["behind the training model", "behind the optimizer model"])
def test_states_of_a_run_that_is_cut_short_are_those_of_whole_steps(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """BatchNormalization changes its statistics in every run of the training model."""
    batches = batches_of(CONVNET, 3)
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    whole = watch(ARTIFACTS / CONVNET, batches, steps=8)
    calls = 0

    def cut(method: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            found = method(*args, **more)
            if calls == 6:
                raise _Cut
            return found

        return call

    owner, name = (Module, "__call__") if "training" in place else (Optimizer, "step")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut(getattr(owner, name)))
        with pytest.raises(_Cut):
            watch(ARTIFACTS / CONVNET, batches, steps=8, to=path, states=states, states_every=3)
    assert steps_before(states) == (5 if "training" in place else 3)
    on = watch(ARTIFACTS / CONVNET, batches, steps=8, to=path, states=states, resume=True)
    np.testing.assert_array_equal(on.loss, whole.loss)
    np.testing.assert_array_equal(read_norms(path).norm, whole.norm)


def test_parameters_are_given_at_first(tmp_path: Path):
    generate(tmp_path / "artifacts", artifacts.OptimType.SGD)
    zero = np.zeros((3, 1), np.float32)
    found = watch(tmp_path / "artifacts", [BATCH], initial={"W": zero})
    assert found.loss == [0]
    x = BATCH["x"]
    more = {"target": BATCH["target"]}
    noted = watch(tmp_path / "artifacts", [{"x": x}], initial=more | {"W": zero})
    assert not noted.notes
    for wrong, said in (
        ({"W": np.zeros((3, 1))}, r"'W': expected float32 \[3, 1\], but it is float64"),
        ({"V": zero}, "nothing is called 'V'"),
        ({"learning_rate": zero}, "'learning_rate': expected a number"),
        ({"checkpoint": np.arange(9, dtype=np.uint8)}, "failed to load the artifacts"),
    ):
        with pytest.raises(OnnxClipError, match=said):
            watch(tmp_path / "artifacts", [BATCH], initial=wrong)


def test_a_loss_that_is_not_finite_ends_it_and_the_gradient_is_named(tmp_path: Path):
    generate(tmp_path / "artifacts", artifacts.OptimType.SGD)
    odd = BATCH | {"x": np.full((2, 3), 1e30, np.float32)}
    found = watch(tmp_path / "artifacts", [BATCH, odd], steps=5)
    assert found.stopped == (
        "the loss is inf in step 1; the first gradient that was not finite: that of 'W', in step 1"
    )
    assert found.rows[1].nonfinite == [1.0]


def test_feeds_that_do_not_fit_are_refused_before_a_buffer_has_anything(tmp_path: Path):
    states, good = tmp_path / "states.npz", batches_of(SGD, 3)
    bad = good[0] | {"x": np.zeros((4, 5))}
    with pytest.raises(
        OnnxClipError, match="step 1, from batch 2: the step cannot be fed"
    ) as error:
        watch(ARTIFACTS / SGD, [*good, bad], micro_batches=2, states=states)
    assert "'x' of batch 3: expected float32, but it is float64" in str(error.value)
    assert steps_before(states) == 1
    with pytest.raises(OnnxClipError, match="'target', an input that neither batch 0 nor"):
        watch(ARTIFACTS / SGD, [{"x": good[0]["x"]}])
    with pytest.raises(OnnxClipError, match="provider must be cpu"):
        watch(ARTIFACTS / SGD, good, provider="cuda")


def test_what_the_runtime_refuses_is_one_error(tmp_path: Path):
    folder = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS / SGD, folder)
    (folder / "checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(OnnxClipError, match="ONNX Runtime failed to load the artifacts"):
        watch(folder, batches_of(SGD, 1))


def test_the_command_line_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    feeds = str(ARTIFACTS / SGD / "training_model.inputs.npz")
    path = str(tmp_path / "norms.jsonl")
    rate = ["--set", "learning_rate=0.1"]
    arguments = ["watch", str(ARTIFACTS / SGD), "--feeds", feeds, *rate, "--micro-batches", "2"]
    assert main([*arguments, "--steps", "4", "-o", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["micro_batches"] == 2
    assert told["steps"] == 4
    assert main(["suggest", path]) == 0


def test_a_runtime_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.training", None)
    with pytest.raises(OnnxClipError, match="pip install onnxruntime-training-cpu"):
        training._runtime()
