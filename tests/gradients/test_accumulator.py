"""Gradients known by the accumulators of ONNX Runtime training."""

import pytest

INPUTS = "float[4,3] W, float[4,3] raw, bool lazy, float[4,3] "
BUFFER = "W_grad.accumulation.buffer"


def accumulate(op: str, gradient: str, buffer: str = BUFFER) -> str:
    return f' done = com.microsoft.{op} ("{buffer}", {gradient}, lazy)'


def test_an_accumulator_without_a_gradient_shows_none(find):
    text = 'kept = Identity ("W_grad.accumulation.buffer")'
    assert find(text, inputs=f'{INPUTS} "{BUFFER}"', outputs="float[4,3] kept") == []


@pytest.mark.parametrize("op", ["InPlaceAccumulatorV2", "InPlaceAccumulator"])
def test_the_parameter_is_what_the_buffer_is_named_after(find, op):
    text = '"/Add_3_output_0_grad" = Tanh (raw)' + accumulate(op, '"/Add_3_output_0_grad"')
    found = find(text, inputs=f'{INPUTS} "{BUFFER}"', outputs="bool[1] done")
    assert found == [("/Add_3_output_0_grad", "W")]


@pytest.mark.parametrize(
    "buffer", ["W_grad.accumulation.buffer", "W.accumulation.buffer", "W_grad_accumulate_buffer"]
)
def test_each_way_to_name_a_buffer_is_known(find, buffer):
    text = "g = Tanh (raw)" + accumulate("InPlaceAccumulatorV2", "g", buffer)
    assert find(text, inputs=f'{INPUTS} "{buffer}"', outputs="bool[1] done") == [("g", "W")]


def test_a_buffer_without_a_parameter_leaves_the_name_of_the_gradient(find):
    text = "g = Tanh (raw)" + accumulate("InPlaceAccumulatorV2", "g", "some_sum")
    assert find(text, inputs=f"{INPUTS} some_sum", outputs="bool[1] done") == [("g", "g")]


def test_one_value_in_two_accumulators_is_the_gradient_of_two_parameters(find):
    other = "b_grad.accumulation.buffer"
    text = (
        "g = Tanh (raw)"
        + accumulate("InPlaceAccumulatorV2", "g")
        + accumulate("InPlaceAccumulatorV2", "g", other).replace("done", "done_b")
    )
    found = find(
        text,
        inputs=f'{INPUTS} "{BUFFER}", float[4,3] b, float[4,3] "{other}"',
        outputs="bool[1] done, bool[1] done_b",
    )
    assert found == [("g", "W"), ("g", "b")]


def test_the_gradient_lies_before_a_clip_in_front_of_the_accumulator(find):
    text = (
        "g = Tanh (raw)  n = ReduceL2 <keepdims = 0> (g)  r = Div (max_norm, n)"
        "  f = Min (r, one)  c = Mul (g, f)" + accumulate("InPlaceAccumulatorV2", "c")
    )
    assert find(text, inputs=f'{INPUTS} "{BUFFER}"', outputs="bool[1] done") == [("g", "W")]


def test_an_accumulator_is_believed_before_a_name(find):
    text = "W_grad = Tanh (raw)  g = Mul (W_grad, raw)" + accumulate("InPlaceAccumulatorV2", "g")
    found = find(text, inputs=f'{INPUTS} "{BUFFER}"', outputs="bool[1] done, float[4,3] W_grad")
    assert found == [("g", "W")]


def test_a_buffer_is_no_parameter_whatever_another_one_is_called(find):
    other = "adj_W_grad.accumulation.buffer"
    text = (
        "g = Tanh (raw)  h = Sin (raw)"
        + accumulate("InPlaceAccumulatorV2", "g")
        + accumulate("InPlaceAccumulatorV2", "h", other).replace("done", "other_done")
    )
    found = find(
        text,
        inputs=f'{INPUTS} "{BUFFER}", float[4,3] adj_W, float[4,3] "{other}"',
        outputs="bool[1] done, bool[1] other_done",
    )
    assert found == [("g", "W"), ("h", "adj_W")]
