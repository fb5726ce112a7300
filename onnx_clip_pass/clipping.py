"""Clipping the gradients of a model in memory."""

from __future__ import annotations

from typing import Unpack

from onnx import ModelProto

from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.errors import warn
from onnx_clip_pass.options import takes_options
from onnx_clip_pass.progress import WantsProgress
from onnx_clip_pass.rewrite import ClipOrRules, Decide, Options, Report, clip_in_place
from onnx_clip_pass.validity import blaming

__all__ = ["clip_gradients", "clipped_copy"]


@takes_options(Options)
def clip_gradients(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    probe: bool | Decide = False,
    progress: WantsProgress = None,
    **options: Unpack[Options],
) -> ModelProto:
    """Insert a clip behind the gradients of a training graph.

    Args:
        model: a training graph; it stays as it is.
        clip: what to do, and by its `need_clip` to which parameters' gradients; or a list of
            `Rule`, of which the first that matches a gradient is taken.
        probe: where the graph leaves several candidates for a gradient, run the model and let the
            slopes of the loss decide between them; where it tells of no gradient at all, find them
            among the outputs as `probe_gradients` does. The record keeps what is decided, so that
            reruns do not depend on it. Weights must be in the model.
        progress: of such a run: a callback, which is told a `Progress`, or True for a bar.
        **options: see `Options` in `onnx_clip_pass.rewrite`.

    Returns:
        A new model. Its inputs and outputs are those of `model`, and behind them the threshold
        inputs and the outputs of `emit`; clipping a model that is clipped already gives what
        clipping the original would.

    Raises:
        OnnxClipError: no gradient is found, or none that is sure for a parameter that the graph
            trains and the selection picks; a selection matches nothing, or a gradient has a
            dtype, an opset or a place at which it cannot be clipped. All faults are named at once.

    Warns:
        OnnxClipWarning: what to know of the result, which `plan_clips` has as `warnings`.
    """
    check_model(model, "clip_gradients_file")
    report, rewritten = clipped_copy(model, clip, probe, progress, options)
    warn(report.warnings)
    return rewritten


def clipped_copy(
    model: ModelProto,
    clip: ClipOrRules,
    probe: bool | Decide,
    progress: WantsProgress,
    options: Options,
) -> tuple[Report, ModelProto]:
    """The report on a copy of a model that is clipped, and the copy; see `clip_gradients`."""
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    decide = decider(probe, progress=progress)
    with blaming(lambda: model, "this"):
        report = clip_in_place(rewritten, clip, decide=decide, **options)
    return report, rewritten
