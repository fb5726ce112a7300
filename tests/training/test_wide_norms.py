"""Norms in float64 on the release of ONNX Runtime that trains, which lacks some of their kernels.

Opset 15 is what training artifacts have; a float64 ReduceL2 has no kernel there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import clip_exactly, run

from onnx_clip_pass import GradientClipByNorm, clip_gradients

ort = pytest.importorskip("onnxruntime", reason="onnxruntime-training is not installed")
if not hasattr(ort, "training"):
    pytest.skip("this is the stock onnxruntime, without training", allow_module_level=True)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize(
    ("declared", "norm_precision"),
    [
        pytest.param([100, 120], "auto", id="rows"),  # above 8,192 elements
        pytest.param([100, 120], "wide", id="rows in float64"),
        pytest.param(None, "auto", id="shape unknown"),
        pytest.param([100, 120], "plain", id="plain"),
    ],
)
def test_every_form_of_the_norm_has_kernels(
    declared: list[int] | None, norm_precision: Any, nonfinite: Any
) -> None:
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, declared) for name in "xg"
    ]
    node = onnx.helper.make_node("Identity", ["x"], ["g"])
    graph = onnx.helper.make_graph([node], "single", ports[:1], ports[1:])
    opsets = [onnx.helper.make_opsetid("", 15)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    clipped = clip_gradients(
        model,
        GradientClipByNorm(1.0),
        gradients=["g"],
        norm_precision=norm_precision,
        nonfinite=nonfinite,
    )
    x = np.random.default_rng(0).standard_normal((100, 120), dtype=np.float32)
    # plain adds 12,000 squares in float32, off by up to 6e-5; the others keep 1e-5
    np.testing.assert_allclose(run(clipped, {"x": x})["g"], clip_exactly(x, 1.0), rtol=6e-5)
