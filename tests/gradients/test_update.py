"""Gradients known by `W - lr * g` and its relatives: plain descent and what surrounds it."""

import numpy as np
import pytest

DESCENT = "s = Mul (lr, g)  W_new = Sub (W, s)"
G = [("g", "W")]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("W_new = Add (e, g)", id="sum-of-gradients"),
        pytest.param("h = Mul (half, g)  W_new = Add (e, h)", id="mean-of-gradients"),
        pytest.param("a = Mul (b1, e)  d = Mul (a1, W)  W_new = Add (a, d)", id="mean-of-weights"),
        pytest.param(
            "d = Sub (e, W)  h = Mul (a1, d)  W_new = Sub (e, h)", id="mean-by-difference"
        ),
    ],
)
def test_what_only_resembles_an_update_shows_no_gradient(find_after_backward, text):
    assert find_after_backward(text, more_inputs=", float[4,3] e") == []


def test_a_buffer_returned_beside_its_new_value_is_no_parameter(find_after_backward):
    text = "h = Mul (half, g)  W_new = Add (e, h)  e_new = Identity (e)"
    assert find_after_backward(text, states="e") == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = Mul (b1, k)  d = Mul (a1, loss)  k_new = Add (a, d)", id="mean-loss"),
        pytest.param("a = Sub (k, loss)  d = Mul (a1, a)  k_new = Sub (k, d)", id="by-difference"),
        pytest.param("k_new = Add (k, loss)", id="summed-loss"),
        pytest.param("k_new = Add (k, one)", id="step-counter"),
        pytest.param("k_new = Sub (k, one)", id="countdown"),
        pytest.param("d = Mul (k, wd)  k_new = Sub (k, d)", id="learning-rate-decay"),
    ],
)
def test_numbers_that_are_carried_along_are_no_parameters(find_after_backward, text):
    found = find_after_backward(
        f"{DESCENT}  {text}", more_inputs=", float k", more_outputs=", float k_new"
    )
    assert found == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("r = Sub (t, y)", id="t-minus-y"),
        pytest.param("h = Mul (half, y)  r = Sub (t, h)", id="t-minus-scaled-y"),
        pytest.param("r = Add (y, bias)", id="prediction-with-bias"),
        pytest.param("h = Mul (half, y)  r = Add (h, bias)", id="scaled-prediction-with-bias"),
    ],
)
def test_a_prediction_or_residual_as_output_is_no_update(find_after_backward, text):
    found = find_after_backward(
        text, more_inputs=", float[3] bias", outputs="float loss, float[N,3] r"
    )
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("f = MatMul (x, H)  h = Mul (half, f)  x_new = Add (x, h)",
                     id="residual-layer"),
        pytest.param("f = MatMul (x, H)  h = Mul (lr, f)  x_new = Sub (x, h)", id="denoising"),
        pytest.param("e = Tanh (x)  f = MatMul (e, H)  h = Mul (lr, f)  x_new = Add (x, h)",
                     id="ode"),
        pytest.param("p = MatMul (x, H)  e = Sub (z, p)  k = MatMul (e, K)  h = Mul (half, k)"
                     "  x_new = Add (x, h)", id="filter"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", ["1", "N"])
def test_a_state_that_a_network_moves_is_no_parameter(find, text, rows):
    square = np.eye(3, dtype=np.float32)
    shape = f"float[{rows},3]"
    found = find(
        text,
        inputs=f"{shape} x, {shape} z",
        outputs=f"{shape} x_new",
        constants={"H": square, "K": square},
    )
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = Mul (b1, e)  d = Mul (a1, m)  e_new = Add (a, d)", id="shares"),
        pytest.param("a = Sub (e, m)  d = Mul (a1, a)  e_new = Sub (e, d)", id="difference"),
    ],
)
def test_a_running_mean_that_the_net_reads_is_no_parameter(find_after_backward, text):
    found = find_after_backward(
        DESCENT
        + "  m = ReduceMean <keepdims = 0> (x, rows)  c = Sub (x, e)  z = MatMul (c, W)"
        + text,
        more_inputs=", float[4] e",
        more_outputs=", float[4] e_new, float[N,3] z",
        constants={"rows": np.array([0])},
    )
    assert found == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("W_new = Sub (W, g)", id="no-learning-rate"),
        pytest.param("s = Mul (lr, g)  W_new = Sub (W, s)", id="W-lr*g"),
        pytest.param("s = Mul (g, lr)  W_new = Sub (W, s)", id="W-g*lr"),
        pytest.param("s = Mul (lr, g)  n = Neg (s)  W_new = Add (W, n)", id="W+-(lr*g)"),
        pytest.param("n = Neg (lr)  s = Mul (n, g)  W_new = Add (W, s)", id="W+(-lr)*g"),
        pytest.param("s = Mul (minus_lr, g)  W_new = Add (W, s)", id="W+c*g"),
        pytest.param("s = Mul (minus_lr, g)  W_new = Sum (s, W)", id="Sum(c*g,W)"),
        pytest.param("s = Div (g, scale)  W_new = Sub (W, s)", id="W-g/c"),
        pytest.param("s = Mul (rate, g)  W_new = Sub (W, s)", id="rate-of-shape-1"),
        pytest.param("v = Pow (mu, k)  r = Mul (lr, v)  s = Mul (r, g)  W_new = Sub (W, s)",
                     id="rate-falls-with-the-step"),
        pytest.param("d = Mul (wd, W)  a = Add (g, d)  s = Mul (lr, a)  W_new = Sub (W, s)",
                     id="coupled-decay"),
        pytest.param("s = Mul (lr, g)  a = Sub (W, s)  d = Mul (wd, W)  W_new = Sub (a, d)",
                     id="decoupled-decay"),
        pytest.param("s = Mul (lr, g)  d = Mul (wd, W)  a = Add (s, d)  W_new = Sub (W, a)",
                     id="decay-beside-the-rate"),
        pytest.param("n = ReduceL2 <keepdims = 0> (g)  a = Mul (lr, g)  s = Div (a, n)"
                     "  W_new = Sub (W, s)", id="normalised"),
        pytest.param("keep = Sub (one, wd)  a = Mul (W, keep)  s = Mul (lr, g)  W_new = Sub (a, s)",
                     id="decay-as-factor"),
        pytest.param("a = Sign (W)  d = Mul (wd, a)  e = Add (g, d)  s = Mul (lr, e)"
                     "  W_new = Sub (W, s)", id="l1-decay"),
        pytest.param("a = Sign (g)  s = Mul (lr, a)  W_new = Sub (W, s)",
                     id="sign-of-the-gradient"),
        pytest.param("s = Mul (lr, g)  a = Sub (W, s)  W_new = Clip (a, low, high)", id="bounds"),
        pytest.param("s = Mul (lr, g)  a = Sub (W, s)  W_new = Max (a, zero)", id="not-negative"),
        pytest.param("r = Mul (rates, g)  W_new = Sub (W, r)", id="a-rate-for-each-weight"),
        pytest.param("s = Mul (lr, g)  c = Clip (s, low, high)  W_new = Sub (W, c)",
                     id="clipped-step"),
        pytest.param("a = Mul (g, half)  b = Add (a, g)  s = Mul (lr, b)  W_new = Sub (W, s)",
                     id="sum-of-multiples"),
        pytest.param("b = Mul (rates, g)  s = Mul (lr, b)  W_new = Sub (W, s)", id="masked"),
    ],
)  # fmt: skip
def test_descent_in_any_spelling_shows_the_gradient(find_after_backward, text):
    rate = {"rate": np.array([0.1], np.float32)}
    more_inputs = ", float k, float[4,3] rates"
    assert find_after_backward(text, constants=rate, more_inputs=more_inputs) == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("c = Clip (g, low, high)", id="Clip"),
        pytest.param("a = Max (g, low)  c = Min (a, high)", id="Min-Max"),
        pytest.param("r = Div (max_norm, n)  f = Min (r, one)  c = Mul (g, f)", id="factor"),
        pytest.param("m = Max (n, max_norm)  a = Mul (g, max_norm)  c = Div (a, m)", id="Paddle"),
        pytest.param("b = Greater (n, max_norm)  r = Div (max_norm, n)  a = Mul (g, r)"
                     "  c = Where (b, a, g)", id="Where"),
        pytest.param("b = IsInf (n)  c = Where (b, zero, g)", id="zero-on-overflow"),
        pytest.param("o = Mul (u, u)  p = Mul (n, n)  q = Add (o, p)  l = Sqrt (q)"
                     "  r = Div (max_norm, l)  f = Min (r, one)  c = Mul (g, f)", id="global-norm"),
        pytest.param("k = ReduceL2 (g, rows)  r = Div (max_norm, k)  f = Min (r, one)"
                     "  c = Mul (g, f)", id="norm-of-each-column"),
        pytest.param("k = ReduceL2 (g, rows)  w = ReduceL2 (W, rows)  a = Mul (w, wd)"
                     "  r = Div (a, k)  f = Min (r, one)  c = Mul (g, f)", id="adaptive"),
    ],
)  # fmt: skip
def test_the_gradient_lies_before_a_clip_that_is_there_already(find_after_backward, text):
    norms = "n = ReduceL2 <keepdims = 0> (g)  u = ReduceL2 <keepdims = 0> (y_slope)  "
    found = find_after_backward(
        f"{norms}{text}  s = Mul (lr, c)  W_new = Sub (W, s)",
        constants={"rows": np.array([0])},
    )
    assert found == G


