"""Facts of the ONNX specification: element types, and what came with which version.

Versions of the IR: https://onnx.ai/onnx/repo-docs/IR.html; of operators:
https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from onnx import TensorProto

__all__ = [
    "ALIASES",
    "BFLOAT16",
    "BOOL",
    "CONSTANT_INTEGERS",
    "DOUBLE",
    "FLOAT",
    "FLOAT16",
    "FLOATING",
    "FREE_INITIALIZERS",
    "FUNCTION_TYPES",
    "HALVES",
    "INT64",
    "LOCAL_FUNCTIONS",
    "NOT_FLOATING",
    "TRAINING_DOMAIN",
]

FLOAT, DOUBLE = int(TensorProto.FLOAT), int(TensorProto.DOUBLE)
FLOAT16, BFLOAT16 = int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)
BOOL, INT64 = int(TensorProto.BOOL), int(TensorProto.INT64)
HALVES = frozenset({FLOAT16, BFLOAT16})
FLOATING = HALVES | {FLOAT, DOUBLE}
"""The dtypes that gradients have."""

ALIASES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that return all elements of their first input, in another dtype or layout."""
NOT_FLOATING = {
    "And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "NonZero", "Not", "Or", "Shape", "Size", "Xor",
}  # fmt: skip
"""Operators whose results are never floating."""

FREE_INITIALIZERS = 4
"""The first IR version in which an initializer need not be an input, and an input can have one."""
LOCAL_FUNCTIONS = 8
"""The first IR version in which a model has functions of its own."""
FUNCTION_TYPES = 10
"""The first IR version in which a function declares the types of its values, and has overloads."""
CONSTANT_INTEGERS = 9
"""The first opset in which a Constant holds whole numbers, too."""
TRAINING_DOMAIN = "ai.onnx.preview.training"
