"""Names that decide between parameters and data, and names that show nothing."""

import numpy as np
import pytest
from onnx import helper, parser

from onnx_clip_pass import find_gradients


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        pytest.param("W_grad = Sin (W)  z = Tanh (x)", "float[N,4] z", id="read-by-nothing"),
        pytest.param("W_grad = Sin (W)  dead = Tanh (W_grad)  z = Tanh (x)", "float[N,4] z",
                     id="read-by-what-nothing-reads"),
        pytest.param("W_grad = Sin (W)  z = Tanh (W_grad)", "float[4,3] z", id="taken"),
    ],
)  # fmt: skip
def test_a_gradient_of_which_nothing_comes_does_not_count(find, text, outputs):
    found = find(text, inputs="float[N,4] x, float[4,3] W", outputs=outputs)
    assert found == ([("W_grad", "W")] if "z = Tanh (W_grad)" in text else [])


def test_a_factor_that_the_backward_pass_multiplies_on_is_no_gradient(find):
    """`dt` is 1 - tanh^2, and `t` a target, whatever they are called."""
    found = find(
        """z = Einsum <equation = "ij,bj->bi"> (W, x)  y = Tanh (z)  e = Sub (y, t)  q = Mul (e, e)
           loss = ReduceMean <keepdims = 0> (q)  yy = Mul (y, y)  dt = Sub (one, yy)
           dz = Mul (e, dt)  g = Einsum <equation = "bi,bj->ij"> (dz, x)""",
        inputs="float[6,4] x, float[6,3] t, float[3,4] W",
        outputs="float loss, float[3,4] g",
        constants={"one": np.ones((), np.float32)},
    )
    assert found == []


def test_a_gradient_that_a_function_gives_and_its_caller_leaves_out_does_not_count(find):
    found = find(
        '"", V_grad = local.both (W, V)',
        inputs="float[4,3] W, float[4,3] V",
        outputs="float[4,3] V_grad",
        functions="""<domain: "local", opset_import: ["" : 18]> both (W, V) => (a, c)
                     { adj_W = Sin (W)  a = Tanh (adj_W)  c = Sin (V) }""",
    )
    assert found == [("V_grad", "V")]


@pytest.mark.parametrize(
    ("shape", "packed"),
    [
        pytest.param("[4,2,3,3]", "[72,nadj]", id="kernel"),
        pytest.param("", "[1,nadj]", id="scalar"),
        pytest.param("[4,3]", "[4,nadj_x3]", id="matrix"),
    ],
)
def test_onnx_ad_packs_a_gradient_into_one_column_for_each_seed(find, shape, packed):
    found = find("adj_W = Tanh (raw)", inputs=f"float{shape} W, float{packed} raw",
                 outputs=f"float{packed} adj_W")  # fmt: skip
    assert found == [("adj_W", "W")]


def test_a_name_on_a_clipped_value_shows_the_gradient_before_the_clip(find_after_backward):
    found = find_after_backward("dW = Clip (g, low, high)", outputs="float loss, float[4,3] dW")
    assert found == [("g", "W")]


def test_where_initializers_have_gradients_inputs_are_data(find):
    found = find(
        "y = MatMul (x, W)  xP = Add (x, P)  adj_W = Sin (W)  adj_P = Tanh (xP)",
        inputs="float[6,4] x, float[6,4] P",
        outputs="float[6,3] y, float[4,3] adj_W, float[6,4] adj_P",
        constants={"W": np.ones((4, 3), np.float32)},
    )
    assert found == [("adj_W", "W")]


@pytest.mark.parametrize("columns", ["8", "N"])
def test_of_two_factors_the_one_with_a_gradient_is_the_weight(find, columns):
    found = find(
        "y = MatMul (W, x)  adj_W = Sin (W)",
        inputs=f"float[3,4] W, float[4,{columns}] x",
        outputs=f"float[3,{columns}] y, float[3,4] adj_W",
    )
    assert found == [("adj_W", "W")]


def test_a_batch_may_be_the_last_dimension(find):
    found = find(
        "y = MatMul (W, x)  adj_W = Sin (W)  adj_x = Sin (x)",
        inputs="float[3,4] W, float[4,N] x",
        outputs="float[3,N] y, float[3,4] adj_W, float[4,N] adj_x",
    )
    assert found == [("adj_W", "W")]


def test_data_beside_a_sum_of_weights_is_data(find):
    found = find(
        "S = Add (A, B)  y = MatMul (x, S)  adj_A = Sin (A)  adj_B = Sin (B)  adj_x = Sin (x)",
        inputs="float[6,4] x, float[4,3] A, float[4,3] B",
        outputs="float[6,3] y, float[4,3] adj_A, float[4,3] adj_B, float[6,4] adj_x",
    )
    assert found == [("adj_A", "A"), ("adj_B", "B")]


def test_each_algorithm_of_the_training_info_has_its_own_gradient(build):
    forward = "y = MatMul (x, W)  r = ReduceSum <keepdims = 0> (y)"
    model = build(forward, inputs="float[N,4] x, float[4,3] W", outputs="float r")
    updates = [
        "s = Mul (R, {g})  W_new = Sub (W, s)",
        "W_new, v_new = ai.onnx.preview.training.Momentum <mode = \"standard\"> (R, T, W, {g}, v)",
    ]  # fmt: skip
    for name, update in zip(("g", "h"), updates, strict=True):
        gradient = f'{name} = ai.onnx.preview.training.Gradient <xs = ["W"], y = "r"> (W)  '
        text = gradient + update.format(g=name)
        graph = parser.parse_graph(
            f"step (float R, int64 T, float[4,3] v) => (float[4,3] W_new) {{ {text} }}"
        )
        model.training_info.append(helper.make_training_info(graph, [("W", "W_new")], None, None))
    found = [(gradient.name, gradient.parameter.name) for gradient in find_gradients(model)]
    assert found == [("g", "W"), ("h", "W")]
