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
    "chain": (
        Chain(GradientClipByValue(0.2), GradientClipByGlobalNorm(0.3)),
        {"emit": EMIT, "loss_scale": "S"},
    ),
}

ZERO_OR_NAN = "it makes 0, or nan where an element is not finite, and so does the damaged one"
NO_SIGN = "what is made of it is the same for both signs"
ROUNDED = "what is made of it is rounded to that dtype, or to one that loses more"
NO_LESS = "a sum of scales is no less than the least of them, which is then taken, or nan"
EQUIVALENT = {
    r"(Cast|Mul|IsNaN) .*: input 0 negated": NO_SIGN,
    r"(ReduceL1|ReduceSum|Abs) .*: (made|narrowed|input 0 negated|dropped)": ZERO_OR_NAN,
    r"(ReduceSumSquare|Sqrt) .*#2: ": ZERO_OR_NAN,
    r"Less .*: (made LessOrEqual|input 0 negated|input 1 (doubled|halved))": ZERO_OR_NAN,
    r"(Min|Max) .*: (input 0 negated|input 1 made 1|made Sum)": ZERO_OR_NAN,
    r"Max .*: input 1 (doubled|halved|made 0)": NO_LESS,
    r".*: narrowed": ROUNDED,
}
"""Patterns of the words of a mutant, each with why it is none."""

NOT_NOTICED = re.compile(r"L3: (ReduceMax|Max) .*")
"""The element of which others are shares, before their powers are added up: any that is not far
from the largest serves as well, and `verify` has no elements so far apart. A gap, and known."""


def rewritten(clip: Any, options: dict[str, Any]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = onnx.parser.parse_model(NET)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    return model, clip_gradients(model, clip, gradients=NAMED, **options)


def is_noticed(model: onnx.ModelProto, mutant: Mutant) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what damage makes of numbers
        try:
            return not verify(model, mutant.model, slopes="off").ok
        except OnnxClipError:
            return True


def feeds() -> list[dict[str, Any]]:
    """Gradients of many sizes, with nan and inf in some."""
    rng = np.random.default_rng(0)
    kinds = {"x": (4, 3), "W": (3, 2), "b": (2,), "v": (4,), "h": (6,)}
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
    for given in feeds():
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
    for name, (clip, options) in CLIPS.items():
        model, right = rewritten(clip, options)
        assert verify(model, right, slopes="off").ok, name
        for mutant in mutants_of(right):
            kind = mutant.op_type, re.sub(r"\d", "", mutant.damage)
            if not NIGHTLY and kind in tried:
                continue
            tried.add(kind)
            count += 1
            if is_noticed(model, mutant):
                continue
            has_reason = any(re.match(pattern, mutant.words) for pattern in EQUIVALENT)
            if has_reason and is_alike(right, mutant):
                equivalent += 1
            elif not NOT_NOTICED.match(words := f"{name}: {mutant.words}"):
                missed.append(words)
    assert not missed, f"{len(missed)} of {count}:\n" + "\n".join(missed)
    assert equivalent <= MOST_EQUIVALENT * count, (equivalent, count)
