"""Operators by what they do to a value: the vocabulary in which updates are read.

An operator that stands in none of these groups is a *contraction* here, whatever it computes:
matrix products, convolutions, reductions, gathers, loops, operators of other domains.
"""

from __future__ import annotations

from onnx_clip_pass.graph import spec

__all__ = [
    "ALIASES", "CALL", "ELEMENTWISE", "JOINTS", "KNOWN_DOMAINS", "LINEAR", "PHI", "PRODUCTS",
    "RANDOM", "SCATTERS", "SHAPES", "SIDE_SLOTS", "STEPS", "VIEWS",
]  # fmt: skip

CALL = "@call"
"""The output of a function as its caller knows it."""
PHI = "@phi"
"""The output of an If: one of the values that its branches give."""

ALIASES = spec.ALIASES | {CALL, "CastLike"}
"""The first input, but for its dtype or the way its elements are laid out."""

LINEAR = {"Add", "Div", "Mean", "Mul", "Neg", "Sub", "Sum", "Where", PHI} | ALIASES
"""Operators of which a linear form is made, Mul and Div by numbers, Where by a number."""

ELEMENTWISE = LINEAR | {
    "Abs", "And", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Square", "Tan", "Tanh", "ThresholdedRelu", "Xor",
}  # fmt: skip
"""One element of the result needs one of each operand."""

RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
"""Noise: nothing that a backward pass computes."""

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", spec.TRAINING_DOMAIN, "com.microsoft"}
"""Operators of other domains may be optimizers that nobody knows."""

SHAPES = {"Shape", "Size"}
"""Operators that read no element of what they are given."""

STEPS = spec.NOT_FLOATING - SHAPES
"""Operators through which nothing has a slope: an accuracy is no loss."""

VIEWS = {"Gather", "GatherElements", "GatherND", "Slice"}
"""Some elements of their first input."""

PRODUCTS = {"Einsum", "Gemm", "MatMul"}
"""Matrix products, of which an optimizer that orthogonalises consists."""

JOINTS = {"Concat", "Slice", "Split"}
"""Operators that join tensors, or take them apart, and compute nothing."""

SCATTERS = {"ScatterElements", "ScatterND"}
"""Their first input with some elements replaced or added to."""

SIDE_SLOTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2), "Expand": (1,), "Gather": (1,), "GatherElements": (1,), "GatherND": (1,),
    "If": (0,), "OneHot": (1,), "Pad": (1, 3), "Pow": (1,), "Range": (0, 1, 2),
    "ReduceL1": (1,), "ReduceL2": (1,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,),
    "Resize": (1, 2, 3), "ScatterElements": (1,), "ScatterND": (1,), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
    "Where": (0,), "CastLike": (1,), "CumSum": (1,), "Dropout": (1, 2), "ConstantOfShape": (0,),
}  # fmt: skip
"""Inputs that say where, how far or whether: indices, shapes, axes, bounds, conditions."""
