"""Gradients known by the Gradient operator of ai.onnx.preview.training."""

import numpy as np
import pytest

GRADIENT = "ai.onnx.preview.training.Gradient"
FORWARD = "y = Gemm (x, W)  loss = ReduceMean <keepdims = 0> (y)  "
INPUTS = "float[N,4] x, float[4,3] W"


def test_an_operator_of_that_name_in_another_domain_shows_nothing(find):
    text = f'{FORWARD}g = local.Gradient <xs = ["W"], y = "loss"> (W)'
    assert find(text, inputs=INPUTS, outputs="float[4,3] g") == []


@pytest.mark.parametrize(
    ("xs", "outputs", "expected"),
    [
        pytest.param('["x"]', "g", [], id="data"),
        pytest.param('["y"]', "g", [], id="activation"),
        pytest.param('["unknown"]', "g", [], id="no-tensor-of-the-graph"),
        pytest.param('["W"]', "g", [("g", "W")], id="parameter"),
        pytest.param('["x", "W"]', "h, g", [("g", "W")], id="data-and-parameter"),
    ],
)
def test_output_i_is_the_derivative_by_the_parameter_xs_i(find, xs, outputs, expected):
    text = f'{FORWARD}{outputs} = {GRADIENT} <xs = {xs}, zs = ["x"], y = "loss"> (x)'
    assert find(text, inputs=INPUTS, outputs="float[4,3] g") == expected


def test_an_initializer_is_a_parameter(find):
    text = f'{FORWARD}g = {GRADIENT} <xs = ["W"], y = "loss"> (W)'
    found = find(
        text,
        inputs="float[N,4] x",
        outputs="float[4,3] g",
        constants={"W": np.ones((4, 3), np.float32)},
    )
    assert found == [("g", "W")]
