"""Gradients found by meaning: what is paired, what is not, and the answer to each doubtful case."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import MODELS, Arrays, Entry, assert_identical, each, run

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, probe_gradients
from onnx_clip_pass.cli import main
from onnx_clip_pass.probe import Harness, Probing, probe
from onnx_clip_pass.progress import Progress
from onnx_clip_pass.runtime import make_feeds

pytest.importorskip("onnxruntime", reason="probing runs the model")

HEAD = "y = MatMul(x, W) yb = Add(y, b) e = Sub(yb, t) q = Mul(e, e)"
LOSS = f"{HEAD} loss = ReduceMean<keepdims=0>(q)"
BACK = "d = Mul(e, two) h = Div(d, twelve) xt = Transpose(x)"
GRADIENTS = f"{BACK} v1 = MatMul(xt, h) v2 = ReduceSum<keepdims=0>(h, zero)"
CONSTANTS = "float two = {2}, float twelve = {12}, int64[1] zero = {0}, float lr = {0.1}"
INPUTS = "float[6,4] x, float[6,2] t, float[4,2] W, float[2] b"


def graph(nodes: str, outputs: str, inputs: str = INPUTS, more: str = "") -> onnx.ModelProto:
    """The regression of t on x, with whatever `nodes` make of it."""
    initialized = ", ".join(filter(None, [CONSTANTS, more]))
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) '
        f"<{initialized}> {{ {nodes} }}"
    )


def pairs(found: Probing | list) -> list[tuple[str, str]]:
    gradients = found.gradients if isinstance(found, Probing) else found
    return sorted((g.name, g.parameter.name) for g in gradients)


def reason(found: Probing, parameter: str) -> str:
    return next(entry.reason for entry in found.undecided if entry.parameter == parameter)


def loss_of(model: onnx.ModelProto) -> str | None:
    return next((o.name for o in model.graph.output if "loss" in o.name), None)


def with_other_names(model: onnx.ModelProto, seed: int) -> dict[str, str]:
    """Give the outputs, but for the loss, names at random; old name to new."""
    rng = np.random.default_rng(seed)
    old = [o.name for o in model.graph.output if o.name != loss_of(model)]
    new = {
        name: f"value_{number}" for name, number in zip(old, rng.permutation(len(old)), strict=True)
    }
    for node in model.graph.node:
        for ports in (node.input, node.output):
            ports[:] = [new.get(port, port) for port in ports]
    for output in model.graph.output:
        output.name = new.get(output.name, output.name)
    return new


# -- models of others --------------------------------------------------------------------------


@each(lambda e: e.file.startswith(("torch_grad/", "jax_grad/")))
def test_pairs_each_gradient_that_pytorch_and_jax_export(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays
) -> None:
    found = probe_gradients(model, feeds=feeds, loss=model.graph.output[0].name)
    assert pairs(found) == sorted(entry.gradients)
    named = {gradient.name: gradient.parameter.name for gradient in found}
    clipped = clip_gradients(model, GradientClipByNorm(0.01), gradients=named)
    after = run(clipped, feeds, sorted(named))
    assert all(np.linalg.norm(value) == pytest.approx(0.01, rel=1e-4) for value in after.values())


@each(lambda e: e.file in ("torch_grad/mlp_mse.onnx", "onnx_ad/mlp_casadi_layout.onnx"))
def test_needs_no_feeds(entry: Entry, model: onnx.ModelProto) -> None:
    assert pairs(probe_gradients(model)) == sorted(entry.gradients)


@each(lambda e: e.file.startswith("onnx_ad/") and "mlp_sgd" not in e.file)
def test_pairs_each_gradient_whatever_it_is_called(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays
) -> None:
    new = with_other_names(model, seed=len(entry.file))
    true = sorted((new.get(gradient, gradient), p) for gradient, p in entry.gradients)
    assert pairs(probe_gradients(model, feeds=feeds, loss=loss_of(model))) == true


# Nothing fits: W_grad is an initializer; the loss of two steps has no gradient in its graph.
NOT_FOUND = ("in_graph/constant_gradient.onnx", "in_graph/two_steps.onnx")


WITHOUT_LOSS = ("inference_only", "optimizer_only", "weight_average_only")
runs = each(
    lambda e: (
        e.file.startswith(("in_graph/", "control_flow/", "onnx_ad/mlp_sgd"))
        and e.runtime == "onnxruntime"
        and not any(name in e.file for name in WITHOUT_LOSS)
    )
)


@runs
def test_among_all_inner_values_pairs_the_gradients_and_no_lookalike(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays
) -> None:
    loss = loss_of(model)
    new = with_other_names(model, seed=1) if loss else {}
    true = sorted((new.get(gradient, gradient), p) for gradient, p in entry.gradients)
    found = probe_gradients(model, feeds=feeds, loss=loss, inner=True)
    assert pairs(found) == ([] if entry.file in NOT_FOUND or any(entry.graphs) else true)


@runs
def test_among_outputs_alone_pairs_no_update_moment_or_average(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays
) -> None:
    outputs = {output.name for output in model.graph.output}
    found = pairs(probe_gradients(model, feeds=feeds, loss=loss_of(model)))
    assert set(found) <= {pair for pair in entry.gradients if pair[0] in outputs}


# -- which value -------------------------------------------------------------------------------

TRUE = [("v1", "W"), ("v2", "b")]


@pytest.mark.parametrize(
    "nodes",
    [
        "u1 = Mul(W, lr) v3 = Add(v1, u1)",  # decayed
        "small = Constant<value_float=0.0001>() u1 = Mul(W, small) v3 = Add(v1, u1)",
        "s = Mul(v1, lr) v3 = Sub(W, s)",  # updated
        "v3 = Mul(v1, lr)",
        "v3 = Mul(v1, v1)",
        "v3 = Neg(v1)",
        "most = Constant<value_float=0.01>() least = Neg(most) v3 = Clip(v1, least, most)",
    ],
)
def test_pairs_no_other_value_of_the_shape(nodes):
    model = graph(f"{LOSS} {GRADIENTS} {nodes}", "loss, float[4,2] v3, float[4,2] v1, float[2] v2")
    assert pairs(probe(model)) == TRUE
    model.graph.output.pop(2)
    assert pairs(probe(model)) == [("v2", "b")]


def test_a_step_alone_is_not_taken_for_a_scaled_gradient():
    nodes = f"{LOSS} {GRADIENTS} s1 = Mul(v1, lr) s2 = Mul(v2, lr)"
    found = probe(graph(nodes, "loss, float[4,2] s1, float[2] s2"))
    assert pairs(found) == []
    assert "'s1' is a multiple of 'v1'" in reason(found, "W")


def test_a_moment_that_starts_at_zero_is_no_gradient():
    inputs = f"{INPUTS}, float[4,2] m"
    model = graph(f"{LOSS} {GRADIENTS} m2 = Add(m, v1)", "loss, float[4,2] m2", inputs)
    found = probe(model, feeds={"m": np.zeros((4, 2), np.float32)})
    assert pairs(found) == []


# -- doubtful cases ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "inner", "which"),
    [
        ("float[4,2] v1, float[4,2] v3", False, "v1"),
        ("float[4,2] v4, float[4,2] v3, float[4,2] v1", False, "v1"),
        ("float[4,2] v4, float[4,2] v3", False, "v3"),
        ("float[4,2] v3", True, "v3"),  # the last before it need not be clipped: v3 is
    ],
)
def test_of_equal_values_on_one_way_the_last_counts_but_of_outputs_the_first(outputs, inner, which):
    """A clip at the first output is seen in the others, one at the last in no other."""
    model = graph(f"{LOSS} {GRADIENTS} v3 = Identity(v1) v4 = Identity(v3)", f"loss, {outputs}")
    assert (which, "W") in pairs(probe(model, inner=inner))
    clipped = clip_gradients(model, GradientClipByNorm(1e-3), gradients={which: "W"})
    for name, array in run(clipped, make_feeds(clipped)).items():
        if name != "loss":
            assert np.linalg.norm(array) == pytest.approx(1e-3, rel=1e-5)


def test_a_clip_that_does_not_act_ends_the_way():
    nodes = f"{LOSS} {GRADIENTS} most = Constant<value_float=1e9>() v3 = Clip(v1, , most)"
    assert pairs(probe(graph(nodes, "loss, float[4,2] v1, float[4,2] v3"))) == [("v1", "W")]


SUM = LOSS.replace("MatMul(x, W)", "MatMul(x, A)").replace("y = ", "A = Add(W, V) y = ")


def test_a_value_that_is_the_gradient_of_two_parameters_names_both():
    inputs = f"{INPUTS}, float[4,2] V"
    found = probe_gradients(graph(SUM + GRADIENTS, "loss, float[4,2] v1", inputs))
    assert pairs(found) == [("v1", "V"), ("v1", "W")]
    assert "also the gradient of 'V'" in found[0].evidence


def test_a_gradient_and_its_alias_are_those_of_the_two_parameters_that_share_it():
    nodes = f"{SUM} {GRADIENTS} v3 = Identity(v1)"
    inputs = f"{INPUTS}, float[4,2] V"
    found = probe_gradients(graph(nodes, "loss, float[4,2] v1, float[4,2] v3", inputs))
    assert pairs(found) == [("v1", "W"), ("v3", "V")]


def test_equal_gradients_of_two_parameters_are_told_apart_by_order_and_say_so():
    nodes = f"{SUM} {GRADIENTS} g1 = Identity(v1) g2 = Identity(v1)"
    inputs = f"{INPUTS}, float[4,2] V"
    found = probe_gradients(graph(nodes, "loss, float[4,2] g2, float[4,2] g1", inputs))
    assert pairs(found) == [("g1", "V"), ("g2", "W")]
    assert all("told apart by name or order" in gradient.evidence for gradient in found)


def test_a_gradient_of_zero_proves_nothing():
    nodes = f"{LOSS} {GRADIENTS} n = Mul(U, none) k = ReduceSum<keepdims=0>(n) total = Add(loss, k)"
    model = graph(
        f"{nodes} v3 = Mul(U, none)",
        "float total, float[4,2] v1, float[3,3] v3",
        f"{INPUTS}, float[3,3] U",
        "float none = {0}",
    )
    found = probe(model)
    assert pairs(found) == [("v1", "W")]
    assert "its gradient is zero" in reason(found, "U")


def test_a_factor_counts_if_it_is_that_of_every_parameter():
    found = probe_gradients(MODELS / "torch_grad" / "builtin_cross_entropy.onnx")
    assert len(found) == 4
    assert all("times 4" in gradient.evidence for gradient in found)
    assert ["transposed" in g.evidence for g in found] == [len(g.shape or ()) == 2 for g in found]


def test_two_factors_are_a_question():
    nodes = LOSS + GRADIENTS.replace("MatMul(xt, h)", "MatMul(xt, e)")
    found = probe(
        graph(nodes.replace("(h, zero)", "(d, zero)"), "loss, float[4,2] v1, float[2] v2")
    )
    assert pairs(found) == []
    assert "no single factor" in reason(found, "W")


def test_a_value_that_the_loss_is_computed_from_is_no_gradient():
    half = "half = Constant<value_float=0.5>() s = ReduceSum<keepdims=0>(q) loss = Mul(s, half)"
    head = HEAD.replace("yb = Add(y, b)", "yb = Add(y, B)")  # here the slope by B is e itself
    inputs = INPUTS.replace("float[2] b", "float[6,2] B")
    assert pairs(probe(graph(f"{head} {half}", "loss, float[6,2] e", inputs))) == []


def test_a_kink_at_the_given_point_is_left():
    nodes = LOSS.replace("yb = Add(y, b)", "z = Add(y, b) yb = Relu(z)") + BACK
    nodes += " p = Constant<value_float=0.0>() on = Greater(z, p) one = Cast<to=1>(on)"
    nodes += " m = Mul(h, one) v2 = ReduceSum<keepdims=0>(m, zero)"
    feeds = {"x": np.zeros((6, 4), np.float32), "b": np.zeros(2, np.float32)}
    assert pairs(probe(graph(nodes, "loss, float[2] v2"), feeds=feeds)) == [("v2", "b")]


def test_an_input_that_alone_has_its_symbols_is_fed_in_any_size():
    """Symbols that no other input has may be those of a seed, which has size 1."""
    nodes = "y = Mul(x, w) q = Mul(y, y) loss = ReduceSum<keepdims=0>(q) xx = Mul(x, x)"
    nodes += " s = ReduceSum<keepdims=0>(xx) sw = Mul(s, w) v = Mul(sw, two)"
    model = graph(nodes, "float loss, float[1] v", "float[L,N] x, float[1] w")
    feeds = {"x": np.ones((3, 2), np.float32), "w": np.array([0.5], np.float32)}
    assert pairs(probe(model, feeds=feeds)) == [("v", "w")]


def test_randomness_is_an_error():
    noise = "n = RandomNormalLike(e0) e = Add(e0, n)"
    nodes = LOSS.replace("e = Sub(yb, t)", f"e0 = Sub(yb, t) {noise}") + GRADIENTS
    with pytest.raises(OnnxClipError, match="something in the graph is random"):
        probe(graph(nodes, "loss, float[4,2] v1"))


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_feeds_that_give_no_finite_loss_are_told(bad):
    feeds = {"x": np.full((6, 4), float(bad), np.float32)}
    with pytest.raises(OnnxClipError, match=r"the loss 'loss' is (nan|inf) with these feeds"):
        probe(graph(LOSS + GRADIENTS, "loss, float[4,2] v1"), feeds=feeds)


@pytest.mark.parametrize(
    ("outputs", "loss", "message"),
    [
        ("float[6,2] q", None, r"no output is a float scalar.*'q' \[6, 2\]"),
        ("float other, float total", None, "several outputs are a float scalar"),
        ("float[6,2] q", "loss2", "no node computes the loss 'loss2'"),
        ("float[6,2] q", "q", "'q' is no float scalar"),
    ],
)
def test_a_loss_that_is_not_clear_is_an_error(outputs, loss, message):
    model = graph(f"{LOSS} other = Neg(loss) total = Neg(other)", outputs)
    with pytest.raises(OnnxClipError, match=message):
        probe(model, loss=loss)


def test_data_are_left_out_unless_they_are_named():
    nodes = f"{LOSS} {GRADIENTS} wt = Transpose(W) v0 = MatMul(h, wt)"
    model = graph(nodes, "loss, float[4,2] v1, float[6,4] v0")
    assert pairs(probe(model)) == [("v1", "W")]
    assert "taken for data" in reason(probe(model), "x")
    assert pairs(probe(model, data=("x",))) == [("v0", "x"), ("v1", "W")]
    with pytest.raises(OnnxClipError, match="'z' is neither"):
        probe(model, data=("z",))


def test_holds_few_values_at_a_time_and_tells_its_progress():
    model, told = graph(LOSS + GRADIENTS, "loss, float[4,2] v1, float[2] v2"), []
    found = probe(model, inner=True, most_bytes=1, progress=told.append)
    assert pairs(found) == TRUE
    assert told[-1] == Progress("taking slopes of loss", 2, 2, "parameters")


# -- the command line --------------------------------------------------------------------------


def test_rewrite_and_inspect_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(MODELS / "jax_grad" / "gated.onnx")
    onnx.save(model, tmp_path / "m.onnx")
    feeds = str(MODELS / "jax_grad" / "gated.inputs.npz")
    options = [str(tmp_path / "m.onnx"), "--probe", "--feeds", feeds, "--json"]
    assert main(["inspect", *options]) == 2
    assert "name it with loss= (--loss)" in capsys.readouterr().err
    options += ["--loss", "reducesum_out_0"]
    assert main(["inspect", *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["gradients"]) == 4
    assert main(["rewrite", *options, "--clip-norm", "0.1"]) == 0
    named = {
        g["gradient"]: g["parameter"] for g in json.loads(capsys.readouterr().out)["gradients"]
    }
    inputs = dict(np.load(feeds))
    by_hand = clip_gradients(model, GradientClipByNorm(0.1), gradients=named)
    assert_identical(run(onnx.load(tmp_path / "m.clipped.onnx"), inputs), run(by_hand, inputs))
    assert main(["rewrite", options[0], "--loss", "reducesum_out_0"]) == 2
    assert "add --probe" in capsys.readouterr().err


def test_rewrite_tells_the_evidence_of_the_probe(tmp_path, capsys) -> None:
    model = str(MODELS / "torch_grad" / "mlp_mse.onnx")
    assert main(["inspect", model, "--probe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["gradients"]
    target = str(tmp_path / "clipped.onnx")
    assert main(["rewrite", model, "-o", target, "--probe", "--json"]) == 0
    rewritten = json.loads(capsys.readouterr().out)["gradients"]
    assert [each["evidence"] for each in rewritten] == [each["evidence"] for each in found]
    assert "slopes of" in found[0]["evidence"]


def test_inner_is_advised_unless_it_is_given(tmp_path, capsys) -> None:
    path = str(tmp_path / "m.onnx")
    onnx.save(graph(LOSS + GRADIENTS, "loss"), path)
    assert main(["rewrite", path, "--probe"]) == 2
    err = capsys.readouterr().err
    assert "inner=True (--inner) looks inside the graph too" in err
    assert err.count("name it with --data") == 1
    assert err.count("taken for data") == 3  # x, t and that hint
    onnx.save(graph(LOSS, "loss"), path)
    assert main(["rewrite", path, "--probe", "--inner"]) == 2
    assert "inner=True" not in capsys.readouterr().err


def test_a_model_with_many_outputs_is_not_listed_in_full(tmp_path, capsys) -> None:
    outputs = [f"y{number}" for number in range(400)]
    nodes = " ".join(f"{name} = Neg(x)" for name in outputs)
    declared = ", ".join(f"float[2] {name}" for name in outputs)
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => ({declared}) {{ {nodes} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx"), "--probe"]) == 2
    err = capsys.readouterr().err
    assert "and 390 more" in err
    assert len(err) < 500


# -- what can be moved, and in which precision ------------------------------------------------


def parsed(inputs: str, outputs: str, nodes: str, constants: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => ({outputs}) '
        f"{f'<{constants}>' if constants else ''} {{ {nodes} }}"
    )


def test_erf_is_computed_in_double_precision() -> None:
    """loss = sum(x * erf(W)), whose slope by W is x * 2 / sqrt(pi) * exp(-W^2)."""
    nodes = (
        "f = Erf(W) p = Mul(x, f) loss = ReduceSum<keepdims=0>(p) s = Mul(W, W) n = Neg(s) "
        "e = Exp(n) k = Constant<value_float=1.1283791670955126>() ke = Mul(e, k) g = Mul(x, ke)"
    )
    found = probe(parsed("float[5] x, float[5] W", "float loss, float[5] g", nodes), data=("W",))
    assert ("g", "W") in pairs(found)
    evidence = next(g.evidence for g in found.gradients if g.parameter.name == "W")
    assert float(evidence.rpartition("within ")[2]) < 1e-5


def test_an_operator_without_a_double_kernel_stays_in_single_precision_alone() -> None:
    """loss = mean((Conv(x, W) - t)^2): the gradient is Conv(x, d), here laid out in one row."""
    nodes = (
        "y = Conv(x, W) d0 = Sub(y, t) q = Mul(d0, d0) loss = ReduceMean<keepdims=0>(q) "
        "d = Mul(d0, two) d9 = Div(d, nine) dk = Reshape(d9, kernel) g0 = Conv(x, dk) "
        "g = Reshape(g0, row)"
    )
    constants = "float two = {2}, float nine = {9}, int64[4] kernel = {1, 1, 3, 3}, "
    constants += "int64[2] row = {9, 1}"
    inputs = "float[1,1,5,5] x, float[1,1,3,3] t, float[1,1,3,3] W"
    model = parsed(inputs, "float loss, float[9,1] g", nodes, constants)
    found = probe(model)
    assert pairs(found) == [("g", "W")]
    assert "reshaped" in found.gradients[0].evidence
    harness = Harness(model, make_feeds(model), "loss", "cpu")
    assert harness.is_double
    assert 1e-15 < harness.noise / harness.loss_at(harness.point(0).feeds) < 1e-5


def test_the_statistics_of_layer_normalization_may_be_read() -> None:
    """loss = sum of x/deviation * W: only the third output of the normalization is read."""
    nodes = (
        "y, mean, inverse = LayerNormalization(x, ones) p = Mul(x, inverse) "
        "g = ReduceSum<keepdims=0>(p, zero) s = Mul(g, W) loss = ReduceSum<keepdims=0>(s)"
    )
    constants = "float[3] ones = {1, 1, 1}, int64[1] zero = {0}"
    more = " twice = Add(g, g) half = Constant<value_float=0.5>() v = Mul(twice, half)"
    model = parsed("float[4,3] x, float[3] W", "float loss, float[3] v", nodes + more, constants)
    harness = Harness(model, make_feeds(model), "loss", "cpu")
    ((_, values),) = harness.values(["mean", "v"], [harness.point(0)])
    assert (values["mean"].dtype, values["v"].dtype) == (np.float64, np.float64)
    assert ("v", "W") in pairs(probe(model))


def test_constants_that_become_integers_are_not_moved() -> None:
    """Rows 0 and 2 of x are taken: moved by a hundredth, `step` would be 1 or fail."""
    nodes = (
        "a = Cast<to=7>(start) b = Cast<to=7>(stop) c = Cast<to=7>(step) r = Range(a, b, c) "
        "xs = Gather(x, r) y = MatMul(xs, W) loss = ReduceSum<keepdims=0>(y) "
        "g0 = ReduceSum<keepdims=0>(xs, zero) g = Unsqueeze(g0, one)"
    )
    constants = "float start = {0}, float stop = {4}, float step = {2}, "
    constants += "int64[1] zero = {0}, int64[1] one = {1}"
    model = parsed("float[4,3] x, float[3,1] W", "float loss, float[3,1] g", nodes, constants)
    found = probe(model)
    assert pairs(found) == [("g", "W")]
    assert set(Harness(model, make_feeds(model), "loss", "cpu").parameters) == {"W", "x"}


def test_a_constant_with_which_the_model_does_not_run_is_left_out_alone() -> None:
    """Scales of 2 make 4 of 2 columns; a little less makes 3, which t does not fit."""
    nodes = (
        "up = Resize(W, , scales) e = Sub(up, t) q = Mul(e, e) loss = ReduceSum<keepdims=0>(q) "
        "d = Mul(e, two) d2 = Reshape(d, pairs) g0 = ReduceSum<keepdims=0>(d2, last) "
        "g = Reshape(g0, row) h = Identity(scales)"
    )
    constants = "float[2] scales = {1, 2}, float two = {2}, int64[3] pairs = {1, 2, 2}, "
    constants += "int64[1] last = {2}, int64[2] row = {1, 2}"
    outputs = "float loss, float[1,2] g, float[2] h"
    found = probe(parsed("float[1,2] W, float[1,4] t", outputs, nodes, constants), data=("W",))
    assert pairs(found) == [("g", "W")]
    assert "does not run when it is moved" in reason(found, "scales")


def test_a_weight_may_be_the_first_operand_of_einsum() -> None:
    """loss = sum over b, i of (W x_b)_i: each row of the gradient is the sum of all x_b."""
    nodes = (
        'h = Einsum<equation="ij,bj->bi">(W, x) loss = ReduceSum<keepdims=0>(h) '
        "s = ReduceSum<keepdims=1>(x, zero) g = Expand(s, shape)"
    )
    constants = "int64[1] zero = {0}, int64[2] shape = {2, 3}"
    found = probe(
        parsed("float[2,3] W, float[5,3] x", "float loss, float[2,3] g", nodes, constants)
    )
    assert pairs(found) == [("g", "W")]


def test_a_parameter_under_adam_with_decay_is_a_parameter() -> None:
    """The first moment consumes v1 + 0.1 W, which makes W look like a moment itself."""
    nodes = (
        "k = Mul(W, lr) c = Add(v1, k) d1 = Sub(c, m) a = Mul(d1, lr) m2 = Add(m, a) "
        "u = Mul(m2, lr) W2 = Sub(W, u)"
    )
    outputs = "loss, float[4,2] m2, float[4,2] W2"
    model = graph(f"{LOSS} {GRADIENTS} {nodes}", outputs, f"{INPUTS}, float[4,2] m")
    assert pairs(probe(model, inner=True)) == [*TRUE[:1], TRUE[1]]


def test_no_warning_of_numpy_reaches_the_user() -> None:
    nodes = f"{LOSS} {GRADIENTS} none = Sub(W, W) inf = Log(none) nan = Sub(inf, inf)"
    outputs = "loss, float[4,2] inf, float[4,2] nan, float[4,2] v1, float[2] v2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pairs(probe(graph(nodes, outputs))) == TRUE
