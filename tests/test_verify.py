"""Verification: right rewrites pass, and each way to get one wrong is noticed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import MODELS, Arrays, Entry, each, parse
from judged import faults_of
from onnx import TensorProto, helper, numpy_helper

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, strip
from onnx_clip_pass.cli import main
from onnx_clip_pass.verification import Slopes, verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

SGD = MODELS / "in_graph" / "sgd.onnx"
SUM = MODELS / "in_graph" / "sum_of_parameters.onnx"


def clipped(model: onnx.ModelProto, clip_norm: float = 1.0) -> onnx.ModelProto:
    return clip_gradients(model, GradientClipByNorm(clip_norm))


# -- right rewrites ----------------------------------------------------------------------------


@each(lambda e: e.runtime == "onnxruntime" and bool(e.gradients))
@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_rewrites_of_every_model_are_right(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, clip_norm: float
) -> None:
    named = dict(entry.gradients) if entry.found == "by meaning" else None
    rewritten = clip_gradients(model, GradientClipByNorm(clip_norm), gradients=named)
    slopes: Slopes = "on" if entry.slope else "off"
    found = verify(model, rewritten, feeds=feeds, slopes=slopes)
    assert found.ok, faults_of(found)
    assert [row.gradient for row in found.gradients if row.acted and row.passed] == [
        row.gradient for row in found.gradients
    ]


def test_inputs_are_made_up_where_none_are_given() -> None:
    model = onnx.load(SGD)
    assert verify(model, clipped(model), seed=3).ok


def test_sizes_that_were_made_up_and_do_not_go_together_are_named() -> None:
    """The step's update takes gradients of one seed, and two are made up for each free size."""
    model = onnx.load(MODELS / "onnx_ad" / "mlp_sgd.onnx")
    rewritten = clipped(model)
    with pytest.raises(OnnxClipError, match=r"the sizes of 'batch', 'nadj' are made up.*--dim"):
        verify(model, rewritten)
    with pytest.raises(OnnxClipError, match="the sizes of 'nadj' are made up"):
        verify(model, rewritten, dims={"batch": 4})
    assert verify(model, rewritten, dims={"nadj": 1})


def test_a_gradient_that_is_zero_is_no_fault_but_said() -> None:
    graph = "agraph (float[2] w, float[2] x) => (float[2] w_grad) { w_grad = Sub(x, x) }"
    model = parse(graph)
    found = verify(model, clipped(model))
    assert found.ok
    assert "w_grad" in found.notes[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float", "double"])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
@pytest.mark.parametrize("injected", [None, np.inf, np.nan])
def test_every_dtype_and_policy_is_held_to_its_formula(
    dtype: str, nonfinite: str, injected: float | None
) -> None:
    number = getattr(TensorProto, dtype.upper())
    graph = f"""agraph (float[30, 70] W, float[30, 70] x) => ({dtype}[30, 70] W_grad) {{
        product = Mul(x, x)
        W_grad = Cast <to = {number}> (product)
    }}"""
    model = parse(graph)
    rewritten = clip_gradients(model, GradientClipByNorm(1.0), nonfinite=nonfinite)  # type: ignore[arg-type]
    x = np.random.default_rng(0).normal(size=(30, 70)).astype(np.float32)
    if injected is not None:
        x[1, 2] = injected
    found = verify(model, rewritten, feeds={"x": x})
    assert found.ok, faults_of(found)


def test_an_output_that_is_random_is_compared_by_its_shape_only() -> None:
    graph = """agraph (float[2] w, float[2] x) => (float[2] w_grad, float[3] noise) {
        w_grad = Mul(w, x)
        noise = RandomNormal <shape = [3]> ()
    }"""
    model = parse(graph)
    found = verify(model, clipped(model))
    assert found.ok
    assert [row.is_deterministic for row in found.outputs] == [True, False]


def test_weights_in_files_of_their_own_are_found_by_the_path(tmp_path: Path) -> None:
    original = MODELS / "onnx_ad" / "external_data" / "mlp.onnx"
    target = tmp_path / "clipped.onnx"
    assert main(["rewrite", str(original), "-o", str(target), "--verify"]) == 0


# -- wrong rewrites ----------------------------------------------------------------------------


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def clip_of(model: onnx.ModelProto, op_type: str, at: int = 0) -> onnx.NodeProto:
    """A node of one of the clips, by its operator."""
    return [n for n in model.graph.node if n.name.startswith("clip/") and n.op_type == op_type][at]


def bypass(model: onnx.ModelProto, old: str, new: str, readers: list[onnx.NodeProto]) -> None:
    for reader in readers:
        reader.input[:] = [new if name == old else name for name in reader.input]


def readers_of(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if name in n.input and not n.name.startswith("clip/")]


def another_threshold(model: onnx.ModelProto) -> None:
    name = clip_of(model, "Div").input[0]
    constant = next(t for t in model.graph.initializer if t.name == name)
    constant.CopyFrom(numpy_helper.from_array(np.float32(1.01), name))


def no_clip_for_one_gradient(model: onnx.ModelProto) -> None:
    product = clip_of(model, "Mul")
    product.op_type = "Identity"
    del product.input[1:]


def scales_swapped(model: onnx.ModelProto) -> None:
    one, two = clip_of(model, "Mul"), clip_of(model, "Mul", 1)
    one_scale, two_scale = clip_of(model, "Min"), clip_of(model, "Min", 1)
    # both products behind both scales
    nodes = [n for n in model.graph.node if n not in (one, two)]
    one.input[1], two.input[1] = two_scale.output[0], one_scale.output[0]
    ends = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (one, two)]
    at = max(nodes.index(one_scale), nodes.index(two_scale)) + 1
    ordered = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    ordered[at:at] = ends
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def norm_of_another_value(model: onnx.ModelProto) -> None:
    norms = [clip_of(model, "ReduceL2"), clip_of(model, "ReduceL2", 1)]
    norms[1].input[0] = norms[0].input[0]


