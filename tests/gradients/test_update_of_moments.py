"""Gradients that reach the parameter through momentum, averages and second moments."""

import numpy as np
import onnx
import pytest
from graphs import MODELS

from onnx_clip_pass import find_gradients

G = [("g", "W")]
FIRST = "a = Mul (b1, m)  b = Mul (a1, g)  m_new = Add (a, b)  "
SECOND = "c = Mul (b2, v)  q = Mul (g, g)  d = Mul (a2, q)  v_new = Add (c, d)  "
ROOT = "r = Sqrt (v_new)  k = Add (r, eps)  "
STEP = "  s = Mul (lr, n)  W_new = Sub (W, s)"


@pytest.mark.parametrize(
    ("states", "text"),
    [
        pytest.param("m", "a = Mul (mu, m)  m_new = Add (a, g)  n = Identity (m_new)",
                     id="momentum"),
        pytest.param("m", FIRST + "n = Identity (m_new)", id="average"),
        pytest.param("m", "a = Mul (mu, m)  f = Sub (one, t0)  b = Mul (f, g)  m_new = Add (a, b)"
                     "  n = Identity (m_new)", id="momentum-with-dampening"),
        pytest.param("m", "a = Mul (b1, m)  f = Sub (one, b1)  b = Mul (g, f)  m_new = Add (a, b)"
                     "  n = Identity (m_new)", id="average-with-computed-share"),
        pytest.param("m", "a = Sub (g, m)  b = Mul (a1, a)  m_new = Add (m, b)"
                     "  n = Identity (m_new)",
                     id="average-as-m+a*(g-m)"),
        pytest.param("m", "a = Sub (m, g)  b = Mul (a1, a)  m_new = Sub (m, b)"
                     "  n = Identity (m_new)",
                     id="average-as-m-a*(m-g)"),
        pytest.param("m", "d = Mul (wd, W)  h = Add (g, d)  a = Mul (mu, m)  m_new = Add (a, h)"
                     "  n = Identity (m_new)", id="decay-before-momentum"),
        pytest.param("m", "a = Mul (mu, m)  m_new = Add (a, g)  b = Mul (mu, m_new)"
                     "  n = Add (g, b)",
                     id="Nesterov"),
        pytest.param("m", FIRST.replace("m_new", "o") + "n = Sign (o)  c = Mul (b2, m)"
                     "  d = Mul (a2, g)  m_new = Add (c, d)", id="Lion"),
        pytest.param("v", SECOND + ROOT + "n = Div (g, k)", id="RMSprop"),
        pytest.param("v", "q = Pow (g, two)  v_new = Add (v, q)  " + ROOT + "n = Div (g, k)",
                     id="Adagrad"),
        pytest.param("m v", FIRST + SECOND + ROOT + "n = Div (m_new, k)", id="Adam"),
        pytest.param("m v", FIRST + SECOND + "p = Pow (b1, t0)  o = Sub (one, p)"
                     "  u = Div (m_new, o)"
                     "  p2 = Pow (b2, t0)  o2 = Sub (one, p2)  w = Div (v_new, o2)  r = Sqrt (w)"
                     "  n = Div (u, r)", id="Adam-with-bias-correction"),
        pytest.param("m v", FIRST + SECOND + ROOT + "u = Div (m_new, k)  e = Mul (wd, W)"
                     "  n = Add (u, e)", id="AdamW"),
        pytest.param("m v h", FIRST + SECOND + "h_new = Max (h, v_new)  r = Sqrt (h_new)"
                     "  n = Div (m_new, r)", id="AMSGrad"),
        pytest.param("m v", FIRST + "c = Mul (b2, v)  q = Abs (g)  v_new = Max (c, q)"
                     "  n = Div (m_new, v_new)", id="Adamax"),
        pytest.param("m v", FIRST + "c = Mul (b2, v)  p = Abs (g)  q = Add (p, eps)"
                     "  v_new = Max (c, q)  h = Mul (half, m_new)  n = Div (h, v_new)",
                     id="Adamax-with-eps"),
        pytest.param("m v", SECOND + ROOT + "u = Div (g, k)  a = Mul (mu, m)  m_new = Add (a, u)"
                     "  n = Identity (m_new)", id="RMSprop-with-momentum"),
        pytest.param("m e", "e_new = Add (e, g)  f = Mul (e_new, half)  a = Mul (b1, m)"
                     "  b = Mul (a1, f)  m_new = Add (a, b)  n = Identity (m_new)",
                     id="average-of-a-sum-over-runs"),
        pytest.param("m v", FIRST + "q = Mul (g, g)  f = Sub (v, q)  o = Sign (f)  z = Mul (o, q)"
                     "  d = Mul (a2, z)  v_new = Sub (v, d)  " + ROOT + "n = Div (m_new, k)",
                     id="Yogi"),
        pytest.param("m v", FIRST + "q = Mul (g, g)  dv = Sub (q, v)  d = Mul (a2, dv)"
                     "  v_new = Add (v, d)  " + ROOT + "n = Div (m_new, k)",
                     id="a-distance-that-is-named-like-a-gradient-of-the-moment"),
        pytest.param("m v", FIRST + SECOND + ROOT + "u = Div (m_new, k)"
                     "  o = ReduceL2 <keepdims=0> (W)"
                     "  p = ReduceL2 <keepdims=0> (u)  f = Div (o, p)  n = Mul (f, u)", id="LAMB"),
    ],
)  # fmt: skip
def test_the_gradient_is_what_the_moments_take_up(find_after_backward, states, text):
    assert find_after_backward(text + STEP, states=states, more_inputs=", float t0") == G


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = Mul (mu, m)  l = Mul (lr, g)  m_new = Sub (a, l)  W_new = Add (W, m_new)",
                     id="Keras"),
        pytest.param("a = Mul (mu, m)  l = Mul (lr, g)  m_new = Sub (a, l)  b = Mul (mu, m_new)"
                     "  n = Sub (b, l)  W_new = Add (W, n)", id="Keras-Nesterov"),
        pytest.param("a = Mul (mu, m)  l = Mul (lr, g)  m_new = Sub (a, l)  b = Mul (two, m_new)"
                     "  c = Mul (mu, m)  d = Sub (b, c)  W_new = Add (W, d)",
                     id="Nesterov-by-both-moments"),
        pytest.param("a = Mul (mu, m)  l = Mul (a2, g)  m_new = Add (a, l)  W_new = Sub (W, m_new)",
                     id="classic"),
        pytest.param("a = Mul (mu, m)  o = ReduceL2 <keepdims = 0> (W)"
                     "  p = ReduceL2 <keepdims = 0> (g)  k = Div (o, p)  r = Mul (lr, k)"
                     "  d = Mul (wd, W)  h = Add (g, d)  l = Mul (r, h)  m_new = Add (a, l)"
                     "  W_new = Sub (W, m_new)", id="LARS"),
    ],
)  # fmt: skip
def test_a_velocity_that_holds_the_learning_rate_gives_the_gradient_without_it(
    find_after_backward, text
):
    assert find_after_backward(text, states="m") == G