def test_a_softmax_of_a_parameter_is_not_mistaken_for_clipping(find_after_backward):
    found = find_after_backward(
        "p = Softmax (W)  r = MatMul (xT, y_slope)  a = Mul (p, r)  b = ReduceSum (a, rows)"
        "  c = Sub (r, b)  h = Mul (p, c)  s = Mul (lr, h)  W_new = Sub (W, s)",
        constants={"rows": np.array([-1])},
    )
    assert found == [("h", "W")]


@pytest.mark.parametrize(
    ("text", "gradient"),
    [
        pytest.param("h = Div (g, scale)", "h", id="unscaled"),
        pytest.param("a = Cast <to = 10> (g)  b = Cast <to = 1> (a)  h = Div (b, scale)", "h",
                     id="unscaled-in-float32"),
        pytest.param("g1 = MatMul (xT, error)  h = Add (g1, g)", "h", id="sum-over-uses"),
        pytest.param("W_grad = Mul (g, half)  h = Identity (W_grad)", "h", id="named-and-aliased"),
    ],
)  # fmt: skip
def test_the_gradient_lies_behind_sums_and_unscaling(find_after_backward, text, gradient):
    found = find_after_backward(text + "  s = Mul (lr, h)  W_new = Sub (W, s)")
    assert found == [(gradient, "W")]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("more = ReduceL2 <keepdims = 0> (g)", id="its-norm"),
        pytest.param("more = ReduceL2 <keepdims = 0> (s)", id="the-norm-of-the-step"),
        pytest.param("more = ReduceMax <keepdims = 0> (W_new)", id="the-largest-weight"),
    ],
)
def test_a_number_reported_beside_the_loss_hides_no_gradient(find_after_backward, text):
    assert find_after_backward(f"{DESCENT}  {text}", more_outputs=", float more") == G


