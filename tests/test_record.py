"""The note that a rewrite leaves, the way back, and what is refused when others have been at it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
import pytest
from onnx import helper, parser

import onnx_clip_pass
from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, strip
from onnx_clip_pass.record import (
    KEY,
    ClipEntry,
    Measure,
    Record,
    Uncovered,
    read_record,
    strip_if_clipped,
    write_record,
)

ONE = GradientClipByNorm(1.0)
STEP = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1],
     metadata_props: ["theirs" : "kept"]>
    step (float[2] W, float[2] V, float[2] x, float lr)
         => (float[2] W_new, float[2] V_new) <float one = {1}> {
      g = Tanh(x)
      h = Cosh(g)
      W_new = com.microsoft.SGDOptimizer(lr, W, g)
      V_new = com.microsoft.SGDOptimizer(lr, V, h)
    }"""


@pytest.fixture
def original() -> onnx.ModelProto:
    return parser.parse_model(STEP)


@pytest.fixture
def clipped(original: onnx.ModelProto) -> onnx.ModelProto:
    return clip_gradients(original, ONE)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def note(model: onnx.ModelProto) -> dict[str, Any]:
    return json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))


# -- the way back ------------------------------------------------------------------------------


def test_undoing_a_rewrite_gives_back_the_model(
    original: onnx.ModelProto, clipped: onnx.ModelProto
):
    """As for every model of `models/`, see test_models.py."""
    assert clipped != original
    assert strip(clipped) == original


def test_undoing_leaves_the_given_model_as_it_is(clipped: onnx.ModelProto):
    before = clipped.SerializeToString(deterministic=True)
    strip(clipped)
    assert clipped.SerializeToString(deterministic=True) == before


def test_what_may_be_clipped_or_not_is_taken_back_if_it_is(
    original: onnx.ModelProto, clipped: onnx.ModelProto
):
    assert strip_if_clipped(clipped) == original
    assert strip_if_clipped(original) is original


def test_undoing_a_model_without_a_note_is_refused(original: onnx.ModelProto):
    with pytest.raises(OnnxClipError, match="no entry 'onnx_clip_pass'; there is nothing to undo"):
        strip(original)


@pytest.mark.parametrize(
    "second",
    [
        ONE,
        GradientClipByNorm(0.25),
        GradientClipByNorm(1.0, need_clip="V"),
        GradientClipByNorm(float("inf")),
        GradientClipByNorm(1.0, need_clip=lambda parameter: False),
    ],
    ids=["the same", "another norm", "another selection", "no clipping", "nothing picked"],
)
def test_rewriting_a_rewritten_model_is_rewriting_the_original(
    original: onnx.ModelProto, clipped: onnx.ModelProto, second: GradientClipByNorm
):
    assert clip_gradients(clipped, second) == clip_gradients(original, second)


def test_undoing_takes_a_note_whose_keys_another_tool_has_sorted(original: onnx.ModelProto):
    names = {"h": "V", "g": "W"}  # not in the order of the alphabet
    model = clip_gradients(original, ONE, gradients=names)
    (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
    text = json.dumps(json.loads(entry.value), sort_keys=True)
    assert json.loads(text) == json.loads(entry.value)
    entry.value = text
    assert strip(model) == original


@pytest.mark.parametrize("field", ["version", "layout", "norm_precision"])
def test_a_note_that_was_changed_is_refused(clipped: onnx.ModelProto, field: str):
    (entry,) = (entry for entry in clipped.metadata_props if entry.key == KEY)
    entry.value = json.dumps(json.loads(entry.value) | {field: "cuda"})
    with pytest.raises(OnnxClipError, match="or its record of them, have been changed"):
        strip(clipped)


# -- the note ----------------------------------------------------------------------------------


def test_the_note_says_what_was_clipped_how_and_by_which_version(clipped: onnx.ModelProto):
    told = note(clipped)
    assert told["version"] == onnx_clip_pass.__version__
    how = {"graph": "", "clip": "GradientClipByNorm", "clip_norm": 1.0}
    assert told["clips"] == [
        {"gradient": "g", "parameter": "W", **how},
        {"gradient": "h", "parameter": "V", **how},
    ]
    assert told["renamed"] == {"clip/g/raw": "g", "clip/h/raw": "h"}
    assert "layout" not in told  # as it was before there were several
    assert told["initializers"] == ["clip/1:float32"]
    assert told["nodes"] == [
        f"clip/{gradient}/{op}" for gradient in "gh" for op in ("ReduceL2", "Div", "Min", "Mul")
    ]
    assert told["values"] == [
        f"clip/{gradient}/{value}"
        for gradient in "gh"
        for value in ("raw", "norm", "ratio", "scale")
    ]


def test_names_stand_in_the_note_as_they_are():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> s (float[2] x) => (float[2] g) { g = Neg(x) }'
    )
    model.graph.node[0].output[0] = model.graph.output[0].name = "größe"
    clipped = clip_gradients(model, ONE, gradients=["größe"])
    (entry,) = (entry for entry in clipped.metadata_props if entry.key == KEY)
    assert '"gradient":"größe"' in entry.value


