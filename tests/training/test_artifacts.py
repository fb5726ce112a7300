"""ONNX Runtime's training artifacts, run by the runtime that made them.

`onnxruntime-training` shares its module name with the stock runtime, so these tests have an
environment of their own: `python -m pytest tests/training`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from graphs import (
    HUGE,
    Arrays,
    Entry,
    acting_norm,
    assert_identical,
    clip_exactly,
    each,
    open_session,
    run,
)

from onnx_clip_pass import GradientClipByNorm, clip_gradients

ort = pytest.importorskip("onnxruntime", reason="onnxruntime-training is not installed")
if not hasattr(ort, "training"):
    pytest.skip("this is the stock onnxruntime, without training", allow_module_level=True)

each_training_model = each(lambda e: e.runtime == "onnxruntime-training" and bool(e.gradients))


def _buffers(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Parameter to its buffer and the gradient added to it, read off the parameters' names.

    Only a name's end is cut off: a parameter may itself be called `b_grad.accumulation.buffer`.
    """
    ending = "_grad.accumulation.buffer"
    return {
        node.input[0].removesuffix(ending): (node.input[0], node.input[1])
        for node in model.graph.node
        if node.op_type == "InPlaceAccumulatorV2"
    }


def _accumulate(model: onnx.ModelProto, feeds: Arrays, *, optimize: bool) -> tuple[Arrays, Arrays]:
    """One micro-batch: the outputs, and the buffers as the accumulators leave them.

    The buffers are bound as OrtValues because accumulators write where they read. The arrays
    are returned, which keeps them alive: the runtime's OrtValue does not.
    """
    session = open_session(model, optimize=optimize)
    arrays = {name: np.array(value) for name, value in feeds.items()}
    values = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()}
    names = [output.name for output in session.get_outputs()]
    results = session.run_with_ort_values(names, values)
    outputs = {name: np.array(r.numpy()) for name, r in zip(names, results, strict=True)}
    buffers = {p: np.array(values[b].numpy()) for p, (b, _) in _buffers(model).items()}
    return outputs, buffers


@pytest.fixture
def empty(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """The feeds with reset buffers, so that a buffer holds one micro-batch's gradient alone."""
    return feeds | {"lazy_reset_grad": np.array([True])}


@each_training_model
def test_every_gradient_has_a_buffer(entry: Entry, model: onnx.ModelProto) -> None:
    """The tests below look at buffers, so each gradient of the list must end in one."""
    assert {(g, p) for p, (_, g) in _buffers(model).items()} == set(entry.gradients)


@each_training_model
@pytest.mark.parametrize("optimize", [False, True], ids=["as written", "optimized"])
def test_buffers_take_up_the_clipped_gradients(
    model: onnx.ModelProto, empty: Arrays, optimize: bool
) -> None:
    outputs, raw = _accumulate(model, empty, optimize=optimize)
    clip_norm = acting_norm(raw.values())
    clipped = clip_gradients(model, GradientClipByNorm(clip_norm))
    clipped_outputs, buffers = _accumulate(clipped, empty, optimize=optimize)
    assert_identical(clipped_outputs, outputs)  # the loss and what the accumulators say
    for parameter, before in raw.items():
        # float32 sums of squares: an error of the norm of at most half an ulp an element, in
        # practice of the root of their number; then Div and Mul, half an ulp each
        rtol = float(np.finfo(before.dtype).eps) * (2 + math.sqrt(before.size))
        expected = clip_exactly(before, clip_norm)
        np.testing.assert_allclose(buffers[parameter], expected, rtol, err_msg=parameter)


@each_training_model
def test_a_second_micro_batch_is_clipped_before_it_is_added(
    model: onnx.ModelProto, feeds: Arrays, empty: Arrays
) -> None:
    _, raw = _accumulate(model, empty, optimize=False)
    clipped = clip_gradients(model, GradientClipByNorm(acting_norm(raw.values())))
    _, first = _accumulate(clipped, empty, optimize=False)
    carried = {_buffers(model)[parameter][0]: buffer for parameter, buffer in first.items()}
    again = feeds | carried | {"lazy_reset_grad": np.array([False])}
    _, second = _accumulate(clipped, again, optimize=False)
    for parameter, once in first.items():
        # the same batch twice doubles every bit pattern exactly
        np.testing.assert_array_equal(second[parameter], once + once, err_msg=parameter)


@each_training_model
@pytest.mark.parametrize("optimize", [False, True], ids=["as written", "optimized"])
def test_norms_within_the_threshold_change_no_bit(
    model: onnx.ModelProto, empty: Arrays, optimize: bool
) -> None:
    clipped = clip_gradients(model, GradientClipByNorm(HUGE))
    for before, after in zip(
        _accumulate(model, empty, optimize=optimize),
        _accumulate(clipped, empty, optimize=optimize),
        strict=True,
    ):
        assert_identical(after, before)


@each(lambda e: e.runtime == "onnxruntime-training" and not e.gradients and e.feeds)
def test_models_beside_the_training_model_run(model: onnx.ModelProto, feeds: Arrays) -> None:
    """A check of the environment: what fails above is then not for want of a kernel."""
    assert run(model, feeds)