def test_a_gradient_without_a_name_that_is_an_output_as_well_is_found(find_after_backward):
    assert find_after_backward(DESCENT, more_outputs=", float[4,3] g") == G


def test_master_weights_that_the_forward_pass_does_not_read_are_parameters(find):
    found = find(
        """
        y = MatMul (x, W)
        square = Mul (y, y)
        mean = ReduceMean <keepdims = 0> (square)
        loss = Cast <to = 1> (mean)
        xT = Transpose <perm = [1, 0]> (x)
        g16 = MatMul (xT, y)
        scaled = Cast <to = 1> (g16)
        g = Div (scaled, scale)
        s = Mul (lr, g)
        master_new = Sub (master, s)
        W_new = Cast <to = 10> (master_new)
        """,
        inputs="float16[N,4] x, float16[4,3] W, float[4,3] master",
        outputs="float loss, float16[4,3] W_new, float[4,3] master_new",
    )
    assert found == [("g", "master")]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("G = Cast <to = 11> (g)  L = Cast <to = 11> (lr)  V = Cast <to = 11> (W)"
                     "  s = Mul (L, G)  w = Sub (V, s)  W_new = Cast <to = 1> (w)", id="float64"),
        pytest.param("f = Reshape (g, flat)  s = Mul (lr, f)  v = Reshape (W, flat)"
                     "  w = Sub (v, s)  W_new = Reshape (w, whole)", id="flat"),
    ],
)  # fmt: skip
def test_the_gradient_has_the_parameter_s_type_whatever_the_step_is_computed_in(
    find_after_backward, text
):
    shapes = {"flat": np.array([-1]), "whole": np.array([4, 3])}
    assert find_after_backward(text, constants=shapes) == G


