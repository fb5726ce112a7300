"""What must hold of every clip, on gradients that hypothesis makes up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from single import DTYPES, by_apply, by_graph

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
)
from onnx_clip_pass.clips import Clip

INF = math.inf
CLIPS = {
    "L2": GradientClipByNorm,
    "L1": lambda c: GradientClipByNorm(c, ord=1),
    "L3": lambda c: GradientClipByNorm(c, ord=3),
    "L-infinity": lambda c: GradientClipByNorm(c, ord=INF),
    "last axis": lambda c: GradientClipByNorm(c, axes=-1),
    "samples": lambda c: GradientClipByNorm(c, per_sample=True),
    "value": GradientClipByValue,
    "global L2": GradientClipByGlobalNorm,
    "global L1": lambda c: GradientClipByGlobalNorm(c, ord=1),
    "samples together": lambda c: GradientClipByGlobalNorm(c, per_sample=True),
    "rms": GradientClipByRMS,
    "chain": lambda c: Chain(GradientClipByValue(c), GradientClipByNorm(c)),
}
each_clip = pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS)

thresholds = st.floats(0.125, 8, width=16)
shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)
elements = st.floats(-64, 64, width=16).map(lambda x: x if abs(x) > 2**-10 else 0.0)


def gradients(dtype: Any = np.float64) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.float64, shapes, elements=elements).map(lambda x: x.astype(dtype))


def eps_of(dtype: str) -> float:
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[
        dtype
    ]


@each_clip
@settings(max_examples=12, deadline=None)
@given(data=st.data(), c=thresholds, dtype=st.sampled_from(sorted(DTYPES)))
def test_the_graph_gives_what_the_formula_gives(make: Any, data: Any, c: float, dtype: str):
    """Norms of at most 125 elements round by less than 32 eps of float32 (L1, one by one: n / 4)
    or of float64; half precision rounds once to its own, and may fall to the other side."""
    x = data.draw(gradients(DTYPES[dtype]))
    opset = data.draw(st.sampled_from([13, 17, 18, 21]))
    out, expected = by_graph(make(c), x, opset=opset), by_apply(make(c), x)
    work = eps_of("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(
        out.astype(np.float64),
        expected.astype(np.float64),
        rtol=32 * work + (eps_of(dtype) if dtype in ("float16", "bfloat16") else 0),
    )


@each_clip
@settings(max_examples=12, deadline=None)
@given(x=gradients(np.float32), c=thresholds)
def test_within_the_bound_nothing_changes_not_a_bit(make: Any, x: Any, c: float):
    within = (x * np.float32(c / 64 / 125)).astype(np.float32)  # 125 elements of at most 64
    for way in (by_graph, by_apply):
        assert way(make(c), within).tobytes() == within.tobytes()


@each_clip
@settings(max_examples=30, deadline=None)
@given(x=gradients(), c=thresholds)
def test_clipping_what_is_clipped_changes_nothing_beyond_rounding(make: Any, x: Any, c: float):
    once = by_apply(make(c), x)
    np.testing.assert_allclose(by_apply(make(c), once), once, rtol=4 * eps_of("float64"))


@each_clip
@settings(max_examples=30, deadline=None)
@given(x=gradients(), c=thresholds, power=st.integers(-8, 8))
def test_gradient_and_threshold_times_a_power_of_two_is_the_result_times_it(
    make: Any, x: Any, c: float, power: int
):
    """Exact, but for the root of L3, which takes a logarithm: a few units."""
    factor = 2.0**power
    clip: Clip = make(c)
    scaled = by_apply(make(c * factor), x * factor)
    np.testing.assert_allclose(scaled, by_apply(clip, x) * factor, rtol=8 * eps_of("float64"))
    np.testing.assert_array_equal(scaled, by_apply(clip.scaled(factor), x * factor))


@each_clip
@settings(max_examples=30, deadline=None)
@given(x=gradients(), c=thresholds, data=st.data())
def test_the_order_of_elements_does_not_matter(make: Any, x: Any, c: float, data: Any):
    """Along the first axis: samples change places, sums their order, which rounds otherwise."""
    order = data.draw(st.permutations(range(x.shape[0])))
    moved = by_apply(make(c), x[order])
    np.testing.assert_allclose(moved, by_apply(make(c), x)[order], rtol=64 * eps_of("float64"))


@settings(max_examples=30, deadline=None)
@given(x=gradients(), c=thresholds, ord=st.sampled_from([0.5, 1, 2, 3, INF]))
def test_no_norm_is_above_its_threshold(x: Any, c: float, ord: float):
    """But for rounding: of 125 elements, and for 1/2 of the square of a sum."""
    for clip in (GradientClipByNorm(c, ord=ord), GradientClipByGlobalNorm(c, ord=ord)):
        out = np.abs(by_apply(clip, x))
        norm = np.max(out) if ord == INF else np.sum(out**ord) ** (1 / ord)
        assert norm <= c * (1 + 256 * eps_of("float64"))


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(gradients(), min_size=1, max_size=6), c=thresholds)
def test_a_global_norm_is_that_of_all_elements_in_one(parts: Any, c: float):
    named = {f"w{number}": part for number, part in enumerate(parts)}
    out = GradientClipByGlobalNorm(c).apply(named)
    whole = np.concatenate([part.ravel() for part in parts])
    expected = by_apply(GradientClipByNorm(c), whole)
    joined = np.concatenate([out[name].ravel() for name in named])
    np.testing.assert_allclose(joined, expected, rtol=16 * eps_of("float64"))
