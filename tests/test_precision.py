"""How exact a clip is: random data of any magnitude, and norms of large tensors.

The bounds are those of `docs/numerics.md`: the norm is off by less than 1e-5 in auto and 1e-12 in
wide. An element of the result is off by that, by two roundings of the dtype in which the product is
formed, and by the rounding to the gradient's own dtype, half an ulp of which may be subnormal.
"""

from __future__ import annotations

import math
import os
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from graphs import open_session
from hypothesis import given, settings
from single import BFLOAT16, DTYPES, Array, by_apply, by_graph, norm_of, single

from onnx_clip_pass import GradientClipByNorm, clip_gradients

BOUND = {"auto": 1e-5, "wide": 1e-12}
EPS = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}
SMALLEST = {"float16": 2**-24, "bfloat16": 2**-133, "float32": 2**-149, "float64": 2**-1074}
UNCUT = 1e-10  # wide, where the sizes do not let it cut rows, far above 65,536 elements
SPAN = {"auto": (-18.0, 18.0), "wide": (-40.0, 38.0)}  # powers of ten of the norm
HELD = {"float16": (-7.0, 4.7), "bfloat16": (-40.0, 38.0), "float32": (-40.0, 38.0)}
SHAPES = [(), (1,), (2,), (7,), (3, 5), (2, 3, 4), (100,), (8193,), (64, 256), (1, 12289)]


@st.composite
def gradients(draw: st.DrawFn, norm_precision: str) -> tuple[Array, float]:
    """A gradient whose norm is about a power of ten, and a threshold around it or anywhere."""
    dtype = draw(st.sampled_from(list(DTYPES)), label="dtype")
    shape = draw(st.sampled_from(SHAPES), label="shape")
    least, most = SPAN[norm_precision]
    floor, ceiling = HELD.get(dtype, (least, most))
    least, most = max(least, floor), min(most, ceiling)
    power = draw(st.floats(least, most), label="power")
    rng = np.random.default_rng(draw(st.integers(0, 99), label="seed"))
    x = rng.standard_normal(shape) if draw(st.booleans(), label="normal") else np.ones(shape)
    x = np.asarray(x * (10**power / np.linalg.norm(np.ravel(x)))).astype(DTYPES[dtype])
    near = st.sampled_from([0.25, 0.5, 0.99, 1.01, 2.0]).map(lambda factor: factor * 10**power)
    anywhere = st.floats(max(least, -37.0), most).map(lambda exponent: 10**exponent)
    return x, draw(near | anywhere, label="clip_norm")


def check(out: Array, x: Array, clip_norm: float, bound: float) -> None:
    """Invariant 7: unchanged within the threshold, else clip_norm * x / norm(x)."""
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    dtype, norm = str(x.dtype), norm_of(x)
    if norm <= clip_norm * (1 - bound):
        assert out.tobytes() == x.tobytes()
        return
    if norm <= clip_norm * (1 + bound) and out.tobytes() == x.tobytes():
        return
    exact = x.astype(np.longdouble) * (np.longdouble(min(clip_norm, norm)) / np.longdouble(norm))
    product = 3 * 2.0**-24 if dtype != "float64" and bound > 1e-9 else 4 * 2.0**-53
    relative = bound + product + EPS[dtype] / 2
    error = np.abs(out.astype(np.longdouble) - exact)
    assert (error <= relative * np.abs(exact) + SMALLEST[dtype]).all()  # so the direction is kept
    length = norm_of(out)  # its elements' roundings can add up to no more than this
    slack = relative * clip_norm + SMALLEST[dtype] * math.sqrt(x.size)
    assert abs(length - min(clip_norm, norm)) <= slack


@pytest.mark.parametrize("norm_precision", ["auto", "wide"])
@settings(deadline=None)
@given(data=st.data())
def test_the_formula_holds_within_the_stated_bound(norm_precision: Any, data: st.DataObject):
    x, clip_norm = data.draw(gradients(norm_precision))
    out = by_graph(GradientClipByNorm(clip_norm), x, norm_precision=norm_precision)
    check(out, x, clip_norm, BOUND[norm_precision])


@settings(deadline=None)
@given(data=st.data())
def test_apply_holds_it_as_wide_does(data: st.DataObject):
    x, clip_norm = data.draw(gradients("wide"))
    check(by_apply(GradientClipByNorm(clip_norm), x), x, clip_norm, BOUND["wide"])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_clipping_twice_changes_no_more_than_the_bound(data: st.DataObject):
    x, clip_norm = data.draw(gradients("wide"))
    clip = GradientClipByNorm(clip_norm)
    once = by_apply(clip, x)
    twice = by_apply(clip, once)
    np.testing.assert_allclose(
        twice.astype(np.float64),
        once.astype(np.float64),
        rtol=2 * EPS[str(x.dtype)],
        atol=SMALLEST[str(x.dtype)],
    )


# -- the norm of large tensors -----------------------------------------------------------------

