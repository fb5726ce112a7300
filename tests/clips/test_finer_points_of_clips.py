"""Cases that a single line of a formula decides: mutants of it went unnoticed without them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import parse, run

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByPercentile,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.clips.numerics import Numerics
from onnx_clip_pass.clips.settings import Count

X = np.float32([3, 4])  # of norm 5
INF = math.inf


def negated(shape: str, opset: int = 17) -> onnx.ModelProto:
    """A graph whose gradient g of W is -x."""
    return parse(
        f"s (float{shape} W, float{shape} x) => (float{shape} g, float{shape} V)"
        "{ g = Neg(x) V = Neg(W) }",
        opset=opset,
    )


def ops(shape: str, clip: Clip) -> list[str]:
    clipped = clip_gradients(negated(shape), clip, gradients={"g": "W"})
    return [node.op_type for node in clipped.graph.node][1:-1]


@pytest.mark.parametrize(
    ("clip", "scale"),
    [
        (GradientClipByNorm(INF), 0.5 / 5),
        (GradientClipByGlobalNorm(INF), 0.5 / 5),
        (GradientClipByRMS(INF), 0.5 * 2**0.5 / 5),
        (AdaptiveGradientClip(INF, axes=(0,)), 0.5),  # the parameter has the norm 5 as well
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_infinite_threshold_can_be_fed_a_smaller_one(clip: Clip, scale: float):
    adjustable = clip_gradients(negated("[2]"), clip, gradients={"g": "W"}, threshold_input="limit")
    np.testing.assert_array_equal(run(adjustable, {"x": X, "W": X})["g"], -X)
    fed = run(adjustable, {"x": X, "W": X, "limit": np.float32(0.5)})["g"]
    np.testing.assert_allclose(fed, -X * scale, rtol=1e-6)  # some roundings of 2 ** -24


def test_the_largest_of_some_elements_is_a_reduce_max_though_an_axis_has_one():
    for shape in ("[1,3]", "[2,3]"):
        assert ops(shape, GradientClipByNorm(1.0, ord=INF))[:2] == ["Abs", "ReduceMax"]


@pytest.mark.parametrize("shape", ["[1]", "[1,3]"])
def test_the_norm_over_an_axis_of_one_element_is_its_size(shape: str):
    """Some CUDA kernels of ReduceL2 copy one element, sign included."""
    assert ops(shape, GradientClipByNorm(1.0, axes=(0,))) == ["Abs", "Div", "Min", "Mul"]


@pytest.mark.parametrize(
    "clip", [GradientClipByNorm(1.0, axes=(0,)), GradientClipByNorm(1.0, per_sample=True)], ids=str
)
def test_norms_over_some_axes_are_refused_at_opset_7(clip: Clip):
    with pytest.raises(OnnxClipError, match="need opset 8 or later, where Min broadcasts"):
        clip_gradients(negated("[2,3]", opset=7), clip, gradients={"g": "W"})


@pytest.mark.parametrize("ord", [1, 2, 3])
def test_a_single_value_counts_once_for_each_of_its_two_parameters(ord: int):
    model = parse("""
        s (float[1,2] x, float[2,2] W, float[2,2] V, float lr)
          => (float loss, float[2,2] W_new, float[2,2] V_new, float[2,2] g)
        <float[1,2] ones = {1, 1}> {
            sum = Add(W, V)
            y = MatMul(x, sum)
            loss = ReduceSum <keepdims = 0> (y)
            xT = Transpose <perm = [1, 0]> (x)
            g = MatMul(xT, ones)
            step = Mul(lr, g)
            W_new = Sub(W, step)
            V_new = Sub(V, step)
        }""")
    clipped = clip_gradients(model, GradientClipByGlobalNorm(1.0, ord=ord))
    zero = np.zeros((2, 2), np.float32)
    out = run(clipped, {"x": X[None], "W": zero, "V": zero, "lr": np.float32(1)})
    norm = (2 * (2 * 3**ord + 2 * 4**ord)) ** (1 / ord)  # of 3, 3, 4, 4, each twice
    np.testing.assert_allclose(out["g"] * norm, [[3, 3], [4, 4]], rtol=1e-6)  # as above


@pytest.mark.parametrize(
    "clip", [GradientClipByNorm(1.0, per_sample=True), GradientClipByNorm(1.0, axes=(1,))], ids=str
)
def test_of_one_seed_each_sample_has_a_norm_of_its_own(clip: Clip):
    model = parse(
        "s (float[2,2] W, float[2,2,1] adj) => (float[2,2] y, float[2,2,1] adj_W)"
        "{ y = Neg(W) adj_W = Identity(adj) }"
    )
    clipped = clip_gradients(model, clip, gradients={"adj_W": "W"})
    adj = np.float32([[[3], [4]], [[0.3], [0.4]]])  # of norms 5 and 0.5
    out = run(clipped, {"W": np.zeros((2, 2), np.float32), "adj": adj})["adj_W"]
    np.testing.assert_allclose(out, [[[0.6], [0.8]], [[0.3], [0.4]]], rtol=1e-6)


def test_a_largest_element_is_rounded_nowhere():
    assert Numerics().bound("float32", 10, INF) == 0


def test_float64_is_added_up_by_rows_where_it_must_be_wide_only():
    rows = {
        precision: Numerics(norm_precision=precision)
        .reduction((1000, 1000), in_float64=True, must_widen=False)
        .rows
        for precision in ("plain", "auto", "wide")
    }
    assert rows["plain"] is rows["auto"] is None
    assert rows["wide"] is not None


def test_a_clip_to_at_most_zero_is_no_less_a_scale():
    """A factor from 0 to 1 leads from each x to min(x, 0), and none to what leaves 0 out."""
    assert GradientClipByValue(0.0, min=-1.0).scales
    assert GradientClipByValue(1.0, min=0.0).scales
    assert not GradientClipByValue(2.0, min=1.0).scales


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "global norm <= 10th percentile of 20"),
        ({"group_name": "a"}, "global norm <= 10th percentile of 20 (a)"),
        ({"per_gradient": True}, "norm <= 10th percentile of 20"),
        ({"factor": 2.0}, "global norm <= 2 * 10th percentile of 20"),
    ],
    ids=str,
)
def test_a_percentile_is_called_what_it_is(settings: dict[str, Any], label: str):
    clip = GradientClipByPercentile(percentile=10.0, history=20, **settings)
    assert clip.label == label
    assert clip.group == (None if "per_gradient" in settings else clip.group_name)


@pytest.mark.parametrize("value", [2.5, True, "3"])
def test_a_count_is_a_whole_number(value: object):
    count = Count(2, 10)
    assert count.toml_fault(value) == "must be a whole number"
    with pytest.raises(OnnxClipError, match="x must be a whole number from 2 to 10, not "):
        count.check("x", value)


def test_a_count_has_ends():
    count = Count(2, 10)
    assert [count.check("x", value) for value in (2, np.int64(10))] == [2, 10]
    assert count.toml_fault(3) == ""
    for value in (1, 11):
        with pytest.raises(OnnxClipError, match="x must be a whole number from 2 to 10, not "):
            count.check("x", value)


def test_each_gradient_may_have_a_percentile_of_its_own():
    """The median of 4 and 1 is 2.5, that of 1 and 4 too: what is 4 is above it, and 1 below."""
    clip, states = GradientClipByPercentile(50.0, per_gradient=True), {}
    assert clip.apply({"a": np.array([4.0]), "b": np.array([1.0])}, states=states).keys() == {
        "a",
        "b",
    }
    out = clip.apply({"a": np.array([1.0]), "b": np.array([4.0])}, states=states)
    assert (out["a"], out["b"]) == (1.0, 2.5)
