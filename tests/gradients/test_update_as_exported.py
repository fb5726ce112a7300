"""Updates in the forms that optimizer libraries give them when they are exported."""

import numpy as np
import pytest

G = [("g", "W")]
STEP = "  s = Mul (lr, n)  W_new = Sub (W, s)"
SECOND = "c = Mul (b2, v)  q = Mul (g, g)  d = Mul (a2, q)  v_new = Add (c, d)  "
LERP = """
    far = Sub (g, m)  near = Mul (a2, far)  low_m = Add (m, near)  w = Sub (one, a2)
    back = Mul (far, w)  high_m = Sub (g, back)  test = Less (a2, half)
    m_new = Where (test, low_m, high_m)
"""
ROWS = {"rows": np.array([0]), "shape": np.array([4, 3])}


@pytest.mark.parametrize(
    ("states", "text"),
    [
        pytest.param("m v", SECOND + "r = Sqrt (v)  k = Max (r, eps)  u = Div (g, k)"
                     "  a = Mul (b1, m)  b = Mul (a1, u)  m_new = Add (a, b)"
                     "  n = Identity (m_new)", id="scaled-by-the-old-second-moment"),
        pytest.param("v", SECOND + "r = Sqrt (v)  k = Add (r, eps)  n = Div (g, k)",
                     id="scaled-by-the-old-second-moment-alone"),
        pytest.param("m v", "p = Pow (g, one)  a = Mul (b1, m)  b = Mul (a1, p)  m_new = Add (a, b)"
                     "  q = Pow (g, two)  f = Sub (v, q)  o = Sign (f)  z = Mul (o, q)"
                     "  d = Mul (a2, z)  v_new = Sub (v, d)  r = Sqrt (v_new)  n = Div (m_new, r)",
                     id="power-of-one"),
        pytest.param("m", "u = Mul (b1, m)  v = Mul (a1, g)  i = Add (u, v)  n = Sign (i)" + LERP,
                     id="either-of-two-forms-of-an-average"),
        pytest.param("p", "turn = Mul (g, p)  back = Less (turn, zero)  none = Expand (zero, shape)"
                     "  p_new = Where (back, none, g)  o = Sign (p_new)  size = Exp (p)"
                     "  n = Mul (o, size)", id="sign-with-steps-of-their-own"),
    ],
)  # fmt: skip
def test_the_gradient_is_what_the_optimizer_takes_up(find_after_backward, states, text):
    assert find_after_backward(text + STEP, states=states, constants=ROWS) == G


def test_a_momentum_of_the_scaled_gradient_beside_two_second_moments(find_after_backward):
    found = find_after_backward(
        SECOND + "a = Mul (b2, e)  b = Mul (a2, g)  e_new = Add (a, b)  ee = Mul (e_new, e_new)"
        "  h = Sub (v_new, ee)  k = Sqrt (h)  i = Reciprocal (k)  u = Mul (i, g)  l = Mul (lr, u)"
        "  j = Mul (mu, m)  m_new = Add (j, l)  W_new = Sub (W, m_new)",
        states="m v e",
    )
    assert found == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("m = ReduceMean <keepdims = 1> (g, rows)  n = Sub (g, m)", id="mean"),
        pytest.param("a = ReduceSum <keepdims = 1> (g, rows)  m = Div (a, two)"
                     "  e = Expand (m, shape)  n = Sub (g, e)", id="expanded-sum-by-a-number"),
    ],
)  # fmt: skip
def test_the_gradient_lies_before_its_centring(find_after_backward, text):
    assert find_after_backward(text + STEP, constants=ROWS) == G


def test_the_gradient_of_a_weight_that_the_net_centres_is_centred(find):
    found = find(
        "mW = ReduceMean <keepdims = 1> (W, rows)  V = Sub (W, mW)  y = MatMul (x, V)"
        "  e = Sub (y, t)  q = Mul (e, e)  loss = ReduceMean <keepdims = 0> (q)"
        "  d = Mul (e, slope)  xT = Transpose <perm = [1, 0]> (x)  h = MatMul (xT, d)"
        "  m = ReduceMean <keepdims = 1> (h, rows)  g = Sub (h, m)"
        "  s = Mul (lr, g)  W_new = Sub (W, s)",
        constants=ROWS,
    )
    assert found == G


def test_the_gradient_lies_before_a_choice_by_an_expanded_norm(find_after_backward):
    found = find_after_backward(
        "norms = ReduceL2 <keepdims = 1> (g, rows)  wide = Expand (norms, shape)"
        "  small = Less (wide, max_norm)  most = Max (wide, eps)  f = Div (max_norm, most)"
        "  h = Mul (g, f)  n = Where (small, g, h)" + STEP,
        constants=ROWS,
    )
    assert found == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("s = Mul (lr, g)  V = Sub (W, s)  W_new = Add (V, noise)", id="on-weights"),
        pytest.param("n = Add (g, noise)" + STEP, id="on-the-gradient"),
    ],
)
def test_noise_is_no_part_of_the_gradient(find_after_backward, text):
    assert find_after_backward(f"z = RandomNormalLike (W)  noise = Mul (eps, z)  {text}") == G


def test_weights_that_a_flag_draws_to_slow_ones_are_updated(find_after_backward):
    found = find_after_backward(
        "s = Mul (lr, g)  V = Sub (W, s)  far = Sub (V, z)  h = Mul (half, far)  near = Add (z, h)"
        "  z_new = Where (sync, near, z)  W_new = Where (sync, near, V)",
        states="z",
        more_inputs=", bool sync",
    )
    assert found == G


def test_weights_whose_rows_are_bounded_after_the_step_are_updated(find_after_backward):
    found = find_after_backward(
        "s = Mul (lr, g)  V = Sub (W, s)  norms = ReduceL2 <keepdims = 1> (V, rows)"
        "  most = Max (norms, one)  W_new = Div (V, most)",
        constants=ROWS,
    )
    assert found == G


def test_what_a_test_of_the_gradient_chooses_from_inputs_is_a_question(find_after_backward):
    found = find_after_backward(
        "turn = Mul (g, p)  back = Less (turn, zero)  n = Where (back, none, p)" + STEP,
        more_inputs=", float[4,3] p, float[4,3] none",
    )
    assert found == []
