"""Verification: what it takes, and models whose weights are out of memory meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import parse
from onnx import helper, numpy_helper

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients
from onnx_clip_pass.verification import both, verify
from onnx_clip_pass.verification.running import memory
from onnx_clip_pass.verification.running.weights import Weights

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

NET = """net (float[4, 150] x) => (float[150, 150] W_new, float[150, 150] V_new) {
    y = MatMul (x, W)
    z = MatMul (y, V)
    xt = Transpose <perm = [1, 0]> (x)
    W_grad = MatMul (xt, y)
    V_grad = MatMul (xt, z)
    W_new = Sub (W, W_grad)
    V_new = Sub (V, V_grad)
}"""


def net(seed: int = 0) -> onnx.ModelProto:
    """Two weights of 90,000 bytes each, enough to be put aside."""
    model = parse(NET)
    rng = np.random.default_rng(seed)
    for name in "WV":
        weight = rng.normal(size=(150, 150)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def test_equal_weights_are_written_once_and_are_read_as_they_were(tmp_path: Path) -> None:
    model = net()
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = Weights(tmp_path)
    for copy in (net(), net()):
        thin = weights.taken_out(copy)
        assert len(thin.SerializeToString()) < 1500
        for tensor in thin.graph.initializer:
            again = numpy_helper.to_array(tensor, str(tmp_path))
            np.testing.assert_array_equal(again, values[tensor.name])
    assert (tmp_path / "weights").stat().st_size == (1 << 17) + 90_000  # the second at 128 KiB


def test_small_weights_whole_numbers_and_data_files_stay_where_they_are(tmp_path: Path) -> None:
    model = net()
    del model.graph.initializer[:]
    small, whole = np.zeros((8, 8), np.float32), np.zeros(20_000, np.int64)
    model.graph.initializer.append(numpy_helper.from_array(small, "W"))
    model.graph.initializer.append(numpy_helper.from_array(whole, "V"))
    assert Weights(tmp_path).taken_out(model) is model
    beside = net()
    beside.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    assert Weights(tmp_path).taken_out(beside) is beside
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_files", [False, True])
def test_models_are_verified_without_their_weights_and_stay_as_they_are(
    as_files: bool, tmp_path: Path
) -> None:
    model = net()
    rewritten = clip_gradients(model, GradientClipByNorm(1.0))
    paths = tmp_path / "model.onnx", tmp_path / "clipped.onnx"
    for each, path in zip((model, rewritten), paths, strict=True):
        onnx.save(each, path)
    before = model.SerializeToString(), rewritten.SerializeToString()
    assert (verify(*paths) if as_files else verify(model, rewritten)).ok
    assert (model.SerializeToString(), rewritten.SerializeToString()) == before
    rewritten.graph.initializer[1].CopyFrom(net(1).graph.initializer[1])
    found = verify(model, rewritten)
    assert found.faults == ["the initializer 'V' has another value"]


def test_a_weight_that_cannot_be_put_aside_is_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = net()
    rewritten = clip_gradients(model, GradientClipByNorm(1.0))
    monkeypatch.setattr(both, "Weights", lambda _: Weights(tmp_path / "is not there"))
    with pytest.raises(OnnxClipError, match=r"cannot write the model's weights .* set TMPDIR"):
        verify(model, rewritten)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Gradients and outputs of 250,000 bytes each: 7 and 3 times of that are 2.5 MB."""
    names = ["a", "b"]
    kinds = [helper.make_tensor_value_info(name, 1, [62_500]) for name in names]
    node = helper.make_node("Neg", ["a"], ["b"])
    model = helper.make_model(
        helper.make_graph([node], "net", [kinds[0]], [kinds[1]]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    rewritten = clip_gradients(model, GradientClipByNorm(1.0), gradients=["b"])
    told = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_MEMINFO", told)
    assert verify(model, rewritten).ok  # nobody says how much there is
    told.write_text("MemTotal:  9999999 kB\nMemAvailable:  2500 kB\n")
    assert verify(model, rewritten).ok
    told.write_text("MemTotal:  9999999 kB\nMemAvailable:  2400 kB\n")
    with pytest.raises(OnnxClipError, match=r"expected 0\.0 GB of free memory \(7 times"):
        verify(model, rewritten)
