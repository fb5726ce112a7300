"""Updates that are unrolled, skipped, looped over or hidden in functions and branches."""

import re

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_clip_pass import find_gradients

G = [("g", "W")]


def test_micro_batches_whose_sum_is_only_buffered_in_a_loop_have_no_gradient(find):
    found = find(
        """
        total = Loop (count, , buffer) <body = each (int64 i, bool on, float[4,3] sum_in)
            => (bool go, float[4,3] sum_out) {
            go = Identity (on)
            x = Gather (xs, i)
            xT = Transpose <perm = [1, 0]> (x)
            y = MatMul (x, W)
            part = MatMul (xT, y)
            sum_out = Add (sum_in, part)
        }>
        """,
        inputs="int64 count, float[K,N,4] xs, float[4,3] buffer, float[4,3] W",
        outputs="float[4,3] total",
    )
    assert found == []


def test_backpropagation_through_time_in_scan_has_the_gradients_of_weights_alone(find):
    """`dh` is the gradient of a state, which the loop forwards has kept, whatever it is called."""
    found = find(
        """
        last, hs, outs = Scan <num_scan_inputs = 1, body = forwards (h, x) => (h_new, before, out) {
            s = MatMul (x, W)  sum = Add (h, s)  h_new = Tanh (sum)
            before = Identity (h)  out = Identity (h_new)
        }> (silence, xs)
        d_outs = Sub (outs, ts)
        first, d_sums = Scan <num_scan_inputs = 3, scan_input_directions = [1, 1, 1],
            scan_output_directions = [1], body = backwards (d_later, d_out, h, out) => (dh, d_sum) {
            d = Add (d_later, d_out)  oo = Mul (out, out)  slope = Sub (one, oo)
            d_sum = Mul (d, slope)  kept = Sub (h, h)  dh = Add (d_sum, kept)
        }> (silence, d_outs, hs, outs)
        rows = Flatten <axis = 2> (xs)
        d_rows = Flatten <axis = 2> (d_sums)
        g = Gemm <transA = 1> (rows, d_rows)
        s = Mul (lr, g)
        W_new = Sub (W, s)
        """,
        inputs="float[T,N,4] xs, float[T,N,3] ts, float[N,3] silence, float[4,3] W",
        outputs="float[4,3] W_new",
    )
    assert found == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("v = Sub (W, s)  W_new = Where (bad, W, v)", id="Where"),
        pytest.param("v = Sub (W, s)  W_new = If (bad) <then_branch = keep () => (float[4,3] k)"
                     " { k = Identity (W) }, else_branch = move () => (float[4,3] l)"
                     " { l = Identity (v) }>", id="If-around-the-choice"),
        pytest.param("W_new = If (bad) <then_branch = keep () => (float[4,3] k)"
                     " { k = Identity (W) }, else_branch = move () => (float[4,3] l)"
                     " { l = Sub (W, s) }>", id="If-around-the-update"),
    ],
)  # fmt: skip
def test_a_step_that_is_skipped_on_overflow_shows_its_gradient(find_after_backward, text):
    norm = "n = ReduceL2 <keepdims = 0> (g)  bad = IsInf (n)  s = Mul (lr, g)  "
    assert find_after_backward(norm + text) == G


def test_each_unrolled_step_has_its_own_gradient(find):
    found = find(
        """
        xT = Transpose <perm = [1, 0]> (x)
        p = MatMul (x, W)
        g = MatMul (xT, p)
        s = Mul (lr, g)
        W_1 = Sub (W, s)
        p_1 = MatMul (x, W_1)
        g_1 = MatMul (xT, p_1)
        s_1 = Mul (lr, g_1)
        W_new = Sub (W_1, s_1)
        """,
        inputs="float[N,4] x, float[4,3] W",
        outputs="float[4,3] W_new",
    )
    assert found == [("g", "W"), ("g_1", "W")]