def test_what_is_left_open_is_told_in_a_line():
    left = Uncovered("W", "W_new", "W_new = SGD(W, g)", (), "nobody knows SGD")
    begin = "'W', whose new value is W_new = SGD(W, g): nobody knows SGD; "
    assert left.in_words() == begin + "no value may be its gradient"
    five = replace(left, candidates=tuple("abcde"))
    end = "its gradient may be 'a' or 'b' or 'c' or 'd' or one of 1 more"
    assert five.in_words() == begin + end


def test_the_note_of_an_infinite_norm_is_json_that_every_reader_takes(original: onnx.ModelProto):
    infinite = clip_gradients(original, GradientClipByNorm(float("inf")))
    assert note(infinite)["clips"][0]["clip_norm"] == "inf"
    assert "Infinity" not in str(infinite.metadata_props)


def test_the_note_keeps_names_that_are_not_ascii():
    model = parser.parse_model(STEP)
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "∂W\n\"'"
    model.graph.node[2].input[2] = "∂W\n\"'"
    clipped = clip_gradients(model, ONE)
    assert note(clipped)["clips"][0]["gradient"] == "∂W\n\"'"
    assert strip(clipped) == model


def test_the_metadata_of_others_is_kept(clipped: onnx.ModelProto, original: onnx.ModelProto):
    assert [entry.key for entry in clipped.metadata_props] == ["theirs", KEY]
    assert strip(clipped).metadata_props == original.metadata_props


@pytest.mark.parametrize(
    "text",
    [
        "",
        "words",
        "[]",
        "null",
        "{}",
        '{"version": "0.1.0", "clips": 1}',
        '{"version": "0.1.0", "clips": [], "format": 4}',
        '{"version": "0.1.0", "clips": [], "loss_scale": NaN}',
        '{"version": "0.1.0", "clips": [{"gradient": "g"}]}',
        '{"version": "\\ud800", "clips": []}',
        '{"version": "0.1.0", "clips": [], "order": [[0, [[0, -1]]]]}',
        '{"version": "0.1.0", "clips": [], "order": [[0, [[0, %s]]]]}' % ("9" * 5000),
        '{"version": "0.1.0", "clips": [], "nodes": [7]}',
        '{"version": "0.1.0", "clips": [], "renamed": ["a"]}',
        '{"version": "0.1.0", "clips": ["g"]}',
        '{"version": "0.1.0", "clips": [], "colour": "blue"}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_a_note_that_is_none_of_ours_is_refused(original: onnx.ModelProto, text: str):
    original.metadata_props.add(key=KEY, value=text)
    for act in (strip, read_record, lambda model: clip_gradients(model, ONE)):
        with pytest.raises(OnnxClipError, match="no record that this version can read"):
            act(original)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"nodes": ["a", 7]}, r"nodes\[1\]: expected a text, not 7"),
        ({"named": {"g": [1]}}, r"named\.g: expected a text, not a list of 1"),
        ({"order": [[0, [[0, 1], [2, "x"]]]]}, r"order\[0\]\[1\]\[1\]\[1\]: expected a whole"),
        ({"loss_scale": None}, "loss_scale: expected a finite number or a text, not null"),
        ({"emitted": [["a", "norm", [{}], ""]]}, r"emitted\[0\]\[2\]\[0\]: expected a text"),
        ({"uncovered": [{"parameter": "W"}]}, r"uncovered\[0\]: 'new' is missing"),
        ({"clips": [{}]}, r"clips\[0\]: 'gradient' is missing"),
        ({"answers": 1}, "answers: expected an object, not 1"),
        ({"measures_only": 0}, "measures_only: expected true or false, not 0"),
        ({"format": 10**400}, "format: a number of more than 63 bits, and 1 to 3 are known"),
        ({"colour": "blue"}, "'colour' is unknown"),
    ],
    ids=str,
)
def test_a_note_of_another_form_is_told_where(original: onnx.ModelProto, more: dict, said: str):
    original.metadata_props.add(key=KEY, value=json.dumps({"version": "0.1.0", "clips": []} | more))
    with pytest.raises(OnnxClipError, match=said):
        read_record(original)


def test_two_notes_are_one_too_many(clipped: onnx.ModelProto):
    clipped.metadata_props.add(key=KEY, value=clipped.metadata_props[1].value)
    with pytest.raises(OnnxClipError, match="there are 2 such entries"):
        strip(clipped)


def test_a_note_that_could_not_be_read_again_is_not_left(original: onnx.ModelProto):
    with pytest.raises(OnnxClipError, match="cannot be written: a text in it is no Unicode"):
        write_record(original, Record(version="\ud800", clips=[]), [])
    assert KEY not in {entry.key for entry in original.metadata_props}


def test_a_note_that_is_no_object_is_called_so(original: onnx.ModelProto):
    original.metadata_props.add(key=KEY, value="[1]")
    with pytest.raises(OnnxClipError, match=r"can read \(no JSON object\); remove"):
        read_record(original)


# -- changes by other tools --------------------------------------------------------------------


