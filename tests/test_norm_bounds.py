"""The bound of every form of a norm, with data made to be worst for it.

In a sum that begins with 1, every number below 2**-24 (2**-53) that is added to it is lost: so the
chain of additions through the 1 is as far off as its bound says, and chains elsewhere add up. The
1 is put into each lane, into each row, and row sums as small as that behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import open_session, run
from judged import faults_of
from single import Array, single

from onnx_clip_pass import GradientClipByNorm, clip_gradients
from onnx_clip_pass.clips import Clip, Numerics
from onnx_clip_pass.verification import verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

STATED = {"auto": 1e-5, "wide": 1e-12}
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
LANES = 16  # more than any sum keeps, so that the 1 meets each of them

FORMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "a few": ((7,), (7,)),
    "most in one go": ((2048,), (2048,)),
    "rows of 683": ((2049,), (2049,)),
    "a prime": ((2053,), (2053,)),
    "square": ((768, 768), (768, 768)),
    "cut": ((3072, 768), (3072, 768)),
    "short rows": ((512, 512, 3, 3), (512, 512, 3, 3)),
    "a large prime": ((1000003,), (1000003,)),
    "axes, the longest": ((1024, 1024), (1024, 1024)),
    "some rows": (("N", 4096), (300, 4096)),
    "no size": (("N",), (100_000,)),
}


def worst(size: int, ord: float, unit: float, dtype: Any) -> Iterator[Array]:
    """Tensors, as one row of elements, of which each is the worst for some order of additions."""
    lost = (0.999 * unit) ** (1 / ord)
    for at in {*range(min(LANES if size < 1 << 20 else 1, size)), size - 1}:
        x = np.full(size, lost, dtype)
        x[at] = 1
        yield x
    rows = (1024, 4096) if size > 1 << 20 else (512, 683, 768, 1024, 4096)
    for row in (n for n in rows if n < size):
        x = np.full(size, lost, dtype)
        x[::row] = 1  # in every row
        yield x
        x = np.full(size, (0.999 * unit / row) ** (1 / ord), dtype)
        x[:row] = lost  # in the first, beside whose sum the others are lost
        x[0] = 1
        yield x


def exact_norm(x: Array, ord: float) -> np.longdouble:
    wide = np.abs(x.astype(np.longdouble))
    return np.sqrt(np.sum(wide * wide)) if ord == 2 else np.sum(wide)


def norms_of(
    model: onnx.ModelProto, clip: Clip, *, optimize: bool = True, **options: Any
) -> Callable[[Array], Array]:
    """What gives the norm, or each of several, as the clip in the graph has it."""
    clipped = clip_gradients(model, clip, gradients=["g"], **options)
    norm = next(node.input[1] for node in clipped.graph.node if node.op_type == "Div")
    clipped.graph.output.append(onnx.ValueInfoProto(name=norm))
    session = open_session(clipped, optimize=optimize)
    return lambda x: session.run([norm], {"x": x})[0].astype(np.longdouble)


@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("norm_precision", ["auto", "wide"])
@pytest.mark.parametrize(("declared", "shape"), FORMS.values(), ids=FORMS)
def test_a_norm_keeps_the_stated_bound_for_the_worst_data(
    declared: Any, shape: tuple[int, ...], norm_precision: Any, ord: float
):
    """Wide without rows, and far above 65,536 elements, keeps what is said of it alone."""
    clip = GradientClipByNorm(1.0, ord=ord)
    norm_in_graph = norms_of(single("float32", declared), clip, norm_precision=norm_precision)
    size, stated = math.prod(shape), STATED[norm_precision]
    bound = Numerics(norm_precision).bound("float32", size, ord)
    if norm_precision == "auto":
        assert bound < stated
    tolerance = min(bound, max(stated, size / 4 / ord * 2.0**-53))
    unit = UNIT[np.float64 if norm_precision == "wide" else np.float32]
    for x in worst(size, ord, unit, np.float32):
        exact = exact_norm(x, ord)
        assert abs(norm_in_graph(x.reshape(shape)) - exact) <= tolerance * exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ord", [1, 2])
def test_the_bound_of_one_reduction_is_met_and_not_far_above_what_is_seen(dtype: Any, ord: float):
    """Wider vectors, as of a runtime that was built for them, keep more sums: hence the 8."""
    name, size = np.dtype(dtype).name, 1 << 16
    bound = Numerics("plain").bound(name, size, ord)
    clip = GradientClipByNorm(1.0, ord=ord)
    norm_in_graph = norms_of(single(name, (size,)), clip, norm_precision="plain")
    errors = []
    for x in worst(size, ord, UNIT[dtype], dtype):
        exact = exact_norm(x, ord)
        errors.append(float(abs(norm_in_graph(x) - exact) / exact))
    assert bound / 8 < max(errors) <= bound


SAMPLES, L1_SAMPLES = (GradientClipByNorm(1.0, per_sample=True, ord=ord) for ord in (2, 1))
LAST: dict[str, tuple[Clip, tuple[Any, ...]]] = {
    "a few one by one": (SAMPLES, (2, 256)),
    "most in one go": (SAMPLES, ("N", 2048)),
    "rows": (SAMPLES, ("N", 4096)),
    "many rows": (SAMPLES, (2, 64, 3072)),
    "rows that are axes": (SAMPLES, ("N", 768, 768)),
    "short rows that are axes": (SAMPLES, (2, 64, 64, 3, 3)),
    "a prime": (SAMPLES, (2, 8209)),
    "of some channels": (GradientClipByNorm(1.0, axes=(2, 3)), ("N", 1, 80, 100)),
    "L1, a few": (L1_SAMPLES, (2, 128)),
    "L1, most in one go": (L1_SAMPLES, (2, 1024)),
    "L1, rows": (L1_SAMPLES, (2, 768, 500)),
    "a column": (GradientClipByNorm(1.0, axes=0), (256, 2)),
    "a long column": (GradientClipByNorm(1.0, axes=0), (8192, 2)),
    "a longer one": (GradientClipByNorm(1.0, axes=0), (8193, 2)),
    "L1, a column": (GradientClipByNorm(1.0, axes=0, ord=1), (128, 2)),
}
SIDE: dict[str, tuple[float, tuple[int, ...], int]] = {
    "in one go": (2, (256, 64), 0),
    "rows of 128": (2, (3072, 16), 0),
    "rows added up in float64": (2, (65536, 16), 0),
    "in the middle": (2, (3, 1000, 4, 5), 1),
    "L1": (1, (768, 32), 0),
    "a prime": (2, (1031, 16), 0),
}


@pytest.mark.parametrize(("clip", "declared"), LAST.values(), ids=LAST)
def test_a_norm_over_axes_keeps_the_bound_of_a_whole_tensor(clip: Clip, declared: tuple[Any, ...]):
    shape = tuple(2 if d == "N" else d for d in declared)
    norms_in_graph, ord = norms_of(single("float32", declared), clip), clip.formulas[0].order
    for row in worst(math.prod(shape) // 2, ord, UNIT[np.float32], np.float32):
        exact = [exact_norm(x, ord) for x in (row, row / 2)]
        x = np.stack([row, row[::-1] / 2], axis=shape.index(2)).reshape(shape)
        errors = np.abs(norms_in_graph(x).ravel() - exact) / exact
        assert errors.max() < STATED["auto"]


@pytest.mark.parametrize(("ord", "shape", "axis"), SIDE.values(), ids=SIDE)
def test_a_norm_over_one_axis_adds_up_side_by_side_to_the_same_bound(
    ord: float, shape: tuple[int, ...], axis: int
):
    clip = GradientClipByNorm(1.0, axes=axis, ord=ord)
    norms_in_graph, size = norms_of(single("float32", shape), clip), shape[axis]
    rows = list(worst(size, ord, UNIT[np.float32], np.float32))
    rest = [n for at, n in enumerate(shape) if at != axis]
    many = [rows[at % len(rows)] for at in range(math.prod(rest))]
    x = np.moveaxis(np.stack(many).reshape(*rest, size), -1, axis)
    exact = np.array([exact_norm(row, ord) for row in many])
    errors = np.abs(norms_in_graph(x).ravel() - exact) / exact
    assert errors.max() < STATED["auto"]


@pytest.mark.parametrize("opset", [8, 13, 18, 24])
@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("shape", [(5000,), (6, 4096), (768, 100), (100, 5, 6)], ids=str)
def test_samples_are_clipped_by_rows_however_many_there_are(
    shape: tuple[int, ...], size: int, opset: int
):
    model = single("float32", ("N", *shape), opset)
    clipped = clip_gradients(model, SAMPLES, gradients=["g"])
    onnx.checker.check_model(clipped, full_check=True)
    assert "ReduceSum" in [node.op_type for node in clipped.graph.node]
    x = np.random.default_rng(0).standard_normal((size, *shape), np.float32)
    out = run(clipped, {"x": x})["g"]
    np.testing.assert_allclose(out, SAMPLES.apply({"g": x})["g"], rtol=2e-6)


ALONG: dict[str, tuple[Clip, tuple[int, ...]]] = {
    "first axis": (GradientClipByNorm(1.0, axes=0), (8192, 2)),
    "L1 of the first axis": (GradientClipByNorm(1.0, axes=0, ord=1), (4096, 2)),
    "samples": (SAMPLES, (2, 8192)),
    "L1 of samples": (L1_SAMPLES, (2, 4096)),
}


def units(clip: Clip, shape: tuple[int, ...], unit: float, dtype: Any) -> Iterator[Array]:
    """Gradients of two units, each of which begins with 1."""
    at = shape.index(2)
    for row in worst(math.prod(shape) // 2, clip.formulas[0].order, unit, dtype):
        yield np.stack([row, row[::-1]], axis=at)


@pytest.mark.parametrize("norm_precision", ["wide", "plain"])
@pytest.mark.parametrize(("clip", "shape"), ALONG.values(), ids=ALONG)
def test_plain_and_wide_keep_over_axes_the_bound_of_element_by_element(
    clip: Clip, shape: tuple[int, ...], norm_precision: Any
):
    ord, is_wide = clip.formulas[0].order, norm_precision == "wide"
    unit = UNIT[np.float64 if is_wide else np.float32]
    norms_in_graph = norms_of(single("float32", shape), clip, norm_precision=norm_precision)
    bound = Numerics(norm_precision).bound("float32", max(shape), ord, is_along=True)
    errors = []
    for x in units(clip, shape, unit, np.float32):
        rows = np.moveaxis(x, shape.index(2), 0)
        for norm, row in zip(norms_in_graph(x).ravel(), rows, strict=True):
            exact = exact_norm(row, ord)
            errors.append(float(abs(norm - exact) / exact))
    assert max(errors) <= bound


@pytest.mark.parametrize("norm_precision", ["auto", "plain"])
@pytest.mark.parametrize(
    ("clip", "shape"),
    [
        *list(ALONG.values()),
        (GradientClipByNorm(1.0), (2048,)),
        (GradientClipByNorm(1.0), (1 << 15,)),
        (GradientClipByNorm(1.0, ord=1), (1024, 61)),
    ],
    ids=str,
)
def test_verify_allows_a_right_rewrite_what_the_bound_says(
    clip: Clip, shape: tuple[int, ...], norm_precision: Any
):
    """It called them wrong, as plain's norm over 8,192 elements is off by 2.4e-4."""
    model = single("float32", shape)
    rewritten = clip_gradients(model, clip, gradients=["g"], norm_precision=norm_precision)
    ord = clip.formulas[0].order
    x = np.full(shape, (0.999 * 2.0**-24) ** (1 / ord), np.float32)
    x[tuple(slice(None) if n == 2 else 0 for n in shape)] = 1
    found = verify(model, rewritten, feeds={"x": 3 * x}, slopes="off")
    assert found.ok, faults_of(found)
