"""Cases that a single line of a rewrite decides: mutants of it went unnoticed without them."""

from __future__ import annotations

import pytest
from graphs import parse
from steps import asking

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByNorm,
    OnnxClipError,
    clip_gradients,
    plan_clips,
)

ONE = GradientClipByNorm(1.0)


@pytest.mark.parametrize(("count", "end"), [(5, "'y4'"), (6, "'y4' and more")])
def test_five_outputs_are_named_where_nothing_is_found(count: int, end: str):
    names = [f"y{number}" for number in range(count)]
    outputs = ", ".join(f"float[2] {name}" for name in names)
    nodes = " ".join(f"{name} = Neg(x)" for name in names)
    with pytest.raises(OnnxClipError, match="no gradients found") as refused:
        clip_gradients(parse(f"s (float[2] x) => ({outputs}) {{ {nodes} }}"), ONE)
    assert str(refused.value).endswith(f"the outputs 'y0', 'y1', 'y2', 'y3', {end}")


def test_all_warnings_are_given_together():
    """Of data's gradients, of what is left open, and of operators that are not there."""
    model = asking("WT = Transpose(W)  x_grad = MatMul(dy, WT)", outputs=", float[2,4] x_grad")
    plan = plan_clips(model, ONE, partial=True, optimizer_ops={"vendor::Descend": (0, 1)})
    assert [warning.partition(" ")[0] for warning in plan.warnings] == [
        "x_grad", "not", "'W',", "optimizer",
    ]  # fmt: skip
    assert plan.warnings[1] == "not clipped, since the gradients are not known: 'W'"
    assert plan.warnings[3] == "optimizer 'vendor::Descend' is not in this model"


def test_units_need_the_shape_of_the_parameter():
    model = parse(
        "s (float[6] W, float[6] x) => (float[6] g, float[6] V) { g = Neg(x) V = Neg(W) }"
    )
    for value in (model.graph.input[0], model.graph.output[1]):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(OnnxClipError, match="the shapes of it and of its parameter do not go"):
        clip_gradients(model, AdaptiveGradientClip(0.1, axes=(0,)), gradients={"g": "W"})
