"""Gradients known by a name only: a parameter's name and an affix."""

import numpy as np
import pytest

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.gradients.naming import PREFIXES, SUFFIXES, parameter_names

INPUTS = "float[N,4] x, float[4,3] W"


def forward(**made: str) -> str:
    """The net and more values of W's shape, each by its expression."""
    lines = [f'"{name}" = {expression}' for name, expression in made.items()]
    return "  ".join(["y = Gemm (x, W)", "raw = Tanh (W)", *lines])


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        pytest.param(INPUTS, "float[3,4] W_grad", "W_grad = Transpose (raw)", id="transposed"),
        pytest.param(INPUTS, "float[4] W_grad", "W_grad = ReduceSum (raw)",
                     id="one-dimension-less"),
        pytest.param(INPUTS, "int64[4,3] W_grad", "W_grad = Cast <to = 7> (raw)", id="integers"),
        pytest.param(INPUTS, "float[N,4] x_grad", "x_grad = Tanh (x)", id="of-data"),
        pytest.param(INPUTS, "float[N,3] y_grad", "y_grad = Tanh (y)", id="of-an-activation"),
        pytest.param(INPUTS, "float[4,3] V_grad", "V_grad = Tanh (raw)", id="of-nothing"),
        pytest.param(f"{INPUTS}, float[N,3] adj_y", "float[N,3] z", "z = Tanh (adj_y)", id="seed"),
        pytest.param(f"{INPUTS}, int64[4] ids", "int64[4] ids_grad", "ids_grad = Identity (ids)",
                     id="of-integers"),
    ],
)  # fmt: skip
def test_an_affix_alone_makes_no_gradient(find, inputs, outputs, text):
    assert find(f"{forward()}  {text}", inputs=inputs, outputs=outputs) == []


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        pytest.param("float[5,4] e, float c", "dc = Mul (e, half)", id="matrix-beside-a-scalar"),
        pytest.param("float[5,4] e, float c", "dc = ReduceMean <keepdims = 0> (e, rows)",
                     id="vector-beside-a-scalar"),
        pytest.param("float[5,4] W", "dW = ReduceMean <keepdims = 0> (W, rows)",
                     id="mean-over-rows"),
        pytest.param("float[5,4] e, float[5,4] W, int64[K] s", "dW = Reshape (e, s)",
                     id="shape-known-to-nobody"),
    ],
)  # fmt: skip
def test_an_inner_value_without_a_declared_type_has_the_shape_or_does_not_count(find, inputs, text):
    made = text.split()[0]
    rows = {"rows": np.array([0])}
    found = find(f"{text}  z = Tanh ({made})", inputs=inputs, outputs="float[?] z", constants=rows)
    assert found == []


def test_a_weight_that_is_called_like_the_gradient_of_another_one_is_none(find):
    found = find(
        "y = MatMul (x, W)  z = MatMul (y, W_grad)",
        inputs="float[N,4] x, float[4,4] W, float[4,4] W_grad",
        outputs="float[N,4] z",
    )
    assert found == []


def test_an_output_of_a_shape_known_to_nobody_counts(find):
    found = find("dW = Reshape (e, s)", inputs="float[5,4] e, float[5,4] W, int64[K] s",
                 outputs="dW")  # fmt: skip
    assert found == [("dW", "W")]


def test_an_initializer_named_like_a_gradient_is_none(find):
    ones = np.ones((4, 3), np.float32)
    text = forward(z="Mul (raw, W_grad)")
    found = find(text, inputs=INPUTS, outputs="float[4,3] z", constants={"W_grad": ones})
    assert found == []


def test_an_input_with_the_shortest_affix_is_the_weight_of_a_gate(find):
    text = "a = MatMul (x, W)  b = MatMul (x, W_g)  c = Sigmoid (b)  y = Mul (a, c)"
    found = find(text, inputs=f"{INPUTS}, float[4,3] W_g", outputs="float[N,3] y")
    assert found == []


def test_a_moment_of_an_optimizer_has_no_gradient(find_after_backward):
    text = (
        "dm = Sub (g, m)  a = Mul (a1, dm)  m_new = Add (m, a)"
        "  s = Mul (lr, m_new)  W_new = Sub (W, s)"
    )
    assert find_after_backward(text, states="m") == [("g", "W")]


@pytest.mark.parametrize(
    "name",
    [*(f"W{suffix}" for suffix in SUFFIXES), *(f"{prefix}W" for prefix in PREFIXES), "grad(W)"],
)
def test_every_affix_on_a_parameter_of_that_shape_makes_a_gradient(find, name):
    found = find(forward(**{name: "Sin (raw)"}), inputs=INPUTS, outputs=f'float[4,3] "{name}"')
    assert found == [(name, "W")]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        pytest.param("W", [], id="no-affix"),
        pytest.param("_grad", [], id="nothing-but-an-affix"),
        pytest.param("W_grad", ["W"], id="suffix"),
        pytest.param("grad(W)", ["W"], id="parentheses"),
        pytest.param("d_W", ["W", "_W"], id="longest-affix-first"),
    ],
)
def test_the_parameters_that_a_name_may_belong_to(name, parameters):
    assert list(parameter_names(name)) == parameters


def test_a_trailing_seed_dimension_is_part_of_a_gradient(find):
    text = "y = Gemm (x, W)  last = Constant <value_ints = [2]> ()  adj_W = Unsqueeze (W, last)"
    assert find(text, inputs=INPUTS, outputs="float[4,3,nadj] adj_W") == [("adj_W", "W")]


def test_an_inner_value_is_found_where_no_output_has_a_name(find):
    text = forward(W_grad="Sin (raw)", z="Tanh (W_grad)")
    assert find(text, inputs=INPUTS, outputs="float[4,3] z") == [("W_grad", "W")]


def test_an_output_is_believed_before_an_inner_value(find):
    text = forward(W_grad="Sin (raw)", dW="Tanh (raw)", z="Tanh (dW)")
    assert find(text, inputs=INPUTS, outputs="float[4,3] W_grad, float[4,3] z") == [("W_grad", "W")]


def test_of_two_outputs_the_one_computed_from_the_other_counts(find):
    text = forward(W_grad="Sin (raw)", dW="Mul (W_grad, half)")
    assert find(text, inputs=INPUTS, outputs="float[4,3] W_grad, float[4,3] dW") == [("dW", "W")]


def test_two_outputs_on_different_ways_are_refused_by_name(find):
    text = forward(W_grad="Sin (raw)", dW="Cos (raw)")
    with pytest.raises(OnnxClipError, match=r"one gradient of 'W'.*'W_grad', 'dW'"):
        find(text, inputs=INPUTS, outputs="float[4,3] W_grad, float[4,3] dW")
