"""Clips where numbers end: -0.0, inf, nothing at all, and powers beyond a dtype.

Expected values can be worked out by hand; where one takes a root, the comparison allows for 4 units
of the last place of the gradient's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import run
from single import DTYPES, by_apply, by_graph, single

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip, NonFinite

INF, NAN = float("inf"), float("nan")
ONE = GradientClipByNorm(1.0)
both_ways = pytest.mark.parametrize("way", [by_graph, by_apply])
every_policy = pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])


def assert_close(out: Any, expected: Any) -> None:
    np.testing.assert_allclose(out, expected, rtol=4 * np.finfo(out.dtype).eps)


# -- -0.0 --------------------------------------------------------------------------------------

WITHIN = {
    "norm": (ONE, [-0.0, 0.5]),
    "norm of rank 0": (ONE, -0.0),
    "norms of columns": (GradientClipByNorm(1.0, axes=0), [[-0.0, 0.5], [0.25, -0.0]]),
    "norms of rows": (GradientClipByNorm(1.0, axes=1), [[-0.0, 0.5], [0.25, -0.0]]),
    "norms of samples": (GradientClipByNorm(1.0, per_sample=True), [[-0.0, 0.5], [0.25, -0.0]]),
    "axes of size 1": (ONE, [[[-0.0], [0.5]]]),
    "global norm": (GradientClipByGlobalNorm(1.0), [-0.0, 0.5]),
    "global norm of rank 0": (GradientClipByGlobalNorm(1.0), -0.0),
    "global norms of samples": (
        GradientClipByGlobalNorm(1.0, per_sample=True),
        [[-0.0, 0.5], [0.25, -0.0]],
    ),
    "value": (GradientClipByValue(1.0), [-0.0, 0.5]),
    "value of rank 0": (GradientClipByValue(1.0), -0.0),
    "value, axes of size 1": (GradientClipByValue(1.0), [[[-0.0], [0.5]]]),
    "mean square": (GradientClipByRMS(1.0), [-0.0, 0.5]),
}


@every_policy
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("clip", "x"), WITHIN.values(), ids=WITHIN)
def test_minus_zero_stays_minus_zero_within_the_limit(
    clip: Any, x: Any, dtype: str, nonfinite: NonFinite
):
    array = np.array(x, DTYPES[dtype])
    assert by_graph(clip, array, nonfinite=nonfinite).tobytes() == array.tobytes()


@every_policy
@pytest.mark.parametrize(("clip", "x"), WITHIN.values(), ids=WITHIN)
def test_minus_zero_stays_whatever_the_runtime_makes_of_the_nodes(
    clip: Any, x: Any, nonfinite: NonFinite
):
    """Of a Not before a Where it made a Where with its choices exchanged, and of -0.0 then 0.0."""
    array = np.array(x, np.float32)
    model = clip_gradients(
        single("float32", array.shape), clip, gradients=["g"], nonfinite=nonfinite
    )
    assert run(model, {"x": array}, optimize=True)["g"].tobytes() == array.tobytes()


@pytest.mark.parametrize("clip", [ONE, GradientClipByValue(1.0), GradientClipByGlobalNorm(1.0)])
def test_keep_hands_on_minus_zero_beside_an_infinite_element(clip: Any):
    x = np.array([-0.0, INF, -3.0], np.float32)
    assert by_graph(clip, x, nonfinite="keep").tobytes() == x.tobytes()


SEEDED = """<ir_version: 8, opset_import: ["" : OPSET]>
    s (float[SHAPE] W, float[SHAPE, SEEDS] adj) => (float[SHAPE] y, float[SHAPE, SEEDS] adj_W) {
      y = Neg(W) adj_W = Identity(adj) }"""


def clip_seeds(clip: Clip, adj: Any, seeds: str, opset: int = 17, **options: Any) -> Any:
    """`adj` clipped as the gradient of W, its last axis declared as `seeds`."""
    sizes = ", ".join(map(str, adj.shape[:-1]))
    text = SEEDED.replace("SHAPE", sizes).replace("SEEDS", seeds).replace("OPSET", str(opset))
    model = clip_gradients(onnx.parser.parse_model(text), clip, gradients={"adj_W": "W"}, **options)
    return run(model, {"W": np.zeros(adj.shape[:-1], np.float32), "adj": adj})["adj_W"]


@every_policy
@pytest.mark.parametrize("clip", [ONE, GradientClipByValue(1.0), GradientClipByGlobalNorm(1.0)])
def test_minus_zero_stays_for_each_seed(clip: Clip, nonfinite: NonFinite):
    adj = np.array([[-0.0, 0.5], [0.25, -0.0]], np.float32)
    out = clip_seeds(clip, adj, "nadj", nonfinite=nonfinite)
    assert out.tobytes() == adj.tobytes()


# -- seeds and axes of size 1 ------------------------------------------------------------------


@every_policy
@pytest.mark.parametrize("opset", [9, 17, 21])
def test_a_global_norm_of_one_seed_leaves_the_shape(opset: int, nonfinite: NonFinite):
    """Norm 5, in a shape that ends in the axis of seeds, known to be 1."""
    adj = np.zeros((3, 5, 1), np.float32)
    adj[0, 0], adj[2, 1] = 3, -4
    out = clip_seeds(GradientClipByGlobalNorm(1.0), adj, "1", opset, nonfinite=nonfinite)
    assert out.shape == (3, 5, 1)
    assert_close(out, adj / 5)


@every_policy
def test_a_global_norm_of_several_seeds_limits_each_beside_an_axis_of_size_1(nonfinite: NonFinite):
    """Seeds of norm 5 and 0.5."""
    adj = np.array([[[3, 0.3], [4, 0.4]]], np.float32)
    out = clip_seeds(GradientClipByGlobalNorm(1.0), adj, "nadj", nonfinite=nonfinite)
    assert_close(out, np.float32([[[0.6, 0.3], [0.8, 0.4]]]))


# -- infinite limits ---------------------------------------------------------------------------


def fed_inf(clip: Clip, x: Any, nonfinite: NonFinite, **options: Any) -> Any:
    model = clip_gradients(
        single(str(x.dtype), x.shape),
        clip,
        gradients=["g"],
        threshold_input="limit",
        nonfinite=nonfinite,
        **options,
    )
    dtype = DTYPES["float64" if x.dtype == np.float64 else "float32"]
    return run(model, {"x": x, "limit": np.array(INF, dtype)})["g"]


@every_policy
@pytest.mark.parametrize(
    "clip",
    [ONE, GradientClipByGlobalNorm(1.0), GradientClipByRMS(1.0), GradientClipByNorm(1.0, axes=0)],
)
@pytest.mark.parametrize("x", [np.full(2, 1e20, np.float32), np.full(2, 1e200)])
def test_a_limit_fed_as_inf_clips_nothing_where_the_norm_overflows(
    clip: Any, x: Any, nonfinite: NonFinite
):
    assert fed_inf(clip, x, nonfinite).tobytes() == x.tobytes()


def test_a_limit_fed_as_inf_leaves_infinite_elements_as_a_constant_inf_does():
    x = np.float32([INF, 1, NAN])
    np.testing.assert_array_equal(fed_inf(ONE, x, "propagate"), x)
    np.testing.assert_array_equal(by_graph(GradientClipByNorm(INF), x), x)


def test_a_loss_scale_that_takes_the_limit_beyond_float32_clips_nothing():
    """1e5 times a scale of 1e35 is inf in float32."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        s (float[2] x, float S) => (float[2] g) { g = Identity(x) }"""
    )
    clipped = clip_gradients(model, GradientClipByNorm(1e5), gradients=["g"], loss_scale="S")
    x = np.full(2, 1e20, np.float32)
    np.testing.assert_array_equal(run(clipped, {"x": x, "S": np.float32(1e35)})["g"], x)
    assert_close(run(clipped, {"x": x / 1e20, "S": np.float32(1e-5)})["g"], np.full(2, 0.5**0.5))