def activation_gradient_clipped(model: onnx.ModelProto) -> None:
    """A clip too many: on a value through which the gradients are computed."""
    norm = clip_of(model, "ReduceL2")
    producer = next(n for n in model.graph.node if norm.input[0] in n.output)
    inner = producer.input[1]
    others = readers_of(model, inner)
    at = list(model.graph.node).index(producer)
    clips = [
        helper.make_node("ReduceL2", [inner], ["extra/norm"], keepdims=0),
        helper.make_node("Div", ["extra/c", "extra/norm"], ["extra/ratio"]),
        helper.make_node("Mul", [inner, "extra/ratio"], ["extra/y"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "extra/c"))
    bypass(model, inner, "extra/y", others)
    for extra in reversed(clips):
        model.graph.node.insert(at, extra)


def no_min(model: onnx.ModelProto) -> None:
    least = clip_of(model, "Min")
    least.op_type = "Identity"
    del least.input[1:]


def another_norm(model: onnx.ModelProto) -> None:
    clip_of(model, "ReduceL2").op_type = "ReduceL1"


def raw_value_to_the_update(model: onnx.ModelProto) -> None:
    product = clip_of(model, "Mul")
    bypass(model, product.output[0], product.input[0], readers_of(model, product.output[0]))


def output_renamed(model: onnx.ModelProto) -> None:
    name = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Identity", [name], ["other"]))
    model.graph.output[0].name = "other"


def outputs_reordered(model: onnx.ModelProto) -> None:
    outputs = list(model.graph.output)[::-1]
    copies = [onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in outputs]
    del model.graph.output[:]
    model.graph.output.extend(copies)


def a_weight_changed(model: onnx.ModelProto) -> None:
    tensor = next(
        t
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT and not t.name.startswith("clip/")
    )
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.nextafter(value, np.float32(9)), tensor.name))


def input_gone(model: onnx.ModelProto) -> None:
    """The last one becomes an initializer, so the model runs all the same."""
    bias = model.graph.input.pop()
    shape = [size.dim_value for size in bias.type.tensor_type.shape.dim]
    zeros = np.zeros(shape, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(zeros, bias.name))


