"""Clips in an optimizer model: the same to each tensor of a sequence, or one norm over all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import clip_exactly
from onnx import TensorProto, helper
from sequences import ADAMW, FOLDERS, SGD, Array, optimizer_model, run_before_optimizer

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    strip,
)
from onnx_clip_pass.artifacts.sequence import clip_sequence
from onnx_clip_pass.clips import Clip, Numerics


def arrays(*values: Any) -> list[Array]:
    return [np.array(value, np.float32) for value in values]


GRADIENTS = arrays([3, 4], [[0, -6], [8, 0]], [0.3, 0.4], -5, [[[-2.0]]], [0, 0])


def clipped(clip: Clip, folder: str = SGD, **numerics: Any) -> onnx.ModelProto:
    model = optimizer_model(folder)
    clip_sequence(model, clip, Numerics(**numerics), "the model")
    return model


def by_global_norm(clip_norm: float, order: float = 2.0, **numerics: Any) -> onnx.ModelProto:
    return clipped(GradientClipByGlobalNorm(clip_norm, ord=order), **numerics)


# -- what stays --------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_inputs_outputs_and_the_optimizer_stay_and_strip_gives_the_model_back(folder):
    original, model = optimizer_model(folder), clipped(GradientClipByNorm(1.0), folder)
    assert model.graph.input == original.graph.input
    assert model.graph.output == original.graph.output
    optimizer, before = model.graph.node[-1], original.graph.node[-1]
    assert optimizer.attribute == before.attribute
    swapped = {"gradients": "clip/gradients/clipped"}
    assert list(optimizer.input) == [swapped.get(name, name) for name in before.input]
    assert strip(model) == original


def test_what_shape_inference_declares_of_the_clip_goes_with_it():
    inferred = onnx.shape_inference.infer_shapes(clipped(GradientClipByNorm(1.0)))
    assert any(value.name.startswith("clip/") for value in inferred.graph.value_info)
    left = [value.name for value in strip(inferred).graph.value_info]
    assert not [name for name in left if name.startswith("clip/")]


def test_the_graph_is_valid_onnx_but_for_the_runtimes_own_optimizer():
    model = clipped(GradientClipByNorm(1.0))
    del model.graph.node[-1:], model.graph.output[:]
    carried = helper.make_tensor_sequence_value_info("clip/gradients/clipped", 1, None)
    model.graph.output.append(carried)
    onnx.checker.check_model(model, full_check=True)


def test_tensors_within_the_threshold_stay_bit_for_bit_in_their_order():
    out = run_before_optimizer(clipped(GradientClipByNorm(10.0)), GRADIENTS)
    assert [x.tobytes() for x in out] == [x.tobytes() for x in GRADIENTS]
    assert [x.shape for x in out] == [x.shape for x in GRADIENTS]


def test_an_infinite_threshold_adds_no_node_but_a_record():
    model = clipped(GradientClipByNorm(math.inf))
    assert [node.op_type for node in model.graph.node] == ["SGDOptimizerV2"]
    assert strip(model) == optimizer_model()


def test_a_second_clip_replaces_the_first():
    model = clipped(GradientClipByNorm(1.0))
    report = clip_sequence(model, GradientClipByNorm(2.0), Numerics(), "the model")
    assert report.replaced
    assert model == clipped(GradientClipByNorm(2.0))


# -- what changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_precision", ["plain", "auto", "wide"])
@pytest.mark.parametrize("folder", [SGD, ADAMW])
def test_each_tensor_is_clipped_by_its_own_norm(folder, norm_precision):
    model = clipped(GradientClipByNorm(1.0), folder, norm_precision=norm_precision)
    out = run_before_optimizer(model, GRADIENTS)
    # [3, 4] / 5, [[0, -6], [8, 0]] / 10, unchanged, -5 / 5, -2 / 2, unchanged
    wanted = arrays([0.6, 0.8], [[0, -0.6], [0.8, 0]], [0.3, 0.4], -1, [[[-1.0]]], [0, 0])
    for x, expected in zip(out, wanted, strict=True):
        assert x.shape == expected.shape
        np.testing.assert_allclose(x, expected, rtol=2**-22)  # Div and Mul, half an ulp each


def test_a_sequence_without_tensors_stays_so():
    assert run_before_optimizer(clipped(GradientClipByNorm(1.0)), []) == []


def test_random_tensors_come_out_as_the_formula_says():
    rng = np.random.default_rng(0)
    shapes = [(), (1,), (3, 5), (2, 3, 4), (100, 200), (1,)]
    gradients = [np.asarray(rng.normal(size=shape), np.float32) for shape in shapes]
    out = run_before_optimizer(clipped(GradientClipByNorm(0.5)), gradients)
    for x, gradient in zip(out, gradients, strict=True):
        # the norm is in float64, so all that is left is the rounding of the factor and the product
        np.testing.assert_allclose(x, clip_exactly(gradient, 0.5), rtol=2**-22)


@pytest.mark.parametrize(
    "clip",
    [
        GradientClipByNorm(1.0, ord=1),
        GradientClipByNorm(1.0, ord=3),
        GradientClipByNorm(1.0, ord=math.inf),
        GradientClipByValue(0.5),
        GradientClipByValue(2.0, -0.25),
        GradientClipByRMS(0.1),
        Chain(GradientClipByValue(0.5), GradientClipByNorm(1.0)),
        GradientClipByGlobalNorm(1.0),
        GradientClipByGlobalNorm(1.0, ord=1),
        GradientClipByGlobalNorm(1.0, ord=3),
        GradientClipByGlobalNorm(1.0, ord=math.inf),
        Chain(GradientClipByValue(0.5), GradientClipByGlobalNorm(1.0)),
        Chain(GradientClipByGlobalNorm(2.0), GradientClipByNorm(1.0), GradientClipByRMS(0.1)),
        Chain(GradientClipByGlobalNorm(2.0, ord=1), GradientClipByGlobalNorm(1.0, ord=3)),
    ],
    ids=repr,
)
def test_every_clip_does_to_a_sequence_what_it_does_to_arrays(clip):
    rng = np.random.default_rng(0)
    shapes = [(), (1,), (3, 5), (2, 3, 4), (100, 200), (1,)]
    gradients = [np.asarray(rng.normal(size=shape), np.float32) for shape in shapes]
    model = clipped(clip)
    assert strip(model) == optimizer_model()
    named = {str(number): gradient for number, gradient in enumerate(gradients)}
    out = run_before_optimizer(model, gradients)
    for x, expected in zip(out, clip.apply(named).values(), strict=True):
        # the factor and the product are rounded to float32, once for each clip in the chain
        np.testing.assert_allclose(x, expected, rtol=2**-21)


@pytest.mark.parametrize(
    ("nonfinite", "wanted"),
    [("propagate", [math.nan, 0.0]), ("zero", [0.0, 0.0]), ("keep", [math.inf, 1.0])],
)
def test_a_tensor_with_inf_is_treated_as_asked_and_the_others_are_clipped(nonfinite, wanted):
    model = clipped(GradientClipByNorm(1.0), nonfinite=nonfinite)
    first, second = run_before_optimizer(model, arrays([math.inf, 1], [3, 4]))
    np.testing.assert_array_equal(first, np.float32(wanted))
    np.testing.assert_allclose(second, np.float32([0.6, 0.8]), rtol=2**-22)


def test_names_that_are_taken_are_not_given_again():
    model = optimizer_model()
    ours = "clip/gradients/clipped"
    model.graph.node[0].name = "clip/gradients/Loop"
    model.graph.node[0].output[0] = model.graph.output[0].name = ours
    original = onnx.ModelProto.FromString(model.SerializeToString())
    clip_sequence(model, GradientClipByNorm(1.0), Numerics(), "the model")
    assert model.graph.output[0].name == ours
    assert strip(model) == original
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("clip", [GradientClipByNorm(1.0), GradientClipByGlobalNorm(1.0)], ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_gradients_of_other_dtypes_keep_theirs(dtype, clip):
    model = optimizer_model()
    for value in model.graph.input[2:]:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        value.type.sequence_type.elem_type.tensor_type.elem_type = kind
    clip_sequence(model, clip, Numerics(), "x")
    gradients = [np.array([300, 400], dtype), np.array([[-1200]], dtype)]
    out = run_before_optimizer(model, gradients)
    expected = clip.apply({"a": gradients[0], "b": gradients[1]})
    for x, wanted in zip(out, expected.values(), strict=True):
        assert x.dtype == dtype
        # the result is rounded to the dtype, and float64 is formed with two roundings more
        np.testing.assert_allclose(x, wanted, rtol=3 * np.finfo(dtype).eps)


# -- one norm over all -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "norm"),
    [(2.0, 13.0), (1.0, 19.0), (math.inf, 12.0), (3.0, (27 + 64 + 1728) ** (1 / 3))],
)
def test_a_global_norm_scales_all_tensors_alike(order, norm):
    gradients = arrays([3], [[-4]], [12])  # 9 + 16 + 144 = 169
    out = run_before_optimizer(by_global_norm(1.0, order), gradients)
    for x, gradient in zip(out, gradients, strict=True):
        np.testing.assert_allclose(x, gradient / np.float32(norm), rtol=2**-22)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_a_global_norm_within_the_threshold_changes_no_bit(order):
    gradients = arrays([0.3], [0.4], -0.0)
    out = run_before_optimizer(by_global_norm(0.75, order), gradients)
    assert [x.tobytes() for x in out] == [x.tobytes() for x in gradients]


def test_a_global_norm_at_the_threshold_changes_no_bit_unlike_the_runtimes_own():
    gradients = arrays([3], [4])
    out = run_before_optimizer(by_global_norm(5.0), gradients)
    assert [x.tobytes() for x in out] == [x.tobytes() for x in gradients]


def test_a_global_norm_does_not_overflow_in_float32():
    out = run_before_optimizer(by_global_norm(1.0), arrays([3e30], [4e30]))
    np.testing.assert_allclose(np.concatenate(out), np.float32([0.6, 0.8]), rtol=2**-22)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_with_a_global_norm_one_bad_tensor_decides_over_all(order, bad):
    gradients = arrays([bad, 3], [4])
    zeroed = run_before_optimizer(by_global_norm(1.0, order, nonfinite="zero"), gradients)
    assert np.array_equal(np.concatenate(zeroed), [0, 0, 0])
    kept = run_before_optimizer(by_global_norm(1.0, order, nonfinite="keep"), gradients)
    assert [x.tobytes() for x in kept] == [x.tobytes() for x in gradients]
    (_, last) = run_before_optimizer(by_global_norm(1.0, order), gradients)
    # c / inf is 0, c / nan is nan, as in Paddle and PyTorch
    np.testing.assert_array_equal(last, np.float32([0.0 if math.isinf(bad) else math.nan]))


def test_a_chain_takes_the_global_norm_of_what_the_clip_before_it_made():
    """Elements to 4 at most, [3], [-4], [0]: norm 5, and half of it."""
    chain = Chain(GradientClipByValue(4.0), GradientClipByGlobalNorm(2.5))
    out = run_before_optimizer(clipped(chain), arrays([3], [[-40]], 0))
    for x, expected in zip(out, arrays([1.5], [[-2]], 0), strict=True):
        # Div and Mul, half an ulp each
        np.testing.assert_allclose(x, expected, rtol=2**-22)


def test_a_clip_behind_a_global_norm_takes_what_that_made():
    """Norm 13 to 6.5 halves [3], [-4], [12]; then each is no longer than 2."""
    chain = Chain(GradientClipByGlobalNorm(6.5), GradientClipByNorm(2.0))
    out = run_before_optimizer(clipped(chain), arrays([3], [[-4]], [12]))
    for x, expected in zip(out, arrays([1.5], [[-2]], [2]), strict=True):
        np.testing.assert_allclose(x, expected, rtol=2**-22)


def test_two_global_norms_act_one_after_another():
    """L1 norm 19 to 9.5 halves all; the largest of 1.5, 2 and 6 to 3 halves them again."""
    first = GradientClipByGlobalNorm(9.5, ord=1, group_name="first")
    chain = Chain(first, GradientClipByGlobalNorm(3.0, ord=math.inf))
    out = run_before_optimizer(clipped(chain), arrays([3], [[-4]], [12]))
    for x, expected in zip(out, arrays([0.75], [[-1]], [3]), strict=True):
        np.testing.assert_allclose(x, expected, rtol=2**-22)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_chain_with_a_global_norm_is_valid_and_is_stripped(folder):
    chain = Chain(GradientClipByValue(1.0), GradientClipByGlobalNorm(1.0), GradientClipByNorm(0.5))
    model = clipped(chain, folder)
    assert strip(model) == optimizer_model(folder)
    model = clipped(chain, folder)
    del model.graph.node[-1:], model.graph.output[:]
    carried = helper.make_tensor_sequence_value_info("clip/gradients/clipped", 1, None)
    model.graph.output.append(carried)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("nonfinite", "wanted"), [("zero", [0, 0]), ("keep", [4, math.inf])])
def test_a_chain_asks_the_policy_of_what_each_clip_takes(nonfinite, wanted):
    """By value inf would become 4; under both policies the tensor with it is not clipped so."""
    chain = Chain(GradientClipByValue(4.0), GradientClipByGlobalNorm(1.0))
    out = run_before_optimizer(clipped(chain, nonfinite=nonfinite), arrays([30], [math.inf]))
    expected = [1, 0] if nonfinite == "zero" else wanted
    np.testing.assert_array_equal(np.concatenate(out), np.float32(expected))


@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
def test_a_global_norm_beyond_float64_is_no_reason_for_a_policy_to_act(nonfinite):
    """The squares of 3e200 and 4e200 are inf, and both are finite: 0 * x says so, their sum not."""
    model = optimizer_model()
    for value in model.graph.input[2:]:
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.DOUBLE
    clip_sequence(model, GradientClipByGlobalNorm(1.0), Numerics(nonfinite=nonfinite), "x")
    out = run_before_optimizer(model, [np.array([3e200]), np.array([4e200])])
    np.testing.assert_array_equal(np.concatenate(out), [0, 0])  # 1 / inf
    out = run_before_optimizer(model, [np.array([3e200]), np.array([math.inf])])
    np.testing.assert_array_equal(
        np.concatenate(out), [0, 0] if nonfinite == "zero" else [3e200, math.inf]
    )


def test_a_global_norm_of_nothing_is_nothing():
    assert run_before_optimizer(by_global_norm(1.0), []) == []


# -- what is refused ---------------------------------------------------------------------------


def _refused(model: onnx.ModelProto) -> str:
    with pytest.raises(OnnxClipError) as caught:
        clip_sequence(model, GradientClipByNorm(1.0), Numerics(), "'x.onnx'")
    return str(caught.value)


def test_another_versions_inputs_are_named_beside_the_expected_ones():
    model = optimizer_model()
    model.graph.input[3].name = "flat_gradients"
    model.graph.node[0].input[2] = "flat_gradients"
    message = _refused(model)
    assert "'x.onnx' is of another version" in message
    assert "learning_rate, step, params, gradients, first_order_moments" in message
    assert "flat_gradients" in message
    assert "--at micro-batch" in message


def test_gradients_that_are_no_sequence_are_refused():
    model = optimizer_model()
    model.graph.input[3].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [4]))
    assert "as a sequence of tensors" in _refused(model)


def test_a_model_without_an_optimizer_node_is_refused():
    model = optimizer_model()
    model.graph.node[0].op_type = "LambOptimizer"
    message = _refused(model)
    assert "SGDOptimizerV2 or AdamWOptimizer" in message
    assert "LambOptimizer" in message


def test_an_opset_whose_loops_carry_no_sequence_is_refused():
    model = optimizer_model()
    next(entry for entry in model.opset_import if entry.domain == "").version = 12
    assert "opset 12: clipping a sequence needs 13" in _refused(model)


def test_gradients_that_are_outputs_are_refused():
    model = optimizer_model()
    model.graph.output.append(model.graph.input[3])
    assert "returns 'gradients' as it is" in _refused(model)


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (AdaptiveGradientClip(0.1), "AdaptiveGradientClip compares each gradient with its"),
        (GradientClipByGlobalNorm(1.0, per_sample=True), "per_sample needs gradients whose first"),
        (GradientClipByNorm(1.0, per_sample=True), "per_sample needs .* pass --at micro-batch"),
        (GradientClipByNorm(1.0, axes=0), "axes need gradients of .* pass --at micro-batch"),
    ],
    ids=["by parameter", "all by sample", "by sample", "by axes"],
)
def test_what_needs_more_than_a_nameless_tensor_is_refused_with_the_way_out(clip, reason):
    with pytest.raises(OnnxClipError, match=reason) as caught:
        clip_sequence(optimizer_model(), clip, Numerics(), "x")
    assert "--at micro-batch" in str(caught.value)


def test_a_norm_that_the_optimizer_model_clips_by_already_is_told_of_and_stays_behind():
    model = optimizer_model()
    own = helper.make_node(
        "InplaceClipGradNorm", ["gradients"], ["own"], domain="com.microsoft", max_norm=1.0
    )
    model.graph.node[0].input[2] = "own"
    model.graph.node.insert(0, own)
    report = clip_sequence(model, GradientClipByNorm(1.0), Numerics(), "x")
    assert "InplaceClipGradNorm" in report.warnings[0]
    assert list(model.graph.node[-2].input) == ["clip/gradients/clipped"]
    assert list(model.graph.node[-1].input)[2] == "own"
