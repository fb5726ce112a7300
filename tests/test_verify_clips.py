"""Verification of every clip, steered, scaled and watched: right ones pass, wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import MODELS, Arrays, Entry, each
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
from onnx_clip_pass.verify import Verification, verify

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

INF = float("inf")
CLIPS = {
    "L1": GradientClipByNorm(0.05, ord=1),
    "L3": GradientClipByNorm(0.05, ord=3),
    "L-infinity": GradientClipByNorm(0.05, ord=INF),
    "value": GradientClipByValue(0.01),
    "value, two bounds": GradientClipByValue(0.01, -0.02),
    "global norm": GradientClipByGlobalNorm(0.05),
    "global L1": GradientClipByGlobalNorm(0.05, ord=1),
    "global L-infinity": GradientClipByGlobalNorm(0.05, ord=INF),
    "rms": GradientClipByRMS(0.01),
    "value, then global norm": Chain(GradientClipByValue(0.01), GradientClipByGlobalNorm(0.05)),
    "large": GradientClipByGlobalNorm(1e4),
}
SGD = MODELS / "in_graph" / "sgd.onnx"
SUM = MODELS / "in_graph" / "sum_of_parameters.onnx"


def faults(found: Verification) -> str:
    rows = [*found.gradients, *found.outputs]
    return "\n".join([*found.faults, *(fault for row in rows for fault in row.faults)])


@each(lambda e: e.runtime == "onnxruntime" and bool(e.gradients) and e.found != "by meaning")
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_rewrites_of_every_model_are_right(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, clip: Any
) -> None:
    is_group = any(formula.group for formula in clip.formulas)
    if is_group and entry.file == "onnx_ad/mlp_casadi_layout.onnx":
        with pytest.raises(OnnxClipError, match="one has a seed dimension"):
            clip_gradients(model, clip)
        return
    rewritten = clip_gradients(model, clip)
    found = verify(model, rewritten, feeds=feeds)
    assert found.ok, faults(found)


# -- small graphs ------------------------------------------------------------------------------

NET = """
    step (float[2,3] x, float[3,2] W, float[2] b, float S)
        => (float[3,2] W_new, float[2] b_new) {
        y = MatMul(x, W)
        z = Add(y, b)
        slope = Tanh(z)
        xT = Transpose <perm = [1, 0]> (x)
        W_grad = MatMul(xT, slope)
        W_new = Sub(W, W_grad)
        axes = Constant <value = int64[1] {0}> ()
        b_grad = ReduceSum <keepdims = 0> (slope, axes)
        b_new = Sub(b, b_grad)
    }"""
BATCH = "step (float[4,3] x) => (float[4,3] w_grad) { w_grad = Neg(x) }"


def parse(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')


NAMED = {"W_grad": "W", "b_grad": "b"}
ALL = ("norm", "scale", "clipped")
GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "adaptive": (AdaptiveGradientClip(0.1), {}),
    "adaptive, axes": (AdaptiveGradientClip(0.1, axes=0, need_clip="W"), {}),
    "axes": (GradientClipByNorm(0.1, axes=-1), {"emit": ALL}),
    "two groups": (
        [
            Rule("W", GradientClipByGlobalNorm(0.1, group_name="a")),
            Rule("b", GradientClipByGlobalNorm(0.2, group_name="b")),
        ],
        {"emit": ALL},
    ),
    "threshold input": (GradientClipByNorm(0.1), {"threshold_input": "limit"}),
    "steered group": (GradientClipByGlobalNorm(0.1), {"threshold_input": "limit", "emit": ALL}),
    "steered adaptive": (AdaptiveGradientClip(0.1), {"threshold_input": "limit"}),
    "loss scale": (GradientClipByNorm(0.1), {"loss_scale": 8.0, "emit": ALL}),
    "loss scale by name": (GradientClipByGlobalNorm(0.1), {"loss_scale": "S", "emit": ALL}),
    "vector": (GradientClipByRMS(0.1), {"emit": ALL, "emit_as": "vector"}),
    "value, watched": (GradientClipByValue(0.1), {"emit": ALL}),
    "chain, watched": (
        Chain(GradientClipByValue(0.1), GradientClipByGlobalNorm(0.1)),
        {"emit": ALL},
    ),
    "measured only": (GradientClipByGlobalNorm(0.1), {"emit": ALL, "measure_only": True}),
    "nonfinite": (GradientClipByGlobalNorm(0.1), {"nonfinite": "zero"}),
    "wide": (GradientClipByGlobalNorm(0.1, ord=1), {"norm_precision": "wide"}),
}


@pytest.mark.parametrize(("clip", "options"), GOOD.values(), ids=GOOD)
def test_right_rewrites_of_a_small_net_pass_and_are_seen_acting(clip: Any, options: Any):
    model = parse(NET)
    found = verify(model, clip_gradients(model, clip, gradients=NAMED, **options))
    assert found.ok, faults(found)
    if not options.get("measure_only"):
        assert all(row.acted and row.passed for row in found.gradients)


@pytest.mark.parametrize(
    "clip", [GradientClipByNorm(1, per_sample=True), GradientClipByGlobalNorm(1, per_sample=True)]
)
def test_samples_are_right(clip: Any):
    model = parse(BATCH)
    found = verify(model, clip_gradients(model, clip, gradients=["w_grad"], emit=ALL))
    assert found.ok, faults(found)


# -- what is wrong -----------------------------------------------------------------------------


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def number_of(model: onnx.ModelProto, prefix: str, factor: float) -> None:
    """Multiply an initializer of a clip."""
    tensor = next(t for t in model.graph.initializer if t.name.startswith(prefix))
    tensor.raw_data = (numpy_helper.to_array(tensor) * tensor_type(tensor, factor)).tobytes()


def tensor_type(tensor: onnx.TensorProto, factor: float) -> Any:
    return np.asarray(factor, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def leave_one_out(model: onnx.ModelProto) -> None:
    del node_of(model, "clip/default_group/Sum").input[1:]


def forget_the_root(model: onnx.ModelProto) -> None:
    node_of(model, "clip/default_group/Sqrt").op_type = "Identity"


def unscaled_threshold(model: onnx.ModelProto) -> None:
    number_of(model, "clip/0.8", 1 / 8)


def ignore_the_input(model: onnx.ModelProto) -> None:
    """Take a constant in place of the threshold that is fed."""
    copy = onnx.TensorProto()
    copy.CopyFrom(next(t for t in model.graph.initializer if t.name == "limit"))
    copy.name = "fixed"
    model.graph.initializer.append(copy)
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name == "limit":
                node.input[slot] = "fixed"


def hand_out_another_norm(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.output[0] == "W_grad/norm")
    node.input[0] = next(n for n in model.graph.node if n.output[0] == "b_grad/norm").input[0]


def rows_for_columns(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.name.startswith("clip/") and node.op_type == "ReduceL2":
            for attr in node.attribute:
                if attr.name == "axes" and list(attr.ints) == [0]:
                    attr.ints[0] = 1


def bound_only_below(model: onnx.ModelProto) -> None:
    node = node_of(model, "clip/W_grad/Min")
    node.op_type, keep = "Identity", node.input[0]
    del node.input[:]
    node.input.append(keep)


def one_norm_over_the_batch(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "ReduceL2":
            for attr in node.attribute:
                if attr.name == "axes":
                    del attr.ints[:]
                    attr.ints.extend([0, 1])


WRONG: dict[str, tuple[str, Any, dict[str, Any], Callable[[onnx.ModelProto], None]]] = {
    "a gradient missing in a group": (NET, GradientClipByGlobalNorm(0.1), {}, leave_one_out),
    "a group's norm squared": (NET, GradientClipByGlobalNorm(0.1), {}, forget_the_root),
    "loss scale forgotten": (NET, GradientClipByNorm(0.1), {"loss_scale": 8}, unscaled_threshold),
    "threshold input ignored": (
        NET, GradientClipByNorm(0.1), {"threshold_input": "limit"}, ignore_the_input,
    ),
    "another gradient's norm": (NET, GradientClipByNorm(0.1), {"emit": ALL}, hand_out_another_norm),
    "rows for columns": (NET, AdaptiveGradientClip(0.1), {}, rows_for_columns),
    "bounded on one side": (NET, GradientClipByValue(0.1), {}, bound_only_below),
    "the batch for a sample": (
        BATCH, GradientClipByNorm(1, per_sample=True), {}, one_norm_over_the_batch,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "clip", "options", "breaks"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_noticed(body: str, clip: Any, options: Any, breaks: Any):
    model = parse(body)
    named = NAMED if body is NET else ["w_grad"]
    rewritten = clip_gradients(model, clip, gradients=named, **options)
    assert verify(model, rewritten).ok
    broken = onnx.ModelProto()
    broken.CopyFrom(rewritten)
    breaks(broken)
    assert broken != rewritten
    assert not verify(model, broken).ok


def test_a_value_of_two_parameters_that_counts_once_is_noticed():
    model = onnx.load(SUM)
    feeds = dict(np.load(SUM.with_suffix(".inputs.npz")))
    rewritten = clip_gradients(model, GradientClipByGlobalNorm(0.05))
    assert verify(model, rewritten, feeds=feeds).ok
    number_of(rewritten, "clip/2:", 0.5)
    assert not verify(model, rewritten, feeds=feeds).ok


def test_a_chain_in_the_wrong_order_is_noticed():
    first, second = GradientClipByValue(0.1), GradientClipByNorm(0.15)
    model = parse(NET)
    right = clip_gradients(model, Chain(first, second), gradients=NAMED)
    wrong = clip_gradients(model, Chain(second, first), gradients=NAMED)
    record = next(entry for entry in right.metadata_props if entry.key == "onnx_clip_pass")
    other = next(entry for entry in wrong.metadata_props if entry.key == "onnx_clip_pass")
    clips = record.value.split('"clips":[', 1)[1].split('],"norm_precision"', 1)[0]
    theirs = other.value.split('"clips":[', 1)[1].split('],"norm_precision"', 1)[0]
    other.value = other.value.replace(theirs, clips)
    assert not verify(model, wrong).ok
