"""Updates whose sign, whose masks or whose single elements could mislead."""

import pytest

G = [("g", "W")]
SCALAR = """
    y = Mul (x, W)
    error = Sub (y, t)
    square = Mul (error, error)
    loss = ReduceMean <keepdims = 0> (square)
    products = Mul (error, x)
    g = ReduceSum <keepdims = 0> (products)
"""


@pytest.mark.parametrize(
    ("text", "states"),
    [
        pytest.param("p = Mul (wd, W)  d = Add (g, p)  s = Mul (lr, d)  W_new = Sub (W, s)", "",
                     id="decay"),
        pytest.param("k = Mul (mu, m)  m_new = Add (k, g)  s = Mul (lr, m_new)"
                     "  W_new = Sub (W, s)", "m", id="momentum"),
        pytest.param("q = Mul (g, g)  c = Mul (a2, q)  d = Mul (b2, v)  v_new = Add (c, d)"
                     "  r = Sqrt (v_new)  i = Reciprocal (r)  l = Mul (lr, g)  u = Mul (l, i)"
                     "  k = Mul (mu, m)  m_new = Add (k, u)  W_new = Sub (W, m_new)", "m v",
                     id="velocity-of-the-scaled-gradient"),
        pytest.param("k = Mul (b1, m)  a = Mul (a1, g)  m_new = Add (k, a)"
                     "  q = Mul (lr, wd)  r = Sub (one, q)  V = Mul (W, r)"
                     "  s = Mul (lr, m_new)  W_new = Sub (V, s)", "m", id="decoupled-decay"),
    ],
)  # fmt: skip
def test_a_scalar_parameter_is_told_from_the_numbers_around_it(find, text, states):
    names = states.split()
    found = find(
        SCALAR + text,
        inputs="float[N,3] x, float[N,3] t, float W" + "".join(f", float {s}" for s in names),
        outputs="float loss, float W_new" + "".join(f", float {s}_new" for s in names),
    )
    assert found == G


def test_nadam_takes_the_gradient_up_in_its_moments(find_after_backward):
    text = """
        k = Mul (b1, m)  a = Mul (a1, g)  m_new = Add (k, a)
        gg = Mul (g, g)  l = Mul (b2, v)  c = Mul (a2, gg)  v_new = Add (l, c)
        f = Mul (b1, m_new)  e = Div (a, half)  n = Add (f, e)
        q = Sqrt (v_new)  o = Add (q, eps)  d = Div (n, o)
        s = Mul (lr, d)  W_new = Sub (W, s)
    """
    assert find_after_backward(text, states="m v") == G


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("n = Neg (g)  s = Mul (lr, n)  W_new = Add (W, s)", G,
                     id="plus-lr-times-minus"),
        pytest.param("n = Neg (g)  s = Mul (lr, n)  W_new = Sub (W, s)", G,
                     id="minus-lr-times-minus"),
    ],
)  # fmt: skip
def test_a_minus_belongs_to_the_update(find_after_backward, text, expected):
    assert find_after_backward(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("s = Mul (lr, g)  W_new = Add (W, s)", [], id="plus"),
        pytest.param("s = Mul (minus_lr, g)  W_new = Add (W, s)", G, id="plus-minus"),
        pytest.param("n = Neg (lr)  s = Mul (n, g)  W_new = Add (W, s)", G, id="plus-negated"),
        pytest.param("n = Sub (zero, lr)  s = Mul (n, g)  W_new = Add (W, s)", G, id="zero-minus"),
    ],
)
def test_without_a_loss_only_a_negative_step_is_descent(find_after_backward, text, expected):
    assert find_after_backward(text, outputs="float[4,3] W_new") == expected


def test_the_mask_of_a_relu_is_no_clipping(find):
    found = find(
        """
        a = MatMul (x, W)  z = Add (a, P)  y = Relu (z)  error = Sub (y, t)
        square = Mul (error, error)  loss = ReduceMean <keepdims = 0> (square)
        mask = Greater (z, zero)  p = Where (mask, error, zero)
        s = Mul (lr, p)  P_new = Sub (P, s)
        """,
        inputs="float[6,4] x, float[6,3] t, float[4,3] W, float[6,3] P",
        outputs="float loss, float[6,3] P_new",
    )
    assert found == [("p", "P")]


def test_an_if_that_computes_the_gradient_or_zeros_hands_the_gradient_out(find):
    found = find(
        """
        G = If (learn) <
            then_branch = yes () => (float[4,3] g) {
                y = MatMul (x, W)  e = Sub (y, t)  xT = Transpose <perm = [1, 0]> (x)
                g = MatMul (xT, e)
            },
            else_branch = no () => (float[4,3] z) { z = ConstantOfShape (shape) }
        >
        s = Mul (lr, G)  W_new = Sub (W, s)
        """,
        inputs="float[N,4] x, float[N,3] t, float[4,3] W, bool learn, int64[2] shape",
        outputs="float[4,3] W_new",
    )
    assert found == [("G", "W")]


@pytest.mark.parametrize("text", ["s = Mul (rate, W_grad)  W_new = Sub (W, s)",
                                  "s = Mul (W_grad, rate)  W_new = Sub (W, s)"],
                         ids=["lr*g", "g*lr"])  # fmt: skip
def test_of_two_numbers_the_one_named_after_the_parameter_is_the_gradient(find, text):
    found = find(text, inputs="float W, float W_grad, float rate", outputs="float W_new")
    assert found == [("W_grad", "W")]
