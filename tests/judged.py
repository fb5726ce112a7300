"""What a verification says is wrong, of the models, of gradients and of outputs together."""

from __future__ import annotations

from onnx_clip_pass.verification import Verification


def faults_of(found: Verification) -> list[str]:
    rows = [*found.gradients, *found.outputs]
    return [*found.faults, *(fault for row in rows for fault in row.faults)]
