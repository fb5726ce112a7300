"""Gradients that the caller names: what is believed, and what is surely wrong."""

import re

import pytest

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients
from onnx_clip_pass.gradients import name_gradients
from onnx_clip_pass.graph import Index

BACKWARD = (
    "y = MatMul (x, W)  e = Sub (y, t)  q = Mul (e, e)  loss = ReduceMean <keepdims = 0> (q)"
    "  xT = Transpose <perm = [1, 0]> (x)  g = MatMul (xT, e)  "
)
STEP = BACKWARD + "s = Mul (lr, g)  W_new = Sub (W, s)"
INPUTS = "float[N,4] x, float[N,3] t, float[4,3] W"
OUTPUTS = "float loss, float[4,3] W_new"
ONLY_OPTIMIZER = "s = Mul (lr, W_grad)  W_new = Sub (W, s)"


@pytest.fixture
def claim(build):
    """A step and what is said of it to pairs of a gradient's name and its parameter's."""

    def claimed(
        wanted: dict[str, str | None],
        text: str = STEP,
        inputs: str = f"{INPUTS}, float[5] b, int64[4,3] n",
        outputs: str = OUTPUTS,
    ) -> list[tuple[str, str]]:
        model = build(text, inputs=inputs, outputs=outputs)
        found = name_gradients(Index(model), wanted).found
        return [(each.gradient.name, each.gradient.parameter.name) for each in found]

    return claimed


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param({"g": "W"}, [("g", "W")], id="with-its-parameter"),
        pytest.param({"g": None}, [("g", "g")], id="whose-parameter-is-not-said"),
        pytest.param({"g": "W", "e": None}, [("g", "W"), ("e", "e")],
                     id="of-an-activation"),
        pytest.param({"g": "W", "s": "W"}, [("g", "W"), ("s", "W")], id="two-of-one-parameter"),
    ],
)  # fmt: skip
def test_what_may_be_true_is_believed(claim, wanted, expected):
    assert claim(wanted) == expected


def test_an_input_may_be_a_gradient(claim):
    inputs, outputs = "float[4,3] W, float[4,3] W_grad", "float[4,3] W_new"
    assert claim({"W_grad": "W"}, ONLY_OPTIMIZER, inputs, outputs) == [("W_grad", "W")]


def test_the_parameter_of_a_graph_without_parameters_lies_elsewhere(claim):
    found = claim({"r": "W"}, "r = Tanh (x)", "float[4,3] x", "float[4,3] r")
    assert found == [("r", "W")]


def test_a_transposed_gradient_fits(claim):
    text = "y = MatMul (x, W)  r = Transpose (W)"
    assert claim({"r": "W"}, text, INPUTS, "float[3,4] r") == [("r", "W")]


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        pytest.param({"gg": "W"}, "'gg' is no value of this model", id="no-value"),
        pytest.param({"W": "g"}, "'W' is a parameter, so it is no gradient; did you mean the other"
                     " way round, {'g': 'W'}?", id="reversed"),
        pytest.param({"W": None}, "'W' is a parameter, so it is no gradient", id="parameter"),
        pytest.param({"x": None}, "'x' is data, so it is no gradient", id="data"),
        pytest.param({"loss": None}, "'loss' is one number, and no parameter here is one",
                     id="loss"),
        pytest.param({"W_new": None}, "'W_new' is what 'W' becomes, so it is no gradient",
                     id="new-value"),
        pytest.param({"g": "V"}, "'V' is no parameter: this model has no such value",
                     id="parameter-that-does-not-exist"),
        pytest.param({"g": "y"}, "'y' is computed by MatMul, so it is no parameter",
                     id="computed-parameter"),
        pytest.param({"g": "n"}, "'n' is int64, so it is no parameter", id="integer-parameter"),
        pytest.param({"g": "b"}, "'g' has the shape [4, 3], but its parameter 'b' has [5]",
                     id="shape"),
    ],
)  # fmt: skip
def test_what_is_surely_wrong_is_refused(claim, wanted, fault):
    with pytest.raises(OnnxClipError, match=re.escape(fault)):
        claim(wanted)


def test_what_is_left_of_a_parameter_may_be_a_gradient(claim):
    """That of the squared distance of W from t, halved."""
    inputs, outputs = "float[4,3] W, float[4,3] t", "float[4,3] d"
    assert claim({"d": None}, "d = Sub (W, t)", inputs, outputs) == [("d", "d")]


@pytest.mark.parametrize("name", ["x", "loss"])
def test_what_may_be_a_gradient_all_the_same_is_told_the_way_to_say_so(claim, name):
    way = f"say of what with --map (in Python: gradients={{'{name}': parameter}})"
    with pytest.raises(OnnxClipError, match=re.escape(way)):
        claim({name: None})


def test_one_number_may_be_the_gradient_of_a_parameter_of_one_element(claim):
    """d of the squared error of `w * x` by w; the loss is then believed, too."""
    text = (
        "y = Mul (x, w)  e = Sub (y, t)  q = Mul (e, e)  loss = ReduceSum <keepdims = 0> (q)"
        "  p = Mul (x, e)  g = ReduceSum <keepdims = 0> (p)  s = Mul (lr, g)  w_new = Sub (w, s)"
    )
    inputs, outputs = "float[4] x, float[4] t, float w", "float loss, float w_new"
    assert claim({"g": None}, text, inputs, outputs) == [("g", "g")]
    assert claim({"loss": None}, text, inputs, outputs) == [("loss", "loss")]


def test_an_exchange_is_seen_where_the_parameter_is_not_updated(claim):
    with pytest.raises(OnnxClipError, match=r"computed by MatMul.*\{'g': 'W'\}"):
        claim({"W": "g"}, BACKWARD, INPUTS, "float loss, float[4,3] g")


def test_an_exchange_is_seen_where_both_are_inputs(claim):
    with pytest.raises(OnnxClipError, match=r"other way round, \{'W_grad': 'W'\}"):
        claim({"W": "W_grad"}, ONLY_OPTIMIZER, "float[4,3] W, float[4,3] W_grad",
              "float[4,3] W_new")  # fmt: skip


def test_all_that_is_wrong_is_said_at_once(claim):
    with pytest.raises(OnnxClipError) as caught:
        claim({"W": "g", "loss": None, "nothing": None})
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("gradients", [{}, []], ids=["map", "list"])
def test_naming_none_is_an_error_of_its_own(build, gradients):
    model = build(STEP)
    with pytest.raises(OnnxClipError, match="at least one"):
        clip_gradients(model, GradientClipByNorm(1.0), gradients=gradients)


def test_a_value_of_two_overloads_of_a_function_is_a_value_of_several_graphs(build):
    model = build(
        "a = local.f (x)  b = local.f (x)",
        inputs="float[4] x",
        outputs="float[4] a, float[4] b",
        functions='<domain: "local", opset_import: ["" : 18]> f (u) => (g) { g = Neg (u) }',
    )
    model.functions.add().CopyFrom(model.functions[0])
    model.functions[1].overload = model.graph.node[1].overload = "other"
    with pytest.raises(OnnxClipError, match=r"several graphs .*local::f, .*local::f:other"):
        clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"])
