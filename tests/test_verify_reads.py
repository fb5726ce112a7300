"""Verification of who reads what: named gradients, shared ones, and reads that were rewired."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from graphs import MODELS, parse
from judged import faults_of
from onnx import helper

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    Rule,
    clip_gradients,
)
from onnx_clip_pass.verification import verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

SUM = onnx.load(MODELS / "in_graph" / "sum_of_parameters.onnx")
CLIP = GradientClipByNorm(0.1)


def rewire(model: onnx.ModelProto, maker_of: str, old: str, new: str) -> None:
    """Let the node that makes a value read another one."""
    node = next(node for node in model.graph.node if maker_of in node.output)
    assert old in node.input
    node.input[:] = [new if name == old else name for name in node.input]


# fp32 master weights: g comes from a half precision backward pass, scaled by S; found is u
MASTER = """net (float[4, 3] x, float[4, 2] t, float[3, 2] W, float S)
        => (float loss, float[3, 2] W_new) <float lr = {0.1}> {
    xh = Cast <to = 10> (x) th = Cast <to = 10> (t) Wh = Cast <to = 10> (W) Sh = Cast <to = 10> (S)
    y = MatMul (xh, Wh) e = Sub (y, th) square = Mul (e, e)
    mean = ReduceMean <keepdims = 0> (square) loss = Cast <to = 1> (mean)
    ge = Mul (e, Sh) xt = Transpose (xh) g = MatMul (xt, ge)
    single = Cast <to = 1> (g) u = Div (single, S) step = Mul (u, lr) W_new = Sub (W, step)
}"""
# two steps, of which both have the gradient of W
STEPS = """net (float[4, 3] x, float[4, 2] t, float[3, 2] W)
        => (float loss, float[3, 2] W2) <float lr = {0.1}> {
    y = MatMul (x, W) e = Sub (y, t) square = Mul (e, e) loss = ReduceMean <keepdims = 0> (square)
    xt = Transpose (x) W_grad = MatMul (xt, e) step = Mul (W_grad, lr) W1 = Sub (W, step)
    y1 = MatMul (x, W1) e1 = Sub (y1, t)
    W1_grad = MatMul (xt, e1) step1 = Mul (W1_grad, lr) W2 = Sub (W1, step1)
}"""


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (MASTER, ["g"]),
        (MASTER, {"g": "W"}),
        (STEPS, {"W_grad": "W", "W1_grad": "W1"}),
        (STEPS, {"W_grad": "W", "W1_grad": "W"}),
        (STEPS, ["W_grad", "W1_grad"]),
        (STEPS, ["W1_grad"]),
    ],
)
def test_gradients_named_otherwise_than_a_search_would_find_them_are_right(
    body: str, named: Any
) -> None:
    model = parse(body)
    # the loss has a factor that these gradients do not have
    found = verify(model, clip_gradients(model, CLIP, gradients=named), slopes="off")
    assert found.ok, faults_of(found)


@pytest.mark.parametrize("named", [["C_grad"], ["S_grad"], {"S_grad": "A"}, ["S_grad", "C_grad"]])
def test_what_is_not_named_is_no_gradient(named: Any) -> None:
    """C_grad leads to S_grad: it is raw there only if S_grad is known for a gradient."""
    rewritten = clip_gradients(SUM, CLIP, gradients=named)
    found = verify(SUM, rewritten)
    assert found.ok, faults_of(found)


SHARED: dict[str, tuple[list[Rule], dict[str, Any]]] = {
    "two formulas": ([Rule("A", CLIP), Rule("B", GradientClipByValue(0.05))], {}),
    "one and none": ([Rule("B", CLIP), Rule(None, None)], {}),
    "the same twice": ([Rule("A", CLIP), Rule("B", GradientClipByNorm(0.1))], {}),
    "two measures": (
        [Rule("B", CLIP), Rule("A", GradientClipByNorm(0.2))],
        {"emit": ("norm", "scale")},
    ),
    "a vector": (
        [Rule("A", CLIP), Rule("B", GradientClipByNorm(0.2))],
        {"emit": ("norm", "scale"), "emit_as": "vector"},
    ),
    "measures alone": (
        [Rule("A", CLIP), Rule("B", GradientClipByNorm(0.2))],
        {"emit": ("norm", "scale"), "measure_only": True},
    ),
    "inputs": (
        [Rule("A", CLIP, threshold_input="a"), Rule("B", CLIP, threshold_input="b")],
        {},
    ),
    "two groups": (
        [
            Rule(["A", "C"], GradientClipByGlobalNorm(0.1, group_name="one")),
            Rule("B", GradientClipByGlobalNorm(0.1, group_name="two")),
        ],
        {"emit": ("norm",)},
    ),
}


@pytest.mark.parametrize(("rules", "options"), SHARED.values(), ids=SHARED)
def test_parameters_that_share_a_gradient_may_have_clips_of_their_own(
    rules: list[Rule], options: dict[str, Any]
) -> None:
    found = verify(SUM, clip_gradients(SUM, rules, **options))
    assert found.ok, faults_of(found)


def test_clips_of_one_gradient_that_are_swapped_are_noticed() -> None:
    rules, _ = SHARED["two formulas"]
    rewritten = clip_gradients(SUM, rules)
    assert len(verify(SUM, rewritten).gradients) == 2
    names = {
        node.output[0]: next(name for name in node.input if name != "lr")
        for node in rewritten.graph.node
        if node.output[0] in ("A_step", "B_step")
    }
    rewire(rewritten, "A_step", names["A_step"], names["B_step"])
    rewire(rewritten, "B_step", names["B_step"], names["A_step"])
    assert not verify(SUM, rewritten).ok


# a step of 1e-6 of a weight: whether its gradient is clipped is within the rounding of W_new
SMALL = """net (float[3] W, float[3] x) => (float[3] W_new)
    <float lr = {1e-6}> {
    error = Mul (x, W) W_grad = Mul (error, x) step = Mul (W_grad, lr) W_new = Sub (W, step)
}"""


def test_an_update_that_reads_the_raw_gradient_is_noticed_however_small_it_is() -> None:
    model = parse(SMALL)
    rewritten = clip_gradients(model, CLIP)
    assert verify(model, rewritten).ok
    rewire(rewritten, "step", "W_grad", "clip/W_grad/raw")
    assert "the Mul that makes 'step' reads 'clip/W_grad/raw', where the clipped gradient" in (
        "\n".join(faults_of(verify(model, rewritten)))
    )


def test_a_backward_pass_that_reads_the_clipped_gradient_is_noticed_by_its_reads() -> None:
    rewritten = clip_gradients(SUM, CLIP)
    rewire(rewritten, "clip/S_grad/raw", "clip/C_grad/raw", "C_grad")
    assert "where the raw gradient 'clip/C_grad/raw' is right" in "\n".join(
        faults_of(verify(SUM, rewritten))
    )


def test_a_reader_that_another_tool_has_replaced_is_judged_by_what_it_makes() -> None:
    model = parse(SMALL)
    rewritten = clip_gradients(model, CLIP)
    at = next(n for n, node in enumerate(rewritten.graph.node) if node.output[0] == "step")
    rewritten.graph.node[at].CopyFrom(helper.make_node("Mul", ["W_grad", "lr"], ["other"]))
    rewire(rewritten, "W_new", "step", "other")
    assert verify(model, rewritten).ok
