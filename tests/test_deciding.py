"""The slopes of the loss decide between candidates, and check what is recorded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_clip_pass import (
    GradientClipByNorm,
    OnnxClipError,
    clip_gradients,
    probe_gradients,
    strip,
)
from onnx_clip_pass.probe.deciding import Decision, SlopeCheck, check_slopes, decide
from onnx_clip_pass.probe.harness import Harness
from onnx_clip_pass.probe.search import _Measured, _multiples, _Said
from onnx_clip_pass.probe.slopes import Slope
from onnx_clip_pass.record import read_record

pytest.importorskip("onnxruntime", reason="slopes come from running the model")

# loss = mean((x W + b - t)^2) over 12 numbers: d = (x W + b - t) / 6, v1 = x' d, v2 = sum of d
STEP = """
    y = MatMul(x, W) yb = Add(y, b) e = Sub(yb, t) q = Mul(e, e) loss = ReduceMean<keepdims=0>(q)
    six = Constant<value_float=6.0>() d = Div(e, six) xt = Transpose(x)
    v1 = MatMul(xt, d) v2 = ReduceSum<keepdims=0>(d, zero)
"""
INPUTS = "float[6,4] x, float[6,2] t, float[4,2] W, float[2] b"


def graph(
    nodes: str = "", inputs: str = "", outputs: str = "float loss", step: str = STEP
) -> onnx.ModelProto:
    taken = ", ".join(filter(None, [INPUTS, inputs]))
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({taken}) => ({outputs}) '
        f"<int64[1] zero = {{0}}, float lr = {{0.1}}> {{ {step} {nodes} }}"
    )


def chosen(found: dict[str, Decision]) -> dict[str, str | None]:
    return {parameter: decision.gradient for parameter, decision in found.items()}


# -- which candidate ---------------------------------------------------------------------------

SEGMENTS = {
    "a rate": ("c1 = Mul(v1, lr) c2 = Mul(v2, lr)", ""),
    "a sign": ("c1 = Neg(v1) c2 = Neg(v2)", ""),
    "decay": ("k1 = Mul(W, lr) c1 = Add(v1, k1) k2 = Mul(b, lr) c2 = Add(v2, k2)", ""),
    "moments that are zero": ("c1 = Add(v1, m1) c2 = Add(v2, m2)", "float[4,2] m1, float[2] m2"),
    "a rate that is one": ("c1 = Mul(v1, r) c2 = Mul(v2, r)", "float r"),
}


@pytest.mark.parametrize("segment", SEGMENTS)
def test_the_gradient_is_told_from_what_an_update_makes_of_it(segment: str) -> None:
    nodes, inputs = SEGMENTS[segment]
    zeros = {"m1": np.zeros((4, 2), np.float32), "m2": np.zeros(2, np.float32)}
    feeds = {name: array for name, array in zeros.items() if name in inputs}
    if "r" in inputs.split():
        feeds["r"] = np.ones((), np.float32)
    model = graph(nodes, inputs)
    found = decide(model, {"W": ["v1", "c1"], "b": ["v2", "c2"]}, feeds=feeds)
    assert chosen(found) == {"W": "v1", "b": "v2"}
    assert all(decision.factor == 1 and decision.error < 1e-3 for decision in found.values())
    assert "the slope of 'loss' along it is its own norm within" in found["W"].reason


def test_parameters_that_are_zero_hide_no_decay() -> None:
    nodes = "k1 = Mul(W, lr) c1 = Add(v1, k1) k2 = Mul(b, lr) c2 = Add(v2, k2)"
    feeds = {"b": np.zeros(2, np.float32), "W": np.ones((4, 2), np.float32)}
    found = decide(graph(nodes), {"W": ["v1", "c1"], "b": ["v2", "c2"]}, feeds=feeds)
    assert chosen(found) == {"W": "v1", "b": "v2"}


def test_a_state_that_is_a_zero_initializer_hides_no_moment() -> None:
    model = graph("a1 = Identity(v1) m2 = Add(m, a1)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 2), np.float32), "m"))
    assert chosen(decide(model, {"W": ["v1", "a1", "m2"]})) == {"W": "a1"}


def test_the_gradient_may_be_the_later_candidate_of_some() -> None:
    nodes = "six2 = Constant<value_float=6.0>() h1 = Mul(v1, six2) c1 = Div(h1, six2)"
    model = graph(f"{nodes} c2 = Mul(v2, lr)")
    assert chosen(decide(model, {"W": ["h1", "c1"], "b": ["v2", "c2"]})) == {"W": "c1", "b": "v2"}


def test_of_equal_candidates_the_last_is_named() -> None:
    model = graph("a1 = Identity(v1) s1 = Mul(a1, lr)")
    assert chosen(decide(model, {"W": ["v1", "a1", "s1"]})) == {"W": "a1"}


def test_a_part_of_the_gradient_is_no_candidate_that_fits() -> None:
    """W is used twice; each use has a gradient, and their sum is that of W."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x, float[3] W) => (float loss) {'
        "a = Mul(W, x) b = Mul(W, W) s = Add(a, b) loss = ReduceSum<keepdims=0>(s)"
        "two = Constant<value_float=2.0>() u2 = Mul(W, two) u1 = Identity(x) g = Add(u1, u2) }"
    )
    assert chosen(decide(model, {"W": ["u1", "u2", "g"]})) == {"W": "g"}
    found = decide(model, {"W": ["u1", "u2"]})["W"]
    assert found.gradient is None
    assert found.reason == "no candidate is parallel to the slope of 'loss'"


