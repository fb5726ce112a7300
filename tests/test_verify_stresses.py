"""Verification of what the feeds alone do not show: bounds, policies, inputs with defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import parse
from judged import faults_of
from onnx import numpy_helper
from random_graphs import Layer, Plan

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    Rule,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.verification import verify
from onnx_clip_pass.verification.tolerance.compare import output_fault

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")


PLAIN = "net (float[3] x) => (float[3] y) { g = Identity (x) y = Neg (g) }"
X = np.array([0.1, 0.2, 0.3], np.float32)


# -- each bound --------------------------------------------------------------------------------


@pytest.mark.parametrize("op_type", ["Min", "Max"])
@pytest.mark.parametrize(
    "clip",
    [
        GradientClipByValue(5.0, -0.05),
        GradientClipByValue(0.05, -5.0),
        GradientClipByValue(0.05),
        Chain(GradientClipByNorm(9.0), GradientClipByValue(5.0, -5.0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_bound_that_is_missing_is_noticed_on_either_side(
    op_type: str, clip: Clip, sign: int
) -> None:
    """The gradient has elements of one sign only, so it has to be negated to get beyond both."""
    model = parse(PLAIN)
    rewritten = clip_gradients(model, clip, gradients=["g"])
    found = verify(model, rewritten, feeds={"x": sign * X})
    assert found.ok, faults_of(found)
    last = [node for node in rewritten.graph.node if node.op_type == op_type][-1]
    last.op_type = "Identity"
    del last.input[1:]
    assert not verify(model, rewritten, feeds={"x": sign * X}).ok


def test_a_side_that_has_no_bound_is_not_missed() -> None:
    model = parse(PLAIN)
    rewritten = clip_gradients(model, GradientClipByValue(math.inf, -0.05), gradients=["g"])
    found = verify(model, rewritten, feeds={"x": X})
    assert found.ok, faults_of(found)
    assert found.gradients[0].acted


# -- gradients with nan ------------------------------------------------------------------------

LOOP = """net (int64 n, bool c, float[3] w) => (float[3] w_end) {
    w_end = Loop <body = step (int64 i, bool on, float[3] v) => (bool on2, float[3] v_new) {
        v_grad = Mul (v, v) on2 = Identity (on) v_new = Sub (v, v_grad)
    }> (n, c, w)
}"""


@pytest.mark.parametrize("policy", ["zero", "keep"])
@pytest.mark.parametrize(
    ("body", "named"),
    [
        (PLAIN, "g"),
        (LOOP, "v_grad"),
        ("net (float[3] g) => (float[3] y) { y = Neg (g) }", "g"),
        ("net (float16[3] x) => (float16[3] y) { g = Neg (x) y = Neg (g) }", "g"),
        ("net (double[3] x) => (double[3] y) { g = Neg (x) y = Neg (g) }", "g"),
    ],
)
@pytest.mark.parametrize(
    "clip", [GradientClipByNorm(1.0), GradientClipByValue(0.1), GradientClipByGlobalNorm(1.0)]
)
def test_a_policy_that_is_not_kept_to_is_noticed_though_nothing_is_nan(
    policy: str, body: str, named: str, clip: Clip
) -> None:
    model = parse(body)
    rewritten = clip_gradients(model, clip, gradients=[named], nonfinite=policy)  # type: ignore[arg-type]
    found = verify(model, rewritten)
    assert found.ok, faults_of(found)
    graphs = [rewritten.graph, *(a.g for n in rewritten.graph.node for a in n.attribute if a.g)]
    chosen = [n for graph in graphs for n in graph.node if n.op_type == "Where"]
    for node in chosen:  # nan is left to the formula, the last choice
        node.op_type = "Identity"
        node.input[:] = [node.input[2]]
    assert chosen
    assert "with nan in the gradients: " in "\n".join(faults_of(verify(model, rewritten)))


def test_no_gradient_is_spoiled_where_nan_is_left_to_the_formula() -> None:
    model = parse(
        "net (float[3] x) => (float[3] y, int64 k) { g = Neg (x) y = Neg (g) "
        "s = ReduceMax <keepdims = 0> (g) k = Cast <to = 7> (s) }"
    )
    found = verify(model, clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"]))
    assert found.ok, faults_of(found)


@pytest.mark.parametrize("policy", ["propagate", "zero", "keep"])
@pytest.mark.parametrize("emitted", ["norm", "scale", "clipped"])
def test_a_measure_that_passes_over_nan_is_noticed(emitted: str, policy: str) -> None:
    """The largest element, which becomes nan, is in the last row; a reduction begins at the first.

    Min is let to take its 1 alone, and Max the number that ReduceMax gives.
    """
    model = parse("net (float[3,2] x) => (float[3,2] y) { g = Identity (x) y = Neg (g) }")
    x = np.float32([[1, 2], [3, 4], [5, 6]])
    clip = GradientClipByNorm(1.0, axes=[1])
    options = {"nonfinite": policy, "emit": [emitted]}
    rewritten = clip_gradients(model, clip, gradients=["g"], **options)  # type: ignore[arg-type]
    found = verify(model, rewritten, feeds={"x": x})
    assert found.ok, faults_of(found)
    for node in rewritten.graph.node:
        if node.op_type in ("Max", "Min") and node.input[0].startswith(("clip/g/la", "clip/g/le")):
            node.op_type, _ = "Identity", node.input.pop()
    broken = verify(model, rewritten, feeds={"x": x})
    assert "with nan in the gradients: it is " in "\n".join(faults_of(broken))


# -- what once ended in a traceback ------------------------------------------------------------


def test_a_chain_of_one_clip_can_be_steered() -> None:
    model = parse(PLAIN)
    rules = [Rule(None, Chain(GradientClipByNorm(1.0)))]
    rewritten = clip_gradients(model, rules, gradients=["g"], threshold_input="limit")
    found = verify(model, rewritten)
    assert found.ok, faults_of(found)
    assert found.gradients[0].acted


def test_a_gradient_that_is_an_input_with_a_default_is_scaled_as_a_feed() -> None:
    model = parse("net (float[3] g) => (float[3] y) <float[3] g = {0.1, 0.2, 0.3}> { y = Neg(g) }")
    rewritten = clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"])
    found = verify(model, rewritten)
    assert found.ok, faults_of(found)
    assert (found.gradients[0].acted, found.gradients[0].passed) == (True, True)
    limit = next(t for t in rewritten.graph.initializer if t.name.startswith("clip/"))
    limit.CopyFrom(numpy_helper.from_array(np.float32(2.0), limit.name))
    assert not verify(model, rewritten).ok


# -- how far off an output may be --------------------------------------------------------------


def test_a_gradient_behind_a_cancellation_may_differ_in_steps() -> None:
    """A second iteration in which 1 - tanh(x)^2 is a few roundings of 1, and what it multiplies
    large: its rounding shows only if some elements move up and others down."""
    layers = [("dense", "decay"), ("dense", "momentum"), ("add two", "momentum")]
    plan = Plan(
        layers=(*(Layer(kind, rule, ()) for kind, rule in layers), Layer("tanh", "descent", ())),
        place="loop",
        opset=13,
        style="{}",
        title="",
        hostile=False,
        early=False,
        held=False,
        seed=975,
    )
    model = plan.write()
    names = sorted({name for name, _, _ in plan.truth})
    rewritten = clip_gradients(model, GradientClipByNorm(100.0, ord=1), gradients=names)
    found = verify(model, rewritten, feeds=plan.feeds)
    assert found.ok, faults_of(found)


def test_four_times_the_largest_of_the_moves_may_differ() -> None:
    expected = np.array([1.0, 2.0])
    moves = [expected, expected + np.array([0.0, 0.1]), expected - np.array([0.3, 0.0])]
    assert output_fault(expected + 1.2, expected, moves) == ""
    assert output_fault(expected + 1.3, expected, moves) == "off by 1.3, where 1.2 is allowed"
    assert output_fault(expected, expected, (1 / 0 for _ in "unasked")) == ""  # type: ignore[misc]


# -- what only gradients made for it show ------------------------------------------------------


def added(model: onnx.ModelProto, op_type: str, number: int = -1) -> onnx.NodeProto:
    """The node of this type that a clip has added, by number."""
    named = [node for node in model.graph.node if node.name.startswith("clip/")]
    return [node for node in named if node.op_type == op_type][number]


def faults_with(clip: Clip, text: str, damage: Callable[[Any], None], **options: Any) -> list[str]:
    """What `verify` says of a rewrite that was right before the damage."""
    model = parse(text)
    rewritten = clip_gradients(model, clip, gradients=["g"], **options)
    assert (found := verify(model, rewritten, slopes="off")).ok, faults_of(found)
    damage(rewritten)
    return faults_of(verify(model, rewritten, slopes="off"))


def test_a_verdict_that_asks_the_largest_scale_shows_with_one_element_alone() -> None:
    def damage(model: onnx.ModelProto) -> None:
        added(model, "ReduceMin").op_type = "ReduceMax"

    (fault,) = faults_with(
        GradientClipByNorm(1.0, axes=0),
        "net (float[3, 2] x) => (float[3, 2] g) { g = Identity (x) }",
        damage,
        emit=("clipped",),
    )
    assert "with one element that is not zero" in fault


def test_a_verdict_with_another_bound_shows_just_beyond_the_threshold() -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
        added(model, "Less").input[1] = "half"

    text = "net (float[3] x) => (float[3] g) { g = Identity (x) }"
    (fault,) = faults_with(GradientClipByNorm(1.0), text, damage, emit=("clipped",))
    assert "just beyond the threshold" in fault


def test_powers_of_signed_elements_show_where_all_are_negative() -> None:
    def damage(model: onnx.ModelProto) -> None:
        added(model, "Abs").op_type = "Identity"

    text = "net (float[3] x) => (float[3] g) { g = Exp (x) }"
    (fault,) = faults_with(GradientClipByNorm(1.0, ord=3), text, damage, nonfinite="zero")
    assert "with negative elements alone" in fault


def test_a_sum_element_by_element_shows_beside_one_large_element() -> None:
    """One ReduceL2 of 262,144 numbers under a record that promises 1e-5."""

    def damage(model: onnx.ModelProto) -> None:
        plain = onnx.helper.make_node("ReduceL2", ["clip/g/raw"], ["plain"], keepdims=0)
        at = next(n for n, node in enumerate(model.graph.node) if node.op_type == "Div")
        model.graph.node[at].input[1] = "plain"
        model.graph.node.insert(at, plain)

    text = "net (float[512, 512] x) => (float[512, 512] g) { g = Identity (x) }"
    (fault,) = faults_with(GradientClipByNorm(1.0), text, damage)
    assert "beside one large element" in fault


def test_powers_that_overflow_show_at_the_end_of_float64() -> None:
    """Shares in 1 instead of in the largest element, 1e200 for one, whose cube is inf."""

    def damage(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float64(1), "own"))
        added(model, "Min", 1).input[1] = "own"

    text = "net (double[3] x) => (double[3] g) { g = Identity (x) }"
    (fault,) = faults_with(GradientClipByNorm(1.0, ord=3), text, damage)
    assert "with gradients as large as is promised" in fault
