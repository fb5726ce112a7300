"""What other people's tools make of a rewritten model: it loads, computes the same, is still ours.

`nox -s readers` runs this with the versions named there. A tool is judged by the bits that ONNX
Runtime computes from its result, and by whether the record is still there and tells the truth:
undoing gives a model that computes as the original did, or refuses where the tool has changed or
dropped what was added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

if not os.environ.get("ONNX_CLIP_READERS"):
    pytest.skip("other people's readers: nox -s readers", allow_module_level=True)

import onnx_graphsurgeon
import onnx_ir
import onnxsim
import onnxslim
from graphs import ENTRIES, MODELS, Arrays, Entry, assert_identical, run
from onnx.reference import ReferenceEvaluator
from single import single

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    OnnxClipError,
    clip_gradients,
    strip,
)
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.record import read_record

Tool = Callable[[onnx.ModelProto], onnx.ModelProto]
CLIP = GradientClipByNorm(0.1)  # acts on most gradients of the models


@dataclass(frozen=True)
class Subject:
    """A model, its gradients if they are to be named, and its feeds; None if nothing runs it."""

    name: str
    load: Callable[[], onnx.ModelProto]
    gradients: Any
    feeds: Arrays | None

    def clipped(self) -> onnx.ModelProto:
        return clip_gradients(self.load(), CLIP, gradients=self.gradients)


def _of_entry(entry: Entry) -> Subject:
    named = dict(entry.gradients) if entry.found == "by meaning" else None
    feeds = entry.load_feeds() if entry.runtime == "onnxruntime" else None
    return Subject(entry.file.removesuffix(".onnx"), entry.load, named, feeds)


def _of_dtype(dtype: str, opset: int) -> Subject:
    x = np.array([[3, -4], [12, 84]], dtype)
    load = lambda: single(dtype, x.shape, opset)  # noqa: E731
    return Subject(f"{dtype} at opset {opset}", load, ["g"], {"x": x})


# The oldest opset of each dtype, before and after axes of ReduceL2 became an input, and 21.
SUBJECTS = [
    *(_of_entry(e) for e in ENTRIES if e.gradients and e.runtime != "onnxruntime-training"),
    *(_of_dtype("float32", opset) for opset in (7, 13, 18, 21)),
    *(_of_dtype("float16", opset) for opset in (7, 13, 18, 21)),
    *(_of_dtype("float64", opset) for opset in (8, 13, 18, 21)),
]


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    result, is_checked = onnxsim.simplify(model)
    assert is_checked
    return result


TOOLS: dict[str, Tool] = {
    "onnx_ir": lambda model: onnx_ir.to_proto(onnx_ir.from_proto(model)),
    "onnx-graphsurgeon": lambda m: onnx_graphsurgeon.export_onnx(onnx_graphsurgeon.import_onnx(m)),
    "onnxslim": lambda model: onnxslim.slim(_copy(model)),
    "onnxsim": _simplified,
    "onnx's shape inference": onnx.shape_inference.infer_shapes,
    "onnx's version converter": lambda m: onnx.version_converter.convert_version(m, 21),
}
LOSE_THE_RECORD = {"onnx-graphsurgeon"}  # it writes no metadata_props
KEEPS_TRAINING_INFO = "onnx's shape inference"
CHANGE_NODES = {"onnxslim", "onnxsim", "onnx's version converter"}  # ours as well

# What the original does not survive either, which the tests make sure of.
OWN_TROUBLE = {
    ("onnxslim", "control_flow/loop_steps"): "folds a body's constants to another dtype",
    ("onnxslim", "control_flow/scan_micro_batches"): "folds a body's constants to another dtype",
    ("onnx's version converter", "control_flow/function_gives_gradients"): "drops functions",
    ("onnx's version converter", "control_flow/function_whole_step"): "drops functions",
    ("onnx's version converter", "control_flow/function_updates"): "drops functions",
    ("onnx's version converter", "control_flow/function_called_twice"): "drops functions",
    ("ReferenceEvaluator", "onnx_ad/gru"): "has no Scan that runs backwards",
}


def _subjects(which: Callable[[Subject], bool] = lambda subject: True) -> pytest.MarkDecorator:
    picked = [pytest.param(s, id=s.name) for s in SUBJECTS if which(s)]
    return pytest.mark.parametrize("subject", picked)


each_that_runs = _subjects(lambda subject: subject.feeds is not None)
each_tool = pytest.mark.parametrize("tool", TOOLS)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _outputs(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """Run it with those of the feeds that it still has: some tools drop inputs nobody reads."""
    inputs = {port.name for port in model.graph.input}
    return run(model, {name: value for name, value in feeds.items() if name in inputs})


def _evaluate(model: onnx.ModelProto, feeds: Arrays) -> dict[str, Any]:
    evaluator = ReferenceEvaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


# -- computing ---------------------------------------------------------------------------------


@each_tool
@each_that_runs
def test_what_a_tool_makes_of_a_clipped_model_computes_the_same_bits(subject: Subject, tool: str):
    assert subject.feeds is not None
    if (tool, subject.name) in OWN_TROUBLE:
        with pytest.raises(Exception, match=r"mismatch|is not a registered function"):
            _outputs(TOOLS[tool](subject.load()), subject.feeds)
        return
    clipped = subject.clipped()
    made = TOOLS[tool](_copy(clipped))
    assert_identical(_outputs(made, subject.feeds), run(clipped, subject.feeds))


@each_that_runs
def test_the_reference_evaluator_computes_the_same(subject: Subject):
    """Up to the order in which NumPy and ONNX Runtime add: 1e-5 of the largest element.

    Where half precision is within, its last place: 2**-10.
    """
    assert subject.feeds is not None
    if ("ReferenceEvaluator", subject.name) in OWN_TROUBLE:
        with pytest.raises(RuntimeError, match="Scan is not implemented"):
            _evaluate(subject.load(), subject.feeds)
        return
    clipped = subject.clipped()
    is_half = "float16" in subject.name or "mixed_precision" in subject.name
    evaluated = _evaluate(clipped, subject.feeds)
    for name, expected in run(clipped, subject.feeds).items():
        actual = np.asarray(evaluated[name])
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        largest = float(np.max(np.abs(expected), initial=0))
        np.testing.assert_allclose(
            np.asarray(actual, np.float64),
            np.asarray(expected, np.float64),
            rtol=0,
            atol=largest * (2.0**-10 if is_half else 1e-5),
        )


# -- the page about onnx_ir and graphsurgeon -----------------------------------------------------


@pytest.mark.parametrize(("number", "name", "clip"), [
    (0, "momentum", GradientClipByGlobalNorm(0.1)),
    (1, "sgd", GradientClipByNorm(0.1)),
], ids=["onnx_ir and onnxscript", "graphsurgeon"])  # fmt: skip
def test_the_python_of_the_page_clips_as_without_the_other_tools(
    number: int, name: str, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "models").symlink_to(MODELS)
    monkeypatch.chdir(tmp_path)
    page = (MODELS.parent / "docs" / "onnx_ir.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[number]
    exec(compile(block, "docs/onnx_ir.md", "exec"), {})
    made = onnx.load(tmp_path / f"{name}.clipped.onnx")
    entry = next(entry for entry in ENTRIES if entry.file == f"in_graph/{name}.onnx")
    original, feeds = entry.load(), entry.load_feeds()
    expected, found = run(clip_gradients(original, clip), feeds), run(made, feeds)
    unclipped = run(original, feeds)
    new = [value for value in expected if value.endswith("_new")]
    assert any(not np.allclose(expected[value], unclipped[value]) for value in new)  # it acts
    for value, array in expected.items():  # onnxscript's optimizer may fold in another order
        np.testing.assert_allclose(found[value], array, rtol=1e-5, err_msg=value)


# -- the record --------------------------------------------------------------------------------


@each_tool
@_subjects()
def test_the_record_is_kept_by_all_but_graphsurgeon(subject: Subject, tool: str):
    clipped = subject.clipped()
    made = TOOLS[tool](_copy(clipped))
    assert read_record(made) == (None if tool in LOSE_THE_RECORD else read_record(clipped))


@each_tool
@_subjects(lambda subject: bool(subject.load().training_info))
def test_training_info_is_kept_by_shape_inference_alone(subject: Subject, tool: str):
    made = TOOLS[tool](subject.clipped())
    assert bool(made.training_info) == (tool == KEEPS_TRAINING_INFO)


@each_tool
@_subjects()
def test_what_a_tool_made_is_undone_or_refused(subject: Subject, tool: str):
    """Never a third way. Refused is only what the tool did not leave as it was."""
    made = TOOLS[tool](subject.clipped())
    is_lost = tool != KEEPS_TRAINING_INFO and bool(subject.load().training_info)
    try:
        undone = strip(made)
    except OnnxClipError as error:
        expected = "nothing to undo" if tool in LOSE_THE_RECORD else "by another tool since"
        may_refuse = is_lost or tool in LOSE_THE_RECORD | CHANGE_NODES
        is_expected = may_refuse and expected in str(error)
    else:
        is_expected = tool not in LOSE_THE_RECORD and not is_lost
        if subject.feeds is not None and (tool, subject.name) not in OWN_TROUBLE:
            original = run(subject.load(), subject.feeds)
            assert_identical(_outputs(undone, subject.feeds), original)
    assert is_expected


def test_undoing_what_onnx_ir_wrote_gives_what_it_writes_of_the_original():
    """onnx_ir declares the types of initializers, ours as well."""
    subject = next(s for s in SUBJECTS if s.name == "float32 at opset 13")
    assert strip(TOOLS["onnx_ir"](subject.clipped())) == TOOLS["onnx_ir"](subject.load())