def test_a_gradient_of_one_element_and_one_with_other_dimensions() -> None:
    model = graph("flat = Reshape(v1, long) s = Mul(flat, lr)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([8, 1]), "long"))
    assert chosen(decide(model, {"W": ["flat", "s"]})) == {"W": "flat"}
    single = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x, float[1] W) => (float loss) {'
        "a = Mul(W, x) loss = ReduceSum<keepdims=0>(a) g = ReduceSum(x) n = Neg(g) }"
    )
    assert chosen(decide(single, {"W": ["g", "n"]})) == {"W": "g"}


# -- factors -----------------------------------------------------------------------------------

SCALED = "h = Mul(d, scale) s1 = MatMul(xt, h) s2 = ReduceSum<keepdims=0>(h, zero)"


def test_a_seed_of_the_backward_pass_scales_all_gradients() -> None:
    model = graph(f"{SCALED} n1 = Mul(s1, lr) n2 = Mul(s2, lr)", "float scale")
    feeds = {"scale": np.array(1024, np.float32)}
    found = decide(model, {"W": ["s1", "n1"], "b": ["s2", "n2"]}, feeds=feeds)
    assert chosen(found) == {"W": "s1", "b": "s2"}
    assert {decision.factor for decision in found.values()} == {1024}
    assert "as input 'scale' makes it" in found["W"].reason


def test_what_undoes_the_seed_is_the_gradient() -> None:
    model = graph(f"{SCALED} n1 = Div(s1, scale) n2 = Div(s2, scale)", "float scale")
    found = decide(model, {"W": ["s1", "n1"], "b": ["s2", "n2"]})
    assert chosen(found) == {"W": "n1", "b": "n2"}


def test_a_rate_behind_a_multiple_is_not_taken_for_a_seed() -> None:
    nodes = "two = Constant<value_float=2.0>() c1 = Mul(v1, two) n1 = Mul(v1, rate)"
    found = decide(graph(nodes, "float rate"), {"W": ["c1", "n1"]})
    assert found["W"].gradient is None  # n1 is `rate` times the slope, but c1 stands before it
    assert "'c1' is 2 times the slope of 'loss'; 'n1' is" in found["W"].reason


def test_a_factor_that_no_input_explains_is_told_and_left() -> None:
    found = decide(graph("c1 = Mul(v1, lr) n1 = Neg(c1)"), {"W": ["c1", "n1"]})
    assert found["W"].gradient is None
    assert "'c1' is 0.1 times the slope of 'loss'; 'n1' is -0.1 times" in found["W"].reason


def test_a_factor_must_be_that_of_all() -> None:
    model = graph(SCALED, "float scale")
    feeds = {"scale": np.array(8, np.float32)}
    found = decide(model, {"W": ["s1"], "b": ["v2"]}, feeds=feeds)
    assert chosen(found) == {"W": None, "b": "v2"}
    assert "but other gradients have another factor" in found["W"].reason


# -- what is not decided -----------------------------------------------------------------------


