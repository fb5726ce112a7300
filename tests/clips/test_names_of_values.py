"""The names of the values that clips add, which people see in their graphs and look for."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByPercentile,
    GradientClipByRMS,
    GradientClipByValue,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip

WITH_A_SCALE = {"emit": ("norm", "scale"), "loss_scale": "scale"}


def step(dtype: str, shape: str) -> onnx.ModelProto:
    """Two parameters; an axis of the first gradient that is called nadj counts seeds."""
    own = shape.replace(",nadj", "")
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        step ({dtype}{own} W, {dtype}[2] V, {dtype}{shape} x, {dtype}[2] y, float scale)
          => ({dtype}{shape} g, {dtype}[2] h) {{ g = Neg(x) h = Neg(y) }}""")


@pytest.mark.parametrize(
    ("dtype", "shape", "clip", "options", "words"),
    [
        (
            "double", "[2,nadj]", GradientClipByGlobalNorm(1.0, ord=3),
            {"layout": "cuda", "nonfinite": "zero"} | WITH_A_SCALE,
            "cast, flat norm, largest, largest norm, largest one, least, least scale, length, "
            "less, mul, negative, norm, normal, not finite, nothing, one or more; or nan, powers, "
            "product, ratio, root, scale, scale if limited, shares, sizes, sum of powers, "
            "sum of squares, unit, unscaled, zero, zero or nan",
        ),
        (
            "float16", "[?,2]", GradientClipByRMS(1.0), {"nonfinite": "zero"} | WITH_A_SCALE,
            "cast, chosen, elements, factor, in float64, limit, mul, norm, not finite, nothing, "
            "one or more, product, ratio, root of elements, scale, scale if limited, size, "
            "sum of squares, unlimited, unscaled, wide",
        ),
        (
            "float16", "[100,1000]", GradientClipByGlobalNorm(1.0),
            {"layout": "x86-64", "threshold_input": "limit"},
            "cast, factor, less, norm, part, product, ratio, rows, rows on end, scale, "
            "scale if limited, sums, sums in float64, together, total, wide",
        ),
        (
            "float16", "[40,50]", GradientClipByValue(1.0), {"nonfinite": "keep"} | WITH_A_SCALE,
            "beyond, bound, clipped, end, from below, largest, length, mul, norm, not finite, "
            "nothing, one or more; or nan, scale, side, sizes, unscaled, wide, zero or nan",
        ),
        (
            "float", "[N,2]", AdaptiveGradientClip(0.01, axes=(0,)),
            {"layout": "x86-64", "nonfinite": "keep"},
            "at least, factor, in float64, kept, limit, norm, not finite, nothing, ratio, scale, "
            "scale if limited, squares, total, unlimited",
        ),
        (
            "float", "[?,2]", GradientClipByGlobalNorm(1.0, ord=3), {"norm_precision": "plain"},
            "largest, norm, normal, power, powers, ratio, root, scale, share, sizes, "
            "sum of powers, together, unit",
        ),
        (
            "float", "[N,2]", GradientClipByGlobalNorm(1.0, per_sample=True),
            {"layout": "x86-64"}, "in place, norm, ratio, scale, squares, together",
        ),
        (
            "float", "[3]", GradientClipByNorm(1.0, axes=(0,)), WITH_A_SCALE,
            "less, mul, norm, one, ratio, scale, scale if limited, unscaled",
        ),
        (
            "float", "[N,nadj]", GradientClipByRMS(1.0), {},
            "elements, elements of one, factor, in float64, limit, norm, one or more, ratio, "
            "root of elements, scale, scale if limited, seeds, size, squares, total, "
            "unlimited",
        ),
        (
            "float", "[3]", GradientClipByPercentile(percentile=10.0, history=20), {},
            "above, below, count, element, end in float64, floor, gap, high, in place, is finite, "
            "is first, is within, last, limit, low, needed, next, norm, norms so far, norms_new, "
            "ones, part, percentile, place, ranks, ratio, scale, scale if limited, seen, shifted, "
            "smallest, smallest places, step, together",
        ),
    ],
    ids=["L3", "RMS", "all", "value", "units", "all L3", "samples", "axes", "RMS, seeds", "so far"],
)  # fmt: skip
def test_values_are_called_what_they_are(
    dtype: str, shape: str, clip: Clip, options: dict[str, Any], words: str
):
    gradients = {"g": "W"}
    if hasattr(clip, "group_name") and "nadj" not in shape:
        gradients |= {"h": "V"}
    clipped = clip_gradients(step(dtype, shape), clip, gradients=gradients, **options)
    made = (name for node in clipped.graph.node for name in node.output)
    ends = {name.rpartition("/")[2].partition("#")[0] for name in made if name.startswith("clip/")}
    assert sorted(ends - {"raw"}) == [each.replace(";", ",") for each in words.split(", ")]
