"""No trained parameter is left out in silence: decided about, accepted, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from forging import fields_of, put
from graphs import MODELS, run
from onnx import parser
from steps import ASKED, asking, unknown_optimizer

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    OnnxClipError,
    Rule,
    clip_gradients,
    clip_gradients_file,
    extract_clip,
    extract_clip_file,
    find_gradients,
    load_rules,
    strip,
)
from onnx_clip_pass.gradients import survey
from onnx_clip_pass.graph import Index
from onnx_clip_pass.inspection import inspect_model
from onnx_clip_pass.record import read_record
from onnx_clip_pass.rewrite import Verdict, clip_in_place
from onnx_clip_pass.rewrite.coverage import askable

ONE = GradientClipByNorm(1.0)


def clipped_in(model: onnx.ModelProto) -> list[tuple[str, str]]:
    record = read_record(model)
    assert record is not None
    return [(entry.gradient, entry.parameter) for entry in record.clips]


# -- what is not refused -----------------------------------------------------------------------


def test_finding_alone_never_refuses():
    assert [(g.name, g.parameter.name) for g in find_gradients(asking())] == [("h", "b")]


@pytest.mark.parametrize(
    ("clip", "options"),
    [
        (GradientClipByNorm(1.0, need_clip="b"), {}),
        (GradientClipByNorm(1.0, need_clip=lambda p: p.name == "b"), {}),
        (ONE, {"skip": "W"}),
        ([Rule("W", None), Rule(None, ONE)], {}),
        ([Rule("b", ONE)], {}),
    ],
    ids=["a pattern", "a predicate", "skip", "a rule that clips not", "a rule for others"],
)
def test_what_the_user_leaves_out_is_no_question(clip, options):
    assert clipped_in(clip_gradients(asking(), clip, **options)) == [("h", "b")]


def test_a_pattern_that_names_only_an_open_question_matches_something():
    with pytest.raises(OnnxClipError, match="of 1 trained parameter is not known for sure"):
        clip_gradients(asking(), GradientClipByNorm(1.0, need_clip="W"))


def test_named_gradients_leave_no_question():
    model = clip_gradients(asking(), ONE, gradients={"whole": "W"})
    assert clipped_in(model) == [("whole", "W")]


def test_measuring_alone_says_what_is_not_measured():
    model = asking()
    report = clip_in_place(model, ONE, measure_only=True, emit=["norm"])
    assert [row.gradient.name for row in report.clipped] == ["h"]
    assert [each.parameter for each in report.uncovered] == ["W"]


# -- refusing ----------------------------------------------------------------------------------


def test_an_open_question_is_refused_with_candidates_reason_and_ways_out():
    model = asking()
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(OnnxClipError) as refused:
        clip_gradients(model, ONE)
    assert model.SerializeToString(deterministic=True) == before
    assert refused.value.faults == (f"{ASKED}'whole' or 'g'",)
    message = str(refused.value)
    for way in ("probe=True", "gradients=…", "skip=…", "partial=True", "--probe", "--partial"):
        assert way in message


def test_all_questions_are_refused_at_once():
    model = unknown_optimizer()
    second = model.graph.input.add()
    second.CopyFrom(model.graph.input[2])
    second.name = "V"
    made = model.graph.output.add()
    made.CopyFrom(model.graph.output[1])
    made.name = "V_new"
    model.graph.node[0].input[1] = "V2"
    model.graph.node.insert(0, onnx.helper.make_node("Add", ["W", "V"], ["V2"]))
    model.graph.node.append(
        onnx.helper.make_node("SGD", ["V", "g", "m"], ["V_new"], domain="vendor")
    )
    with pytest.raises(OnnxClipError, match="of 2 trained parameters are not known") as refused:
        clip_gradients(model, ONE)
    assert str(refused.value).startswith("the gradients of 2 trained parameters are not known")
    assert [fault[:4] for fault in refused.value.faults] == ["'W',", "'V',"]


def test_extracting_refuses_what_rewriting_refuses(tmp_path: Path):
    onnx.save(asking(), tmp_path / "m.onnx")
    with pytest.raises(OnnxClipError, match="not known for sure"):
        extract_clip(asking(), ONE)
    with pytest.raises(OnnxClipError, match="not known for sure"):
        extract_clip_file(tmp_path / "m.onnx", tmp_path / "c.onnx", ONE)
    assert not (tmp_path / "c.onnx").exists()


# -- accepting ---------------------------------------------------------------------------------


def test_accepting_leaves_out_and_says_so_in_report_and_record(tmp_path: Path):
    source, target = tmp_path / "m.onnx", tmp_path / "c.onnx"
    onnx.save(asking(), source)
    report = clip_gradients_file(source, target, ONE, partial=True)
    assert [row.gradient.name for row in report.clipped] == ["h"]
    (left_out,) = report.uncovered
    assert (left_out.parameter, left_out.new) == ("W", "W_new")
    assert left_out.formula == "W_new = Sub(W, step)"
    assert left_out.candidates == ("whole", "g")
    assert any("not clipped" in text and "'W'" in text for text in report.warnings)
    record = read_record(onnx.load(target))
    assert record is not None
    assert record.uncovered == [left_out]
    assert strip(onnx.load(target)) == asking()
    assert [each.parameter for each in inspect_model(target).questions] == ["W"]


def test_accepting_is_no_way_where_nothing_else_is_left():
    with pytest.raises(OnnxClipError) as refused:
        clip_gradients(asking(), GradientClipByNorm(1.0, need_clip="W"), partial=True)
    assert "--partial" not in str(refused.value)


@pytest.mark.parametrize("number", [1, 2])
def test_records_of_older_formats_are_read(number):
    clipped = clip_gradients(asking(), ONE, skip="W")
    fields = fields_of(clipped) | {"format": number}
    if number == 1:
        for new in ("answers", "optimizer_ops", "uncovered"):
            assert not fields.pop(new)
    put(clipped, fields)  # with their digest, which is of the nodes alone
    assert strip(clipped) == asking()


# -- deciding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "gradient"), [(1.0, "whole"), (0.01, "g")])
def test_slopes_decide_whether_a_term_belongs_to_the_gradient(weight, gradient):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    model = asking(weight=weight)
    if gradient == "g":  # the loss then has no penalty that counts
        next(t for t in model.graph.initializer if t.name == "half").CopyFrom(
            onnx.numpy_helper.from_array(np.float32(0), "half")
        )
    clipped = clip_gradients(model, ONE, probe=True)
    assert clipped_in(clipped) == [(gradient, "W"), ("h", "b")]
    assert strip(clipped) == model


def test_what_slopes_decided_is_kept_so_that_a_rerun_needs_no_run():
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    clipped = clip_gradients(asking(), ONE, probe=True)
    record = read_record(clipped)
    assert record is not None
    assert record.answers == {"W": "whole"}
    assert clip_gradients(clipped, ONE) == clipped
    again = clip_gradients(clipped, GradientClipByGlobalNorm(1.0))
    assert clipped_in(again) == [("whole", "W"), ("h", "b")]


def test_the_clip_of_what_slopes_decided_is_extracted():
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    extracted = extract_clip(asking(), ONE, probe=True)
    whole = np.full((4, 3), 3, np.float32)
    made = run(extracted, {"whole": whole, "h": np.zeros(3, np.float32)})
    norm = np.sqrt(12 * 9.0)
    # 3 / norm in float32, rounded a few times
    np.testing.assert_allclose(made["whole.clipped"], whole / norm, rtol=1e-6)


def test_what_slopes_do_not_decide_is_refused_with_what_was_tried():
    def undecided(model, questions, loss):
        assert questions == {"W": ["g", "whole"]}
        return Verdict({}, dict.fromkeys(questions, "the loss is not finite"))

    with pytest.raises(OnnxClipError) as refused:
        clip_gradients(asking(), ONE, probe=undecided)
    assert "the slopes of the loss did not decide: the loss is not finite" in str(refused.value)
    assert "look for the gradients among all values" in str(refused.value)


def test_questions_about_several_steps_or_without_candidates_are_not_run():
    index = Index(asking())
    (question,) = survey(index).questions
    assert askable([question], set(), index.main) == {"W": ["g", "whole"]}
    assert askable([question, question], set(), index.main) == {}
    assert askable([question], {"W"}, index.main) == {}
    assert askable([question._replace(candidates=())], set(), index.main) == {}
    inputs = (question.parameter,)
    assert askable([question._replace(candidates=inputs)], set(), index.main) == {}


def test_why_nothing_was_run_is_said():
    def never(model, questions):
        raise AssertionError("nothing can be told")

    model = asking()  # with the update of W in a branch, and none in the other
    made = [onnx.helper.make_tensor_value_info("step", onnx.TensorProto.FLOAT, [4, 3])]
    update = [n for n in model.graph.node if n.output[0] in ("whole", "decay", "step")]
    for node in update:
        model.graph.node.remove(node)
    branches = [
        onnx.helper.make_graph(nodes, "branch", [], made)
        for nodes in (update, [onnx.helper.make_node("Sub", ["W", "W"], ["step"])])
    ]
    at = [node.output[0] for node in model.graph.node].index("W_new")
    branch = onnx.helper.make_node(
        "If", ["flag"], ["moved"], then_branch=branches[0], else_branch=branches[1]
    )
    model.graph.node[at].input[1] = "moved"
    model.graph.node.insert(at, branch)
    model.graph.input.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    with pytest.raises(OnnxClipError, match="nor in nested graphs"):
        clip_gradients(model, ONE, probe=never)


def test_without_a_question_nothing_is_run():
    def never(model, questions):
        raise AssertionError("nothing is open")

    assert clipped_in(clip_gradients(asking(), ONE, skip="W", probe=never)) == [("h", "b")]
    clip_gradients(asking(), ONE, gradients=["h"], probe=never)


def test_a_probe_that_is_neither_a_flag_nor_a_function_is_refused():
    with pytest.raises(OnnxClipError, match="probe must be True or False"):
        clip_gradients(asking(), ONE, probe="yes")
    with pytest.raises(OnnxClipError, match="partial must be True or False"):
        clip_gradients(asking(), ONE, partial="yes")


# -- operators that nobody knows ---------------------------------------------------------------


def test_an_unknown_operator_with_several_operands_is_a_question():
    with pytest.raises(OnnxClipError, match="SGD, which nobody knows, takes several") as refused:
        clip_gradients(unknown_optimizer(), ONE)
    assert "W_new = SGD(W, g, m)" in str(refused.value)


def test_the_caller_may_say_what_an_operator_takes():
    ops = {"vendor::SGD": (0, 1)}
    clipped = clip_gradients(unknown_optimizer(), ONE, optimizer_ops=ops)
    assert clipped_in(clipped) == [("g", "W")]
    record = read_record(clipped)
    assert record is not None
    assert record.optimizer_ops == {"vendor::SGD": (0, 1)}


def test_the_caller_of_an_optimizer_overrules_what_the_graph_shows():
    model = unknown_optimizer("m, g, W")  # m is none of the loss's parameters
    clipped = clip_gradients(model, ONE, optimizer_ops={"vendor::SGD": [2, 1]})
    assert clipped_in(clipped) == [("g", "W")]


def test_a_file_of_rules_may_say_what_an_operator_takes(tmp_path: Path):
    path = tmp_path / "clip.toml"
    path.write_text(
        '[optimizer_ops]\n"vendor::SGD" = {parameter = 0, gradient = 1}\n'
        '[[rule]]\nclip = "norm"\nclip_norm = 1.0\n'
    )
    assert clipped_in(clip_gradients(unknown_optimizer(), load_rules(path))) == [("g", "W")]


@pytest.mark.parametrize(
    "line",
    [
        '"vendor::SGD" = 1',
        '"vendor::SGD" = {parameter = 0}',
        '"vendor::SGD" = {parameter = 0, gradient = 0}',
        '"vendor::SGD" = {parameter = 0, gradient = -1}',
        '"vendor::SGD" = {parameter = "W", gradient = 1}',
        '"vendor::" = {parameter = 0, gradient = 1}',
    ],
)
def test_a_file_that_says_nothing_of_inputs_is_refused(line, tmp_path: Path):
    path = tmp_path / "clip.toml"
    path.write_text(f'[optimizer_ops]\n{line}\n[[rule]]\nclip = "norm"\nclip_norm = 1.0\n')
    with pytest.raises(OnnxClipError, match=r"clip\.toml, optimizer_ops: expected a line such as"):
        load_rules(path)


@pytest.mark.parametrize("ops", [["SGD"], {"SGD": 1}, {"SGD": (0, 0)}, {1: (0, 1)}, {"": (0, 1)}])
def test_optimizers_that_are_none_are_refused(ops):
    with pytest.raises(OnnxClipError, match="expected optimizers that are known"):
        clip_gradients(asking(), ONE, optimizer_ops=ops)


def test_an_optimizer_that_the_model_does_not_have_is_told():
    report = clip_in_place(asking(), ONE, skip="W", optimizer_ops={"vendor::SGD": (0, 1)})
    assert "optimizer 'vendor::SGD' is not in this model" in report.warnings


# -- graphs that clip already ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "op"), [("global_norm_clip", "Min"), ("value_clip", "Clip")])
def test_a_clip_that_the_graph_has_is_told(name, op):
    report = clip_in_place(onnx.load(MODELS / "in_graph" / f"{name}.onnx"), ONE)
    said = f"the graph clips already, 'W_grad' by {op}, 'b_grad' by {op}; the clip that is put in"
    assert [text for text in report.warnings if text.startswith(said)]


def test_a_node_that_clips_all_gradients_is_told():
    model = asking("s = vendor.InPlaceClipGradNorm(h)", outputs=", float[3] s")
    model.opset_import.add(domain="vendor", version=1)
    report = clip_in_place(model, ONE, skip="W")
    assert any("clips already, by nodes InPlaceClipGradNorm" in text for text in report.warnings)


# -- graphs without updates --------------------------------------------------------------------


def test_weights_without_a_gradient_are_told_where_names_tell_gradients():
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        s (float[N,4] x, float[4,3] W, float[3,2] V) => (float[4,3] W_grad, float[N,2] y) {
          z = MatMul(x, W)
          y = MatMul(z, V)
          W_grad = Neg(W)
        }"""
    )
    report = clip_in_place(model, ONE)
    assert [text for text in report.warnings if "no gradient is known for 'V'" in text]


def test_weights_that_the_user_leaves_out_are_not_told():
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        s (float[N,4] x, float[4,3] W, float[3,2] V) => (float[4,3] W_grad, float[N,2] y) {
          z = MatMul(x, W)
          y = MatMul(z, V)
          W_grad = Neg(W)
        }"""
    )
    report = clip_in_place(model, GradientClipByNorm(1.0, need_clip="W"))
    assert not [text for text in report.warnings if "no gradient is known" in text]
