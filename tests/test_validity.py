"""An error that nothing foresaw is the model's, where onnx says so, and ours otherwise."""

from __future__ import annotations

import onnx
import pytest
from graphs import MODELS, SEED

from onnx_clip_pass import (
    GradientClipByNorm,
    OnnxClipError,
    clip_gradients,
    explain_gradient,
    find_gradients,
    strip,
)
from onnx_clip_pass.cli import main
from onnx_clip_pass.storage import open_model
from onnx_clip_pass.validity import blaming, why_invalid

KNOWN_TO_NO_CHECKER = "convnet_batchnorm_ce_adamw/eval_model.onnx"  # of ONNX Runtime's making


def step() -> onnx.ModelProto:
    return onnx.load(SEED)


def without_inputs() -> onnx.ModelProto:
    model = step()
    del next(node for node in model.graph.node if node.op_type == "MatMul").input[:]
    return model


def of_no_dtype() -> onnx.ModelProto:
    model = step()
    model.graph.input[0].type.tensor_type.elem_type = -1
    return model


def of_wrong_ranks() -> onnx.ModelProto:
    model = step()
    del model.graph.input[1].type.tensor_type.shape.dim[0]
    return model


def without_a_graph_name() -> onnx.ModelProto:
    model = step()
    model.graph.ClearField("name")
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (without_inputs, "input size 0 not in range"),
        (of_no_dtype, "-1 is no dtype that onnx"),
        (of_wrong_ranks, "differ in rank"),
        (without_a_graph_name, "Field 'name' of 'graph' is required"),
    ],
)
def test_an_invalid_model_is_blamed(make, said):
    with pytest.raises(OnnxClipError, match=said) as caught, blaming(make, "this"):
        raise KeyError("thing")
    text = str(caught.value)
    assert text.startswith("this is no valid ONNX model, or it is damaged: ")
    assert text.endswith("; if it is valid, please report this (KeyError: 'thing')")
    assert "\n" not in text


def test_a_valid_model_is_not_blamed():
    with pytest.raises(KeyError), blaming(step, "this"):
        raise KeyError("thing")


def test_refusals_and_interrupts_go_through():
    for error in (OnnxClipError("said already"), KeyboardInterrupt(), OSError(28, "full")):
        with pytest.raises(type(error)) as caught, blaming(without_inputs, "this"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.onnx")), ids=lambda path: path.stem)
def test_no_model_of_ours_would_be_blamed(path):
    if str(path).endswith(KNOWN_TO_NO_CHECKER):
        return
    assert why_invalid(onnx.load(path)) == ""
    with open_model(path) as structure:  # without the elements of its large tensors
        assert why_invalid(structure.model) == ""


def test_every_way_in_blames_the_model(monkeypatch, tmp_path, capsys):
    def fail(*_args, **_options):
        raise IndexError("list index out of range")

    path = tmp_path / "m.onnx"
    onnx.save(without_inputs(), path)
    monkeypatch.setattr("onnx_clip_pass.gradients.Flow", fail)
    monkeypatch.setattr("onnx_clip_pass.record.undoing.undo", fail)
    for act in (
        find_gradients,
        lambda model: clip_gradients(model, GradientClipByNorm(1.0)),
        lambda model: explain_gradient(model, "W"),
        strip,
    ):
        with pytest.raises(OnnxClipError, match="this is no valid ONNX model"):
            act(without_inputs())
        with pytest.raises(IndexError):
            act(step())
    for command in ("inspect", "rewrite", "extract"):
        assert main([command, str(path)]) == 2
        assert "m.onnx' is no valid ONNX model, or it is damaged: " in capsys.readouterr().err
        assert main([command, str(SEED)]) == 3
        capsys.readouterr()
