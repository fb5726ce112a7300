"""What holds for every training graph, tried on random ones (see `random_graphs.py`)."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
from graphs import run
from hypothesis import given, settings
from node_writer import name_outputs_left_out
from onnx.reference import ReferenceEvaluator
from random_graphs import Plan, plans

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_gradients,
    find_gradients,
    strip,
)
from onnx_clip_pass.verification import verify


def clip(model: onnx.ModelProto, plan: Plan, clip_norm: float, **need: object) -> onnx.ModelProto:
    """Clip the gradients of the plan; they are named, for finding them is tested on its own."""
    names = list(dict.fromkeys(name for name, _, _ in sorted(plan.truth)))
    return clip_gradients(model, GradientClipByNorm(clip_norm, **need), gradients=names)


norms = st.sampled_from([0.01, 0.5, 3.0, 100.0])


@given(plans())
def test_the_plan_itself_is_a_valid_model(plan: Plan):
    """Were it not, the other tests would say little."""
    model = plan.write()
    onnx.checker.check_model(model)
    run(model, plan.feeds)


@given(plans())
def test_exactly_the_gradients_of_the_plan_are_found(plan: Plan):
    """The names say nothing: structure alone tells."""
    found = find_gradients(plan.write())
    assert {(g.name, g.parameter.name, g.graph) for g in found} == plan.truth
    assert len(found) == len(plan.truth)


@given(plans(), norms)
def test_undoing_gives_back_an_equal_model(plan: Plan, clip_norm: float):
    model = plan.write()
    assert strip(clip(model, plan, clip_norm)) == model


@given(plans(), norms, norms)
def test_rewriting_twice_is_rewriting_once_with_the_later_settings(
    plan: Plan, first: float, second: float
):
    model = plan.write()
    once = clip(model, plan, second)
    assert clip(clip(model, plan, first), plan, second) == once


@given(plans(), norms)
def test_a_rewritten_model_is_valid_and_a_drop_in(plan: Plan, clip_norm: float):
    model = plan.write()
    clipped = clip(model, plan, clip_norm)
    onnx.checker.check_model(clipped)
    assert clipped.graph.input == model.graph.input
    assert clipped.graph.output == model.graph.output
    assert clipped.opset_import == model.opset_import


@given(plans(), norms, st.data())
def test_gradients_are_clipped_but_for_the_backward_pass(
    plan: Plan, clip_norm: float, data: st.DataObject
):
    names = sorted({name for name, _, _ in plan.truth})
    chosen = data.draw(st.frozensets(st.sampled_from(names), min_size=1), label="chosen")
    model = clip(plan.write(), plan, clip_norm, need_clip=lambda p: p.gradient in chosen)
    names = [value.name for value in model.graph.output]  # maybe with repetitions
    clipped = run(model, plan.feeds)
    wanted_model = plan.write(clip_norm, chosen)
    for body in (wanted_model.graph, *wanted_model.functions):
        name_outputs_left_out(body.node)
    expected = ReferenceEvaluator(wanted_model).run(None, plan.feeds)
    for name, wanted in zip(names, expected, strict=True):
        # The evaluator stacks the numbers that a Loop collects in a column.
        wanted = np.reshape(wanted, clipped[name].shape)
        np.testing.assert_allclose(clipped[name], wanted, rtol=1e-9, atol=1e-12, err_msg=name)


CLIPS = [
    lambda c: GradientClipByNorm(c, ord=1),
    lambda c: GradientClipByNorm(c, ord=math.inf),
    GradientClipByValue,
    GradientClipByRMS,
    GradientClipByGlobalNorm,
    lambda c: GradientClipByGlobalNorm(c, ord=1),
    lambda c: Chain(GradientClipByValue(2 * c), GradientClipByGlobalNorm(c)),
    lambda c: [
        Rule(lambda p: sum(map(ord, p.name)) % 2 == 0, GradientClipByGlobalNorm(c)),
        Rule(None, GradientClipByGlobalNorm(2 * c, group_name="others")),
    ],
]


@settings(max_examples=max(20, settings().max_examples // 5))
@given(plans(), norms, st.sampled_from(CLIPS), st.sampled_from([(), ("norm", "clipped")]))
def test_every_clip_is_right_valid_and_undone(plan: Plan, clip_norm: float, make: Any, emit: Any):
    """`verify` runs both models; gradients of several graphs cannot share a norm."""
    model = plan.write()
    names = list(dict.fromkeys(name for name, _, _ in sorted(plan.truth)))
    refused: tuple[str, ...] = ()
    try:
        clipped = clip_gradients(model, make(clip_norm), gradients=names, emit=emit)
    except OnnxClipError as error:
        refused = error.faults or (str(error),)
    if refused:
        assert all(map(_cannot_be, refused)), refused
        return
    onnx.checker.check_model(clipped)
    assert strip(clipped) == model
    # A "captured" layer doubles or negates what it hands back, so that no slope is what it gives.
    found = verify(model, clipped, feeds=plan.feeds, slopes="off")
    rows = [*found.gradients, *found.outputs]
    assert found.ok, [*found.faults, *(fault for row in rows for fault in row.faults)]


def _cannot_be(fault: str) -> bool:
    return "values of different graphs" in fault or "cannot be an output" in fault