def test_matrix_products_behind_a_moment_lead_back_to_what_it_takes_up(find_after_backward):
    found = find_after_backward(
        "a = Mul (mu, m)  m_new = Add (a, g)  mT = Transpose <perm = [1, 0]> (m_new)"
        "  p = MatMul (m_new, mT)  n = MatMul (p, m_new)" + STEP,
        states="m",
    )
    assert found == G


def test_moments_of_rows_and_columns_scale_the_gradient(find_after_backward):
    found = find_after_backward(
        "q = Mul (g, g)  qr = ReduceMean (q, last)  qc = ReduceMean (q, first)"
        "  a = Mul (b2, r)  b = Mul (a2, qr)  r_new = Add (a, b)"
        "  d = Mul (b2, c)  e = Mul (a2, qc)  c_new = Add (d, e)"
        "  k = Mul (r_new, c_new)  l = Sqrt (k)  n = Div (g, l)" + STEP,
        more_inputs=", float[4,1] r, float[1,3] c",
        more_outputs=", float[4,1] r_new, float[1,3] c_new",
        constants={"first": np.array([0]), "last": np.array([1])},
    )
    assert found == G


def test_a_preconditioner_of_another_shape_leads_back_to_the_gradient(find_after_backward):
    found = find_after_backward(
        "gT = Transpose <perm = [1, 0]> (g)  p = MatMul (g, gT)  k_new = Add (k, p)"
        "  n = MatMul (k_new, g)" + STEP,
        more_inputs=", float[4,4] k",
        more_outputs=", float[4,4] k_new",
    )
    assert found == G


def test_an_average_of_the_new_weights_beside_the_update_changes_nothing(find_after_backward):
    found = find_after_backward(
        "s = Mul (lr, g)  W_new = Sub (W, s)  a = Mul (b1, e)  b = Mul (a1, W_new)"
        "  e_new = Add (a, b)",
        states="e",
    )
    assert found == G


def test_a_mean_of_all_new_weights_is_no_parameter(find):
    found = find(
        "s = Mul (lr, W_grad)  W_new = Sub (W, s)  a = Mul (e, n)  b = Add (a, W_new)"
        "  n_new = Add (n, one)  e_new = Div (b, n_new)",
        inputs="float[4,3] W, float[4,3] W_grad, float[4,3] e, float n",
        outputs="float[4,3] W_new, float[4,3] e_new, float n_new",
    )
    assert found == [("W_grad", "W")]


def test_a_sum_over_runs_that_is_set_to_zero_after_a_step_leads_to_what_it_takes_up(
    find_after_backward,
):
    found = find_after_backward(
        "sum = Add (e, g)  h = Mul (half, sum)  s = Mul (lr, h)  w = Sub (W, s)"
        "  W_new = Where (due, w, W)  size = Shape (sum)  none = ConstantOfShape (size)"
        "  e_new = Where (due, none, sum)",
        states="e",
        more_inputs=", bool due",
    )
    assert found == G


def test_slow_weights_that_follow_fast_ones_change_nothing(find_after_backward):
    found = find_after_backward(
        "s = Mul (lr, g)  W_new = Sub (W, s)  a = Sub (W_new, e)  b = Mul (half, a)"
        "  e_new = Add (e, b)",
        states="e",
    )
    assert found == G


@pytest.mark.parametrize("clip", ["c = Clip (g, low, high)", "n0 = ReduceL2 <keepdims = 0> (g)"
                                  "  r0 = Div (max_norm, n0)  f0 = Min (r0, one)  c = Mul (g, f0)"],
                         ids=["by-value", "by-norm"])  # fmt: skip
def test_the_gradient_lies_before_a_clip_in_front_of_the_moments(find_after_backward, clip):
    text = f"{clip}  a = Mul (mu, m)  m_new = Add (a, c)  n = Identity (m_new)" + STEP
    assert find_after_backward(text, states="m") == G


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam"])
def test_moments_that_are_outputs_twice_are_no_parameters(name: str):
    step = onnx.load(MODELS / "in_graph" / f"{name}.onnx")
    known = find_gradients(step)
    for new in list(step.graph.output):
        copy = step.graph.output.add()
        copy.CopyFrom(new)
        copy.name = f"{new.name}_copy"
        step.graph.node.add(op_type="Identity", input=[new.name], output=[copy.name])
    assert find_gradients(step) == known
