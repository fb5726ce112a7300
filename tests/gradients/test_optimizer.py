"""Gradients known by the optimizer node that takes them."""

import pytest

PREVIEW = "ai.onnx.preview.training."
MICROSOFT = "com.microsoft."
INPUTS = (
    "float rate, int64 step, float[3] V, float[3] W, float[3] raw, "
    "float[3] m1, float[3] m2, float[3] v1, float[3] v2, bool flag"
)
RAW = "g1 = Tanh (raw)  g2 = Sin (raw)  "
BOTH = [("g1", "V"), ("g2", "W")]


def optimize(call: str, *outputs: str) -> str:
    return f"{RAW}{', '.join(outputs)} = {call}"


def test_an_operator_of_the_same_name_in_another_domain_is_no_optimizer(find):
    text = optimize("local.Momentum (rate, step, V, W, g1, g2, m1, m2)", "a", "b")
    assert find(text, inputs=INPUTS, outputs="float[3] a, float[3] b") == []


def test_sequences_that_are_inputs_show_no_gradients(find):
    found = find(
        "done = com.microsoft.SGDOptimizerV2 (rate, weights, gradients)",
        inputs="float[1] rate, seq(float[N]) weights, seq(float[N]) gradients",
        outputs="bool[1] done",
    )
    assert found == []


@pytest.mark.parametrize(
    ("op", "states"),
    [
        pytest.param("Adagrad", "m1, m2", id="Adagrad"),
        pytest.param("Momentum", "m1, m2", id="Momentum"),
        pytest.param("Adam", "m1, m2, v1, v2", id="Adam"),
    ],
)
def test_preview_optimizers_take_all_parameters_then_all_gradients(find, op, states):
    text = optimize(f"{PREVIEW}{op} (rate, step, V, W, g1, g2, {states})", "a", "b")
    assert find(text, inputs=INPUTS, outputs="float[3] a, float[3] b") == BOTH


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param("SGDOptimizer (rate, V, g1)", [("g1", "V")], id="SGD"),
        pytest.param("AdamOptimizer (rate, step, V, g1, m1, v1)", [("g1", "V")], id="Adam"),
        pytest.param(
            "LambOptimizer (flag, raw, raw, rate, step, V, g1, m1, v1, , W, g2, m2, v2, )",
            BOTH,
            id="Lamb",
        ),
    ],
)
def test_microsoft_optimizers_take_each_parameter_beside_its_gradient(find, call, expected):
    assert find(optimize(MICROSOFT + call, "a"), inputs=INPUTS, outputs="float[3] a") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("gs = SequenceConstruct (g1, g2)", BOTH, id="all"),
        pytest.param("gs = SequenceConstruct (g1)", [], id="fewer-gradients-than-parameters"),
    ],
)
@pytest.mark.parametrize(
    "call", ["SGDOptimizerV2 (rate, ws, gs)", "AdamWOptimizer (rate, step, ws, gs, ms, vs)"]
)
def test_sequences_that_the_graph_constructs_are_told_apart(find, text, expected, call):
    made = (
        "ws = SequenceConstruct (V, W)  ms = SequenceConstruct (m1, m2)"
        "  vs = SequenceConstruct (v1, v2)"
    )
    found = find(
        f"{RAW}{made}  {text}  done = {MICROSOFT}{call}", inputs=INPUTS, outputs="bool[1] done"
    )
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("d = Mul (wd, V)  h = Add (g1, d)", id="decay"),
        pytest.param("h = Clip (g1, low, high)", id="clipping"),
        pytest.param("d = Mul (V, wd)  c = Clip (g1, low, high)  h = Sum (d, c)", id="both"),
    ],
)
def test_the_gradient_lies_before_decay_and_clipping(find, text):
    call = f"a, b = {PREVIEW}Momentum (rate, step, V, h, m1)"
    assert find(f"{RAW}{text}  {call}", inputs=INPUTS, outputs="float[3] a, float[3] b") == [
        ("g1", "V")
    ]


def test_sequences_of_unequal_lengths_show_no_gradients(find):
    found = find(
        "weights = SequenceConstruct (V)  g1 = Tanh (raw)  g2 = Sin (raw)"
        "  gradients = SequenceConstruct (g1, g2)"
        "  done = com.microsoft.SGDOptimizerV2 (rate, weights, gradients)",
        inputs=INPUTS,
        outputs="bool[1] done",
    )
    assert found == []
