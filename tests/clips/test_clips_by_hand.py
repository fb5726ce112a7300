"""What each clip does, on gradients whose clipped value a reader can work out; see also
`test_clip_by_norm.py`.

Numbers whose result takes a square root or a division are compared within 4 units of float64, or
of float32 where a graph computes them.
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
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip

INF, NAN = float("inf"), float("nan")
both_ways = pytest.mark.parametrize("way", [by_graph, by_apply])

CLIPPED = {
    "L1 norm 7": (GradientClipByNorm(3.5, ord=1), [3, -4], [1.5, -2]),
    "L1 norm 7 within 7": (GradientClipByNorm(7, ord=1), [3, -4], [3, -4]),
    "L-infinity norm 4": (GradientClipByNorm(2, ord=INF), [3, -4], [1.5, -2]),
    "L3 norm 3": (GradientClipByNorm(1.5, ord=3), [1, 2, -2, 10 ** (1 / 3)], None),
    "L1/2 norm 4": (GradientClipByNorm(1, ord=0.5), [1, 1], [0.25, 0.25]),
    "rows of norm 5 and 0.5": (
        GradientClipByNorm(1, axes=-1),
        [[3, 4], [0.3, 0.4]],
        [[0.6, 0.8], [0.3, 0.4]],
    ),
    "columns": (GradientClipByNorm(1, axes=[0]), [[3, 0.3], [4, 0.4]], [[0.6, 0.3], [0.8, 0.4]]),
    "samples": (
        GradientClipByNorm(5, per_sample=True),
        [[[6], [8]], [[3], [4]]],
        [[[3], [4]], [[3], [4]]],
    ),
    "samples of a scalar": (GradientClipByNorm(1, per_sample=True), [-3, 0.5], [-1, 0.5]),
    "value": (GradientClipByValue(0.5), [-3, 0.25, 4], [-0.5, 0.25, 0.5]),
    "value, two bounds": (GradientClipByValue(2, -1), [-3, 0.25, 4], [-1, 0.25, 2]),
    "value, from above alone": (GradientClipByValue(2, -INF), [-3, 4], [-3, 2]),
    "value, nan and infinities": (GradientClipByValue(1), [NAN, INF, -INF], [NAN, 1, -1]),
    "value, empty": (GradientClipByValue(1), [], []),
    "rms 2": (GradientClipByRMS(1), [2, -2, 2, -2], [1, -1, 1, -1]),
    "rms within": (GradientClipByRMS(2), [2, -2, 2, -2], [2, -2, 2, -2]),
    "rms of one": (GradientClipByRMS(1), -3.0, -1.0),
    "global norm of one gradient": (GradientClipByGlobalNorm(1), [3, 4], [0.6, 0.8]),
    "chain": (Chain(GradientClipByValue(4), GradientClipByNorm(1)), [3, 40], [0.6, 0.8]),
    "chain the other way": (
        Chain(GradientClipByNorm(5), GradientClipByValue(3.5)),
        [6, 8],
        [3, 3.5],
    ),
}


@both_ways
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("clip", "x", "expected"), CLIPPED.values(), ids=CLIPPED)
def test_a_gradient_becomes_what_the_formula_says(way: Any, dtype: Any, clip, x, expected):
    array = np.array(x, dtype)
    out = way(clip, array)
    assert (out.dtype, out.shape) == (array.dtype, array.shape)
    if expected is None:  # the L3 norm of 1, 2, -2 and the root of 10 is 3, that of 1 + 8 + 8 + 10
        expected = array / 2
    np.testing.assert_allclose(out, expected, rtol=4 * np.finfo(dtype).eps)


def test_a_global_norm_scales_all_of_its_group_by_one_number():
    clip = GradientClipByGlobalNorm(1.0, need_clip=["w", "b"])
    gradients = {"w": np.array([3.0]), "b": np.array([4.0]), "other": np.array([100.0])}
    out = clip.apply(gradients)
    np.testing.assert_allclose([out["w"][0], out["b"][0]], [0.6, 0.8])
    assert out["other"] is gradients["other"]


def test_samples_have_a_norm_over_all_gradients():
    """Sample 0: 3 and 4, norm 5. Sample 1: 0.3 and 0.4, within."""
    clip = GradientClipByGlobalNorm(1.0, per_sample=True)
    out = clip.apply({"w": np.array([[3.0], [0.3]]), "b": np.array([4.0, 0.4])})
    np.testing.assert_allclose(out["w"], [[0.6], [0.3]])
    np.testing.assert_allclose(out["b"], [0.8, 0.4])


def test_adaptive_compares_unit_by_unit_with_the_parameter():
    """Rows: gradient norms 5 and 5, parameter norms 2 and 100; half of these are 1 and 50."""
    clip = AdaptiveGradientClip(0.5, axes=1)
    gradient, parameter = np.array([[3.0, 4.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [60.0, 80.0]])
    out = clip.apply({"w": gradient}, parameters={"w": parameter})["w"]
    np.testing.assert_allclose(out, [[0.6, 0.8], [3.0, 4.0]])


def test_adaptive_takes_a_zero_parameter_for_eps():
    clip = AdaptiveGradientClip(0.5, eps=2.0)
    out = clip.apply({"b": np.array([3.0, 4.0])}, parameters={"b": np.zeros(2)})["b"]
    np.testing.assert_allclose(out, [0.6, 0.8])


@both_ways
@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
@pytest.mark.parametrize(
    "clip",
    [
        GradientClipByNorm(1, ord=1),
        GradientClipByNorm(1, ord=3),
        GradientClipByNorm(1, ord=INF),
        GradientClipByValue(1),
        GradientClipByGlobalNorm(1),
        GradientClipByRMS(1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_each_clip_keeps_the_policy_for_what_is_not_finite(way, nonfinite, clip, dtype, bad):
    x = np.array([3, bad, -4], dtype)
    out = way(clip, x, nonfinite=nonfinite)
    expected = x if nonfinite == "keep" else np.zeros_like(x)
    assert out.tobytes() == expected.tobytes()


@both_ways
def test_only_the_sample_that_is_not_finite_is_zeroed(way):
    x = np.array([[3, NAN], [3, 4]], np.float32)
    out = way(GradientClipByNorm(1, per_sample=True), x, nonfinite="zero")
    np.testing.assert_allclose(out, [[0, 0], [0.6, 0.8]], rtol=5e-7)


@both_ways
def test_nan_in_an_l_infinity_norm_makes_all_nan(way):
    """ONNX's ReduceMax ignores nan; the norm must not."""
    for at in range(3):
        x = np.array([3.0, 1.0, 2.0], np.float32)
        x[at] = NAN
        assert np.isnan(way(GradientClipByNorm(1, ord=INF), x)).all()


