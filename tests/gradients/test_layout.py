"""The axes of a parameter that one unit reaches over, by the operator that computes with it."""

from __future__ import annotations

import pytest

from onnx_clip_pass.gradients import unit_axes
from onnx_clip_pass.graph import Flow, Index

AXES = {
    "MatMul-right": ("y = MatMul (x, W)", "5,4,3", (1,)),
    "MatMul-right-vector": ("y = MatMul (x, W)", "4,1", None),
    "MatMul-left": ("y = MatMul (W, x)", "5,4,3", (2,)),
    "Gemm-left": ("y = Gemm (W, x)", "4,3", (1,)),
    "Gemm-left-transposed": ("y = Gemm <transA = 1> (W, x)", "4,3", (0,)),
    "Gemm-right": ("y = Gemm (x, W)", "4,3", (0,)),
    "Gemm-right-transposed": ("y = Gemm <transB = 1> (x, W)", "4,3", (1,)),
    "FusedMatMul": ("y = com.microsoft.FusedMatMul (x, W)", "5,4,3", (1,)),
    "FusedMatMul-transposed": (
        "y = com.microsoft.FusedMatMul <transB = 1> (x, W)", "5,4,3", (2,)),
    "Conv": ("y = Conv (x, W)", "8,4,3,3", (1, 2, 3)),
    "ConvTranspose": ("y = ConvTranspose (x, W)", "8,4,3,3", (0, 2, 3)),
    "Gather": ("y = Gather (W, x)", "7,4", (1,)),
    "Gather-of-columns": ("y = Gather <axis = 1> (W, x)", "7,4", (0,)),
    "Gather-from-the-end": ("y = Gather <axis = -1> (W, x)", "7,4", (0,)),
    "RNN": ("y = RNN (x, W, R)", "1,4,3", (2,)),
    "GRU": ("y = GRU (x, W, R)", "1,12,3", (2,)),
    "LSTM-recurrent": ("y = LSTM (x, R, W)", "1,16,4", (2,)),
    "transposed-first": ("v = Transpose (W)  y = MatMul (x, v)", "4,3", (1,)),
    "permuted-first": (
        "v = Transpose <perm = [2, 0, 1]> (W)  y = MatMul (x, v)", "5,4,3", (0,)),
    "the-first-of-two": ("y = MatMul (x, W)  z = MatMul (W, x)", "4,3", (0,)),
    "one-unit": ("y = Add (x, W)", "5", None),
    "nowhere-known": (
        "y = Add (x, W)", "4,3", "its parameter's units cannot be told, since it is taken by Add"),
    "nowhere": (
        "y = Neg (x)", "4,3", "its parameter's units cannot be told, since no node takes it"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "shape", "expected"), AXES.values(), ids=AXES)
def test_a_unit_is_what_one_output_is_computed_from(build, body, shape, expected):
    """W is in x out on the right of a product, out x in on the left and in a Conv."""
    model = build(body, inputs=f"float[N,M] x, float[N] R, float[{shape}] W", outputs="float y")
    flow = Flow(Index(model))
    parameter = flow.resolve(flow.main, "W")
    assert unit_axes(flow.index, parameter) == expected
