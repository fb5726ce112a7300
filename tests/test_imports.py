"""Models that import the default operator set twice, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import run
from onnx.reference import ReferenceEvaluator

from onnx_clip_pass import (
    GradientClipByNorm,
    OnnxClipError,
    clip_gradients,
    clip_gradients_file,
    find_gradients,
    strip,
)
from onnx_clip_pass.verification import verify

ONE = GradientClipByNorm(1.0)
IMPORTS = {
    "the alias last": [("", 19), ("ai.onnx", 12)],
    "the alias first": [("ai.onnx", 12), ("", 19)],
    "twice, older last": [("", 19), ("", 12)],
    "twice, newer last": [("", 12), ("", 19)],
    "the alias alone": [("ai.onnx", 12)],
}


def imported(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(entry.domain, entry.version) for entry in model.opset_import]


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_of_two_imports_the_last_is_what_the_runtime_takes(imports: list[tuple[str, int]]):
    """A ReduceSum of rows has its axes in an attribute up to opset 12, in an input from 13 on."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> s (float[64, 512] x) => (float[64, 512] g) '
        "{ g = Neg(x) }"
    )
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in imports)
    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert imported(clipped) == imports
    of_rows = next(node for node in clipped.graph.node if node.op_type == "ReduceSum")
    assert len(of_rows.input) == (1 if imports[-1][1] == 12 else 2)
    x = np.full((64, 512), 3, np.float32)
    out = run(clipped, {"x": x})["g"]
    np.testing.assert_allclose(out, -x / (3 * x.size**0.5), rtol=1e-5)  # auto's bound for constants
    assert strip(clipped) == model


ADAGRAD = """<ir_version: IR, opset_import: ["ai.onnx.preview.training" : 1]>
    s (float R, int64 T, float[2] X, float[2] G, float[2] H) => (float[2] X_new, float[2] H_new) {
      X_new, H_new = ai.onnx.preview.training.Adagrad <epsilon = 0.0> (R, T, X, G, H) }"""
FEEDS = {
    "R": np.float32(0.5),
    "T": np.int64(0),
    "X": np.float32([1, 1]),
    "G": np.float32([3, 4]),
    "H": np.zeros(2, np.float32),
}


def adagrad(ir: int = 8) -> onnx.ModelProto:
    return onnx.parser.parse_model(ADAGRAD.replace("IR", str(ir)))


@pytest.mark.parametrize(("ir", "version"), [(3, 8), (7, 14), (8, 18), (9, 20), (13, 21)])
def test_a_model_without_the_default_operator_set_is_given_one_that_goes_with_its_ir(
    ir: int, version: int
):
    """Adagrad sums squares: those of the clipped gradient [0.6, 0.8] are 0.36 and 0.64."""
    model = adagrad(ir)
    clipped = clip_gradients(model, ONE)
    assert imported(clipped) == [("ai.onnx.preview.training", 1), ("", version)]
    onnx.checker.check_model(clipped)
    new, sums = ReferenceEvaluator(clipped).run(None, FEEDS)
    np.testing.assert_allclose(sums, [0.36, 0.64], rtol=4 * np.finfo(np.float32).eps)
    np.testing.assert_array_equal(new, [0.5, 0.5])  # one step, whatever the gradient
    assert strip(clipped) == model


def test_what_is_clipped_again_and_read_from_files_has_one_import(tmp_path: Path):
    model, paths = adagrad(), [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    onnx.save(model, paths[0])
    clip_gradients_file(paths[0], paths[1], ONE)
    clip_gradients_file(paths[1], paths[2], GradientClipByNorm(2.0))
    again = onnx.load(paths[2])
    assert imported(again) == [("ai.onnx.preview.training", 1), ("", 18)]
    assert strip(again) == model


def test_looking_for_gradients_imports_nothing():
    model = adagrad()
    assert [found.name for found in find_gradients(model)] == ["G"]
    assert model == adagrad()


def test_an_import_that_another_tool_needs_by_now_stays():
    clipped = clip_gradients(adagrad(), ONE)
    clipped.graph.node.append(onnx.helper.make_node("Neg", ["X_new"], ["minus"]))
    left = strip(clipped)
    assert imported(left) == imported(clipped)
    assert [node.op_type for node in left.graph.node] == ["Adagrad", "Neg"]


FUNCTION = """<ir_version: 10, opset_import: ["" : 17, "f" : 1, "com.microsoft" : 1]>
    s (float[2] x) => (float[2] y) { h = f.back(x) y = Neg(h) }
    <domain: "f", opset_import: ["com.microsoft" : 1]> back (v) => (g) {
      g = com.microsoft.Gelu(v) }"""


def test_a_function_is_given_the_version_of_its_model():
    """Gelu leaves [30, 40] as it is in float32."""
    model = onnx.parser.parse_model(FUNCTION)
    declared = onnx.helper.make_tensor_value_info("g", onnx.TensorProto.FLOAT, [2])
    model.functions[0].value_info.append(declared)
    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert imported(clipped) == imported(model)
    entries = clipped.functions[0].opset_import
    assert [(entry.domain, entry.version) for entry in entries] == [("com.microsoft", 1), ("", 17)]
    out = run(clipped, {"x": np.float32([30, 40])})["y"]
    np.testing.assert_allclose(out, [-0.6, -0.8], rtol=4 * np.finfo(np.float32).eps)
    assert strip(clipped) == model


def test_an_operator_of_a_set_that_is_not_imported_is_no_model_to_clip():
    model = adagrad()
    model.graph.node.add(op_type="Neg", input=["X_new"], output=["minus"])
    with pytest.raises(OnnxClipError, match="imports no version of the default operator set"):
        clip_gradients(model, ONE)


def test_verify_sees_through_an_import():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["com.microsoft" : 1]> s (float[2] x) => (float[2] g) '
        "{ g = com.microsoft.Gelu(x) }"
    )
    clipped = clip_gradients(model, ONE, gradients=["g"])
    found = verify(model, clipped, feeds={"x": np.float32([3, 4])})
    assert found.ok, found
    np.testing.assert_allclose(
        np.linalg.norm(run(clipped, {"x": np.float32([3, 4])})["g"]), 1, rtol=1e-6
    )
