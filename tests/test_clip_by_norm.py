"""What clipping one gradient by its norm does, as nodes of a graph and on NumPy arrays.

The table is what Paddle 3.3.1 gives for the same input, but where a row says otherwise. The
graph works out the norm in the gradient's own dtype, `apply` in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import run
from numpy.typing import NDArray

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients

Array = NDArray[Any]
NAN, INF = float("nan"), float("inf")


def by_graph(clip: GradientClipByNorm, x: Array) -> Array:
    """Clip `x` as the output of a graph that consists of one Identity."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    ports = [onnx.helper.make_tensor_value_info(name, dtype, x.shape) for name in ("x", "g")]
    node = onnx.helper.make_node("Identity", ["x"], ["g"])
    graph = onnx.helper.make_graph([node], "one", ports[:1], ports[1:])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return run(clip_gradients(model, clip, gradients=["g"]), {"x": x})["g"]


def by_apply(clip: GradientClipByNorm, x: Array) -> Array:
    return clip.apply({"w": x})["w"]


both_ways = pytest.mark.parametrize("way", [by_graph, by_apply])
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
Way = Callable[[GradientClipByNorm, Array], Array]

UNCHANGED = {
    "norm 0.5": [0.3, 0.4],
    "norm 1, the threshold itself": [0.6, 0.8],
    "norm 1 in one element": [0.0, -1.0],
    "zeros": [0.0, 0.0],
    "minus zero": [-0.0, 0.5],
    "squares that vanish": [1e-30, 1e-30],
    "subnormal": [1e-40, -1e-45],
    "empty": [],
    "empty matrix": [[], []],
    "rank 0": 0.5,
    "rank 3": [[[0.1], [0.2]], [[0.3], [-0.4]]],
}
CLIPPED = {
    "norm 5": ([3, 4], [0.6, 0.8]),
    "norm 5, negative": ([-3, 4], [-0.6, 0.8]),
    "rank 0": (5.0, 1.0),
    "rank 0, negative": (-5.0, -1.0),
    "one element, negative": ([-5.0], [-1.0]),
    "matrix of norm 10": ([[5, 5], [5, -5]], [[0.5, 0.5], [0.5, -0.5]]),
    "rank 9": (np.full((2,) + (1,) * 8, 8**0.5), np.full((2,) + (1,) * 8, 0.5**0.5)),
    "large, squares still finite": ([3e18, 4e18], [0.6, 0.8]),
    "nan makes all nan": ([NAN, 1], [NAN, NAN]),
    "an infinity gives nan and zero": ([INF, 1], [NAN, 0]),
}


@both_ways
@both_dtypes
@pytest.mark.parametrize("x", UNCHANGED.values(), ids=UNCHANGED)
def test_a_gradient_within_the_threshold_is_unchanged_bit_for_bit(way: Way, dtype: Any, x: object):
    array = np.array(x, dtype)
    out = way(GradientClipByNorm(1.0), array)
    assert (out.dtype, out.shape) == (array.dtype, array.shape)
    assert out.tobytes() == array.tobytes()


@both_ways
@both_dtypes
@pytest.mark.parametrize(("x", "expected"), CLIPPED.values(), ids=CLIPPED)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_longer_gradient_is_shortened_to_the_threshold(
    way: Way, dtype: Any, x: object, expected: object
):
    array = np.array(x, dtype)
    out = way(GradientClipByNorm(1.0), array)
    assert (out.dtype, out.shape) == (array.dtype, array.shape)
    np.testing.assert_allclose(out, expected, rtol=4 * np.finfo(dtype).eps)


@both_ways
def test_the_threshold_scales_the_result(way: Way):
    out = way(GradientClipByNorm(2.5), np.array([3, 4], np.float32))
    np.testing.assert_allclose(out, [1.5, 2.0], rtol=5e-7)


@both_ways
@both_dtypes
def test_an_infinite_threshold_clips_nothing_not_even_an_infinity(way: Way, dtype: Any):
    x = np.array([INF, -3, NAN], dtype)
    assert way(GradientClipByNorm(INF), x).tobytes() == x.tobytes()


@both_ways
def test_no_epsilon_is_added_to_the_norm(way: Way):
    """PyTorch adds 1e-6 to the norm and shortens [0.6, 0.8] too."""
    x = np.array([0.6, 0.8], np.float64)
    assert way(GradientClipByNorm(1.0), x).tobytes() == x.tobytes()
    np.testing.assert_allclose(way(GradientClipByNorm(1.0), 2 * x), x, rtol=1e-15)


def test_where_float32_squares_overflow_the_graph_gives_zeros_and_apply_is_exact():
    """As Paddle and PyTorch: the norm is inf, and clip_norm / inf is zero."""
    x = np.array([1e20, 1e20], np.float32)
    np.testing.assert_array_equal(by_graph(GradientClipByNorm(1.0), x), [0, 0])
    np.testing.assert_allclose(by_apply(GradientClipByNorm(1.0), x), [0.5**0.5] * 2, rtol=1e-6)


@pytest.mark.parametrize("way", [by_graph, by_apply])
def test_a_tiny_threshold_clips_where_float32_squares_would_vanish(way: Any):
    x = np.array([3e-30, 4e-30], np.float32)
    np.testing.assert_allclose(way(GradientClipByNorm(1e-30), x), [0.6e-30, 0.8e-30], rtol=1e-6)


def test_the_largest_threshold_that_float32_holds_clips_nothing_in_a_graph():
    x = np.array([3, 4], np.float32)
    most = float(np.finfo(np.float32).max)
    assert by_graph(GradientClipByNorm(most), x).tobytes() == x.tobytes()


# -- apply -------------------------------------------------------------------------------------


def test_apply_hands_back_what_need_clip_does_not_pick_as_the_same_object():
    w, b = np.array([3.0, 4.0]), np.array([6.0, 8.0])
    out = GradientClipByNorm(1.0, need_clip=lambda p: p.name == "w").apply({"w": w, "b": b})
    assert out["b"] is b
    np.testing.assert_allclose(out["w"], [0.6, 0.8])
    np.testing.assert_array_equal(w, [3, 4])


def test_apply_asks_about_the_shape_and_dtype_of_the_array():
    asked = []
    clip = GradientClipByNorm(1.0, need_clip=lambda p: bool(asked.append(p)))
    clip.apply({"w": np.zeros((2, 3), np.float32)})
    assert [(p.name, p.shape, p.dtype) for p in asked] == [("w", (2, 3), "float32")]


def test_apply_to_nothing_gives_nothing():
    assert GradientClipByNorm(1.0).apply({}) == {}


def test_a_pattern_that_matches_no_array_is_refused():
    with pytest.raises(OnnxClipError, match="'b' matches no parameter"):
        GradientClipByNorm(1.0, need_clip="b").apply({"w": np.ones(2)})


def test_a_clip_is_written_as_the_call_that_makes_it():
    assert repr(GradientClipByNorm(0.5)) == "GradientClipByNorm(clip_norm=0.5)"
