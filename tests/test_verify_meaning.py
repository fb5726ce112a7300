"""Verification: whether what is clipped is the gradient, by the slopes of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import MODELS
from judged import faults_of
from onnx import numpy_helper

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients
from onnx_clip_pass.cli import main
from onnx_clip_pass.verification import Verification, verify
from onnx_clip_pass.verification.slopes import forward, meaning

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

# loss = mean((x W - t)^2) over 12 elements, so that its slope by W is x^T (x W - t) / 6
LOSS = """y = MatMul (x, W) e = Sub (y, t) square = Mul (e, e)
    loss = ReduceMean <keepdims = 0> (square) xt = Transpose (x)"""
SLOPE = "sixth = Div (e, six) g = MatMul (xt, sixth)"
STEP = "step = Mul (lr, g) W_new = Sub (W, step)"
INPUTS = "float[6, 4] x, float[6, 2] t, float[4, 2] W"
NUMBERS = "float lr = {0.1}, float six = {6}, float tau = {0.05}, float one = {1}"


def graph(
    body: str, *, inputs: str = "", outputs: str = "float loss, float[4, 2] W_new"
) -> onnx.ModelProto:
    more = f", {inputs}" if inputs else ""
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net ({INPUTS}{more}) => ({outputs}) '
        f"<{NUMBERS}> {{ {body} }}"
    )


def verified(
    model: onnx.ModelProto, gradients: Any, *, loss_scale: Any = 1.0, **options: Any
) -> Verification:
    rewritten = clip_gradients(
        model, GradientClipByNorm(0.1), gradients=gradients, loss_scale=loss_scale
    )
    return verify(model, rewritten, **options)


# -- right -------------------------------------------------------------------------------------


@pytest.mark.parametrize("slopes", ["on", "strict", "off"])
def test_the_slope_of_the_loss_is_right_without_a_word(slopes: Any) -> None:
    found = verified(graph(f"{LOSS} {SLOPE} {STEP}"), {"g": "W"}, slopes=slopes)
    assert found.ok, faults_of(found)
    assert not found.notes


def test_a_search_and_names_without_parameters_are_held_to_the_slope_too() -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}")
    for named in (None, ["g"]):
        found = verified(model, named, slopes="strict")
        assert [row.gradient for row in found.gradients] == ["g"]
        assert found.ok, faults_of(found)
        assert not found.notes


SEED = "ds = Mul (e, S) sixth = Div (ds, six) g = MatMul (xt, sixth)"


@pytest.mark.parametrize("by_name", [True, False])
def test_the_scale_of_the_loss_is_right(by_name: bool) -> None:
    model = graph(f"{LOSS} {SEED} {STEP}", inputs="float S")
    feeds = {"S": np.array(128.0, np.float32)}
    scale = "S" if by_name else 128.0
    found = verified(model, {"g": "W"}, loss_scale=scale, feeds=feeds, slopes="strict")
    assert found.ok, faults_of(found)


def test_a_seed_that_is_fed_and_not_told_is_the_scale_of_the_loss() -> None:
    model = graph(f"{LOSS} {SEED} {STEP}", inputs="float S, float unused")
    feeds = {"S": np.array(128.0, np.float32), "unused": np.array(3.0, np.float32)}
    assert verified(model, {"g": "W"}, feeds=feeds, slopes="strict").ok
    feeds["unused"] = feeds["S"]  # which of the two is it
    (fault,) = faults_of(verified(model, {"g": "W"}, feeds=feeds))
    assert "it is 128 times the slope of the loss by W" in fault


# -- wrong -------------------------------------------------------------------------------------


def test_the_gradient_times_the_learning_rate_is_wrong() -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}")
    found = verified(model, {"step": "W"})
    (fault,) = faults_of(found)
    assert "it is 0.1 times the slope of the loss by W" in fault
    assert not found.ok
    assert found.gradients[0].verdict == "wrong"


def test_a_learning_rate_that_is_fed_is_no_scale_of_the_loss() -> None:
    model = graph(f"{LOSS} {SLOPE} step = Mul (rate, g) W_new = Sub (W, step)", inputs="float rate")
    (fault,) = faults_of(verified(model, {"step": "W"}, feeds={"rate": np.array(0.3, np.float32)}))
    assert "it is 0.3 times the slope of the loss by W" in fault


def test_a_gradient_with_the_other_sign_is_wrong() -> None:
    model = graph(f"{LOSS} {SLOPE} neg = Neg (g) step = Mul (lr, neg) W_new = Add (W, step)")
    (fault,) = faults_of(verified(model, {"neg": "W"}))
    assert "it is -1 times the slope of the loss by W" in fault


def test_one_wrong_gradient_among_right_ones_is_the_one_that_is_named() -> None:
    body = f"{LOSS} {SLOPE} g_b = ReduceSum <keepdims = 0> (twice, axes)"
    body = body.replace("e = Sub (y, t)", "yb = Add (y, b) e = Sub (yb, t) twice = Add (e, e)")
    model = graph(
        f"{body} {STEP} step_b = Mul (lr, g_b) b_new = Sub (b, step_b)",
        inputs="float[2] b",
        outputs="float loss, float[4, 2] W_new, float[2] b_new",
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    found = verified(model, {"g": "W", "g_b": "b"})
    assert [bool(row.faults) for row in found.gradients] == [False, True]
    assert "it is 12 times the slope of the loss by b" in found.gradients[1].faults[0]


TARGET = f"{LOSS} {SLOPE} {STEP}"
NETWORKS = {
    "the loss does not read it": "keep = Sub (one, tau) old = Mul (keep, T) new = Mul (tau, W_new) "
    "T_new = Add (old, new)",
    "lerp": "gap = Sub (W_new, T) part = Mul (tau, gap) T_new = Add (T, part)",
    "tau is fed": "keep = Sub (one, tau_in) old = Mul (T, keep) new = Mul (W_new, tau_in) "
    "T_new = Add (new, old)",
}


@pytest.mark.parametrize("body", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("named", [{"T_new": "T"}, {"T_new": "W"}, ["T_new"]])
def test_the_new_weights_of_a_target_network_are_wrong(body: str, named: Any) -> None:
    model = graph(
        f"{TARGET} {body}",
        inputs="float[4, 2] T, float tau_in",
        outputs="float loss, float[4, 2] W_new, float[4, 2] T_new",
    )
    (fault,) = faults_of(verified(model, named))
    assert fault == "it is no gradient but the new value of 'T', an average"


MOMENTS = {
    "two products": "old = Mul (M, nine) new = Mul (g, lr) M_new = Add (old, new)",
    "decomposed lerp": "gap = Sub (g, M) a = Mul (lr, gap) b = Where (no, g, M) M_new = Add (a, b)",
    "lerp of torchlib": "gap = Sub (g, M) a = Mul (lr, gap) low = Add (M, a) "
    "b = Mul (gap, nine) high = Sub (g, b) M_new = Where (yes, low, high)",
}


@pytest.mark.parametrize("body", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"W_new": "W"}, "it is no gradient but the new value of 'W'"),
        ({"M_new": "W"}, "it is no gradient but the new value of 'M', an average"),
        ({"M": "W"}, "it is no gradient but the state 'M'"),
    ],
)
def test_new_weights_moments_and_their_new_values_are_wrong(
    body: str, named: Any, words: str
) -> None:
    model = graph(
        f"{LOSS} {SLOPE} {body} step = Mul (lr, M_new) W_new = Sub (W, step)",
        inputs="float[4, 2] M",
        outputs="float loss, float[4, 2] W_new, float[4, 2] M_new",
    )
    for name, value in {"nine": np.float32(0.9), "yes": np.True_, "no": np.False_}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    assert faults_of(verified(model, named)) == [words]


# -- what only is said -------------------------------------------------------------------------

# the forward pass takes tanh(W), the backward pass treats it as W
STRAIGHT = (
    LOSS.replace("MatMul (x, W)", "MatMul (x, soft)").replace("y =", "soft = Tanh (W) y =")
    + f" {SLOPE} {STEP}"
)


def test_a_straight_through_estimate_is_a_note_and_wrong_if_slopes_are_strict() -> None:
    found = verified(graph(STRAIGHT), {"g": "W"})
    assert found.ok, faults_of(found)
    (note,) = found.notes
    assert note.startswith("these are no slopes of the loss 'loss'")
    assert note.endswith("estimates or gradients of other losses are none: g")
    strict = verified(graph(STRAIGHT), {"g": "W"}, slopes="strict")
    assert faults_of(strict) == ["it is no slope of the loss 'loss' by W"]


def test_a_loss_that_does_not_move_along_a_gradient_is_a_note_and_wrong_if_strict() -> None:
    sign = LOSS.replace("MatMul (x, W)", "MatMul (x, hard)").replace("y =", "hard = Sign (W) y =")
    model = graph(f"{sign} {SLOPE} {STEP}")
    (note,) = verified(model, {"g": "W"}).notes
    assert note.startswith("these are no slopes of the loss 'loss'")
    assert not verified(model, {"g": "W"}, slopes="strict").ok


def test_a_constant_gradient_that_is_an_initializer_is_right() -> None:
    model = onnx.load(MODELS / "in_graph" / "constant_gradient.onnx")
    found = verified(model, {"W_grad": "W"}, slopes="strict")
    assert found.ok, faults_of(found)
    assert not found.notes


def test_decay_that_is_added_to_the_gradient_is_a_note() -> None:
    body = "decay = Mul (lr, W) sum = Add (g, decay) step = Mul (lr, sum) W_new = Sub (W, step)"
    model = graph(
        f"{LOSS} {SLOPE} {body}", outputs="float loss, float[4, 2] W_new, float[4, 2] sum"
    )
    found = verified(model, {"sum": "W"})
    assert found.ok, faults_of(found)
    assert len(found.notes) == 1


def test_a_buffer_of_summed_gradients_is_none_of_the_states() -> None:
    body = "sum = Add (S, g) step = Mul (lr, sum) W_new = Sub (W, step)"
    model = graph(
        f"{LOSS} {SLOPE} {body}",
        inputs="float[4, 2] S",
        outputs="float loss, float[4, 2] W_new, float[4, 2] sum",
    )
    zeros = {"S": np.zeros((4, 2), np.float32)}
    assert not verified(model, {"sum": "W"}, feeds=zeros).notes
    found = verified(model, {"sum": "W"})
    assert found.ok, faults_of(found)
    assert len(found.notes) == 1


def test_a_loss_that_does_not_read_the_parameter_is_a_note() -> None:
    shifted = LOSS.replace("y = MatMul (x, W)", "both = Add (W, U) y = MatMul (x, both)")
    model = graph(f"{shifted} {SLOPE} {STEP}", inputs="float[4, 2] V, float[4, 2] U")
    found = verified(model, {"g": "V"})
    assert found.ok, faults_of(found)
    assert found.notes[-1].startswith("the loss does not read these parameters")


def test_master_weights_are_held_to_the_copy_that_the_loss_reads() -> None:
    body = "step = Mul (lr, g) M_new = Sub (M, step) W_new = Identity (M_new)"
    model = graph(
        f"{LOSS} {SLOPE} {body}",
        inputs="float[4, 2] M",
        outputs="float loss, float[4, 2] W_new, float[4, 2] M_new",
    )
    assert not verified(model, {"g": "M"}, slopes="strict").notes
    (fault,) = faults_of(verified(model, {"step": "M"}))
    assert "it is 0.1 times the slope of the loss by W" in fault


def test_other_scalar_outputs_are_not_taken_for_the_loss() -> None:
    more = "squares = Mul (g, g) norm = ReduceSum <keepdims = 0> (squares) next = Add (count, one)"
    model = graph(
        f"{LOSS} {SLOPE} {STEP} {more}",
        inputs="float count",
        outputs="float norm, float next, float loss, float[4, 2] W_new",
    )
    found = verified(model, {"g": "W"}, slopes="strict")
    assert found.ok, faults_of(found)
    assert not found.notes


NOT_CHECKED = "the meaning of the gradients was not checked: "


def test_without_a_clear_loss_it_is_said_why_and_what_to_do() -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}", outputs="float[4, 2] W_new")
    (note,) = verified(model, {"g": "W"}, slopes="strict").notes
    assert note.startswith(f"{NOT_CHECKED}which output is the loss? no output is a float scalar")
    assert "--loss" in note
    found = verified(model, {"step": "W"}, loss="loss")
    assert "it is 0.1 times the slope of the loss by W" in faults_of(found)[0]


def test_a_random_loss_is_a_note() -> None:
    noisy = LOSS.replace("ReduceMean", "ReduceSum").replace("loss =", "sum =")
    body = f"noise = RandomNormal <shape = [1]> () one_noise = Squeeze (noise) {noisy}"
    model = graph(f"{body} loss = Add (sum, one_noise) {SLOPE} {STEP}")
    (note,) = verified(model, {"g": "W"}).notes
    assert note.startswith(f"{NOT_CHECKED}two runs with the same feeds")


@pytest.mark.parametrize(
    ("file", "names"),
    [("loop_steps", "W_in_grad, b_in_grad"), ("function_whole_step", "weight_grad, bias_grad")],
)
def test_gradients_in_nested_graphs_are_a_note(file: str, names: str) -> None:
    model = onnx.load(MODELS / "control_flow" / f"{file}.onnx")
    found = verified(model, None)
    assert found.ok, faults_of(found)
    assert f"the meaning of gradients in nested graphs was not checked: {names}" in found.notes


def test_a_batch_size_inside_the_graph_is_a_note_where_the_size_is_made_up() -> None:
    """The loss is a mean over 18 elements, and 18 is a number of the backward pass."""
    model = onnx.load(MODELS / "in_graph" / "mixed_precision.onnx")
    found = verified(model, None, dims={"N": 6}, slopes="strict")
    assert found.ok, faults_of(found)
    assert not found.notes
    found = verified(model, None)
    assert found.ok, faults_of(found)
    (note,) = found.notes
    assert note.startswith("these are the slope of the loss times what changes with the sizes")
    assert note.endswith("dims=, --dim, or feeds): W_grad")
    (fault,) = faults_of(verified(model, None, dims={"N": 2}))
    assert "it is 0.3333 times the slope of the loss by W" in fault


def test_gradients_of_unrolled_steps_are_a_note() -> None:
    model = onnx.load(MODELS / "in_graph" / "two_steps.onnx")
    (note,) = verified(model, None).notes
    assert note.startswith(f"{NOT_CHECKED}which output is the loss?")  # the one is behind a step
    found = verified(model, None, loss="loss")
    assert found.ok, faults_of(found)
    (note,) = found.notes
    assert note.startswith("these gradients and the loss are of different steps")
    (note,) = verified(model, None, loss="loss_0").notes  # the first step is right
    assert note.endswith(": W_grad_1, b_grad_1")


def test_an_export_with_gradients_times_the_batch_size_is_wrong() -> None:
    """PyTorch 2.13, see models/README.md; the names are those of models/gradients.toml."""
    model = onnx.load(MODELS / "torch_grad" / "builtin_cross_entropy.onnx")
    found = verified(model, {"view_1": "b1", "view": "b2"})
    times = "it is 4 times the slope of the loss by "
    assert [row.faults[0][: len(times) + 2] for row in found.gradients] == [
        f"{times}b1",
        f"{times}b2",
    ]


# -- what it costs -----------------------------------------------------------------------------


def test_off_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(forward, "open_session", fail)
    monkeypatch.setattr(meaning, "check_slopes", fail)
    found = verified(graph(f"{LOSS} {SLOPE} {STEP}"), {"step": "W"}, slopes="off")
    assert found.ok, faults_of(found)
    assert not found.notes


def test_large_weights_are_a_note_unless_slopes_are_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}")
    # x, t and W are 24, 12 and 8 floats, the four numbers another four
    monkeypatch.setattr(forward, "_MOST_WEIGHTS", 4 * 48 - 1)
    (note,) = verified(model, {"step": "W"}).notes
    assert note.startswith(f"{NOT_CHECKED}weights and inputs are 0 MB, which are more than 0")
    assert not verified(model, {"step": "W"}, slopes="strict").ok
    monkeypatch.setattr(forward, "_MOST_WEIGHTS", 4 * 48)
    assert not verified(model, {"step": "W"}).ok


def test_what_does_not_fit_into_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}")
    monkeypatch.setattr(forward, "free_memory", lambda: 8 * 4 * 48 - 1)
    (note,) = verified(model, {"step": "W"}, slopes="strict").notes
    assert note.startswith(f"{NOT_CHECKED}that takes 0.0 GB of free memory (8 times")
    monkeypatch.setattr(forward, "free_memory", lambda: 8 * 4 * 48)
    assert not verified(model, {"step": "W"}).ok


def test_weights_in_files_of_their_own_are_loaded(tmp_path: Path) -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}")
    del model.graph.input[2]
    weight = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    path, target = tmp_path / "model.onnx", tmp_path / "clipped.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    arguments = ["rewrite", str(path), "-o", str(target), "--gradient", "step"]
    assert main(arguments) == 0
    assert main(["verify", str(path), str(target)]) == 1
    assert main(["verify", str(path), str(target), "--slopes", "off"]) == 0


# -- how it is asked for -----------------------------------------------------------------------


def test_unknown_words_and_losses_are_refused() -> None:
    model = graph(f"{LOSS} {SLOPE} {STEP}")
    with pytest.raises(OnnxClipError, match="slopes must be 'on' or 'strict' or 'off', not 'all'"):
        verified(model, {"g": "W"}, slopes="all")
    with pytest.raises(OnnxClipError, match="no node computes the loss 'cost'"):
        verified(model, {"g": "W"}, loss="cost")
    with pytest.raises(OnnxClipError, match="the loss 'square' is no float scalar"):
        verified(model, {"g": "W"}, loss="square")


def test_the_command_says_what_is_wrong_and_what_is_not_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / "model.onnx", tmp_path / "clipped.onnx"
    onnx.save(graph(f"{LOSS} {SLOPE} {STEP}"), path)
    rewrite = ["rewrite", str(path), "-o", str(target), "--gradient", "step", "--force"]
    assert main([*rewrite, "--verify"]) == 1
    assert main([*rewrite, "--verify", "--slopes", "off"]) == 0
    capsys.readouterr()
    assert main(["verify", str(path), str(target)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "wrong: gradient step: it is 0.1 times the slope of the loss by W" in out
    assert "WRONG: " in out
    onnx.save(graph(STRAIGHT), path)
    assert main([*rewrite[:4], "--gradient", "g", "--force"]) == 0  # W is the one of its shape
    capsys.readouterr()
    assert main(["verify", str(path), str(target), "--json"]) == 0
    streams = capsys.readouterr()
    (note,) = json.loads(streams.out)["notes"]
    assert note in streams.err.replace("\n", " ")
    assert main(["verify", str(path), str(target), "--slopes", "strict"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "a.onnx", "b.onnx", "--slopes", "all"],
        ["verify", "a.onnx", "b.onnx", "--slopes", "off", "--loss", "loss"],
        ["rewrite", "a.onnx", "--slopes", "strict"],
    ],
)
def test_options_that_say_nothing_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "--slopes" in capsys.readouterr().err
