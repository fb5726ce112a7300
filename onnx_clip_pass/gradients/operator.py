"""Gradients known by the operator `ai.onnx.preview.training.Gradient`.

Output i of `Gradient(xs=[…], zs=[…], y=…)` is the derivative of the tensor named `y` by the
tensor named `xs[i]` (https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Gradient.html).
It stands in the main graph or in the algorithm of a `training_info`.
"""

from __future__ import annotations

from onnx_clip_pass.gradients.found import Found
from onnx_clip_pass.gradients.roles import Roles
from onnx_clip_pass.graph import TRAINING_DOMAIN, Flow, attribute

__all__ = ["find"]


def find(flow: Flow, roles: Roles) -> list[Found]:
    """The derivative by each input or initializer among `xs`."""
    found = []
    for frame in flow.frames():
        for number in frame.scope.numbers_of("Gradient"):
            node = frame.scope.nodes[number]
            if node.domain != TRAINING_DOMAIN:
                continue
            xs = attribute(node, "xs")
            names = [text.decode(errors="replace") for text in xs.strings] if xs else []
            for name, output in zip(names, node.output, strict=False):
                by = flow.resolve(frame, name)
                gradient = flow.resolve(frame, output) if output else None
                if by is None or gradient is None:
                    continue
                by = flow.canonical(by)
                if by.node is None and roles.of(by).is_parameter:
                    evidence = f"derivative by {name} of a Gradient node; {roles.of(by).why}"
                    found.append(Found(gradient, by, flow.root_name(by), evidence))
    return found
