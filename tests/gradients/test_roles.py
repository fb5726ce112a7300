"""Telling parameters from data: one test for each rule of `gradients/roles.py`."""

import numpy as np
import pytest

from onnx_clip_pass.gradients.roles import Roles
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import Flow, Index, Value


@pytest.fixture
def parameters(build):
    """Text to the inputs that are taken for parameters."""

    def among(
        text: str, inputs: str, outputs: str = "float[K] out", **options: object
    ) -> list[str]:
        model = build(text, inputs=inputs, outputs=outputs, **options)
        flow = Flow(Index(model))
        updates = Updates(flow)
        roles = Roles(flow, updates.trained, updates.carried)
        names = [value.name for value in model.graph.input]
        return [name for name in names if roles.of(Value(flow.main, name)).is_parameter]

    return among


def test_integers_are_data(parameters):
    assert parameters("out = Identity (n)", "int64[4] n") == []


def test_an_input_that_a_step_updates_is_a_parameter(parameters):
    text = "y = MatMul (W, b)  g = MatMul (y, b)  s = Mul (lr, g)  W_new = Sub (W, s)"
    assert "W" in parameters(text, "float[3,3] W, float[3,3] b", "float[3,3] W_new")


def test_a_moment_is_no_parameter(parameters):
    text = (
        "y = MatMul (x, W)  xT = Transpose (x)  g = MatMul (xT, y)  a = Mul (mu, m)"
        "  m_new = Add (a, g)  s = Mul (lr, m_new)  W_new = Sub (W, s)"
    )
    found = parameters(
        text,
        "float[N,4] x, float[4,3] W, float[4,3] m",
        "float[4,3] W_new, float[4,3] m_new",
    )
    assert found == ["W"]


@pytest.mark.parametrize("batch", ["N", "?"])
def test_an_input_whose_first_dimension_has_no_number_is_data(parameters, batch):
    assert parameters("out = Tanh (x)", f"float[{batch},4] x") == []


@pytest.mark.parametrize(
    ("text", "inputs", "expected"),
    [
        pytest.param("out = Gemm (x, W, b)", "float[8,4] x, float[4,3] W, float[3] b", ["W", "b"],
                     id="Gemm"),
        pytest.param("out = Conv (x, W)", "float[1,1,8,8] x, float[2,1,3,3] W", ["W"], id="Conv"),
        pytest.param("out = LayerNormalization (x, W)", "float[8,4] x, float[4] W", ["W"],
                     id="LayerNormalization"),
        pytest.param("out = Gather (W, i)", "float[9,4] W, int64[2] i", ["W"], id="Gather"),
        pytest.param("out = PRelu (x, W)", "float[8,4] x, float[4] W", ["W"], id="PRelu"),
        pytest.param("out = MatMul (x, W)", "float[8,4] x, float[4,3] W", ["W"], id="MatMul"),
        pytest.param("out = MatMul (W, x)", "float[3,4] W, float[4,8] x", ["x"],
                     id="MatMul-of-two-unknowns-takes-the-first-for-data"),
        pytest.param("T = Transpose (W)  out = MatMul (x, T)", "float[N,4] x, float[3,4] W", ["W"],
                     id="transposed-beside-data"),
        pytest.param("h = Tanh (x)  out = MatMul (h, W)", "float[N,4] x, float[4,3] W", ["W"],
                     id="beside-an-activation"),
    ],
)  # fmt: skip
def test_the_place_in_the_first_node_tells_weights_from_data(parameters, text, inputs, expected):
    assert parameters(text, inputs) == expected


def test_beside_an_initializer_an_operand_is_data(parameters):
    weights = {"H": np.ones((4, 3), np.float32)}
    assert parameters("out = MatMul (x, H)", "float[8,4] x", constants=weights) == []


def test_a_recurrent_weight_is_none_the_less_for_beginning_beside_a_constant(parameters):
    text = "a = MatMul (h0, U)  h1 = Tanh (a)  b = MatMul (h1, U)  out = Tanh (b)"
    assert parameters(text, "float[4,4] U", constants={"h0": np.zeros((8, 4), np.float32)}) == ["U"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("e = Sub (y, t)", id="Sub"),
        pytest.param("l = LogSoftmax (y)  e = Mul (t, l)", id="product-with-log-probability"),
    ],
)
def test_a_target_of_the_batch_size_that_is_compared_is_data(parameters, text):
    found = parameters(
        f"y = Gemm (x, W)  {text}", "float[8,4] x, float[4,3] W, float[8,3] t", "float[8,3] e"
    )
    assert found == ["W"]


def test_whatever_nothing_shows_to_be_data_is_a_parameter(parameters):
    assert parameters("out = Tanh (gain)", "float[4] gain") == ["gain"]