def input_added(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def does_not_load(model: onnx.ModelProto) -> None:
    clip_of(model, "Mul").op_type = "NoSuchOperator"


NORM = r"norm [\d.]+, where [\d.]+ is right"
WRONG: dict[Callable[[onnx.ModelProto], None], str] = {
    another_threshold: NORM,
    no_clip_for_one_gradient: NORM,
    scales_swapped: NORM,
    norm_of_another_value: NORM,
    activation_gradient_clipped: "the gradient before its clip is not right: it differs",
    no_min: NORM,
    another_norm: NORM,
    raw_value_to_the_update: r"the Mul that makes 'W_step' reads 'clip/W_grad/raw', where the",
    output_renamed: r"the outputs were 'loss', .*, and are 'other', ",
    outputs_reordered: r"the outputs were 'loss', .*, and are .*, 'loss'",
    a_weight_changed: "the initializer 'one' has another value",
    input_gone: r"the inputs were 'x', 't', 'W', 'b', and are 'x', 't', 'W'$",
    input_added: r"the inputs were .*, and are .*, 'more'$",
    does_not_load: "the rewritten model does not run: .* NoSuchOperator",
}


@pytest.mark.parametrize(
    ("damage", "reason"), WRONG.items(), ids=[damage.__name__ for damage in WRONG]
)
@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_a_wrong_rewrite_is_noticed(
    damage: Callable[[onnx.ModelProto], None],
    reason: str,
    clip_norm: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = onnx.load(SGD)
    rewritten = clipped(original, clip_norm)
    assert verify(original, rewritten).ok
    damage(rewritten)
    target = tmp_path / "wrong.onnx"
    onnx.save(rewritten, target)
    assert main(["verify", str(SGD), str(target), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    rows = [told, *told["gradients"], *told["outputs"]]
    assert re.search(reason, "\n".join(fault for row in rows for fault in row["faults"]), re.M)


def test_a_clipped_value_in_the_backward_pass_is_noticed() -> None:
    original = onnx.load(SUM)
    rewritten = clipped(original, 0.05)
    assert verify(original, rewritten).ok
    product = node(rewritten, "clip/C_grad/Mul")
    raw, name = product.input[0], product.output[0]
    reader = next(n for n in rewritten.graph.node if raw in n.input and "clip/" not in n.name)
    bypass(rewritten, raw, name, [reader])
    found = verify(original, rewritten)
    assert "the gradient before its clip is not right" in "\n".join(faults_of(found))


def test_a_clip_removed_in_a_branch_is_noticed() -> None:
    original = onnx.load(MODELS / "control_flow" / "if_updates_inside.onnx")
    rewritten = clipped(original, 0.05)
    for outer in rewritten.graph.node:
        for attr in outer.attribute:
            for inner in attr.g.node:
                if inner.name.startswith("clip/") and inner.op_type == "Mul":
                    inner.op_type = "Identity"
                    del inner.input[1:]
    assert not verify(original, rewritten).ok


# -- what is refused ---------------------------------------------------------------------------


def test_a_first_model_that_is_clipped_is_undone_and_said_to_be() -> None:
    model = onnx.load(SGD)
    one, other = clipped(model, 1.0), clipped(model, 2.0)
    assert not verify(model, one).notes
    for first in (one, other):
        found = verify(first, one)
        assert found.ok, faults_of(found)
        note = "the first model is clipped, too: it was undone before comparing"
        assert found.notes == [note]


def test_a_model_without_a_record_is_refused() -> None:
    model = onnx.load(SGD)
    with pytest.raises(OnnxClipError, match="the rewritten model has no record of onnx-clip"):
        verify(model, model)
    with pytest.raises(OnnxClipError, match=rf"{re.escape(repr(str(SGD)))} has no record of"):
        verify(SGD, SGD)


def test_the_model_that_lacks_the_gradients_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "clipped.onnx"
    assert main(["rewrite", str(SUM), "-o", str(target)]) == 0
    capsys.readouterr()
    assert main(["verify", str(SGD), str(target)]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert f"{str(SGD)!r} has no value 'C_grad', a gradient that {str(target)!r} clips" in words
    assert "the two seem unrelated" in words


def test_weights_whose_file_is_missing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "original"
    shutil.copytree(MODELS / "onnx_ad" / "external_data", folder)
    original, target = folder / "mlp.onnx", tmp_path / "clipped.onnx"
    assert main(["rewrite", str(original), "-o", str(target)]) == 0
    (folder / "weights.bin").unlink()
    capsys.readouterr()
    assert main(["verify", str(original), str(target)]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "cannot read the weights" in words
    assert "No such file or directory; put the data file of the model back" in words


def test_what_never_ran_is_not_called_right() -> None:
    original = onnx.load(SGD)
    rewritten = clipped(original)
    does_not_load(rewritten)
    assert {row.verdict for row in verify(original, rewritten).gradients} == {"not run"}


@pytest.mark.parametrize(
    ("clip_norm", "verdict"), [(0.05, "right"), (np.inf, "right, never acted")]
)
def test_the_verdict_tells_whether_the_clip_was_seen_acting(clip_norm: float, verdict: str) -> None:
    original = onnx.load(SGD)
    rewritten = clipped(original, clip_norm)
    found = verify(original, rewritten)
    assert {row.verdict for row in found.gradients} == {verdict}
    assert found.ok, faults_of(found)


def test_gradients_that_no_runtime_computes_are_not_passed_over() -> None:
    model = onnx.load(MODELS / "training_info" / "sgd.onnx")
    found = verify(model, clipped(model))
    assert not found.ok
    assert "not checked: ONNX Runtime does not execute training_info" in "\n".join(faults_of(found))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--dim", "batch", "error: Invalid value for '--dim': expected NAME=SIZE"),
        ("--dim", "M=3", "error: cannot feed this model: - no dimension of an input is called 'M'"),
        ("--feeds", "no such file.npz", "error: cannot read the feeds 'no such file.npz'"),
        ("--feeds", str(SGD), "error: expected feeds as an .npz file"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    option: str, value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "clipped.onnx"
    main(["rewrite", str(SGD), "-o", str(target)])
    capsys.readouterr()
    assert main(["verify", str(SGD), str(target), option, value]) == 2
    streams = capsys.readouterr()
    assert not streams.out
    assert words in " ".join(streams.err.split())


# -- the command line --------------------------------------------------------------------------


def test_json_is_one_object_that_says_what_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "clipped.onnx"
    assert main(["rewrite", str(SGD), "-o", str(target), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verification"]["ok"]
    feeds = str(SGD.with_suffix(".inputs.npz"))
    assert main(["verify", str(SGD), str(target), "--feeds", feeds, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"]
    assert {row["behind_clip"] for row in facts["outputs"]} == {True, False}


def test_verify_and_in_place_exclude_each_other() -> None:
    assert main(["rewrite", str(SGD), "--in-place", "--verify"]) == 2


# -- gradients inside subgraphs that return them ------------------------------------------------

SCAN = """agraph (float[3] w, float[4, 3] x) => (float[3] w_new, float[4, 3] each) {
    w_new, each = Scan <num_scan_inputs = 1, body = step (float[3] v, float[3] row)
        => (float[3] v_new, float[3] returned) {
        v_grad = Mul (v, row)
        v_new = Sub (v, v_grad)
        returned = Identity (v_grad)
    }> (w, x)
}"""


@pytest.mark.parametrize("returned", ["returned", "v_grad"])
@pytest.mark.parametrize("is_wrong", [False, True])
def test_gradients_of_a_scan_are_taken_out_and_fed_in(returned: str, is_wrong: bool) -> None:
    model = parse(SCAN)
    body = next(a.g for a in model.graph.node[0].attribute if a.name == "body")
    if returned == "v_grad":
        del body.node[2]
        body.output[1].name = "v_grad"
    clip = GradientClipByNorm(0.05)
    rewritten = clip_gradients(model, clip, gradients={"v_grad": "v"})
    if is_wrong:
        body = next(a.g for a in rewritten.graph.node[0].attribute if a.name == "body")
        next(n for n in body.node if n.op_type == "Min").op_type = "Max"
    assert verify(model, rewritten).ok is not is_wrong


def test_a_clip_that_no_update_reads_is_wrong() -> None:
    rewritten = onnx.load(Path(__file__).parent / "recorded" / "clip_of_no_update.onnx")
    (fault,) = faults_of(verify(strip(rewritten), rewritten))
    assert "no update reads it: all that does computes other gradients" in fault
