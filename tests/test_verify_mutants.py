"""Every kind of damage to every node that a rewrite adds is noticed, or changes nothing.

What changes nothing is listed in `EQUIVALENT` with its reason, and has to give the same bits as the
undamaged model on gradients of many kinds. All damage to all clips is tried at night; otherwise
each kind of damage to each operator once.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import open_session
from mutants import Mutant, mutants_of
from onnx import numpy_helper

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_gradients,
)
from onnx_clip_pass.verification import verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

NIGHTLY = bool(os.environ.get("ONNX_CLIP_NIGHTLY"))
MOST_EQUIVALENT = 0.1
NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[4, 3] x, float[3, 2] W, float[2] b, double[4] v, float16[6] h, float S)
        => (float[3, 2] W_new, float[2] b_new, double[4] v_grad, float16[6] h_grad) {
    y = MatMul (x, W)
    z = Add (y, b)
    dz = Mul (z, S)
    xt = Transpose (x)
    W_grad = MatMul (xt, dz)
    b_grad = ReduceSum <keepdims = 0> (dz, axes)
    v_grad = Neg (v)
    h_grad = Neg (h)
    W_new = Sub (W, W_grad)
    b_new = Sub (b, b_grad)
}"""
LARGE = (
    NET.replace("[4, 3] x", "[4, 64] x").replace("[3, 2]", "[64, 50]").replace("[2] b", "[50] b")
)
LARGE = LARGE.replace("[2] b_new", "[50] b_new")
OPEN = NET.replace("[4, 3] x", "[B, N] x").replace("[3, 2]", "[N, M]").replace("[2]", "[M]")
THIN = NET.replace("[3, 2]", "[3, 1]").replace("[2]", "[1]")
NAMED = {"W_grad": "W", "b_grad": "b", "v_grad": "v", "h_grad": "h"}
EMIT = ("norm", "scale", "clipped")
# 100 under zero and keep: the largest norms are then beyond float32, and their scales are not
CLIPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "norm": (GradientClipByNorm(0.5), {}),
    "norm, zero": (GradientClipByNorm(100.0), {"nonfinite": "zero"}),
    "norm, keep": (GradientClipByNorm(100.0), {"nonfinite": "keep"}),
    "norm, wide": (GradientClipByNorm(0.5), {"norm_precision": "wide"}),
    "L1": (GradientClipByNorm(0.5, ord=1), {"emit": EMIT}),
    "L3": (GradientClipByNorm(0.5, ord=3), {}),
    "largest": (GradientClipByNorm(0.5, ord=np.inf), {}),
    "axes": ([Rule("W", GradientClipByNorm(0.1, axes=0))], {"emit": EMIT}),
    "per sample": ([Rule("W", GradientClipByNorm(0.1, per_sample=True, ord=1))], {}),
    "value": (GradientClipByValue(0.1, -0.2), {}),
    "value, zero": (GradientClipByValue(0.1, -0.2), {"nonfinite": "zero", "emit": EMIT}),
    "rms": (GradientClipByRMS(0.1), {"threshold_input": "limit"}),
    "global": (GradientClipByGlobalNorm(0.5), {}),
    "global, keep": (GradientClipByGlobalNorm(100.0), {"nonfinite": "keep"}),
    "global, wide": (GradientClipByGlobalNorm(0.5), {"norm_precision": "wide", "emit": EMIT}),
    "global largest": (GradientClipByGlobalNorm(0.5, ord=np.inf), {"nonfinite": "zero"}),
    "units": (
        [Rule("W", AdaptiveGradientClip(0.01)), Rule(None, AdaptiveGradientClip(0.02))],
        {"loss_scale": "S"},
    ),
    "rows": ([Rule("W", GradientClipByNorm(0.5))], {}),
    "rows, x86-64": ([Rule("W", GradientClipByNorm(0.5))], {"layout": "x86-64"}),
    "thin": ([Rule("W", GradientClipByNorm(0.5))], {"nonfinite": "zero"}),
    "sizes unknown": ([Rule("W", GradientClipByRMS(0.1))], {}),
    "vectors": (GradientClipByNorm(0.5), {"emit": EMIT, "emit_as": "vector"}),
    "chain": (
        Chain(GradientClipByValue(0.2), GradientClipByGlobalNorm(0.3)),
        {"emit": EMIT, "loss_scale": "S"},
    ),
}
NETS = {"rows": LARGE, "rows, x86-64": LARGE, "thin": THIN, "sizes unknown": OPEN}
"""Where it is not NET."""

