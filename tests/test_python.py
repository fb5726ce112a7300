"""The package as a caller from Python meets it: its names, its warnings, the models of others."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_clip_pass as oc
from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    OnnxClipError,
    OnnxClipWarning,
    Rule,
)

MODELS = Path(__file__).parent.parent / "models"
SEED = MODELS / "seed" / "train_step.onnx"
FOLDER = MODELS / "ort_artifacts" / "mlp_mse_sgd"
ONE = GradientClipByNorm(1.0)

# -- names -------------------------------------------------------------------------------------

TWICE = """
import importlib, json, pkgutil, sys
import onnx_clip_pass as oc

first = {name: getattr(oc, name) for name in oc.__all__}
for module in pkgutil.walk_packages(oc.__path__, "onnx_clip_pass."):
    if module.name != "onnx_clip_pass.__main__" and ".adapters." not in module.name:
        importlib.import_module(module.name)
print(json.dumps([name for name in oc.__all__ if getattr(oc, name) is not first[name]]))
"""


def test_each_name_is_the_same_thing_again_and_after_every_module_is_imported():
    """A function and a module of one name would be the function first and the module then."""
    ran = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []
    modules = {module.name for module in pkgutil.iter_modules(oc.__path__)}
    assert modules.isdisjoint(oc.__all__)


def test_verify_can_be_called_twice():
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    clipped = oc.clip_gradients(onnx.load(SEED), ONE)
    assert oc.verify(SEED, clipped)
    importlib.import_module("onnx_clip_pass.verification")
    assert oc.verify(onnx.load(SEED), clipped)


# -- warnings ----------------------------------------------------------------------------------


def half() -> onnx.ModelProto:
    """A gradient in float16 at opset 24, for which ONNX Runtime has not all kernels."""
    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 24]> g (float16[2] W) => (float16[2] W_grad) '
        "{ W_grad = Neg(W) }"
    )


@pytest.mark.parametrize("function", [oc.clip_gradients, oc.extract_clip])
def test_what_the_command_line_warns_of_python_warns_of(function: Callable[..., Any]):
    report = oc.plan_clips(half(), ONE)
    assert "has no kernel for Cast (float16 to float32, opset 24)" in report.warnings[0]
    with pytest.warns(OnnxClipWarning) as caught:
        function(half(), ONE)
    assert [str(warning.message) for warning in caught] == list(report.warnings)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_plan_says_its_warnings_and_does_not_give_them_again():
    with warnings.catch_warnings():
        warnings.simplefilter("error", OnnxClipWarning)
        plan = oc.plan_clips(half(), ONE)
        plan.apply()
        oc.clip_gradients(onnx.load(SEED), ONE)
    assert f"note: {plan.warnings[0]}" in str(plan)


def test_a_probe_warns_of_parameters_whose_gradients_are_not_found():
    pytest.importorskip("onnxruntime", reason="a probe runs the model")
    model = onnx.load(MODELS / "torch_grad" / "mlp_mse.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error", OnnxClipWarning)
        found = oc.probe_gradients(model)
    last = found[-1]
    output = next(value for value in model.graph.output if value.name == last.name)
    model.graph.output.remove(output)
    with pytest.warns(OnnxClipWarning, match=f"no gradient is known for '{last.parameter.name}'"):
        again = oc.probe_gradients(model)
    assert [each.name for each in again] == [each.name for each in found[:-1]]


# -- models of others, and paths ---------------------------------------------------------------


def of(module: str, name: str) -> Any:
    """An object of a class of another package that need not be here."""
    return type(name, (), {"__module__": module})()


FOREIGN = {
    "onnx_ir": (of("onnx_ir._core", "Model"), r"onnx_ir\._core\.Model; ir\.to_proto\(model\)"),
    "the pass": (
        of("onnx_ir._core", "Model"),
        r"ClipGradients of onnx_clip_pass\.adapters\.onnx_ir",
    ),
    "graphsurgeon": (of("onnx_graphsurgeon.ir.graph", "Graph"), r"gs\.export_onnx\(graph\)"),
    "torch": (of("torch.onnx._internal", "ONNXProgram"), "model_proto"),
    "a graph": (onnx.GraphProto(), r"not .*GraphProto; onnx\.helper\.make_model\(graph\)"),
    "a plan": (oc.plan_clips(SEED, ONE), r"plans\.Plan; its apply\(\) makes one"),
    "bytes": (b"", r"not bytes; onnx\.load_model_from_string"),
}
IN_MEMORY = [oc.clip_gradients, oc.extract_clip]
PATHS_TOO = [oc.plan_clips, lambda model, _: oc.find_gradients(model),
             lambda model, _: oc.probe_gradients(model), lambda model, _: oc.verify(model, SEED),
             lambda model, _: oc.verify(SEED, model)]  # fmt: skip


@pytest.mark.parametrize(("model", "way"), FOREIGN.values(), ids=FOREIGN)
def test_a_model_of_another_package_is_refused_with_the_way_to_ours(model: Any, way: str):
    for function in [*IN_MEMORY, *PATHS_TOO, lambda model, _: oc.strip(model)]:
        with pytest.raises(OnnxClipError, match=way):
            function(model, ONE)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "pipe", "folder", "missing"])
def test_a_path_to_no_model_is_refused_at_once(path: str, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for function in [*PATHS_TOO, lambda path, _: oc.inspect_model(path)]:
        with pytest.raises(OnnxClipError):
            function(f"{tmp_path}/{path}", ONE)


def test_gradients_of_a_file_are_found_without_its_weights(tmp_path: Path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(SEED), path, save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").unlink()
    assert oc.find_gradients(path) == oc.find_gradients(str(path))
    assert oc.find_gradients(path) == oc.find_gradients(onnx.load(SEED))
    with pytest.raises(OnnxClipError, match="cannot read"):
        oc.find_gradients(tmp_path / "missing.onnx")


def test_a_probe_of_a_model_without_its_weights_says_that_they_are_not_loaded(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="a probe runs the model")
    path = tmp_path / "m.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float l, float[2] g) '
    model = onnx.parser.parse_model(
        text + "{ g = Mul(x, W) s = Mul(g, W) l = ReduceSum<keepdims=0>(s) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "W"))
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(OnnxClipError, match=r"files of their own, which are not loaded; .*path"):
        oc.probe_gradients(onnx.load(path, load_external_data=False))
    assert [each.name for each in oc.probe_gradients(path)] == []


# -- one meaning in Python and on the command line ---------------------------------------------

SELECTIONS = {
    "need_clip": ({"need_clip": ["*.w_0"]}, {}, ["--need-clip", "*.w_0"]),
    "skip": ({}, {"skip": ["*.w_0"]}, ["--skip", "*.w_0"]),
    "both": ({"need_clip": ["fc_0.*"]}, {"skip": "re:b_0$"},
             ["--need-clip", "fc_0.*", "--skip", "re:b_0$"]),
    "a gradient's name": ({}, {"skip": "fc_0.w_0@GRAD"}, ["--skip", "fc_0.w_0@GRAD"]),
    "one of need_clip": ({"need_clip": ["*.w_0", "*.b_0"]}, {"skip": ["*.w_0"]},
                         ["--need-clip", "*.w_0", "--need-clip", "*.b_0", "--skip", "*.w_0"]),
}  # fmt: skip


@pytest.mark.parametrize(("need", "skip", "options"), SELECTIONS.values(), ids=SELECTIONS)
def test_need_clip_and_skip_pick_the_same(need, skip, options, tmp_path: Path):
    from onnx_clip_pass.cli import main

    target = tmp_path / "t.onnx"
    assert main(["rewrite", str(SEED), "-o", str(target), *options]) == 0
    assert onnx.load(target) == oc.clip_gradients(
        onnx.load(SEED), GradientClipByNorm(1.0, **need), **skip
    )
    (picked,) = [need.get("need_clip", ["*"])]
    rules = oc.clip_gradients(onnx.load(SEED), [Rule(pattern, ONE) for pattern in picked], **skip)
    assert len(json.loads(rules.metadata_props[0].value)["clips"]) == len(
        json.loads(onnx.load(target).metadata_props[0].value)["clips"]
    )


FAULTS = {
    "nothing": ({"need_clip": ["*"]}, {"skip": "*"}, ["--need-clip", "*", "--skip", "*"],
                "nothing is left to clip"),
    "no such": ({}, {"skip": "nowhere"}, ["--skip", "nowhere"], "matches no parameter"),
}  # fmt: skip


@pytest.mark.parametrize(("need", "skip", "options", "words"), FAULTS.values(), ids=FAULTS)
def test_and_refuse_the_same(need, skip, options, words, capsys, tmp_path: Path):
    from onnx_clip_pass.cli import main

    with pytest.raises(OnnxClipError, match=words) as caught:
        oc.clip_gradients(onnx.load(SEED), GradientClipByNorm(1.0, **need), **skip)
    assert main(["rewrite", str(SEED), "-o", str(tmp_path / "t.onnx"), *options]) == 2
    assert str(caught.value) in " ".join(capsys.readouterr().err.split())


def test_a_predicate_is_for_need_clip_alone():
    with pytest.raises(OnnxClipError, match="skip must be a pattern or a list of patterns, not <"):
        oc.clip_gradients(onnx.load(SEED), ONE, skip=lambda p: True)
    with pytest.raises(OnnxClipError, match="need_clip must be a callable, a pattern or a list"):
        GradientClipByNorm(1.0, need_clip=3)


def test_two_threshold_inputs_of_one_group_are_named():
    rules = [
        Rule("*.w_0", GradientClipByGlobalNorm(1.0), threshold_input="first"),
        Rule("*.b_0", GradientClipByGlobalNorm(1.0), threshold_input="second"),
    ]
    with pytest.raises(OnnxClipError, match="is the input 'first' and the input 'second'"):
        oc.clip_gradients(onnx.load(SEED), rules)
    rules[1] = Rule("*.b_0", GradientClipByGlobalNorm(1.0))
    with pytest.raises(OnnxClipError, match="threshold is the input 'first' and a number"):
        oc.clip_gradients(onnx.load(SEED), rules)


# -- what inspect shows ------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    from onnx_clip_pass.cli import main

    assert main(["inspect", *command]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_what_inspect_shows_python_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    oc.clip_gradients_file(SEED, tmp_path / "c.onnx", ONE, skip="*.b_0")
    for path in (SEED, tmp_path / "c.onnx"):
        found = oc.inspect_model(path)
        assert found.gradients == oc.inspect_model(onnx.load(path)).gradients
        assert " ".join(str(found).split()) == shown(capsys, str(path))
    assert "clipped by onnx-clip" in str(found)
    assert "<td" in found._repr_html_()


def test_what_explain_shows_python_shows(capsys: pytest.CaptureFixture[str]):
    found = oc.explain_gradient(SEED, "fc_0.w_0")
    assert found == oc.explain_gradient(onnx.load(SEED), "fc_0.w_0")
    assert " ".join(str(found).split()) == shown(capsys, str(SEED), "--explain", "fc_0.w_0")


def test_inspecting_changes_nothing_and_tells_of_a_changed_clip():
    clipped = oc.clip_gradients(onnx.load(SEED), ONE)
    clipped.graph.node[-1].name = "mine"
    kept = clipped.SerializeToString()
    assert oc.inspect_model(clipped).changed == ""
    next(node for node in clipped.graph.node if node.op_type == "Min").op_type = "Max"
    assert "have been changed" in oc.inspect_model(clipped).changed
    assert "changed since: the model: the nodes that onnx-clip added" in str(
        oc.inspect_model(clipped)
    )
    assert len(clipped.SerializeToString()) == len(kept)


def test_what_is_not_known_is_told(tmp_path: Path):
    from steps import asking

    found = oc.inspect_model(asking())
    assert [each.parameter for each in found.questions] == ["W"]
    assert "not known: 'W'" in str(found)


def test_a_folder_is_shown_as_inspect_shows_it(capsys: pytest.CaptureFixture[str]):
    folder = MODELS / "ort_artifacts" / "mlp_mse_sgd"
    found = oc.inspect_artifacts(folder)
    assert " ".join(str(found).split()) == shown(capsys, str(folder))
    with pytest.raises(OnnxClipError, match="folder must be a path"):
        oc.inspect_artifacts(3)


# -- pages -------------------------------------------------------------------------------------


def test_the_page_of_a_result_is_that_of_the_command_line(tmp_path: Path):
    from onnx_clip_pass.cli import main

    clipped, by_command, by_python = (tmp_path / name for name in ("c.onnx", "a.html", "b.html"))
    plan = oc.plan_clips(SEED, ONE)
    plan.save(clipped)
    pairs = {
        "rewrite": (plan, ["rewrite", SEED, "--dry-run"]),
        "inspect": (oc.inspect_model(clipped), ["inspect", clipped]),
        "folder": (oc.inspect_artifacts(FOLDER), ["inspect", FOLDER]),
    }
    if importlib.util.find_spec("onnxruntime"):
        pairs["verify"] = (oc.verify(SEED, clipped), ["verify", SEED, clipped])
    for result, command in pairs.values():
        assert main([*map(str, command), "--html", str(by_command)]) == 0
        oc.write_html(result, by_python)
        assert by_python.read_text() == by_command.read_text()


def test_a_page_is_of_a_result_and_replaces_nothing_else(tmp_path: Path):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(OnnxClipError, match="is no page of onnx-clip"):
        oc.write_html(oc.plan_clips(SEED, ONE), tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    with pytest.raises(OnnxClipError, match="there is a page of what plan_clips, verify"):
        oc.write_html(3, tmp_path / "new.html")
    assert not (tmp_path / "new.html").exists()


def test_watch_can_be_called_twice():
    pytest.importorskip("onnxruntime", reason="watch runs the model")
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(size=[d.dim_value or 2 for d in value.type.tensor_type.shape.dim])
        for value in onnx.load(SEED).graph.input
    }
    batch = {name: np.asarray(array, np.float32) for name, array in feeds.items()}
    for _ in range(2):
        assert len(oc.watch(onnx.load(SEED), [batch], steps=2)) == 2


@pytest.mark.parametrize("loss", [["loss"], 5, {}, np.zeros(2)], ids=repr)
def test_a_loss_that_is_no_name_is_refused(loss: Any):
    pytest.importorskip("onnxruntime", reason="slopes are taken by running")
    clipped = oc.clip_gradients(onnx.load(SEED), ONE)
    for run in (
        lambda: oc.verify(SEED, clipped, loss=loss),
        lambda: oc.probe_gradients(onnx.load(SEED), loss=loss),
    ):
        with pytest.raises(OnnxClipError, match="loss"):
            run()
    with pytest.raises(OnnxClipError, match="slopes must be"):
        oc.verify(SEED, clipped, slopes=loss)