def test_a_root_mean_square_within_a_limit_near_the_end_of_float32_stays():
    """3e38 * sqrt(4) is beyond float32, and the root mean square 2e38 within 3e38."""
    x = np.full(4, 2e38, np.float32)
    assert by_graph(GradientClipByRMS(3e38), x).tobytes() == x.tobytes()
    assert_close(by_graph(GradientClipByRMS(1e38), x), x / 2)


def test_the_limit_of_a_unit_whose_parameter_overflows_is_none():
    """The parameter's norm is inf in float32, and so is its half, and the gradient's norm."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        s (float[2] W, float[2] x) => (float[2] y, float[2] g) { y = Neg(W) g = Identity(x) }"""
    )
    clipped = clip_gradients(model, AdaptiveGradientClip(0.5, axes=0), gradients={"g": "W"})
    feeds = {"W": np.full(2, 1e30, np.float32), "x": np.full(2, 1e20, np.float32)}
    np.testing.assert_array_equal(run(clipped, feeds)["g"], feeds["x"])


# -- thresholds near which float32 fails -------------------------------------------------------


@both_ways
@every_policy
@pytest.mark.parametrize(
    ("clip", "x", "expected"),
    [
        (GradientClipByNorm(5e-21), [3e-20, 4e-20], [3e-21, 4e-21]),  # squares of 1e-39
        (GradientClipByNorm(1e-20), [6e24, 8e24], [6e-21, 8e-21]),  # a factor of 1e-45
        (GradientClipByNorm(1e-20, ord=INF), [-1e25, 5e24], [-1e-20, 5e-21]),
        (GradientClipByNorm(1e20), [3e19, 4e19], [3e19, 4e19]),  # a norm of 5e19 is within
        (GradientClipByRMS(5e19), [1e20, 1e20], [5e19, 5e19]),
        (GradientClipByGlobalNorm(1e20), [3e20, 4e20], [6e19, 8e19]),
    ],
)
def test_a_threshold_near_which_squares_or_factors_leave_float32_is_handled_in_float64(
    way: Any, clip: Any, x: list[float], expected: list[float], nonfinite: NonFinite
):
    out = way(clip, np.array(x, np.float32), nonfinite=nonfinite)
    assert_close(out, np.array(expected, np.float32))