ZERO_OR_NAN = "it makes 0, or nan where an element is not finite, and so does the damaged one"
NO_SIGN = "what is made of it is the same for both signs"
ROUNDED = "what is made of it is rounded to that dtype, or to one that loses more"
NO_LESS = "a sum of scales is no less than the least of them, which is then taken, or nan"
ONE_SCALE = "all gradients of a group have the same scale"
NO_MORE = "no scale is above 1, so that their mean is below 1 where the least is"
TINY = "any number so small stands in for what no element is beyond"
BELOW_ONE = "where the bounds are below 1, another factor is 1 wherever nothing is clipped"
UNREAD = "the norm that is an output is that of the first clip"
NEVER_INF = "no number of elements makes this limit inf"
FOR_SPEED = "the axes of size 1 are there for speed"
EQUIVALENT = {
    r".*: (Cast|Mul|IsNaN|Reshape|Size) .*: input 0 negated": NO_SIGN,
    r".*: Where .*: input 1 negated": NO_SIGN,
    r".*: (ReduceL1|ReduceSum|Abs) .*: (made|narrowed|input 0 negated|dropped)": ZERO_OR_NAN,
    r".*: (ReduceSumSquare|Sqrt) .*#2: ": ZERO_OR_NAN,
    r"global, keep: (Sqrt clip/v_grad/Sqrt|Sum clip/default_group/Sum#2): ": ZERO_OR_NAN,
    r"global.*: (Mul|Identity) .*: input [01] of another gradient": ONE_SCALE,
    r".*: Less .*: (made LessOrEqual|input 0 negated|input 1 (doubled|halved))": ZERO_OR_NAN,
    r".*: (Min|Max) .*: (input 0 negated|input 1 made 1|made Sum)": ZERO_OR_NAN,
    r".*: Min clip/v_grad/Min: (dropped, input 1|without input 0|input 1 twice)": ZERO_OR_NAN,
    r".*: Max .*: (input 1 (doubled|halved|made 0|negated)|dropped, input 0|made Min)": NO_LESS,
    r".*: Max .*: (input 0 twice|without input 1)": NO_LESS,
    r"L3: Min clip/v_grad/Min#2: input 1 halved": NO_LESS,
    r"(value, zero|chain): Min .*/Min#2: input 1 (doubled|halved)": TINY,
    r"chain: (Min .*/Min#3|Max .*/Max#2): ": BELOW_ONE,
    r"chain: Sqrt clip/[Wbvh]_grad/Sqrt: ": UNREAD,
    r"value, zero: Min .*/Min#3: (without input 0|input 1 twice|input 0 doubled)": BELOW_ONE,
    r"axes: ReduceMin .*: made ReduceMean": NO_MORE,
    r"sizes unknown: (Less|Where) ": NEVER_INF,
    r"thin: Unsqueeze ": FOR_SPEED,
    r".*: narrowed": ROUNDED,
}
"""Patterns of the clip and the words of a mutant, each with why it is none."""

