"""Of gradients that differ in their names alone, the first one's nodes serve for the others."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from graphs import parse

from onnx_clip_pass import (
    Chain,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    clip_gradients,
)
from onnx_clip_pass.clips import Clip, NonFinite

ONE = GradientClipByNorm(1.0)
KIND = """
    s (float[2] x, float[64, 512] y) => (float[2] g, float[2] h, float[64, 512] k) {
      g = Neg(x) h = Abs(x) k = Neg(y) }"""


def of_gradient(model: onnx.ModelProto, name: str) -> tuple[list[bytes], list[bytes]]:
    """The nodes and declared values of one gradient's clip."""
    nodes = [n for n in model.graph.node if n.name.startswith(f"clip/{name}/")]
    values = [v for v in model.graph.value_info if v.name.startswith(f"clip/{name}/")]
    return [n.SerializeToString() for n in nodes], [v.SerializeToString() for v in values]


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize(
    "options", [{}, {"threshold_input": "limit"}, {"loss_scale": 8.0}], ids=str
)
@pytest.mark.parametrize(
    "clip",
    [
        ONE,
        GradientClipByNorm(1.0, axes=0, ord=3),
        GradientClipByValue(1.0, -0.5),
        GradientClipByRMS(0.1),
        Chain(GradientClipByNorm(2.0), GradientClipByValue(0.3)),
    ],
    ids=str,
)
def test_the_nodes_of_one_gradient_are_the_same_beside_another_of_its_kind(
    clip: Clip, options: dict[str, Any], nonfinite: NonFinite
):
    if "threshold_input" in options and (len(clip.formulas) > 1 or clip.threshold is None):
        options = {}
    model = parse(KIND)
    together = clip_gradients(
        model, clip, gradients=["g", "h", "k"], nonfinite=nonfinite, **options
    )
    onnx.checker.check_model(together, full_check=True)
    for name in ("g", "h"):  # k would have another product of the threshold by that name
        alone = clip_gradients(model, clip, gradients=[name], nonfinite=nonfinite, **options)
        assert of_gradient(together, name) == of_gradient(alone, name)


def test_a_formula_is_emitted_once_for_each_kind_of_gradient(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    emit = GradientClipByNorm.emit

    def counted(self: GradientClipByNorm, members: Any) -> Any:
        seen.extend(member.gradient.name for member in members)
        return emit(self, members)

    monkeypatch.setattr(GradientClipByNorm, "emit", counted)
    clip_gradients(parse(KIND), ONE, gradients=["g", "h", "k"])
    assert seen == ["g", "k"]
