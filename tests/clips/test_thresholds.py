"""Thresholds that can be fed, the loss scale, and metrics as outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import parse, run
from single import DTYPES, single

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
    strip,
)
from onnx_clip_pass.record import read_record
from onnx_clip_pass.rewrite import clip_in_place

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
CLIPS = {
    "norm": lambda c: GradientClipByNorm(c),
    "L1": lambda c: GradientClipByNorm(c, ord=1),
    "value": lambda c: GradientClipByValue(c),
    "global norm": lambda c: GradientClipByGlobalNorm(c),
    "rms": lambda c: GradientClipByRMS(c),
}


TWO = """
    step (float[3] x, float[2,2] y) => (float[3] a_grad, float[2,2] b_grad) {
        a_grad = Identity(x)
        b_grad = Neg(y)
    }"""
NAMED = {"a_grad": "a", "b_grad": "b"}
FEEDS = {"x": np.float32([3, 4, 12]), "y": np.float32([[1, 2], [3, -4]])}


def session_of(model: onnx.ModelProto, level: str = "ORT_ENABLE_ALL") -> Any:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def same(left: list[Any], right: list[Any]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


# -- threshold inputs --------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS)
def test_default_and_fed_threshold_give_what_a_rebuilt_model_gives(make: Any, level: str):
    model = parse(TWO)
    adjustable = clip_gradients(model, make(2.5), gradients=NAMED, threshold_input="limit")
    session = session_of(adjustable, level)
    built = {
        c: session_of(clip_gradients(model, make(c), gradients=NAMED), level) for c in (2.5, 0.7)
    }
    assert same(session.run(None, FEEDS), built[2.5].run(None, FEEDS))
    fed = session.run(None, FEEDS | {"limit": np.array(0.7, np.float32)})
    assert same(fed, built[0.7].run(None, FEEDS))
    assert strip(adjustable) == model


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_input_has_the_dtype_in_which_it_is_used(dtype: str):
    model = clip_gradients(
        single(dtype, (3,)), GradientClipByNorm(0.1), gradients=["g"], threshold_input="limit"
    )
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[-1].type.tensor_type.elem_type)
    assert kind == ("float64" if dtype == "float64" else "float32")
    x = np.array([3, 4, 12]).astype(DTYPES[dtype])
    plain = clip_gradients(single(dtype, (3,)), GradientClipByNorm(0.1), gradients=["g"])
    assert run(model, {"x": x})["g"].tobytes() == run(plain, {"x": x})["g"].tobytes()


def test_a_schedule_over_ten_steps_in_one_session():
    model = clip_gradients(
        parse(TWO), GradientClipByGlobalNorm(1.0), gradients=NAMED, threshold_input="limit"
    )
    session = session_of(model)
    for step in range(10):
        limit = 10.0 * 0.5**step
        a, b = session.run(None, FEEDS | {"limit": np.array(limit, np.float32)})
        norm = np.sqrt(np.sum(a.astype(np.float64) ** 2) + np.sum(b.astype(np.float64) ** 2))
        np.testing.assert_allclose(norm, limit, rtol=1e-6)


def test_each_rule_can_have_an_input_of_its_own():
    rules = [
        Rule("a", GradientClipByNorm(1.0), threshold_input="limit_a"),
        Rule("b", GradientClipByValue(2.0), threshold_input="limit_b"),
    ]
    session = session_of(clip_gradients(parse(TWO), rules, gradients=NAMED))
    a, b = session.run(None, FEEDS | {"limit_a": np.array(13, np.float32)})
    np.testing.assert_array_equal(a, FEEDS["x"])
    np.testing.assert_array_equal(b, [[-1, -2], [-2, 2]])


def test_adaptive_clipping_can_have_a_threshold_input():
    model = parse("""step (float[2] W, float[2] x) => (float[2] W_grad) { W_grad = Identity(x) }""")
    clipped = clip_gradients(
        model, AdaptiveGradientClip(0.1), gradients={"W_grad": "W"}, threshold_input="ratio"
    )
    feeds = {"W": np.float32([2, 0]), "x": np.float32([3, 4])}
    np.testing.assert_allclose(run(clipped, feeds)["W_grad"], [0.12, 0.16], rtol=1e-6)
    out = run(clipped, feeds | {"ratio": np.array(0.5, np.float32)})
    np.testing.assert_allclose(out["W_grad"], [0.6, 0.8], rtol=1e-6)


WHAT_FEEDING_DOES = {
    "0": (0.0, [0, 0], [np.nan, np.nan]),
    "negative": (-1.0, [-0.6, -0.8], [-np.inf * 0, -np.inf * 0]),
    "nan": (np.nan, [np.nan, np.nan], [np.nan, np.nan]),
    "inf": (np.inf, [3, 4], [0, 0]),
}


@pytest.mark.parametrize(
    ("limit", "of_3_4", "of_zeros"), WHAT_FEEDING_DOES.values(), ids=WHAT_FEEDING_DOES
)
def test_what_feeding_0_a_negative_number_nan_and_inf_does(limit, of_3_4, of_zeros):
    """As docs/thresholds.md says: no check is in the graph. 0 / 0 is nan, -1 / 0 is -inf."""
    model = clip_gradients(
        single("float32", (2,)), GradientClipByNorm(1.0), gradients=["g"], threshold_input="limit"
    )
    fed = {"limit": np.array(limit, np.float32)}
    out = run(model, {"x": np.float32([3, 4])} | fed)["g"]
    np.testing.assert_allclose(out, of_3_4, rtol=5e-7)
    np.testing.assert_array_equal(run(model, {"x": np.zeros(2, np.float32)} | fed)["g"], of_zeros)


CALLED = """
    <ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    main (float[2] x) => (float[2] y) { y = f.back(x) }
    <opset_import: ["" : 17], domain: "f"> back (v) => (w) { g = Neg(v) w = Identity(g) }"""
REFUSED = {
    "old IR": (lambda: parse(TWO, ir=3), GradientClipByNorm(1), NAMED, "IR version 4 or later"),
    "function": (
        lambda: onnx.parser.parse_model(CALLED),
        GradientClipByNorm(1),
        ["g"],
        "value of the main graph, which function f::back does not see",
    ),
    "chain": (
        lambda: parse(TWO),
        Chain(GradientClipByNorm(1), GradientClipByRMS(1)),
        NAMED,
        "has no single threshold",
    ),
    "two bounds": (lambda: parse(TWO), GradientClipByValue(2, -1), NAMED, "no single threshold"),
}


@pytest.mark.parametrize(("model", "clip", "named", "words"), REFUSED.values(), ids=REFUSED)
def test_what_can_have_no_threshold_input_is_refused(model, clip, named, words):
    with pytest.raises(OnnxClipError, match=words):
        clip_gradients(model(), clip, gradients=named, threshold_input="limit")


def test_rules_that_share_an_input_must_agree_on_its_default():
    rules = [Rule("a", GradientClipByNorm(1.0), "t"), Rule("b", GradientClipByNorm(2.0), "t")]
    with pytest.raises(OnnxClipError, match="would have two defaults, 1 and 2"):
        clip_gradients(parse(TWO), rules, gradients=NAMED)


# -- loss scale --------------------------------------------------------------------------------

SCALED = {
    "input": "step (float[3] x, {kind} S) => (float[3] a_grad) {{ a_grad = Identity(x) }}",
    "made late": """step (float[3] x, {kind} s) => (float[3] a_grad, float[3] read, {kind} S) {{
        a_grad = Identity(x) read = Neg(a_grad) S = Identity(s) }}""",
}


@pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("scale", [0.5, 3.0, 1024.0])
def test_a_number_acts_as_unscaling_clipping_and_scaling_again(make: Any, scale: float):
    clip = make(2.5)
    scaled = {name: array * np.float32(scale) for name, array in FEEDS.items()}
    out = run(clip_gradients(parse(TWO), clip, gradients=NAMED, loss_scale=scale), scaled)
    expected = clip.apply({"a": FEEDS["x"], "b": -FEEDS["y"]})
    np.testing.assert_allclose(out["a_grad"], scale * expected["a"], rtol=1e-6)
    np.testing.assert_allclose(out["b_grad"], scale * expected["b"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["float", "float[1]", "double", "float16"])
@pytest.mark.parametrize("body", SCALED.values(), ids=SCALED)
def test_a_value_of_the_graph_does_so_too(body: str, kind: str):
    model = parse(body.format(kind=kind))
    clipped = clip_gradients(
        model, GradientClipByNorm(6.5), gradients={"a_grad": "a"}, loss_scale="S", emit=("norm",)
    )
    onnx.checker.check_model(clipped, full_check=True)
    assert strip(clipped) == model
    name = model.graph.input[1].name
    shape = (1,) if kind.endswith("]") else ()
    dtype = {"double": np.float64, "float16": np.float16}.get(kind, np.float32)
    for scale in (1, 8):
        out = run(clipped, {"x": scale * FEEDS["x"], name: np.full(shape, scale, dtype)})
        np.testing.assert_allclose(out["a_grad"], scale * FEEDS["x"] / 2, rtol=1e-6)
        np.testing.assert_allclose(out["a_grad/norm"], 13, rtol=1e-6)


def test_scale_and_threshold_input_together():
    model = parse(SCALED["input"].format(kind="float"))
    clipped = clip_gradients(
        model, GradientClipByNorm(1), gradients={"a_grad": "a"}, loss_scale="S", threshold_input="t"
    )
    feeds = {"x": 8 * FEEDS["x"], "S": np.array(8, np.float32), "t": np.array(6.5, np.float32)}
    np.testing.assert_allclose(run(clipped, feeds)["a_grad"], 4 * FEEDS["x"], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("int64", "floating number, but it is int64"), ("float[3]", "one number, but its shape")],
)
def test_a_loss_scale_that_is_no_number_is_refused(kind: str, words: str):
    model = parse(SCALED["input"].format(kind=kind))
    with pytest.raises(OnnxClipError, match=words):
        clip_gradients(model, GradientClipByNorm(1), gradients={"a_grad": "a"}, loss_scale="S")


# -- metrics as outputs -----------------------------------------------------------------------


def test_norm_scale_and_clipped_of_each_gradient_come_behind_the_old_outputs():
    model = parse(TWO)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    emit = ("norm", "scale", "clipped")
    report = clip_in_place(copy, GradientClipByNorm(6.5), gradients=NAMED, emit=emit)
    names = [value.name for value in copy.graph.output]
    assert names == ["a_grad", "b_grad", *(f"{g}/{what}" for what in emit for g in NAMED)]
    assert [e.output for e in report.emitted] == names[2:]
    assert read_record(copy).outputs == names[2:]
    out = run(copy, FEEDS)
    assert (out["a_grad/norm"], out["a_grad/scale"], out["a_grad/clipped"]) == (13, 0.5, True)
    assert out["a_grad/norm"].shape == ()
    np.testing.assert_allclose(out["b_grad/norm"], 30**0.5, rtol=1e-6)
    assert (out["b_grad/scale"], out["b_grad/clipped"]) == (1, False)
    assert strip(copy) == model


def test_as_a_vector_in_the_order_that_the_record_names():
    model = clip_gradients(
        parse(TWO),
        GradientClipByValue(3),
        gradients=NAMED,
        emit=("norm", "scale"),
        emit_as="vector",
    )
    out = run(model, FEEDS)
    np.testing.assert_array_equal(out["clip/norm"], [12, 4])
    np.testing.assert_array_equal(out["clip/scale"], [0.25, 0.75])
    assert [entry[2] for entry in read_record(model).emitted] == [["a_grad", "b_grad"]] * 2


def test_a_global_norm_is_an_output_for_the_group_too():
    model = clip_gradients(parse(TWO), GradientClipByGlobalNorm(1), gradients=NAMED, emit=("norm",))
    out = run(model, FEEDS)
    np.testing.assert_allclose(out["default_group/norm"], (169 + 30) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(out["a_grad/norm"], 13, rtol=1e-6)


SEVERAL = {
    "samples": GradientClipByNorm(1.0, per_sample=True),
    "axes": GradientClipByNorm(1.0, axes=[1]),
    "other axes": GradientClipByNorm(1.0, axes=[0]),
    "axes, L-infinity": GradientClipByNorm(1.0, axes=[1], ord=np.inf),
    "units": AdaptiveGradientClip(0.1, axes=[0]),
    "samples of a group": GradientClipByGlobalNorm(1.0, per_sample=True),
    "elements": GradientClipByValue(0.5),
    "elements, no negative one": GradientClipByValue(0.5, min=0),
    "one norm": GradientClipByNorm(1.0),
}


@pytest.mark.parametrize("at", range(3), ids="nan in row {}".format)
@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("clip", SEVERAL.values(), ids=SEVERAL)
def test_nan_in_one_of_several_norms_is_nan_wherever_it_stands(clip: Any, kind: str, at: int):
    """Each row and each column of ones is too long: 3 ** 0.5 or 2, or 1 by L-infinity."""
    ports = f"{kind}[4,3] W, {kind}[4,3] u) => ({kind}[4,3] W_grad"
    model = parse(f"step ({ports}) {{ W_grad = Mul(W, u) }}")
    emit = ("norm", "scale", "clipped")
    watched = clip_gradients(model, clip, gradients={"W_grad": "W"}, emit=emit)
    ones = np.ones((4, 3), np.float32 if kind == "float" else np.float64)
    out = run(watched, {"W": ones, "u": ones})
    assert np.isfinite([out["W_grad/norm"], out["W_grad/scale"]]).all()
    u = ones.copy()
    u[at, at] = np.nan
    out = run(watched, {"W": ones, "u": u})
    assert np.isnan(out["W_grad/norm"])
    assert np.isnan(out["W_grad/scale"])
    assert not out["W_grad/clipped"]


def test_nan_in_one_of_several_seeds_is_nan():
    """A trailing axis of size 3, a seed each; no seed is beyond the norm but the last."""
    model = parse("step (float[2] W, float[2,3] u) => (float[2,3] W_grad) { W_grad = Identity(u) }")
    emit = ("norm", "scale", "clipped")
    clip = GradientClipByNorm(1.0)
    watched = clip_gradients(model, clip, gradients={"W_grad": "W"}, emit=emit)
    feeds = {"W": np.zeros(2, np.float32), "u": np.float32([[0.1, np.nan, 3], [0.1, 0, 4]])}
    out = run(watched, feeds)
    np.testing.assert_array_equal([out["W_grad/norm"], out["W_grad/scale"]], [np.nan, np.nan])
    assert not out["W_grad/clipped"]


def test_one_norm_that_has_the_rank_of_its_gradient_takes_no_guard():
    """Of shape (1, 1, 1, 1), as for the kernels of a 1 x 1 convolution; 2 ** 0.5 is its norm."""
    model = parse("step (float[2,1,1,1] u) => (float[2,1,1,1] g) { g = Identity(u) }")
    emit = ("norm", "scale", "clipped")
    watched = clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"], emit=emit)
    made = [node.op_type for node in watched.graph.node]
    assert not {"Max", "ReduceMax", "ReduceMin", "ReduceL1"} & set(made)
    out = run(watched, {"u": np.ones((2, 1, 1, 1), np.float32)})
    np.testing.assert_allclose([out["g/norm"], out["g/scale"]], [2**0.5, 0.5**0.5], rtol=1e-6)
    bad = run(watched, {"u": np.float32([1, np.nan]).reshape(2, 1, 1, 1)})
    assert np.isnan([bad["g/norm"], bad["g/scale"]]).all()


def test_measuring_alone_changes_no_bit():
    model = parse(TWO)
    for clip in (GradientClipByNorm(1), GradientClipByValue(1), GradientClipByGlobalNorm(1)):
        measured = clip_gradients(
            model, clip, gradients=NAMED, emit=("norm", "clipped"), measure_only=True
        )
        out = run(measured, FEEDS)
        assert same([out["a_grad"], out["b_grad"]], list(run(model, FEEDS).values()))
        assert out["a_grad/clipped"]
        assert strip(measured) == model


def test_nothing_is_added_when_nothing_is_asked_for():
    plain = clip_gradients(parse(TWO), GradientClipByNorm(1), gradients=NAMED)
    assert len(plain.graph.node) == 2 + 2 * 4
    assert len(plain.graph.output) == 2


def test_what_is_measured_in_a_nested_graph_cannot_be_an_output():
    model = onnx.parser.parse_model(CALLED)
    with pytest.raises(OnnxClipError, match="cannot be an output of the model"):
        clip_gradients(model, GradientClipByNorm(1), gradients=["g"], emit=("norm",))