def test_a_slope_of_zero_says_nothing() -> None:
    feeds = {"x": np.zeros((6, 4), np.float32)}
    found = decide(graph("c1 = Neg(v1)"), {"W": ["v1", "c1"]}, feeds=feeds)
    assert found["W"].gradient is None
    assert "no candidate has its size and is finite and other than zero" in found["W"].reason
    model = graph("none = Mul(lr, e) z = MatMul(xt, none)")
    model.graph.node[0].input[1] = "U"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 2), np.float32), "U"))
    found = decide(model, {"W": ["v1"], "b": ["v2"]})
    assert found["b"].gradient == "v2"
    assert found["W"].reason == "the loss 'loss' does not depend on it"


@pytest.mark.parametrize(
    ("questions", "loss", "message"),
    [
        ({"W": ["v1", "v7"]}, None, "'v7' is no value of the main graph"),
        ({"V": ["v1"]}, "loss", "'V' is neither"),
        ({"W": ["v1"]}, "q", "the loss 'q' is no float scalar"),
        ({"W": ["v1"]}, "l", "no node computes the loss 'l'"),
    ],
)
def test_unknown_names_are_errors(questions, loss, message) -> None:
    with pytest.raises(OnnxClipError, match=message):
        decide(graph(), questions, loss=loss)


def test_the_loss_is_the_scalar_that_is_computed_from_no_candidate() -> None:
    nodes = "n = ReduceL2<keepdims=0>(v1) t2 = Add(lr, lr)"
    model = graph(nodes, outputs="float n, float t2, float loss")
    assert chosen(decide(model, {"W": ["v1"]})) == {"W": "v1"}
    with pytest.raises(OnnxClipError, match="no output is a float scalar that depends on"):
        decide(graph(nodes, outputs="float n, float t2"), {"W": ["v1"]})


# -- how many runs, and how exactly ------------------------------------------------------------


def test_many_parameters_take_no_more_runs_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    loss_at = Harness.loss_at
    monkeypatch.setattr(Harness, "loss_at", lambda *taken: runs.append(1) or loss_at(*taken))
    counts = []
    for many in (2, 40):
        names = range(many)
        # loss = sum over i of sum(W_i * W_i): its gradient is 2 W_i
        squares = [f"q{i} = Mul(W{i}, W{i}) l{i} = ReduceSum<keepdims=0>(q{i})" for i in names]
        steps = [f"g{i} = Mul(W{i}, two) s{i} = Mul(g{i}, lr)" for i in names]
        weights = ", ".join(f"float[{i + 2}] W{i}" for i in names)
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g ({weights}) => (float loss) '
            f"<float two = {{2}}, float lr = {{0.1}}> {{ {' '.join([*squares, *steps])} "
            f"loss = Sum({', '.join(f'l{i}' for i in names)}) }}"
        )
        runs.clear()
        found = decide(model, {f"W{i}": [f"g{i}", f"s{i}"] for i in names})
        assert chosen(found) == {f"W{i}": f"g{i}" for i in names}
        counts.append(len(runs))
    assert counts[0] == counts[1] < 40


def test_a_loss_in_single_precision_decides_what_its_noise_allows() -> None:
    """Erf has no kernel in double precision on the CPU; here it adds nothing, but noise stays."""
    quiet = "y0 = Add(y, b) f = Erf(y0) k = Sub(f, f) yb = Add(y0, k)"
    model = graph("c1 = Mul(v1, lr) c2 = Mul(v2, lr)", step=STEP.replace("yb = Add(y, b)", quiet))
    found = decide(model, {"W": ["v1", "c1"], "b": ["v2", "c2"]})
    assert chosen(found) == {"W": "v1", "b": "v2"}


# -- checking ----------------------------------------------------------------------------------


def test_gradients_that_are_right_have_the_factor_one() -> None:
    checks = check_slopes(graph(), {"v1": "W", "v2": "b"})
    assert [(c.gradient, c.parameter, c.factor, c.orthogonal) for c in checks] == [
        ("v1", "W", 1.0, 0.0), ("v2", "b", 1.0, 0.0),
    ]  # fmt: skip
    assert all(check.error < 1e-3 for check in checks)


def test_a_multiple_tells_its_factor_and_no_other_direction() -> None:
    model = graph("c1 = Mul(v1, lr) c2 = Neg(v2)")
    checks = check_slopes(model, {"c1": "W", "c2": "b", "v2": "b"})
    assert [check.factor for check in checks] == pytest.approx([0.1, -1, 1], rel=1e-5)
    assert [check.orthogonal for check in checks] == [0, 0, 0]