def test_changes_elsewhere_in_the_model_survive_undoing(
    original: onnx.ModelProto, clipped: onnx.ModelProto
):
    for model in (original, clipped):
        model.producer_name = "another tool"
        model.graph.node.append(helper.make_node("Neg", ["W_new"], ["lost"], name="new"))
        model.graph.output.append(helper.make_tensor_value_info("lost", 1, [2]))
        model.metadata_props.add(key="late", value="too")
        model.graph.node.insert(0, helper.make_node("Abs", ["x"], ["early"], name="first"))
    assert strip(clipped) == original


def test_a_new_reader_of_a_raw_gradient_reads_the_gradient_after_undoing(clipped: onnx.ModelProto):
    clipped.graph.node.append(helper.make_node("Neg", ["clip/g/raw"], ["late"]))
    assert list(strip(clipped).graph.node[-1].input) == ["g"]


def rename_a_node(model: onnx.ModelProto) -> None:
    node_of(model, "clip/g/Div").name = "Div_0"


def remove_a_node(model: onnx.ModelProto) -> None:
    model.graph.node.remove(node_of(model, "clip/g/Min"))


def change_an_attribute(model: onnx.ModelProto) -> None:
    node_of(model, "clip/g/ReduceL2").attribute[0].i = 1


def change_an_operator(model: onnx.ModelProto) -> None:
    node_of(model, "clip/g/ReduceL2").op_type = "ReduceL1"


def change_the_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer[-1].raw_data = b"\0\0\0\x40"


def rename_a_value(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for ports in (node.input, node.output):
            ports[:] = ["norm_1" if name == "clip/g/norm" else name for name in ports]


def merge_equal_constants(model: onnx.ModelProto) -> None:
    """As common subexpression elimination does, in favour of the model's own."""
    for node in model.graph.node:
        node.input[:] = ["one" if name == "clip/1:float32" else name for name in node.input]


def merge_equal_constants_into_ours(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["clip/1:float32"], ["late"]))


def share_our_norm(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["clip/g/norm"], ["late"]))


def hand_out_our_norm(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("clip/g/norm", 1, []))


def read_our_norm_in_a_branch(model: onnx.ModelProto) -> None:
    out = helper.make_tensor_value_info("inner", 1, [])
    inner = helper.make_node("Neg", ["clip/g/norm"], ["inner"])
    branch = helper.make_graph([inner], "branch", [], [out])
    node = helper.make_node("If", ["lr"], ["late"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def fuse_the_maker_with_the_clip(model: onnx.ModelProto) -> None:
    for name in ("ReduceL2", "Div", "Min", "Mul"):
        model.graph.node.remove(node_of(model, f"clip/g/{name}"))
    model.graph.node[0].op_type = "TanhClipped"
    model.graph.node[0].output[0] = "g"


def copy_a_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(node_of(model, "clip/g/Div"))


@pytest.mark.parametrize(
    "tamper",
    [
        rename_a_node,
        remove_a_node,
        change_an_attribute,
        change_an_operator,
        change_the_constant,
        rename_a_value,
        merge_equal_constants,
        merge_equal_constants_into_ours,
        share_our_norm,
        hand_out_our_norm,
        read_our_norm_in_a_branch,
        fuse_the_maker_with_the_clip,
        copy_a_node,
    ],
    ids=lambda tamper: tamper.__name__,
)
def test_a_clip_that_another_tool_has_changed_is_neither_undone_nor_rewritten(
    clipped: onnx.ModelProto, tamper: Callable[[onnx.ModelProto], None]
):
    tamper(clipped)
    for act in (strip, lambda model: clip_gradients(model, ONE)):
        with pytest.raises(OnnxClipError, match="by another tool since, so they cannot be undone"):
            act(clipped)


@pytest.mark.parametrize(
    "entry",
    [
        {"gradient": "g", "parameter": "W", "graph": "", "clip": "Later", "warmth": [1, {"a": 2}]},
        {"gradient": "g", "parameter": "W", "graph": "", "clip": "Later", "threshold_input": "t"},
    ],
    ids=["settings that this version does not know", "a threshold input"],
)
def test_an_entry_is_written_as_it_was_read(entry: dict[str, Any]):
    """The digest covers it, so nothing of it may be lost."""
    found = ClipEntry.from_json(entry)
    assert (found.gradient, found.clip["clip"]) == ("g", "Later")
    assert found.threshold_input == entry.get("threshold_input")
    assert found.to_json() == entry


def test_measures_and_uncovered_parameters_are_read_by_their_fields():
    uncovered = {"parameter": "W", "new": "V", "formula": "V = W", "candidates": ["g"], "why": "?"}
    note = {
        "version": "0.1.0",
        "clips": [],
        "emitted": [["out", "norm", ["g"], ""]],
        "uncovered": [uncovered],
    }
    model = onnx.ModelProto()
    model.metadata_props.add(key=KEY, value=json.dumps(note))
    record = read_record(model)
    assert record is not None
    assert record.emitted == [Measure("out", "norm", ["g"], "")]
    assert record.uncovered == [Uncovered("W", "V", "V = W", ("g",), "?")]
    assert [each.to_json() for each in record.uncovered] == [uncovered]
