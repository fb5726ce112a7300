"""Clipping at the edges of dtype, shape, magnitude and finiteness, as nodes and on arrays.

`norm_precision` is auto but where a test says otherwise; `apply` always works as wide does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from single import BFLOAT16, DTYPES, Array, by_apply, by_graph

from onnx_clip_pass import GradientClipByNorm, OnnxClipError

ONE = GradientClipByNorm(1.0)
NAN, INF = float("nan"), float("inf")

both_ways = pytest.mark.parametrize("way", [by_graph, by_apply])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)


def assert_close(out: Array, expected: object, like: Array, ulps: int = 2) -> None:
    """Dtype and shape of `like`, and values within some units in the last place of its dtype."""
    assert (out.dtype, out.shape) == (like.dtype, like.shape)
    eps = float(np.finfo(like.dtype).eps) if like.dtype != BFLOAT16 else 2**-7
    wide = np.asarray(expected, np.float64)
    np.testing.assert_allclose(out.astype(np.float64), wide, rtol=ulps * eps)


# -- every dtype -------------------------------------------------------------------------------

WITHIN = {
    "norm 0.5": [0.3, 0.4],
    "norm 1 in one element": [0.0, -1.0],
    "norm 1 in four": [[0.5, -0.5], [0.5, -0.5]],
    "zeros": [0.0, 0.0],
    "minus zero": [-0.0, 0.5],
    "subnormal in float16": [6e-8, -3e-6],
    "empty": [],
    "rank 0": 0.5,
    "one element": [-0.5],
    "one element of rank 3": [[[-1.0]]],
}
LONGER = {
    "norm 5": ([3, 4], [0.6, 0.8]),
    "rank 0": (5.0, 1.0),
    "rank 0, negative": (-5.0, -1.0),
    "one element, negative": ([-5.0], [-1.0]),
    "one element of rank 4, negative": ([[[[-5.0]]]], [[[[-1.0]]]]),
    "nan makes all nan": ([NAN, 1], [NAN, NAN]),
    "an infinity gives nan and zero": ([INF, 1], [NAN, 0]),
    "as does a negative one": ([-INF, 1], [NAN, 0]),
}


@both_ways
@every_dtype
@pytest.mark.parametrize("x", WITHIN.values(), ids=WITHIN)
def test_what_is_within_the_threshold_stays_bit_for_bit(way: Any, dtype: Any, x: object):
    array = np.array(x).astype(dtype)
    out = way(ONE, array)
    assert (out.dtype, out.shape, out.tobytes()) == (dtype, array.shape, array.tobytes())


@both_ways
@every_dtype
@pytest.mark.parametrize(("x", "expected"), LONGER.values(), ids=LONGER)
def test_what_is_longer_gets_the_norm_of_the_threshold(
    way: Any, dtype: Any, x: object, expected: object
):
    array = np.array(x).astype(dtype)
    assert_close(way(ONE, array), expected, array)


@both_ways
@every_dtype
def test_an_infinite_threshold_clips_nothing_in_any_dtype(way: Any, dtype: Any):
    x = np.array([INF, -3, NAN, 1]).astype(dtype)
    assert way(GradientClipByNorm(INF), x).tobytes() == x.tobytes()


# -- magnitude ---------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_90000_elements_of_10_do_not_overflow_half_precision(way: Any, dtype: str):
    x = np.full((300, 300), 10).astype(DTYPES[dtype])  # norm 3000, squares add up to 9e6
    assert_close(way(ONE, x), np.full((300, 300), 1 / 300), x, ulps=1)


@both_ways
def test_the_largest_numbers_of_float16_do_not_overflow(way: Any):
    x = np.array([65504, -65504]).astype(np.float16)
    assert_close(way(ONE, x), [0.5**0.5, -(0.5**0.5)], x, ulps=1)


def wide(clip: GradientClipByNorm, x: Array) -> Array:
    return by_graph(clip, x, norm_precision="wide")


@pytest.mark.parametrize("way", [wide, by_apply])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [1e20, 1e38])
def test_squares_beyond_float32_are_clipped_exactly_by_wide(way: Any, dtype: str, size: float):
    x = np.array([size, size]).astype(DTYPES[dtype])
    assert_close(way(ONE, x), [0.5**0.5] * 2, x)


@pytest.mark.parametrize("norm_precision", ["plain", "auto"])
def test_squares_beyond_float32_give_zeros_by_plain_and_auto(norm_precision: Any):
    """As Paddle and PyTorch: the norm is inf, and clip_norm / inf is zero."""
    out = by_graph(ONE, np.full(2, 1e20, np.float32), norm_precision=norm_precision)
    np.testing.assert_array_equal(out, [0, 0])


@pytest.mark.parametrize("way", [by_graph, wide, by_apply])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [1e-30, 1e-38, 1e-40])
def test_tiny_and_subnormal_gradients_stay_as_they_are(way: Any, dtype: str, size: float):
    x = np.array([size, -size]).astype(DTYPES[dtype])
    assert way(ONE, x).tobytes() == x.tobytes()


def test_float64_squares_beyond_float64_are_clipped_by_apply_alone():
    x = np.array([3e200, 4e200])
    np.testing.assert_array_equal(wide(ONE, x), [0, 0])
    assert_close(by_apply(ONE, x), [0.6, 0.8], x)


# -- clip_norm ---------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("dtype", "clip_norm", "x"),
    [
        ("float16", 1e-9, [3e-4, 4e-4]),
        ("float16", 1e6, [65504, -65504]),
        ("float32", 1e300, [3e38, 1.0]),
        ("float32", 1e-42, [3e-30, 4e-30]),
        ("bfloat16", 1e-42, [3e-30, 4e-30]),
        ("bfloat16", 1e39, [3e38, -3e38]),
    ],
)
def test_a_threshold_that_the_dtype_does_not_hold_is_handled_in_a_wider_one(
    way: Any, dtype: str, clip_norm: float, x: list[float]
):
    array = np.array(x).astype(DTYPES[dtype])
    out = way(GradientClipByNorm(clip_norm), array)
    exact = array.astype(np.float64)
    norm = np.sqrt(np.sum(exact * exact))
    if norm <= clip_norm:
        assert out.tobytes() == array.tobytes()
    else:  # what is left is subnormal or zero, rounded once
        expected = (exact * (clip_norm / norm)).astype(array.dtype)
        np.testing.assert_array_equal(out.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("clip_norm", [0, -1.0, NAN, -INF, "x", None, True])
def test_a_threshold_that_is_no_positive_number_is_refused_by_name(clip_norm: Any):
    with pytest.raises(OnnxClipError, match=f"positive number.* not {clip_norm!r}"):
        GradientClipByNorm(clip_norm)


# -- shapes ------------------------------------------------------------------------------------


@both_ways
@every_dtype
@pytest.mark.parametrize("rank", range(9))
def test_every_rank_to_8(way: Any, dtype: Any, rank: int):
    shape = (2, 1, 2, 1, 2, 1, 1, 2)[:rank]
    x = np.full(shape, -3).astype(dtype)
    assert_close(way(ONE, x), np.full(shape, -(x.size**-0.5)), x)


@both_ways
@every_dtype
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
def test_an_empty_tensor_stays_empty(way: Any, dtype: Any, shape: Any, nonfinite: Any):
    out = way(ONE, np.zeros(shape).astype(dtype), nonfinite=nonfinite)
    assert (out.dtype, out.shape) == (dtype, shape)


UNKNOWN = {
    "nothing": (None, (3, 1024)),
    "nothing, one element": (None, (1,)),
    "nothing, rank 0": (None, ()),
    "nothing, empty": (None, (0,)),
    "rank": (["N", "M"], (40, 300)),
    "rank, one element": (["N", "M"], (1, 1)),
    "first, one element": (["N", 1], (1, 1)),
    "last": (["N", 768], (20, 768)),
    "last, empty": (["N", 768], (0, 768)),
    "all but the middle": ([16, "N", 32], (16, 3, 32)),
}


@every_dtype
@pytest.mark.parametrize("norm_precision", ["plain", "auto", "wide"])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
@pytest.mark.parametrize(("declared", "shape"), UNKNOWN.values(), ids=UNKNOWN)
def test_sizes_that_the_graph_does_not_know(
    dtype: Any, declared: Any, shape: Any, norm_precision: Any, nonfinite: Any
):
    x = np.full(shape, -2).astype(dtype)
    out = by_graph(
        ONE, x, shape=declared, norm_precision=norm_precision, nonfinite=nonfinite, opset=18
    )
    assert_close(
        out, np.full(shape, -(max(x.size, 1) ** -0.5)), x, ulps=8
    )  # plain, 12,000 elements


# -- not finite --------------------------------------------------------------------------------

NOT_FINITE = {
    "nan": [NAN, 1, 0],
    "inf": [INF, 1, 0],
    "both infinities": [-INF, INF, 3],
    "one element, nan": [NAN],
    "one element, inf": [-INF],
    "rank 0": INF,
    "within but for a nan": [0.1, NAN],
}
precisions = pytest.mark.parametrize("norm_precision", ["plain", "auto", "wide"])


@both_ways
@every_dtype
@precisions
@pytest.mark.parametrize("x", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("clip_norm", [1.0, INF])
def test_zero_gives_zeros_for_all_of_a_gradient_that_is_not_finite(
    way: Any, dtype: Any, norm_precision: Any, x: object, clip_norm: float
):
    array = np.array(x).astype(dtype)
    clip = GradientClipByNorm(clip_norm)
    out = way(clip, array, nonfinite="zero", norm_precision=norm_precision)
    assert (out.dtype, out.shape) == (array.dtype, array.shape)
    assert out.tobytes() == np.zeros_like(array).tobytes()


@both_ways
@every_dtype
@precisions
@pytest.mark.parametrize("x", NOT_FINITE.values(), ids=NOT_FINITE)
def test_keep_leaves_a_gradient_that_is_not_finite_as_it_is(
    way: Any, dtype: Any, norm_precision: Any, x: object
):
    array = np.array(x).astype(dtype)
    out = way(ONE, array, nonfinite="keep", norm_precision=norm_precision)
    assert_close(out, array.astype(np.float64), array, ulps=0)


@both_ways
@every_dtype
@precisions
@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
def test_finite_gradients_are_clipped_under_every_policy(
    way: Any, dtype: Any, norm_precision: Any, nonfinite: Any
):
    settings = {"nonfinite": nonfinite, "norm_precision": norm_precision}
    long, short = np.array([3, 4]).astype(dtype), np.array([0.3, 0.4]).astype(dtype)
    assert_close(way(ONE, long, **settings), [0.6, 0.8], long)
    assert way(ONE, short, **settings).tobytes() == short.tobytes()


@both_ways
@precisions
@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_norm_beyond_float32_of_finite_elements_does_not_count_as_not_finite(
    way: Any, dtype: str, norm_precision: Any, nonfinite: Any
):
    x = np.array([1e20, -1e20]).astype(DTYPES[dtype])
    out = way(ONE, x, nonfinite=nonfinite, norm_precision=norm_precision)
    assert_close(out, [0.5**0.5, -(0.5**0.5)], x)


@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
@pytest.mark.parametrize("clip_norm", [1.0, INF])
def test_a_norm_beyond_float64_does_not_count_as_not_finite_either(
    clip_norm: float, nonfinite: Any
):
    x = np.array([1e200, -1e200])
    out = by_graph(GradientClipByNorm(clip_norm), x, nonfinite=nonfinite)
    np.testing.assert_array_equal(out, [0, 0] if clip_norm == 1 else x)


def test_policies_but_propagate_need_opset_9():
    with pytest.raises(OnnxClipError, match="'zero' needs opset 9 or later"):
        by_graph(ONE, np.ones(2, np.float32), nonfinite="zero", opset=8)