REFUSED = {
    "ord of zero": (lambda: GradientClipByNorm(1, ord=0), "ord must be a positive number"),
    "ord of text": (lambda: GradientClipByNorm(1, ord="fro"), "ord must be a positive number"),
    "axes of text": (lambda: GradientClipByNorm(1, axes="01"), "axes must be integers"),
    "no axes": (lambda: GradientClipByNorm(1, axes=[]), "axes must be integers"),
    "axes of floats": (lambda: GradientClipByNorm(1, axes=[0.5]), "axes must be integers"),
    "axes and samples": (lambda: GradientClipByNorm(1, axes=0, per_sample=True), "exclude"),
    "value of zero": (lambda: GradientClipByValue(0), "max must be a positive number"),
    "bounds turned": (lambda: GradientClipByValue(1, 2), "min below max"),
    "bounds of nan": (lambda: GradientClipByValue(NAN, -1), "max must be a number"),
    "bounds of zero": (lambda: GradientClipByValue(0, 0), "not both of them zero"),
    "bounds of inf": (lambda: GradientClipByValue(INF, INF), "the same infinity, not min=inf"),
    "bounds of -inf": (lambda: GradientClipByValue(-INF, -INF), "the same infinity, not min=-inf"),
    "rms of nan": (lambda: GradientClipByRMS(NAN), "threshold must be a positive number"),
    "rms of True": (lambda: GradientClipByRMS(True), "threshold must be a positive number"),
    "global norm below zero": (lambda: GradientClipByGlobalNorm(-1), "clip_norm must be"),
    "group without a name": (lambda: GradientClipByGlobalNorm(1, group_name=""), "group_name"),
    "clipping of zero": (lambda: AdaptiveGradientClip(0), "clipping must be a positive number"),
    "eps of zero": (lambda: AdaptiveGradientClip(1, eps=0), "eps must be a positive number"),
    "empty chain": (lambda: Chain(), "at least one clip"),
    "chain of numbers": (lambda: Chain(1.0), "Chain takes clips"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_settings_that_mean_nothing_are_refused_by_name(make, words):
    with pytest.raises(OnnxClipError, match=words):
        make()


def test_adaptive_asks_for_what_it_cannot_know():
    clip = AdaptiveGradientClip(0.1)
    x = np.ones((2, 2))
    with pytest.raises(OnnxClipError, match=r"pass parameters=.*lacks 'w'"):
        clip.apply({"w": x})
    with pytest.raises(OnnxClipError, match=r"shape \[2, 2\] has units that nothing tells"):
        clip.apply({"w": x}, parameters={"w": x})
    with pytest.raises(OnnxClipError, match=r"'b': .* shape \[2\], and the parameter \[3\]"):
        clip.apply({"b": np.ones(2)}, parameters={"b": np.ones(3)})


@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
def test_a_power_beyond_float64_is_not_taken_for_an_infinite_element(nonfinite: Any):
    """(1e30) ** 12 is beyond float64; of two equal elements, the norm is 2 ** (1 / 12) of one."""
    out = by_graph(GradientClipByNorm(1, ord=12), np.float32([1e30, 1e30]), nonfinite=nonfinite)
    np.testing.assert_allclose(out, [2 ** (-1 / 12)] * 2, rtol=4 * np.finfo(np.float32).eps)


def test_the_mean_square_of_each_seed_counts_its_own_elements():
    """Two seeds of 2 elements whose sizes nobody knows: root mean squares 5 and 0.5."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        s (float[N] w, float[N, S] x) => (float[N, S] w_grad) { w_grad = Identity(x) }"""
    )
    clipped = clip_gradients(model, GradientClipByRMS(1.0), gradients={"w_grad": "w"})
    x = np.float32([[3, 0.3], [41**0.5, 0.41**0.5]])
    out = run(clipped, {"w": np.zeros(2, np.float32), "x": x})["w_grad"]
    np.testing.assert_allclose(out[:, 0], x[:, 0] / 5, rtol=5e-7)
    assert out[:, 1].tobytes() == x[:, 1].tobytes()


def test_half_precision_of_unknown_size_is_clipped_by_its_mean_square():
    x = np.array([6, 8], DTYPES["bfloat16"])  # ONNX Runtime knows no Size of it
    out = by_graph(GradientClipByRMS(0.5**0.5), x, shape=None)
    np.testing.assert_allclose(out.astype(float), [0.6, 0.8], rtol=2**-8)


MEASURED = {
    "a bound on one side": (GradientClipByValue(1.0, min=-INF), [3, -4, 0.5], 1 / 3, True),
    "a bound on the other": (GradientClipByValue(INF, min=-2), [3, -4, 0.5], 0.5, True),
    "nothing beyond": (GradientClipByValue(5), [3, -4, 0.5], 1, False),
    "no negative element, and none allowed": (GradientClipByValue(5, min=0), [3, 4], 1, False),
    "a negative element, and none allowed": (GradientClipByValue(5, min=0), [3, -4], 0, True),
}


@pytest.mark.parametrize(("clip", "x", "scale", "is_clipped"), MEASURED.values(), ids=MEASURED)
def test_what_a_bound_on_values_multiplies_by_at_most(
    clip: GradientClipByValue, x: list[float], scale: float, is_clipped: bool
):
    model = single("float32", [len(x)])
    clipped = clip_gradients(model, clip, gradients=["g"], emit=("scale", "clipped"))
    out = run(clipped, {"x": np.float32(x)})
    assert out["g/scale"] == pytest.approx(scale, rel=1e-6, abs=1e-30)
    assert out["g/clipped"] == is_clipped


def test_units_are_told_behind_however_many_aliases():
    chain = " ".join(f"w{n + 1} = Identity(w{n})" for n in range(2000))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        step (float[1,2] x, float[2,2] W, float[2,2] h)
            => (float[1,2] y, float[2,2] W_grad) {{
            w0 = Transpose <perm = [1, 0]> (W) {chain} y = MatMul(x, w2000)
            W_grad = Identity(h) }}"""
    )
    clipped = clip_gradients(model, AdaptiveGradientClip(0.5), gradients={"W_grad": "W"})
    weight, slope = np.float32([[3, 4], [6, 8]]), np.float32([[3, 4], [0.3, 0.4]])
    out = run(clipped, {"x": np.float32([[1, 1]]), "W": weight, "h": slope}, ["W_grad"])
    # a row of W gives one element of y; those of the gradient are 5 > 0.5 * 5 and 0.5 < 0.5 * 10
    np.testing.assert_allclose(out["W_grad"], [[1.5, 2], [0.3, 0.4]], rtol=4 * 2**-24)


REPRS = {
    "GradientClipByNorm(clip_norm=1.0, ord=inf)": GradientClipByNorm(1, ord=INF),
    "GradientClipByNorm(clip_norm=inf, axes=[0])": GradientClipByNorm(INF, axes=0),
    "GradientClipByGlobalNorm(clip_norm=inf, group_name='inf', ord=inf)": (
        GradientClipByGlobalNorm(INF, group_name="inf", ord=INF)
    ),
    "GradientClipByValue(max=inf, min=-inf)": GradientClipByValue(INF, -INF),
    "GradientClipByRMS(threshold=inf)": GradientClipByRMS(INF),
    "AdaptiveGradientClip(clipping=inf, eps=inf)": AdaptiveGradientClip(INF, INF),
    "Chain(GradientClipByNorm(clip_norm=inf))": Chain(GradientClipByNorm(INF)),
}


@pytest.mark.parametrize(("text", "clip"), REPRS.items(), ids=REPRS)
def test_what_a_clip_shows_of_itself_can_be_typed(text: str, clip: Clip):
    assert repr(clip) == text
    names = {name: value for name, value in globals().items() if isinstance(value, type)}
    again = eval(text, names | {"inf": INF})
    assert (type(again), again.settings()) == (type(clip), clip.settings())
