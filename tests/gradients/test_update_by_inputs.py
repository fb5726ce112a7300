"""Updates in a graph that computes no gradients: they are inputs, whatever their names."""

import pytest

MOMENTUM = "a = Mul (mu, m)  m_new = Add (a, {})  s = Mul (lr, m_new)  W_new = Sub (W, s)"
NORM = "n = ReduceL2 <keepdims = 0> ({g})  k = Max (n, max_norm)  f = Div (max_norm, k)  "


@pytest.fixture
def find_with(find):
    """Pairs for an optimizer with the inputs W, a moment m and a gradient of the given name."""

    def find_in(text: str, name: str = "in0", shape: str = "[4,3]") -> list[tuple[str, str]]:
        inputs = ", ".join(f"float{shape} {each}" for each in ("W", "m", name))
        return find(text, inputs=inputs, outputs=f"float{shape} W_new, float{shape} m_new")

    return find_in


def test_a_state_that_a_force_moves_is_no_parameter(find_with):
    text = "a = Mul (mu, m)  f = Mul (lr, in0)  m_new = Add (a, f)  s = Mul (lr, m_new)"
    assert find_with(text + "  W_new = Add (W, s)") == []


@pytest.mark.parametrize("name", ["in0", "W_grad"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("q = Mul ({g}, {g})  c = Mul (b2, m)  d = Mul (a2, q)  m_new = Add (c, d)"
                     "  r = Sqrt (m_new)  n = Div ({g}, r)  s = Mul (lr, n)  W_new = Sub (W, s)",
                     id="RMSprop"),
        pytest.param("w = Mul (wd, W)  h = Add ({g}, w)  " + MOMENTUM.format("h"),
                     id="decay-before-momentum"),
        pytest.param(NORM + "c = Mul ({g}, f)  " + MOMENTUM.format("c"), id="clip-by-norm"),
        pytest.param("b = IsNaN ({g})  c = Where (b, zero, {g})  " + MOMENTUM.format("c"),
                     id="nan-to-zero"),
    ],
)  # fmt: skip
def test_the_gradient_is_the_input_that_the_moment_takes_up(find_with, text, name):
    assert find_with(text.format(g=name), name) == [(name, "W")]


def test_of_two_inputs_the_one_that_is_scaled_is_the_moment(find_with):
    text = MOMENTUM.format("{g}")
    assert find_with(text.format(g="in0")) == [("in0", "W")]
    assert find_with(text.format(g="W_grad"), "W_grad") == [("W_grad", "W")]


def test_a_clip_without_moments_is_seen_through(find):
    text = NORM.format(g="in0") + "c = Mul (in0, f)  s = Mul (lr, c)  W_new = Sub (W, s)"
    found = find(text, inputs="float[4,3] W, float[4,3] in0", outputs="float[4,3] W_new")
    assert found == [("in0", "W")]


def test_a_moment_has_no_batch_size_by_which_the_parameter_would_be_data(find_with):
    text = "a = Mul (mu, m)  b = Mul (half, W_grad)  m_new = Add (a, b)  s = Mul (lr, m_new)"
    assert find_with(f"{text}  W_new = Sub (W, s)", "W_grad") == [("W_grad", "W")]


def test_decay_without_moments_is_seen_through(find):
    text = "w = Mul (wd, W)  h = Add (in0, w)  s = Mul (lr, h)  W_new = Sub (W, s)"
    found = find(text, inputs="float[4,3] W, float[4,3] in0", outputs="float[4,3] W_new")
    assert found == [("in0", "W")]