def test_the_smallest_limit_of_a_unit_decides_the_dtype():
    """0.5 * 1e-20 is the limit of a parameter of zeros."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        s (float[2] W, float[2] x) => (float[2] y, float[2] g) { y = Neg(W) g = Identity(x) }"""
    )
    clip = AdaptiveGradientClip(0.5, eps=1e-20, axes=0)
    clipped = clip_gradients(model, clip, gradients={"g": "W"})
    x = np.float32([3e-20, 4e-20])
    assert_close(run(clipped, {"W": np.zeros(2, np.float32), "x": x})["g"], x / 10)


# -- no elements -------------------------------------------------------------------------------


@every_policy
@pytest.mark.parametrize("shape", [(0, 3), ("N", 3), None], ids=str)
@pytest.mark.parametrize(
    "clip",
    [
        ONE,
        GradientClipByNorm(1.0, ord=INF),
        GradientClipByNorm(1.0, ord=3),
        GradientClipByRMS(1.0),
        GradientClipByValue(1.0),
        GradientClipByGlobalNorm(1.0, ord=INF),
    ],
    ids=repr,
)
def test_the_norm_of_nothing_is_0_and_its_scale_1(clip: Clip, shape: Any, nonfinite: NonFinite):
    model = clip_gradients(
        single("float32", shape),
        clip,
        gradients=["g"],
        nonfinite=nonfinite,
        emit=("norm", "scale", "clipped"),
    )
    out = run(model, {"x": np.zeros((0, 3), np.float32)})
    assert out["g"].shape == (0, 3)
    assert (out["g/norm"], out["g/scale"], bool(out["g/clipped"])) == (0, 1, False)


