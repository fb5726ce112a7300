"""Verification of every clip and option: right rewrites pass, and wrong ones are noticed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import ENTRIES, MODELS, Arrays, Entry, parse, run
from judged import faults_of
from onnx import helper, numpy_helper

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
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.verification import verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

CLIPS: dict[str, Clip] = {
    "L1": GradientClipByNorm(0.3, ord=1),
    "L3": GradientClipByNorm(0.3, ord=3),
    "max": GradientClipByNorm(0.3, ord=np.inf),
    "value": GradientClipByValue(0.01),
    "two bounds": GradientClipByValue(0.02, -0.01),
    "rms": GradientClipByRMS(0.01),
    "global": GradientClipByGlobalNorm(0.3),
    "global L1": GradientClipByGlobalNorm(0.3, ord=1),
    "global max": GradientClipByGlobalNorm(0.3, ord=np.inf),
    "global L2.5": GradientClipByGlobalNorm(0.3, ord=2.5),
    "chain": Chain(GradientClipByValue(0.05), GradientClipByGlobalNorm(0.1)),
    "long chain": Chain(
        GradientClipByGlobalNorm(0.3), GradientClipByRMS(0.01), GradientClipByGlobalNorm(0.02)
    ),
}
NO_GROUP = ["onnx_ad/mlp_casadi_layout.onnx"]  # only some of its gradients have seeds
EMIT = ("norm", "scale", "clipped")


# -- right rewrites ----------------------------------------------------------------------------


RUNNING = [entry for entry in ENTRIES if entry.runtime == "onnxruntime" and entry.gradients]
THIRDS = 1 if os.environ.get("ONNX_CLIP_NIGHTLY") else 3


@pytest.mark.parametrize(
    ("entry", "clip"),
    [
        pytest.param(entry, clip, id=f"{name}-{entry.file.removesuffix('.onnx')}")
        for at, entry in enumerate(RUNNING)
        for number, (name, clip) in enumerate(CLIPS.items())
        if (at + number) % THIRDS == 0
    ],
)
def test_the_clips_of_the_models_are_right(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, clip: Clip
) -> None:
    """A third of the clips for each model, a third of the models for each clip; all at night."""
    named = dict(entry.gradients) if entry.found == "by meaning" else None
    is_group = any(formula.group for formula in clip.formulas)
    if is_group and (entry.file in NO_GROUP or len(set(entry.graphs)) > 1):
        with pytest.raises(OnnxClipError, match="cannot have one norm"):
            clip_gradients(model, clip, gradients=named)
        return
    rewritten = clip_gradients(model, clip, gradients=named)
    found = verify(model, rewritten, feeds=feeds, slopes="on" if entry.slope else "off")
    assert found.ok, faults_of(found)
    assert all(row.acted for row in found.gradients)
    assert all(row.passed for row in found.gradients)


NET = """net (float[4, 3] x, float[3, 2] W, float[2] b, double[4] v, float16[6] h, float S)
        => (float[3, 2] W_new, float[2] b_new, double[4] v_grad, float16[6] h_grad,
        float[4, 3] k_grad) {
    one = Constant <value_float = 1.0> ()
    y = MatMul (x, W)
    z = Add (y, b)
    dz = Mul (z, S)
    xt = Transpose (x)
    W_grad = MatMul (xt, dz)
    b_grad = ReduceSum <keepdims = 0> (dz, axes)
    v_grad = Neg (v)
    h_grad = Neg (h)
    k_grad = Neg (x)
    W_new = Sub (W, W_grad)
    b_new = Sub (b, b_grad)
}"""
NAMED = {"W_grad": "W", "b_grad": "b", "v_grad": "v", "h_grad": "h"}


def net() -> onnx.ModelProto:
    model = parse(NET)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    return model


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixed dtypes": (GradientClipByGlobalNorm(0.5), {}),
    "mixed dtypes, wide": (GradientClipByGlobalNorm(0.5), {"norm_precision": "wide"}),
    "zero": (GradientClipByGlobalNorm(0.5), {"nonfinite": "zero"}),
    "two groups": (
        [
            Rule(["W", "v"], GradientClipByGlobalNorm(0.5, group_name="one")),
            Rule(None, GradientClipByGlobalNorm(0.3, group_name="two", ord=1)),
        ],
        {},
    ),
    "threshold input": (GradientClipByGlobalNorm(0.5), {"threshold_input": "limit"}),
    "threshold input value": (GradientClipByValue(0.1), {"threshold_input": "limit"}),
    "threshold input rms": (GradientClipByRMS(0.1), {"threshold_input": "limit"}),
    "threshold input, from inf": (GradientClipByNorm(np.inf), {"threshold_input": "limit"}),
    "loss scale": (GradientClipByNorm(0.5), {"loss_scale": 1024.0}),
    "loss scale by name": (GradientClipByGlobalNorm(0.5), {"loss_scale": "S"}),
    "both": (GradientClipByValue(0.1), {"loss_scale": "S", "threshold_input": "limit"}),
    "measures": (GradientClipByGlobalNorm(0.5), {"emit": EMIT}),
    "vectors": (GradientClipByNorm(0.5), {"emit": EMIT, "emit_as": "vector"}),
    "measures of values": (GradientClipByValue(0.1), {"emit": EMIT}),
    "measures of a chain": (
        Chain(GradientClipByValue(0.2), GradientClipByGlobalNorm(0.3)),
        {"emit": EMIT, "loss_scale": "S"},
    ),
    "measures alone": (
        GradientClipByGlobalNorm(0.5),
        {"emit": EMIT, "measure_only": True, "loss_scale": 3.0},
    ),
    "units": (
        [
            Rule("W", AdaptiveGradientClip(0.01), "limit"),
            Rule(None, AdaptiveGradientClip(0.02)),
        ],
        {"emit": EMIT, "loss_scale": 2.0},
    ),
    "axes": ([Rule("W", GradientClipByNorm(0.1, axes=0))], {"emit": EMIT}),
    "per sample": ([Rule("W", GradientClipByNorm(0.1, per_sample=True, ord=1))], {}),
    "per sample together": (
        [Rule(["v", "x"], GradientClipByGlobalNorm(0.1, per_sample=True))],
        {"emit": ("norm",), "gradients": {"v_grad": "v", "k_grad": "x"}},
    ),
}


@pytest.mark.parametrize(("clip", "options"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_option_is_right(clip: Any, options: dict[str, Any], seed: int) -> None:
    model = net()
    rewritten = clip_gradients(model, clip, **{"gradients": NAMED} | options)
    found = verify(model, rewritten, seed=seed, slopes="off")  # it has no loss
    assert found.ok, faults_of(found)
    assert all(row.acted for row in found.gradients)
    assert not found.notes
    measures = [row for row in found.outputs if row.quantity]
    assert bool(measures) == ("emit" in options)


def test_steps_of_a_graph_have_norms_of_their_own() -> None:
    model = parse("""net (float[3] w, float[2] b, float[3] x) => (float[3] w2, float[2] b2) {
        w_grad = Mul (w, x) b_grad = Neg (b) w1 = Sub (w, w_grad) b1 = Sub (b, b_grad)
        w1_grad = Mul (w1, x) b1_grad = Neg (b1) w2 = Sub (w1, w1_grad) b2 = Sub (b1, b1_grad)
    }""")
    named = {"w_grad": "w", "b_grad": "b", "w1_grad": "w1", "b1_grad": "b1"}
    rewritten = clip_gradients(
        model, GradientClipByGlobalNorm(0.2), gradients=named, emit=("norm",)
    )
    found = verify(model, rewritten)
    assert found.ok, faults_of(found)


HALF = """
    net (T[3, 1] x, T[1, 4] d, T[3, 4] w) => (T[3, 4] y) {
    g = MatMul (x, d)
    y = Sub (w, g)
}"""
OF_HALF = {
    "norm": GradientClipByNorm(1.0),
    "norms": GradientClipByNorm(1.0, axes=[1], ord=0.5),
    "value": GradientClipByValue(1.0),
    "group": GradientClipByGlobalNorm(1.0),
    "chain": Chain(GradientClipByValue(1.2), GradientClipByGlobalNorm(1.0)),
}


@pytest.mark.parametrize("threshold", [1.0, 1.000001], ids=["beyond", "at the norm"])
@pytest.mark.parametrize("clip", OF_HALF.values(), ids=OF_HALF)
def test_a_norm_of_a_gradient_in_half_precision_may_be_that_before_rounding(
    clip: Clip, threshold: float
) -> None:
    """Each element is 1.5 * (1 + 2**-10) in float32, midway between two numbers of float16.

    It is rounded to 1.5 + 2**-9, by 3.25e-4 of it, and the norm of the unrounded ones is an
    output: 12 ** 0.5 of them, 4 ** 2 of them for L0.5. The second threshold is at the rounded norm.
    """
    element = 1.5 + 1.5 * 2**-10
    feeds = {"x": np.full((3, 1), 1.5), "d": np.full((1, 4), 1 + 2**-10), "w": np.ones((3, 4))}
    model = parse(HALF.replace("T[", "float16["))
    if threshold != 1:
        clip = clip.scaled(threshold * (1.5 + 2**-9) * 12**0.5)
    rewritten = clip_gradients(model, clip, gradients=["g"], emit=EMIT)
    given = {name: array.astype(np.float16) for name, array in feeds.items()}
    found = verify(model, rewritten, feeds=given)
    assert found.ok, faults_of(found)
    measured = run(clip_gradients(model, GradientClipByNorm(1), gradients=["g"], emit=EMIT), given)
    assert measured["g/norm"] == pytest.approx(element * 12**0.5, rel=1e-6)


@pytest.mark.parametrize("make", [GradientClipByNorm, GradientClipByGlobalNorm])
@pytest.mark.parametrize("ord", [2.0, 0.5])
@pytest.mark.parametrize("largest", [2.0**-13, 1.0], ids=["all", "all but some"])
def test_elements_that_vanish_in_half_precision_may_have_a_norm(
    make: Any, ord: float, largest: float
) -> None:
    """2**-13 ** 2 is 2**-26, which float16 rounds to 0; 12 of them have the norm 5e-8.

    With 4 elements 2**-13 and 8 times 2**-26, the L0.5 norm is (0.0442 + 0.00098)**2, some 4 % more
    than without the 8: no sum of the norms of what is there and of what is lost.
    """
    model = parse(HALF.replace("T[", "float16["))
    rewritten = clip_gradients(model, make(1.0, ord=ord), gradients=["g"], emit=EMIT)
    x = np.array([[largest], [2**-13], [2**-13]])
    small = {"x": x, "d": np.full((1, 4), 2**-13)}
    found = verify(model, rewritten, feeds={k: v.astype(np.float16) for k, v in small.items()})
    assert found.ok, faults_of(found)


@pytest.mark.parametrize("kind", ["float16", "float"])
def test_a_norm_that_is_off_by_more_than_its_rounding_is_noticed(kind: str) -> None:
    """2**-10 is twice what float16 may lose, and far beyond what float32 may."""
    model = parse(HALF.replace("T[", f"{kind}["))
    rewritten = clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"], emit=["norm"])
    number = numpy_helper.from_array(np.float32(1 + 2**-10), "factor")
    rewritten.graph.initializer.append(number)
    output = added(rewritten, "Identity")
    output.op_type = "Mul"
    output.input.append("factor")
    assert "is right, within" in "\n".join(faults_of(verify(model, rewritten)))


OF_DOUBLE = {
    "threshold input": {"threshold_input": "limit"},
    "loss scale": {"loss_scale": 3.3},
    "loss scale by name": {"loss_scale": "S"},
    "both": {"threshold_input": "limit", "loss_scale": "S"},
}
DOUBLE = """net (double[6] x, float S) => (double[6] y) { g = Neg (x) y = Neg (g) }"""


@pytest.mark.parametrize("options", OF_DOUBLE.values(), ids=OF_DOUBLE)
def test_a_fed_limit_of_float64_is_held_to_float64(options: dict[str, Any]) -> None:
    """The root of the sum of 6 squares may be off by 6 / 4 units of 2**-52, what follows by 4, and
    the limit by 2. Twice that in units of the last place, and 2 for the elements' own rounding: 17.
    """
    model, feeds = parse(DOUBLE), {"S": np.float32(1.1)}
    rewritten = clip_gradients(
        model, GradientClipByNorm(0.1), gradients=["g"], emit=EMIT, **options
    )
    found = verify(model, rewritten, feeds=feeds)
    assert found.ok, faults_of(found)
    assert found.gradients[0].allowed_ulps == 17


@pytest.mark.parametrize("emitted", ["norm", "scale"])
def test_a_measure_of_float64_is_held_to_float64(emitted: str) -> None:
    """2**-30 is below what float32 would show, and far above 11 units of 2**-52."""
    model, feeds = parse(DOUBLE), {"S": np.float32(1.1)}
    rewritten = clip_gradients(model, GradientClipByNorm(0.1), gradients=["g"], emit=[emitted])
    number = numpy_helper.from_array(np.float64(1 + 2**-30), "factor")
    rewritten.graph.initializer.append(number)
    output = added(rewritten, "Identity")
    output.op_type = "Mul"
    output.input.append("factor")
    assert "is right, within" in "\n".join(faults_of(verify(model, rewritten, feeds=feeds)))


# -- wrong rewrites ----------------------------------------------------------------------------


def added(model: onnx.ModelProto, op_type: str, label: str = "") -> onnx.NodeProto:
    """A node of a clip, by its operator."""
    return next(
        n for n in model.graph.node if n.name.startswith(f"clip/{label}") and n.op_type == op_type
    )


def constant_to(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, factor: float) -> None:
    """Let one input of a node be another number than the constant it was."""
    tensor = next(t for t in model.graph.initializer if t.name == node.input[slot])
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), tensor.name))


def wrong_total(model: onnx.ModelProto) -> None:
    total = added(model, "Sum")
    total.op_type = "Max"


def one_is_missing(model: onnx.ModelProto) -> None:
    del added(model, "Sum").input[-1]


def another_twice(model: onnx.ModelProto) -> None:
    total = added(model, "Sum")
    total.input[0] = total.input[1]


def count_ignored(model: onnx.ModelProto) -> None:
    counted = next(n for n in model.graph.node if "counted" in n.output[0])
    counted.op_type = "Identity"
    del counted.input[1:]


def not_times_loss_scale(model: onnx.ModelProto) -> None:
    added(model, "Mul", "limit").op_type = "Identity"
    del added(model, "Identity", "limit").input[1:]


def loss_scale_forgotten(model: onnx.ModelProto) -> None:
    constant_to(model, added(model, "Div"), 0, 1 / 8)


def input_ignored(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.05), "own limit"))
    for node in model.graph.node:
        node.input[:] = ["own limit" if name == "limit" else name for name in node.input]


def measure_of_another(model: onnx.ModelProto) -> None:
    one, two = added(model, "Identity", "a_grad/"), added(model, "Identity", "b_grad/")
    one.input[0], two.input[0] = two.input[0], one.input[0]


def norm_still_scaled(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if "unscaled" in node.output[0]:
            node.op_type = "Identity"
            del node.input[1:]


def always_clipped(model: onnx.ModelProto) -> None:
    less = added(model, "Less")
    less.op_type = "LessOrEqual"


def other_axes(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "ReduceL2" and "a_grad" in node.name:
            for attr in node.attribute:
                if attr.name == "axes":
                    attr.ints[:] = [1 - axis for axis in attr.ints]


def over_the_batch(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "ReduceL2" and "a_grad" in node.name:
            for attr in node.attribute:
                if attr.name == "axes":
                    attr.ints[:] = [0, 1]


def order_of_stages(model: onnx.ModelProto) -> None:
    """What clipping in the other order gives, under the record of the right order."""
    other = clip_gradients(
        parse(TWO), Chain(GradientClipByNorm(0.05), GradientClipByValue(0.04)), gradients=GRADS
    )
    model.graph.CopyFrom(other.graph)


def measured_and_changed(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.output[0] == "a_grad")
    node.op_type = "Neg"


def an_output_too_many(model: onnx.ModelProto) -> None:
    model.graph.output.append(onnx.ValueInfoProto(name="a_grad"))


def an_input_too_many(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", 1, ()))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "more"))


TWO = """net (float[3, 3] a, float[3, 3] b) => (float[3, 3] a_grad, float[3, 3] b_grad) {
    a_grad = Identity (a) b_grad = Neg (b) }"""
SHARED = (MODELS / "in_graph" / "sum_of_parameters.onnx").read_bytes()
GRADS = {"a_grad": "a", "b_grad": "b"}
GLOBAL = GradientClipByGlobalNorm(0.05)
WRONG: dict[str, tuple[Callable[[onnx.ModelProto], None], str | bytes, Any, dict[str, Any]]] = {
    "wrong total": (wrong_total, TWO, GLOBAL, {}),
    "one is missing": (one_is_missing, TWO, GLOBAL, {}),
    "another twice": (another_twice, TWO, GLOBAL, {}),
    "count ignored": (count_ignored, SHARED, GLOBAL, {"gradients": None}),
    "loss scale": (loss_scale_forgotten, TWO, GradientClipByNorm(0.05), {"loss_scale": 8.0}),
    "named loss scale": (
        not_times_loss_scale,
        TWO.replace("(float[3, 3] a,", "(float S, float[3, 3] a,"),
        GradientClipByNorm(0.05),
        {"loss_scale": "S"},
    ),
    "input ignored": (input_ignored, TWO, GLOBAL, {"threshold_input": "limit"}),
    "another's norm": (measure_of_another, TWO, GradientClipByNorm(0.05), {"emit": ("norm",)}),
    "another's scale": (measure_of_another, TWO, GradientClipByNorm(0.05), {"emit": ("scale",)}),
    "norm still scaled": (
        norm_still_scaled,
        TWO,
        GradientClipByNorm(0.05),
        {"emit": ("norm",), "loss_scale": 8.0},
    ),
    "group norm still scaled": (
        norm_still_scaled,
        TWO,
        GLOBAL,
        {"emit": ("norm",), "loss_scale": 8.0},
    ),
    "always clipped": (always_clipped, TWO, GradientClipByNorm(0.05), {"emit": ("clipped",)}),
    "other axes": (other_axes, TWO, GradientClipByNorm(0.05, axes=0), {}),
    "other units": (
        other_axes,
        TWO.replace("a_grad = Identity (a)", "used = MatMul (b, a) a_grad = Identity (b)"),
        [Rule("a", AdaptiveGradientClip(0.05))],
        {},
    ),
    "over the batch": (over_the_batch, TWO, GradientClipByNorm(0.05, per_sample=True), {}),
    "order": (
        order_of_stages,
        TWO,
        Chain(GradientClipByValue(0.04), GradientClipByNorm(0.05)),
        {},
    ),
    "measured and changed": (
        measured_and_changed,
        TWO,
        GLOBAL,
        {"emit": ("norm",), "measure_only": True},
    ),
    "output too many": (an_output_too_many, TWO, GLOBAL, {"emit": ("norm",)}),
    "input too many": (an_input_too_many, TWO, GLOBAL, {"threshold_input": "limit"}),
}

CLIPPED_TOO_MUCH_OR_LITTLE = r"norm [\d.e-]+, where [\d.e-]+ is right"
MEASURED = r"it is [\d.e-]+, where [\d.e-]+ is right"
REASONS = {
    "another's norm": MEASURED,
    "another's scale": MEASURED,
    "norm still scaled": MEASURED,
    "group norm still scaled": MEASURED,
    "always clipped": "it is True, where the scale is 1",
    "measured and changed": "it differs, though no clipped gradient leads to it",
    "output too many": "the outputs were 'a_grad', 'b_grad', and are .*, 'a_grad'; expected",
    "input too many": "the inputs were 'a', 'b', and are 'a', 'b', 'limit', 'more'; expected",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_a_wrong_rewrite_is_noticed(
    name: str,
    size: float,
) -> None:
    """With gradients within the threshold and beyond it."""
    damage, body, clip, options = WRONG[name]
    model = parse(body) if isinstance(body, str) else onnx.load_from_string(body)
    rng = np.random.default_rng(0)
    feeds = {
        value.name: (rng.normal(size=(3, 3)) * size).astype(np.float32)
        for value in model.graph.input
        if isinstance(body, str) and value.name != "S"
    }
    rewritten = clip_gradients(model, clip, **{"gradients": GRADS} | options)
    found = verify(model, rewritten, feeds=feeds)
    assert found.ok, faults_of(found)
    before = rewritten.SerializeToString()
    damage(rewritten)
    assert rewritten.SerializeToString() != before
    told = "\n".join(faults_of(verify(model, rewritten, feeds=feeds)))
    assert re.search(REASONS.get(name, CLIPPED_TOO_MUCH_OR_LITTLE), told)
