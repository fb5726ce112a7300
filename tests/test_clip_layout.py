"""The nodes that are chosen for a machine, which give the same numbers on every other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import open_session, parse, run
from judged import faults_of
from single import by_apply, single
from test_norm_bounds import UNIT, exact_norm, norms_of, worst

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    OnnxClipError,
    clip_gradients,
    strip,
)
from onnx_clip_pass.clips import Clip, Numerics
from onnx_clip_pass.record import read_record
from onnx_clip_pass.rewrite import clip_in_place
from onnx_clip_pass.verification import verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

ONE = GradientClipByNorm(1.0)
SHAPE = (3072, 768)  # no axes of it will do for rows


def nodes(layout: Any, shape: Any = SHAPE, opset: int = 17, **options: Any) -> str:
    """The operators that clip a float32 gradient."""
    model = single("float32", shape, opset)
    clipped = clip_gradients(model, ONE, gradients=["g"], layout=layout, **options)
    return " ".join(node.op_type for node in clipped.graph.node[1:])


SCALED = "Sqrt Cast Div Min Mul"
CHOSEN: dict[str, tuple[dict[str, Any], str]] = {
    "by rows": ({"layout": "cpu"}, "Mul Reshape ReduceSum Cast ReduceSum Sqrt Div Min Cast Mul"),
    "by products": (
        {"layout": "x86-64"},
        "Reshape Transpose MatMul Cast ReduceSum Sqrt Div Min Cast Mul",
    ),
    "the plain chain": ({"layout": "cuda"}, "ReduceL2 Div Min Mul"),
    "axes are no rows there": (
        {"layout": "x86-64", "shape": (256, 256)},
        "Reshape Transpose MatMul ReduceSum Sqrt Div Min Mul",
    ),
    "short": ({"layout": "x86-64", "shape": (2048,)}, "ReduceL2 Div Min Mul"),
    "a prime": ({"layout": "cuda", "shape": (8209,)}, "ReduceL2 Div Min Mul"),
    "unknown": ({"layout": "cuda", "shape": ("N", "M")}, "ReduceL2 Abs Div Min Mul"),
    "not fused at opset 8": (
        {"layout": "x86-64", "opset": 8},
        "Mul Reshape ReduceSum Cast ReduceSum Sqrt Div Min Cast Mul",
    ),
    "plain": ({"layout": "x86-64", "norm_precision": "plain"}, "ReduceL2 Div Min Mul"),
}


@pytest.mark.parametrize(("asked", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_nodes_are_chosen_by_layout(asked: dict[str, Any], expected: str):
    assert nodes(**asked) == expected


@pytest.mark.parametrize("opset", [8, 17])
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("shape", [(2049,), (256, 512), (2047, 65), (2053,)], ids=str)
def test_norms_for_x86_64_keep_the_bound_of_any_data(
    shape: tuple[int, ...], optimize: bool, opset: int
):
    model, size = single("float32", shape, opset), math.prod(shape)
    norm_in_graph = norms_of(model, ONE, layout="x86-64", optimize=optimize)
    assert Numerics(layout="x86-64").bound("float32", size, 2) < 1e-5
    for x in worst(size, 2, UNIT[np.float32], np.float32):
        exact = exact_norm(x, 2)
        assert abs(norm_in_graph(x.reshape(shape)) - exact) <= 1e-5 * exact


def test_a_norm_for_cuda_has_on_the_cpu_the_bound_of_plain_and_verify_knows():
    """Of 65,536 elements as these a norm by rows is off by 1e-5 at most, one sum by 2.4e-4."""
    model, size = single("float32", (1 << 16,)), 1 << 16
    x = np.full(size, (0.999 * 2.0**-24) ** 0.5, np.float32)
    x[0] = 1
    norm, exact = norms_of(model, ONE, layout="cuda")(x), exact_norm(x, 2)
    bound = Numerics(layout="cuda").bound("float32", size, 2)
    assert bound == Numerics("plain").bound("float32", size, 2)
    assert 1e-5 < abs(norm - exact) / exact < bound
    rewritten = clip_gradients(model, ONE, gradients=["g"], layout="cuda")
    found = verify(model, rewritten, feeds={"x": 3 * x}, slopes="off")
    assert found.ok, faults_of(found)


CLIPS: dict[str, Clip] = {
    "norm": ONE,
    "L1": GradientClipByNorm(1.0, ord=1),
    "per sample": GradientClipByNorm(1.0, per_sample=True),
    "global": GradientClipByGlobalNorm(1.0),
    "rms": GradientClipByRMS(0.01),
}


@pytest.mark.parametrize("layout", ["x86-64", "cuda"])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
@pytest.mark.parametrize("norm_precision", ["auto", "wide"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_every_clip_gives_what_apply_gives(
    clip: Clip, dtype: str, norm_precision: Any, nonfinite: Any, layout: Any
):
    """1e-3 is a unit of float16; the others are held to the bound of auto and a rounding."""
    x = np.random.default_rng(0).standard_normal((64, 65)).astype(dtype)
    model = clip_gradients(
        single(dtype, ("N", 65)),
        clip,
        gradients=["g"],
        norm_precision=norm_precision,
        nonfinite=nonfinite,
        layout=layout,
    )
    out, expected = run(model, {"x": x})["g"], by_apply(clip, x)  # type: ignore[arg-type]
    np.testing.assert_allclose(out, expected, rtol=1e-3 if dtype == "float16" else 2e-5)


def test_a_parameter_s_norms_are_chosen_too():
    step = parse("s (float[4,5000] W, float[4,5000] g) => (float[4,5000] n) { n = Sub(W, g) }")
    clip = AdaptiveGradientClip(0.01, axes=1)
    w = np.random.default_rng(0).standard_normal((4, 5000)).astype(np.float32)
    outs = [
        run(clip_gradients(step, clip, gradients={"g": "W"}, layout=layout), {"W": w, "g": w})["n"]
        for layout in ("cpu", "x86-64", "cuda")
    ]
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-6)  # norms are off by less than 1e-7 here
    np.testing.assert_allclose(outs[2], outs[0], rtol=1e-6)


def test_the_record_says_which_and_is_as_before_for_any_processor():
    model = single("float32", (64, 64))
    for layout in ("cpu", "x86-64", "cuda"):
        clipped = clip_gradients(model, ONE, gradients=["g"], layout=layout)  # type: ignore[arg-type]
        record = read_record(clipped)
        assert record is not None
        assert record.layout == layout
        assert ("layout" in record.fields()) == (layout != "cpu")
        assert strip(clipped) == model
        found = verify(model, clipped, slopes="off")
        assert found.ok, faults_of(found)


def test_the_report_names_the_layout_and_the_operators_that_are_new():
    model = parse("s (float[3] x) => (float[3] g) { a = Mul(x, x) g = Mul(a, x) }")
    report = clip_in_place(model, ONE, gradients=["g"], layout="cuda")
    assert report.layout == "cuda"
    assert report.new_operators == (("Div", 17), ("Min", 17), ("ReduceL2", 17))
    again = clip_in_place(model, ONE, gradients=["g"])
    assert again.new_operators == report.new_operators  # against the model without clips


def test_float32_norms_for_cuda_have_all_their_kernels_there_at_opset_24():
    for layout, count in (("cpu", 1), ("cuda", 0)):
        report = clip_in_place(single("float32", SHAPE, 24), ONE, gradients=["g"], layout=layout)  # type: ignore[arg-type]
        assert sum("CUDA provider has no kernel" in said for said in report.warnings) == count


@pytest.mark.parametrize("layout", ["gpu", "CPU", "", None, 1])
def test_another_layout_is_refused(layout: Any):
    with pytest.raises(OnnxClipError, match="layout must be one of cpu, x86-64, cuda"):
        clip_gradients(single("float32", (2,)), ONE, gradients=["g"], layout=layout)


def test_products_of_rows_are_one_node_of_the_runtime(tmp_path: Path):
    """What the layout counts on: ONNX Runtime makes one node of Transpose and MatMul."""
    model = clip_gradients(single("float32", SHAPE), ONE, gradients=["g"], layout="x86-64")
    path = tmp_path / "optimized.onnx"
    open_session(model, optimize=True, optimized_path=path)
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert "FusedMatMul" in ops
    assert "Transpose" not in ops
