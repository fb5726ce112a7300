"""The clip alone as a model: gradients in, clipped gradients out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import MODELS, Entry, each, run

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_gradients,
    extract_clip,
    extract_clip_file,
    find_gradients,
)
from onnx_clip_pass.cli import main

SEED = MODELS / "seed" / "train_step.onnx"
SUM = MODELS / "in_graph" / "sum_of_parameters.onnx"
TWO = """<ir_version: 8, opset_import: ["" : 17]>
    step (float[3] x, float[2,N] y, float S) => (float[3] a_grad, float[2,N] b_grad) {
        a_grad = Identity(x) b_grad = Neg(y) }"""
NAMED = {"a_grad": "a", "b_grad": "b"}
FED = {"a_grad": np.float32([3, 4, 12]), "b_grad": np.float32([[1, -2], [3, 4]])}


def two() -> onnx.ModelProto:
    return onnx.parser.parse_model(TWO)


def names(ports: Any) -> list[str]:
    return [port.name for port in ports]


@pytest.mark.parametrize(
    "clip", [GradientClipByNorm(1.0), GradientClipByGlobalNorm(1.0), GradientClipByValue(2.0)]
)
def test_it_does_to_arrays_what_the_rewritten_graph_does_to_its_gradients(clip: Any):
    model = extract_clip(two(), clip, gradients=NAMED)
    onnx.checker.check_model(model, full_check=True)
    assert names(model.graph.input) == ["a_grad", "b_grad"]
    assert names(model.graph.output) == ["a_grad.clipped", "b_grad.clipped"]
    assert [p.type for p in model.graph.input] == [p.type for p in two().graph.output]
    rewritten = clip_gradients(two(), clip, gradients=NAMED)
    feeds = {"x": FED["a_grad"], "y": -FED["b_grad"], "S": np.array(1, np.float32)}
    inside = run(rewritten, feeds)
    outside = run(model, FED)
    for name in NAMED:
        assert outside[f"{name}.clipped"].tobytes() == inside[name].tobytes()


def test_the_model_stays_as_it_is():
    model = onnx.load(SEED)
    extract_clip(model, GradientClipByGlobalNorm(1.0), emit=("norm",))
    assert model == onnx.load(SEED)


def test_a_gradient_in_a_loop_is_refused_before_its_parameter_is_asked_for():
    model = onnx.load(MODELS / "control_flow" / "loop_steps.onnx")
    with pytest.raises(OnnxClipError, match="only a clip of the main graph can stand alone"):
        extract_clip(model, AdaptiveGradientClip(0.1))


@each(lambda e: bool(e.gradients) and e.found != "by meaning" and not e.expect)
def test_the_gradients_of_every_model_go_in_and_come_out(entry: Entry, model: onnx.ModelProto):
    found = list(dict.fromkeys(g.name for g in find_gradients(model)))
    if entry.graph:
        with pytest.raises(OnnxClipError, match="only a clip of the main graph can stand alone"):
            extract_clip(model, GradientClipByNorm(1.0))
        return
    extracted = extract_clip(model, GradientClipByNorm(1.0))
    assert names(extracted.graph.input) == found
    assert names(extracted.graph.output) == [f"{name}.clipped" for name in found]
    onnx.checker.check_model(extracted)


def test_what_rules_leave_alone_comes_out_as_it_went_in():
    rules = [Rule("a", None), Rule("b", GradientClipByValue(2.0))]
    out = run(extract_clip(two(), rules, gradients=NAMED), FED)
    assert out["a_grad.clipped"].tobytes() == FED["a_grad"].tobytes()
    np.testing.assert_array_equal(out["b_grad.clipped"], [[1, -2], [2, 2]])


def test_thresholds_loss_scale_and_measures_come_along():
    model = extract_clip(
        two(),
        GradientClipByGlobalNorm(1.0),
        gradients=NAMED,
        threshold_input="limit",
        loss_scale="S",
        emit=("norm",),
    )
    onnx.checker.check_model(model, full_check=True)
    assert names(model.graph.input) == ["a_grad", "b_grad", "limit", "S"]
    out = run(model, FED | {"S": np.array(2, np.float32), "limit": np.array(3, np.float32)})
    norm = (169 + 30) ** 0.5
    np.testing.assert_allclose(out["default_group/norm"], norm / 2, rtol=1e-6)
    np.testing.assert_allclose(out["a_grad.clipped"], FED["a_grad"] * 6 / norm, rtol=1e-6)


def test_a_parameter_that_the_clip_reads_becomes_an_input():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        step (float[2] x) => (float[2] W_grad) <float[2] W = {2, 0}> { W_grad = Identity(x) }"""
    model = extract_clip(
        onnx.parser.parse_model(text), AdaptiveGradientClip(0.5), gradients={"W_grad": "W"}
    )
    assert names(model.graph.input) == ["W_grad", "W"]
    out = run(model, {"W_grad": np.float32([3, 4]), "W": np.float32([0, 2])})
    np.testing.assert_allclose(out["W_grad.clipped"], [0.6, 0.8], rtol=1e-6)