SIZES = {
    "short of rows": (8192,),
    "just beyond": (8193,),
    "a prime": (1000003,),
    "a weight": (768, 768),
    "kernels": (512, 512, 3, 3),
    "many short rows": (30011, 61),
    "ten million": (10_000_000,),
    "last dimension unknown": (1024, "N"),
    "all unknown": ("N",),
    "rank unknown": None,
}
SEVERAL = [0.1, 1 / 3, 0.7, 1.1, 1.9]  # constants, the worst that sequential sums can meet


def norm_in_graph(x: Array, norm_precision: Any, declared: Any, opset: int = 17) -> float:
    model = clip_gradients(
        single(str(x.dtype), declared, opset),
        GradientClipByNorm(1.0),
        gradients=["g"],
        norm_precision=norm_precision,
    )
    last = [node for node in model.graph.node if node.op_type in ("ReduceL2", "Sqrt")][-1]
    model.graph.output.append(onnx.ValueInfoProto(name=last.output[0]))
    session = open_session(model, optimize=False)
    return float(session.run([last.output[0]], {"x": x})[0])


def assert_norms(
    declared: Any, shape: tuple[int, ...], norm_precision: Any, bound: float, **more: Any
) -> None:
    normal = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    parts = np.array_split(normal.ravel(), max(1, normal.size // 4_000_000))
    truth = math.sqrt(math.fsum(float(np.sum(p.astype(np.longdouble) ** 2)) for p in parts))
    found = norm_in_graph(normal, norm_precision, declared, **more)
    assert found == pytest.approx(truth, rel=bound, abs=0)
    for value in SEVERAL:
        x = np.full(shape, value, np.float32)
        truth = float(np.sqrt(np.longdouble(x.size)) * np.longdouble(x.flat[0]))
        found = norm_in_graph(x, norm_precision, declared, **more)
        assert found == pytest.approx(truth, rel=bound, abs=0), value


@pytest.mark.parametrize("norm_precision", ["auto", "wide"])
@pytest.mark.parametrize("declared", SIZES.values(), ids=SIZES)
def test_the_norm_keeps_its_bound_for_any_data(declared: Any, norm_precision: Any):
    bound = BOUND[norm_precision]
    if norm_precision == "wide" and declared in (("N",), None, (1000003,)):
        bound = UNCUT
    shape = tuple(1000 if d == "N" else d for d in declared or (1_000_000,))
    shape = (1_000_000,) if declared == ("N",) else shape
    assert_norms(declared, shape, norm_precision, bound)


@pytest.mark.parametrize("declared", [("N",), None, (65521,)], ids=["size", "rank", "a prime"])
def test_wide_keeps_its_bound_where_it_cannot_cut_rows(declared: Any):
    assert_norms(declared, (65521,), "wide", BOUND["wide"])


def test_auto_keeps_its_bound_at_opset_7_too():
    assert_norms((768, 768), (768, 768), "auto", BOUND["auto"], opset=7)


@pytest.mark.parametrize("shape", [(768, 768), (1024, 1024), (64, 64, 3, 3), (9, 1024)], ids=str)
def test_auto_keeps_its_bound_without_cast_and_reshape_from_opset_24(shape: Any):
    clipped = clip_gradients(single("float32", shape, 24), GradientClipByNorm(1.0), gradients=["g"])
    assert not {"Cast", "Reshape"} & {node.op_type for node in clipped.graph.node}
    assert_norms(shape, shape, "auto", BOUND["auto"], opset=24)


@pytest.mark.skipif(not os.environ.get("ONNX_CLIP_NIGHTLY"), reason="1e8 elements: nightly only")
@pytest.mark.parametrize("norm_precision", ["auto", "wide"])
@pytest.mark.parametrize("shape", [(100_000_000,), (12500, 8000)], ids=str)
def test_the_norm_of_a_hundred_million_elements(shape: Any, norm_precision: Any):
    assert_norms(shape, shape, norm_precision, BOUND[norm_precision])


def test_plain_is_what_it_says_too_short_a_norm_for_large_tensors():
    x = np.full(1 << 20, 0.1, np.float32)
    assert norm_in_graph(x, "plain", x.shape) == pytest.approx(102.4, rel=1e-2)
    assert norm_in_graph(x, "plain", x.shape) != pytest.approx(102.4, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("norm_precision", ["auto", "wide"])
def test_large_tensors_of_other_dtypes_are_clipped_to_the_threshold(
    dtype: str, norm_precision: Any
):
    x = np.random.default_rng(0).standard_normal((768, 1024)).astype(DTYPES[dtype])
    out = by_graph(GradientClipByNorm(1.0), x, norm_precision=norm_precision)
    exact = x.astype(np.float64) / norm_of(x)
    tolerance = BOUND[norm_precision] + (2**-8 if x.dtype == BFLOAT16 else EPS[dtype])
    error = np.abs(out.astype(np.float64) - exact)
    assert (error <= tolerance * np.abs(exact) + SMALLEST[dtype]).all()
