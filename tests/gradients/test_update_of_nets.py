"""Gradients of nets of other shapes than `x @ W`, with an update behind them."""

import numpy as np
import pytest

G = [("g", "W")]
X_T = "xT = Transpose <perm = [1, 0]> (x)  "
LOSS = "q = Mul (e, e)  loss = ReduceMean <keepdims = 0> (q)  d = Mul (e, slope)  "
STEP = "  s = Mul (lr, g)  W_new = Sub (W, s)"


def test_rows_of_a_table_that_are_added_up_have_a_gradient_by_rows(find):
    found = find(
        "e = Gather (W, ids)" + LOSS + "at = Unsqueeze (ids, last)  s = Mul (minus_lr, d)"
        '  W_new = ScatterND <reduction = "add"> (W, at, s)',
        inputs="int64[N] ids, float[10,4] W",
        outputs="float loss, float[10,4] W_new",
        constants={"last": np.array([1])},
    )
    assert found == [("d", "W")]


@pytest.mark.parametrize(
    ("inputs", "shape", "text"),
    [
        pytest.param("float[4,N] x, float[3,N] t", "[3,4]",
                     "y = MatMul (W, x)  e = Sub (y, t)" + LOSS + X_T
                     + "g = MatMul (d, xT)", id="W@x"),
        pytest.param("float[8,4] x, float[8,3] t", "[4,3]",
                     "y = MatMul (x, W)  e = Sub (y, t)" + LOSS + X_T
                     + "g = MatMul (xT, d)", id="static-batch"),
        pytest.param("float[N,4] x", "[4,3]",
                     "WT = Transpose <perm = [1, 0]> (W)  h = MatMul (x, W)  y = MatMul (h, WT)"
                     "  e = Sub (y, x)" + LOSS + "dT = Transpose <perm = [1, 0]> (d)"
                     "  g0 = MatMul (dT, h)  dh = MatMul (d, W)  xT = Transpose <perm = [1, 0]> (x)"
                     "  g1 = MatMul (xT, dh)  g = Add (g0, g1)", id="tied-weights"),
        pytest.param("float[N] x, float[N] t", "",
                     "y = Mul (W, x)  e = Sub (y, t)" + LOSS + "dx = Mul (d, x)"
                     "  g = ReduceSum <keepdims = 0> (dx)", id="scalar"),
        pytest.param("float[N,3] t", "[3]",
                     "e = Sub (W, t)" + LOSS + "g = ReduceSum <keepdims = 0> (d, first)",
                     id="bias"),
        pytest.param("int64[N] ids", "[10,4]",
                     "e = Gather (W, ids)" + LOSS + "empty = ConstantOfShape (size)"
                     "  at = Unsqueeze (ids, last)"
                     '  g = ScatterND <reduction = "add"> (empty, at, d)', id="embedding"),
        pytest.param("float[N,1,8,8] x", "[2,1,3,3]",
                     "e = Conv (x, W)" + LOSS + "xT = Transpose <perm = [1, 0, 2, 3]> (x)"
                     "  dT = Transpose <perm = [1, 0, 2, 3]> (d)  g0 = Conv (xT, dT)"
                     "  g = Transpose <perm = [1, 0, 2, 3]> (g0)", id="convolution"),
        pytest.param("float[N,3] x", "[3]",
                     "m = ReduceMean (x, last)  c = Sub (x, m)  cc = Mul (c, c)"
                     "  v = ReduceMean (cc, last)  a = Add (v, eps)  r = Sqrt (a)  n = Div (c, r)"
                     "  e = Mul (n, W)" + LOSS + "dn = Mul (d, n)"
                     "  g = ReduceSum <keepdims = 0> (dn, first)",
                     id="gain-of-a-written-LayerNorm"),
    ],
)  # fmt: skip
def test_the_gradient_of_a_net_is_found_by_its_update(find, inputs, shape, text):
    found = find(
        text + STEP,
        inputs=f"{inputs}, float{shape} W",
        outputs=f"float loss, float{shape} W_new",
        constants={"first": np.array([0]), "last": np.array([1]), "size": np.array([10, 4])},
    )
    assert found == [("g", "W")]


def test_a_gradient_penalty_is_part_of_the_gradient(find_after_backward):
    found = find_after_backward(
        "WT = Transpose <perm = [1, 0]> (W)  by_x = MatMul (y_slope, WT)"
        "  penalty = ReduceSumSquare <keepdims = 0> (by_x)  p = MatMul (xT, y)  both = Add (g, p)"
        "  s = Mul (lr, both)  W_new = Sub (W, s)",
        more_outputs=", float penalty",
    )
    assert found == [("both", "W")]


def test_a_pull_to_other_weights_that_the_update_alone_reads_is_no_part(find_after_backward):
    found = find_after_backward(
        "f = Sub (W, W_0)  p = Mul (wd, f)  a = Add (g, p)  s = Mul (lr, a)  W_new = Sub (W, s)",
        more_inputs=", float[4,3] W_0",
    )
    assert found == G


def test_a_parameter_that_elementwise_ops_alone_join_to_the_loss_is_no_moment(find):
    found = find(
        "y = MatMul (x, W)  z = Add (y, b)  e = Sub (z, t)" + LOSS + "g = Identity (d)"
        "  a = Mul (mu, m)  m_new = Add (a, g)  s = Mul (lr, m_new)  b_new = Sub (b, s)",
        inputs="float[8,4] x, float[8,3] t, float[4,3] W, float[8,3] b, float[8,3] m",
        outputs="float loss, float[8,3] b_new, float[8,3] m_new",
    )
    assert found == [("g", "b")]


def test_a_frozen_parameter_has_no_gradient(find_after_backward):
    found = find_after_backward(
        "z = Add (y, b)  b_new = Identity (b)  s = Mul (lr, g)  W_new = Sub (W, s)",
        more_inputs=", float[3] b",
        more_outputs=", float[3] b_new, float[N,3] z",
    )
    assert found == [("g", "W")]


def test_an_unrolled_loop_may_have_any_number_of_steps(find):
    step = "g{0} = MatMul (x, w{0})  s{0} = Mul (lr, g{0})  w{1} = Sub (w{0}, s{0})"
    found = find(
        "  ".join(step.format(number, number + 1) for number in range(1200)),
        inputs="float[4,4] x, float[4,4] w0",
        outputs="float[4,4] w1200",
    )
    assert found == [(f"g{number}", "w0") for number in range(1200)]


def test_decay_that_is_squared_over_and_over_is_still_decay(find):
    powers = "  ".join(f"d{number + 1} = Mul (d{number}, d{number})" for number in range(60))
    found = find(
        f"g = MatMul (x, W)  d0 = Mul (wd, W)  {powers}"
        "  decayed = Add (g, d60)  s = Mul (lr, decayed)  V = Sub (W, s)",
        inputs="float[4,4] x, float[4,4] W",
        outputs="float[4,4] V",
    )
    assert found == [("g", "W")]


def test_a_rate_may_stand_behind_any_number_of_aliases(find):
    aliases = "  ".join(f"l{number + 1} = Identity (l{number})" for number in range(2000))
    found = find(
        f"g = MatMul (x, W)  l0 = Identity (rate)  {aliases}  s = Mul (l2000, g)  V = Sub (W, s)",
        inputs="float[4,4] x, float[4,4] W, float rate",
        outputs="float[4,4] V",
    )
    assert found == [("g", "W")]