def test_a_gradient_of_two_parameters_counts_twice_outside_too():
    model = onnx.load(SUM)
    extracted = extract_clip(model, GradientClipByGlobalNorm(1.0), emit=("norm",))
    fed = {
        port.name: np.full([d.dim_value for d in port.type.tensor_type.shape.dim], 2, np.float32)
        for port in extracted.graph.input
    }
    out = run(extracted, fed)
    counts = [g.name for g in find_gradients(model)]
    squares = sum(counts.count(name) * float(np.sum(x * x)) for name, x in fed.items())
    np.testing.assert_allclose(out["default_group/norm"], squares**0.5, rtol=1e-6)


def test_from_file_to_file_and_again(tmp_path: Path, capsys):
    target = tmp_path / "clip.onnx"
    extract_clip_file(SEED, target, GradientClipByNorm(1.0))
    first = target.read_bytes()
    assert main(["extract", str(SEED), "-o", str(target)]) == 0
    assert "each gradient by its own L2 norm" in capsys.readouterr().out
    assert target.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["clip.onnx"]


def test_a_model_that_is_clipped_already_is_refused(tmp_path: Path, capsys):
    clipped, target = tmp_path / "clipped.onnx", tmp_path / "clip.onnx"
    assert main(["rewrite", str(SEED), "-o", str(clipped), "--clip-norm", "0.25"]) == 0
    capsys.readouterr()
    assert main(["extract", str(clipped), "-o", str(target)]) == 2
    assert "give the original, or what onnx-clip strip" in capsys.readouterr().err
    assert not target.exists()
    with pytest.raises(OnnxClipError, match="the model is rewritten already"):
        extract_clip(onnx.load(clipped), GradientClipByNorm(1.0))


def test_what_another_program_wrote_is_not_replaced(tmp_path: Path, capsys):
    target = tmp_path / "clip.onnx"
    target.write_bytes(SEED.read_bytes())
    assert main(["extract", str(SEED), "-o", str(target)]) == 2
    assert "exists and onnx-clip did not extract it" in capsys.readouterr().err
    assert target.read_bytes() == SEED.read_bytes()
    assert main(["extract", str(SEED), "-o", str(target), "--force"]) == 0


def test_model_and_external_data_are_not_replaced_by_their_clip(tmp_path: Path, capsys):
    model, data, link = (tmp_path / name for name in ("m.onnx", "w.bin", "link"))
    onnx.save(
        onnx.load(SEED), model, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    link.symlink_to(data)
    before = (model.read_bytes(), data.read_bytes())
    for path, what in (
        (model, "the model itself"),
        (data, "where the model's external data lies"),
        (link, "where the model's external data lies"),
    ):
        assert main(["extract", str(model), "-o", str(path), "--force"]) == 2
        assert f"is {what}; choose another name" in " ".join(capsys.readouterr().err.split())
    assert (model.read_bytes(), data.read_bytes()) == before
    data.unlink()  # the weights are not read
    assert main(["extract", str(model), "-o", str(data), "--force"]) == 0


@pytest.mark.parametrize(
    ("name", "reason"), [("x" * 300, "File name too long"), ("x\0", "holds a NUL")]
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str, reason: str):
    with pytest.raises(OnnxClipError, match=f"cannot write .*{reason}"):
        extract_clip_file(SEED, tmp_path / name, GradientClipByNorm(1.0))
    assert not list(tmp_path.iterdir())


OTHERS = {
    "a gradient": ({"gradients": ["a", "a.clipped"]}, GradientClipByNorm(1.0)),
    "a gradient left alone": (
        {"gradients": ["a", "a.clipped"], "skip": "a.clipped"},
        GradientClipByNorm(1.0),
    ),
    "a loss scale": ({"gradients": ["a"], "loss_scale": "a.clipped"}, GradientClipByNorm(1.0)),
    "a parameter": ({"gradients": {"a": "a.clipped"}}, AdaptiveGradientClip(1.0)),
    "a threshold": ({"gradients": ["b"], "threshold_input": "b.clipped"}, GradientClipByNorm(1.0)),
}


@pytest.mark.parametrize(("options", "clip"), OTHERS.values(), ids=OTHERS)
def test_a_name_that_would_go_in_and_come_out_is_refused(options: Any, clip: Any):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        step (float[1] x, float[1] "a.clipped") => (float[1] a, float[1] b) {
            a = Identity(x) b = Neg("a.clipped") }"""
    )
    with pytest.raises(OnnxClipError, match=r"come out as '.\.clipped', but a value of that name"):
        extract_clip(model, clip, **options)


def test_what_makes_no_clip_is_refused(tmp_path: Path, capsys):
    assert main(["extract", str(SEED), "--emit", "norm", "--measure-only"]) == 2
    assert "there is no clip to extract" in capsys.readouterr().err
    assert main(["extract", str(SEED), "-o", str(tmp_path / "no" / "clip.onnx")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(OnnxClipError, match="nothing is clipped"):
        extract_clip(two(), GradientClipByNorm(1.0, need_clip=lambda p: False), gradients=NAMED)