def test_a_learning_rate_may_come_from_a_table(find_after_backward):
    text = "r = Gather (rates, epoch)  s = Mul (r, g)  W_new = Sub (W, s)"
    assert find_after_backward(text, more_inputs=", float[9] rates, int64 epoch") == G


FLAT = """
    f = Reshape (g, flat)  h = Reshape (y_mean, flat)  joined = Concat <axis = 0> (h, f)
    n = ReduceL2 <keepdims = 0> (joined)  r = Div (max_norm, n)  k = Min (r, one)
    clipped = Mul (joined, k)
"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("p0, p = Split (clipped, sizes)", id="Split"),
        pytest.param("p = Slice (clipped, start, end)", id="Slice"),
    ],
)
def test_gradients_clipped_as_one_vector_are_what_was_joined(find_after_backward, text):
    found = find_after_backward(
        f"y_mean = ReduceMean <keepdims = 0> (y_slope, first){FLAT}{text}"
        "  c = Reshape (p, whole)  s = Mul (lr, c)  W_new = Sub (W, s)",
        constants={
            "flat": np.array([-1]),
            "whole": np.array([4, 3]),
            "first": np.array([0]),
            "sizes": np.array([3, 12]),
            "start": np.array([3]),
            "end": np.array([15]),
        },
    )
    assert found == G


def test_a_vector_needs_no_flattening_to_be_joined(find_after_backward):
    found = find_after_backward(
        f"y_mean = ReduceMean <keepdims = 0> (y_slope, first){FLAT}"
        "  p, p1 = Split (clipped, sizes)  s = Mul (lr, p)  b_new = Sub (b, s)"
        "  shifted = Add (y, b)  z = MatMul (shifted, next)",
        constants={
            "flat": np.array([-1]),
            "first": np.array([0]),
            "sizes": np.array([3, 12]),
            "next": np.eye(3, dtype=np.float32),
        },
        outputs="float loss, float[3] b_new, float[N,3] z",
        more_inputs=", float[3] b",
    )
    assert found == [("y_mean", "b")]


def test_another_segment_than_was_joined_is_a_question(find_after_backward):
    found = find_after_backward(
        f"y_mean = ReduceMean <keepdims = 0> (y_slope, first){FLAT}"
        "  p0, p = Split (clipped, sizes)  s = Mul (lr, p)  b_new = Sub (b, s)",
        constants={"flat": np.array([-1]), "first": np.array([0]), "sizes": np.array([5, 10])},
        outputs="float loss, float[10] b_new",
        more_inputs=", float[10] b",
    )
    assert found == []
