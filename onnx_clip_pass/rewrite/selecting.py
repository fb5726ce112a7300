"""Which gradients: found or named, and picked by `need_clip`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_clip_pass.clips import Clip
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Sighting, Survey
from onnx_clip_pass.selection import select

__all__ = ["Chosen", "GradientNames", "as_mapping", "nothing_found", "selected"]

GradientNames = Sequence[str] | Mapping[str, str] | None
"""Names of gradients, or gradient name to parameter name; None to search for them."""

Chosen = list[tuple[Sighting, Clip | None]]
"""Each gradient with its clip; None for what is left alone."""


def as_mapping(gradients: Sequence[str] | Mapping[str, str]) -> dict[str, str | None]:
    """Gradient name to parameter name, or None where the caller does not say it."""
    if isinstance(gradients, Mapping):
        return dict(gradients)
    if isinstance(gradients, str):
        raise OnnxClipError(f"gradients must be a list of names, not the string {gradients!r}")
    names = list(gradients) if hasattr(gradients, "__iter__") else []
    if not names or not all(isinstance(name, str) for name in names):
        raise OnnxClipError(f"gradients must be a list of names, at least one, not {gradients!r}")
    return dict.fromkeys(names)


def selected(seen: Survey, clip: Clip, skip: str | Sequence[str]) -> Chosen:
    """The gradients found and what `need_clip` and `skip` make of them.

    Raises:
        OnnxClipError: there are no gradients, or the selection is at fault.
    """
    if not seen.found and (clip.need_clip is None or not seen.of_data):
        raise OnnxClipError(nothing_found(seen))
    parameters = [sighting.gradient.parameter for sighting in seen.found]
    also = [sighting.gradient.parameter for sighting in seen.of_data]
    picked = set(select(parameters, clip.need_clip, skip, also=also))
    chosen: list[tuple[Sighting, Clip | None]] = [
        (sighting, clip if sighting.gradient.parameter in picked else None)
        for sighting in seen.found
    ]
    chosen += [
        (sighting, clip) for sighting in seen.of_data if sighting.gradient.parameter in picked
    ]
    return chosen


def nothing_found(seen: Survey) -> str:
    """What was looked for and what was there instead."""
    scope = seen.flow.index.main
    ops = {node.op_type for node in scope.nodes}
    if ops & {"AdamWOptimizer", "SGDOptimizerV2"}:
        return (
            "this is an optimizer model of ONNX Runtime training: its gradients come as one "
            "sequence without names; rewrite training_model.onnx of the same folder instead"
        )
    outputs = ", ".join(repr(name) for name in scope.outputs[:5]) or "none"
    more = " and more" if len(scope.outputs) > 5 else ""
    if seen.of_data:
        first = seen.of_data[0].gradient
        return (
            f"no gradients of parameters found, only of data: {first.name!r} ({first.evidence}); "
            f"if that is wrong, name it in need_clip"
        )
    return (
        "no gradients found: looked for accumulators, optimizer nodes, Gradient nodes, parameters "
        "updated in the graph, and values named after a parameter (W_grad, W.grad, grad_W, adj_W, "
        f"…) of its shape, in a graph with {len(scope.nodes)} nodes and the outputs {outputs}"
        f"{more}; if it has gradients, name them with --gradient (in Python: gradients=[…])"
    )