def test_another_direction_shows() -> None:
    """c = v1 + k with k orthogonal to v1 and as long: the slope lies at 45 degrees to it."""
    nodes = "flip = Transpose(turn) k = MatMul(v1, flip) c = Add(v1, k)"
    model = graph(nodes)
    turn = np.array([[0, 1], [-1, 0]], np.float32)  # turns each row by 90 degrees
    model.graph.initializer.append(onnx.numpy_helper.from_array(turn, "turn"))
    (check,) = check_slopes(model, {"c": "W"})
    assert check.factor == pytest.approx(2)  # |c|^2 / <v1, c> = 2 |v1|^2 / |v1|^2
    assert 0.1 < check.orthogonal < 0.99
    assert isinstance(check, SlopeCheck)


# -- no candidate at all -----------------------------------------------------------------------


def test_a_graph_that_tells_of_no_gradient_is_searched_if_it_may_be_run() -> None:
    model = graph(outputs="float loss, float[4,2] v1, float[2] v2")
    with pytest.raises(OnnxClipError, match="no gradients found"):
        clip_gradients(model, GradientClipByNorm(1.0))
    clipped = clip_gradients(model, GradientClipByNorm(1.0), probe=True)
    record = read_record(clipped)
    assert record is not None
    assert record.named == {"v1": "W", "v2": "b"}
    again = clip_gradients(clipped, GradientClipByNorm(2.0), probe=True)
    assert strip(again) == model


def test_a_search_leaves_nothing_out_in_silence() -> None:
    """`v2` is twice the gradient of b, and fits nothing else: it may have been meant for it."""
    step = STEP.replace("v2 = ReduceSum<keepdims=0>(d, zero)", "") + (
        " two = Constant<value_float=2.0>() s = ReduceSum<keepdims=0>(d, zero) v2 = Mul(s, two)"
    )
    model = graph(outputs="float loss, float[4,2] v1, float[2] v2", step=step)
    with pytest.raises(OnnxClipError, match="tell the gradients of 'W', but not of all") as caught:
        clip_gradients(model, GradientClipByNorm(1.0), probe=True)
    assert "'b': no value fits its slopes" in str(caught.value)
    record = read_record(clip_gradients(model, GradientClipByNorm(1.0), probe=True, partial=True))
    assert record is not None
    assert record.named == {"v1": "W"}


def test_a_search_that_cannot_run_the_model_says_why() -> None:
    model = graph(outputs="float[4,2] v1, float[2] v2")
    with pytest.raises(OnnxClipError, match="which output is the loss") as refused:
        clip_gradients(model, GradientClipByNorm(1.0), probe=True)
    assert "or name them with --gradient" in str(refused.value)


def test_a_loss_that_stands_still_along_a_mixture_tells_of_no_multiple() -> None:
    said = [_Said("g", "same", 0.5, 1e-9)]
    moves, stands = (_Measured(said, Slope(value, 1e-9)) for value in (0.25, 0.0))
    for pair in ((moves, stands), (stands, moves)):
        assert _multiples(*pair, is_telling=True) == []
    (found,) = _multiples(moves, moves, is_telling=True)
    assert found.factor == 2


def test_masks_do_not_drown_slopes_in_noise() -> None:
    """A causal mask adds -1e9 to what is not to be seen; moved by a part of itself it stays so."""
    step = """
        y = MatMul(x, W) s = Add(y, mask) p = Softmax(s) e = Sub(p, t) q = Mul(e, e)
        loss = ReduceSum<keepdims=0>(q)
        two = Constant<value_float=2.0>() d = Mul(e, two) m = Mul(d, p)
        axes = Constant<value_ints=[1]>() n = ReduceSum(m, axes) o = Mul(p, n) f = Sub(m, o)
        xt = Transpose(x) v1 = MatMul(xt, f)
    """
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[6,4] x, float[6,3] t, float[4,3] W)'
        " => (float loss, float[4,3] v1)"
        f"<float[1,3] mask = {{0.0, 0.0, -1000000000.0}}> {{ {step} }}"
    )
    (found,) = probe_gradients(model)
    assert (found.name, found.parameter.name) == ("v1", "W")