@pytest.mark.parametrize(
    ("mean", "gradient"),
    [
        pytest.param("m = Mean (g_0, g_1)", "m", id="Mean"),
        pytest.param("a = Sum (g_0, g_1)  m = Div (a, two)", "m", id="Sum-over-two"),
        pytest.param("m = Add (g_0, g_1)", "m", id="sum"),
        pytest.param("a = Unsqueeze (g_0, first)  b = Unsqueeze (g_1, first)"
                     "  c = Concat <axis = 0> (a, b)"
                     "  m = ReduceMean <keepdims = 0> (c, first)", "m",
                     id="ReduceMean-of-a-stack"),
    ],
)  # fmt: skip
def test_the_gradient_of_micro_batches_is_their_average(find, mean, gradient):
    batches = "".join(
        f"y_{k} = MatMul (x_{k}, W)  xT_{k} = Transpose <perm = [1, 0]> (x_{k})"
        f"  g_{k} = MatMul (xT_{k}, y_{k})  "
        for k in (0, 1)
    )
    found = find(
        f"{batches}{mean}  s = Mul (lr, m)  W_new = Sub (W, s)",
        inputs="float[N,4] x_0, float[N,4] x_1, float[4,3] W",
        outputs="float[4,3] W_new",
        constants={"first": np.array([0])},
    )
    assert found == [(gradient, "W")]


def test_the_gradient_summed_in_a_loop_is_what_the_loop_gives(find_after_backward):
    found = find_after_backward(
        """
        total = Loop (count, , zeros) <body = each (int64 i, bool on, float[4,3] sum_in)
            => (bool go, float[4,3] sum_out) {
            go = Identity (on)
            part_x = Gather (xs, i)
            part_xT = Transpose <perm = [1, 0]> (part_x)
            part_y = MatMul (part_x, W)
            part = MatMul (part_xT, part_y)
            sum_out = Add (sum_in, part)
        }>
        s = Mul (lr, total)
        W_new = Sub (W, s)
        """,
        more_inputs=", int64 count, float[K,N,4] xs",
        constants={"zeros": np.zeros((4, 3), np.float32)},
    )
    assert found == [("total", "W")]


def places(model: ModelProto) -> list[tuple[str, str, str]]:
    return [(found.name, found.parameter.name, found.graph) for found in find_gradients(model)]


STEP = """
    y = MatMul (x, W_in)
    xT = Transpose <perm = [1, 0]> (x)
    g = MatMul (xT, y)
    s = Mul (lr, g)
    W_out = Sub (W_in, s)
"""


def test_an_update_in_a_loop_is_named_after_what_the_loop_starts_from(build):
    model = build(
        f"""
        W_new = Loop (count, , W) <body = each (int64 i, bool on, float[4,3] W_in)
            => (bool go, float[4,3] W_out) {{
            go = Identity (on)
            {STEP}
        }}>
        """,
        inputs="int64 count, float[N,4] x, float[4,3] W",
        outputs="float[4,3] W_new",
    )
    assert places(model) == [("g", "W", "Loop[0].body")]


def test_an_update_in_a_scan_is_named_after_what_the_scan_starts_from(build):
    model = build(
        f"""
        W_new = Scan <num_scan_inputs = 1, body = each (float[4,3] W_in, float[N,4] x)
            => (float[4,3] W_out) {{ {STEP} }}> (W, xs)
        """,
        inputs="float[K,N,4] xs, float[4,3] W",
        outputs="float[4,3] W_new",
    )
    assert places(model) == [("g", "W", "Scan[0].body")]


def test_a_function_that_only_updates_leaves_the_gradient_outside(find_after_backward):
    found = find_after_backward(
        "W_new = local.descend (W, g, lr)",
        functions="""
            <domain: "local", opset_import: ["" : 18]> descend (p, q, rate) => (p_new)
            { s = Mul (rate, q)  p_new = Sub (p, s) }
        """,
    )
    assert found == G


def test_a_function_that_holds_the_whole_step_holds_the_gradient(build):
    body = re.sub(r"\blr\b", "rate", STEP)
    model = build(
        "W_new = local.learn (x, W, lr)",
        inputs="float[N,4] x, float[4,3] W",
        outputs="float[4,3] W_new",
        functions=f"""
            <domain: "local", opset_import: ["" : 18]> learn (x, W_in, rate) => (W_out) {{ {body} }}
        """,
    )
    onnx.checker.check_model(model)
    assert places(model) == [("g", "W", "function local::learn")]