@pytest.mark.parametrize("shape", [(2, 0), ("N", "M")], ids=str)
def test_samples_without_elements_and_no_samples_at_all(shape: Any):
    model = clip_gradients(
        single("float32", shape),
        GradientClipByNorm(1.0, ord=INF, per_sample=True),
        gradients=["g"],
        emit=("norm", "scale"),
    )
    for given in [(2, 0)] if shape == (2, 0) else [(2, 0), (0, 2)]:
        out = run(model, {"x": np.zeros(given, np.float32)})
        assert (out["g"].shape, out["g/norm"], out["g/scale"]) == (given, 0, 1)


def test_the_mean_square_of_no_seeds_divides_by_no_integer_zero():
    """The number of elements is divided by that of seeds, where nobody knows either."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        s (float[N] w, float[N, S] x) => (float[N] v, float[N, S] w_grad) {
          v = Neg(w) w_grad = Identity(x) }"""
    )
    clipped = clip_gradients(model, GradientClipByRMS(1.0), gradients={"w_grad": "w"})
    feeds = {"w": np.zeros(2, np.float32), "x": np.zeros((2, 0), np.float32)}
    assert run(clipped, feeds)["w_grad"].shape == (2, 0)


# -- powers ------------------------------------------------------------------------------------

ROOT = 2 ** (1 / 3)


@both_ways
@every_policy
@pytest.mark.parametrize("size", [1e-300, 1e-110, 1.0, 1e105, 1e300])
@pytest.mark.parametrize("clip", [GradientClipByNorm, GradientClipByGlobalNorm])
def test_a_cube_that_float64_does_not_hold_is_one_of_shares(
    way: Any, clip: Any, size: float, nonfinite: NonFinite
):
    """The L3 norm of (1, -1) is the cube root of 2."""
    x = np.array([size, -size])
    assert_close(way(clip(size, ord=3), x, nonfinite=nonfinite), x / ROOT)
    assert way(clip(2 * size, ord=3), x, nonfinite=nonfinite).tobytes() == x.tobytes()


@every_policy
def test_rows_have_shares_of_their_own(nonfinite: NonFinite):
    clip = GradientClipByNorm(1e105, ord=3, axes=1)
    x = np.array([[1e105, 1e105], [1e-110, 1e-110], [0, 0]])
    out = by_graph(clip, x, nonfinite=nonfinite)
    assert_close(out, [x[0] / ROOT, x[1], x[2]])


def test_a_cube_norm_over_gradients_has_shares_too():
    """Eight elements of 9e105 in two gradients: 2 * 9e105, since 8 is the cube of 2."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        s (double[1] a, double[7] b) => (double[1] g, double[7] h) {
          g = Identity(a) h = Identity(b) }"""
    clip = GradientClipByGlobalNorm(9e105, ord=3)
    model = clip_gradients(onnx.parser.parse_model(text), clip, gradients=["g", "h"])
    feeds = {"a": np.full(1, 9e105), "b": np.full(7, 9e105)}
    out = run(model, feeds)
    assert_close(out["g"], feeds["a"] / 2)
    assert_close(out["h"], feeds["b"] / 2)


@pytest.mark.parametrize(
    ("x", "expected"),
    [([INF, 1.0], [NAN, 0]), ([NAN, 1.0], [NAN, NAN]), ([-INF, INF], [NAN, NAN])],
)
def test_what_is_not_finite_stays_what_it_is_under_shares(x: Any, expected: Any):
    """As every norm: inf * 0 is nan, and 1 * (c / inf) is 0."""
    np.testing.assert_array_equal(by_graph(GradientClipByNorm(1.0, ord=3), np.array(x)), expected)


# -- one infinite sample -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("ord", [1, 2, 3, INF])
def test_an_infinite_element_spoils_itself_alone_in_a_norm_over_samples(ord: float, dtype: str):
    """Of four or more samples: ONNX Runtime 1.20 takes float32 roots four at a time."""
    x = np.full((8, 3), 0.125, DTYPES[dtype])
    x[1, 0] = INF
    out = by_graph(GradientClipByGlobalNorm(1.0, per_sample=True, ord=ord), x)
    expected = x.copy()
    expected[1] = [NAN, 0, 0]
    np.testing.assert_array_equal(out, expected)