UNIT = "any that is not far from the largest element serves as the unit of shares as well"
AS_EXACT = "it is as exact as is promised, though not the same to the bit"
FINITE = "a gap: limits that are computed are not made inf, which alone this is there for"
TOGETHER = "a gap: nothing is tried on which one clip of a chain acts, and that of the group not"
SIGN_OF_ZERO = "a norm of 0 is -0.0"
HALF = "a norm may be off by that, where the runtime takes it before the gradient is rounded"
NOT_NOTICED = {
    r"L3: (ReduceMax|Max|Min) clip/v_grad/(ReduceMax|Max|Min)(#2)?: ": UNIT,
    r"(value, zero|chain): Max clip/h_grad/Max: input 1 negated": SIGN_OF_ZERO,
    r"(units|rms|chain): (Less|Where) (?!.*of another)": FINITE,
    r"chain: (Mul|Less|Cast) .*: (dropped, input 1|input 0 of another gradient)": TOGETHER,
    r"chain: .*: narrowed": HALF,
    r"L3: Pow clip/[Wb]_grad/Pow#2: narrowed": AS_EXACT,
    r"(thin|sizes unknown): (Mul|ReduceSum|Sqrt) .*: narrowed": AS_EXACT,
    r"rows: ReduceSum clip/W_grad/ReduceSum: input 1 made 0": AS_EXACT,
    r"rows, x86-64: Reshape clip/W_grad/Reshape: input 1 reversed": AS_EXACT,
    r"(L1|largest|global, keep): \w+ clip/h_grad/.*: narrowed": HALF,
}
"""Patterns of those that keep what is promised all the same, but for what is called a gap."""


def rewritten(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model, and what one of the clips makes of it."""
    clip, options = CLIPS[name]
    model = onnx.parser.parse_model(NETS.get(name, NET))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    return model, clip_gradients(model, clip, gradients=NAMED, **options)


def is_noticed(model: onnx.ModelProto, mutant: Mutant) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what damage makes of numbers
        try:
            return not verify(model, mutant.model, slopes="off").ok
        except OnnxClipError:
            return True


def feeds(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Gradients of many sizes, with nan and inf in some."""
    rng = np.random.default_rng(0)
    kinds = {
        value.name: tuple(d.dim_value or 3 for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name in "xWbvh"
    }
    found = []
    for power in (-60, -20, -8, -2, 0, 2, 8, 14, 30, 60):
        for element in (None, np.nan, np.inf):
            arrays = {name: rng.standard_normal(shape) for name, shape in kinds.items()}
            for name in ("x", "v", "h"):
                arrays[name] *= 2.0 ** min(power, 14 if name == "h" else 60)
                if element is not None and name == ("x", "v", "h")[len(found) % 3]:
                    arrays[name].flat[-1] = element
            dtypes = {"v": np.float64, "h": np.float16}
            given = {n: a.astype(dtypes.get(n, np.float32)) for n, a in arrays.items()}
            found.append(given | {"S": np.array(1, np.float32)})
    return found


def is_alike(right: onnx.ModelProto, mutant: Mutant) -> bool:
    """Whether both give the same bits for all these feeds, but for those of nan."""
    session = open_session(right, optimize=False)
    damaged = open_session(mutant.model, optimize=False)
    for given in feeds(right):
        for one, other in zip(session.run(None, given), damaged.run(None, given), strict=True):
            is_nan = np.isnan(one)
            if not np.array_equal(is_nan, np.isnan(other)):
                return False
            if one[~is_nan].tobytes() != other[~is_nan].tobytes():
                return False
    return True


def test_all_damage_is_noticed() -> None:
    tried: set[tuple[str, str]] = set()
    count, equivalent, missed = 0, 0, []
    for name in CLIPS:
        model, right = rewritten(name)
        assert verify(model, right, slopes="off").ok, name
        for mutant in mutants_of(right):
            kind = mutant.op_type, re.sub(r"\d", "", mutant.damage)
            if not NIGHTLY and kind in tried:
                continue
            tried.add(kind)
            count += 1
            if is_noticed(model, mutant):
                continue
            words = f"{name}: {mutant.words}"
            has_reason = any(re.match(each, words) for each in EQUIVALENT)
            if has_reason and is_alike(right, mutant):
                equivalent += 1
            elif not any(re.match(each, words) for each in NOT_NOTICED):
                missed.append(words)
    assert not missed, f"{len(missed)} of {count}:\n" + "\n".join(missed)
    assert equivalent <= MOST_EQUIVALENT * count, (equivalent, count)
