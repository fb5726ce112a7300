"""Plan which gradient gets which clip, then put the nodes in.

Nothing is changed before everything is planned.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack

from onnx import ModelProto

from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.clips import Clip, NonFinite, NormPrecision
from onnx_clip_pass.gradients import name_gradients, survey
from onnx_clip_pass.graph import Editor, Index, bodies_of
from onnx_clip_pass.record import undo, write_record
from onnx_clip_pass.rewrite.emitting import emit as emit_clips
from onnx_clip_pass.rewrite.planning import plan
from onnx_clip_pass.rewrite.reporting import Clipped, Report, lacking_kernels, notes_on, record_of
from onnx_clip_pass.rewrite.selecting import (
    GradientNames,
    as_clips,
    nothing_found,
    selected,
)
from onnx_clip_pass.rewrite.settings import Options, Settings
from onnx_clip_pass.rewrite.steering import LossScale
from onnx_clip_pass.rewrite.watching import Emit, EmitAs, Emitted
from onnx_clip_pass.rules import Rule

__all__ = [
    "ClipOrRules",
    "Clipped",
    "EmitAs",
    "Emitted",
    "GradientNames",
    "LossScale",
    "Options",
    "Report",
    "Settings",
    "clip_gradients",
    "clip_in_place",
    "nothing_found",
]

ClipOrRules = Clip | Sequence[Rule]
"""One clip, with its own `need_clip`, or rules of which the first that matches is taken."""


def clip_gradients(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    gradients: GradientNames = None,
    skip: str | Sequence[str] = (),
    norm_precision: NormPrecision = "auto",
    nonfinite: NonFinite = "propagate",
    threshold_input: str | None = None,
    loss_scale: LossScale = 1.0,
    emit: Sequence[Emit] = (),
    emit_as: EmitAs = "each",
    measure_only: bool = False,
) -> ModelProto:
    """Insert a clip behind the gradients of a training graph.

    Args:
        model: a training graph; it stays as it is.
        clip: what to do, and by its `need_clip` to which parameters' gradients; or a list of
            `Rule`, of which the first that matches a gradient is taken.
        gradients: the gradients' names, if they are not to be searched for; a mapping also says
            their parameters.
        skip: patterns of parameters or gradients to leave out.
        norm_precision: "plain", one ReduceL2 in float32 (float64 for float64); "wide", everything
            in float64, for any size and magnitude; "auto", plain where its error stays below
            1e-5, else the cheapest form that keeps it.
        nonfinite: what becomes of a gradient with nan or inf in it: "propagate", what the formula
            gives, as in Paddle and PyTorch; "zero", zeros, all of it; "keep", it stays as it is.
        threshold_input: make the threshold an input of this name, of rank 0, with the given number
            as its default; float64 if one of its gradients is computed in float64, else float32.
        loss_scale: what the loss, and so every gradient, was multiplied by: a number, or the name
            of a value of the main graph. Thresholds, and norms that are handed out, are then in
            the unit of the unscaled gradient; the gradients stay scaled.
        emit: what to hand out of each gradient: "norm", the norm that its clip limits, before
            clipping; "scale", what it is multiplied by; "clipped", whether that is below 1. Where
            a clip has several norms, the largest, and the smallest factor. A global norm is handed
            out once more for the group.
        emit_as: "each", a scalar for each gradient, or "vector", one for all of them; it needs
            something to emit.
        measure_only: hand out, and clip nothing.

    Returns:
        A new model. Its inputs and outputs are those of `model`, and behind them the threshold
        inputs and what is handed out; clipping a model that is clipped
        already gives what clipping the original would.

    Raises:
        OnnxClipError: no gradient is found, a selection matches nothing, or a gradient has a
            dtype, an opset or a place at which it cannot be clipped. All faults are named at once.
    """
    check_model(model, "clip_gradients_file")
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    clip_in_place(
        rewritten,
        clip,
        gradients=gradients,
        skip=skip,
        norm_precision=norm_precision,
        nonfinite=nonfinite,
        threshold_input=threshold_input,
        loss_scale=loss_scale,
        emit=emit,
        emit_as=emit_as,
        measure_only=measure_only,
    )
    return rewritten


def clip_in_place(model: ModelProto, clip: ClipOrRules, **options: Unpack[Options]) -> Report:
    """`clip_gradients` on the model itself; if it raises, the model may be left undone."""
    clips, settings = as_clips(clip), Settings.of(**options)
    with _without_collecting():
        return _clip(model, clips, settings)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Keep the garbage collector from going over millions of new objects that all live on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _clip(model: ModelProto, clips: Clip | list[Rule], settings: Settings) -> Report:
    replaced = undo(model)
    index = Index(model)
    named = settings.named
    seen = survey(index) if named is None else name_gradients(index, named)
    sightings, warnings = selected(seen, clips, settings.skip, settings.threshold_input)
    edits = plan(index, seen, sightings, settings)
    notes = notes_on(seen, sightings)  # the index is out of date when edits are made
    editor = Editor(index)
    made = emit_clips(editor, edits, settings)
    bodies = list(bodies_of(model))  # before finishing copies nested ones
    editor.finish("a gradient of the group is computed from a clipped one; use another group")
    rows = tuple(
        Clipped(sighting.gradient, choice.clip, choice.rule)
        if choice is not None
        else Clipped(sighting.gradient, None)
        for sighting, choice in sightings
    )
    if any(row.clip for row in rows):
        write_record(model, record_of(editor, edits, sightings, settings, made.emitted, bodies))
    return Report(
        rows,
        (*warnings, *notes, *lacking_kernels(made.needs)),
        replaced,
        made.emitted,
        tuple(editor.added.inputs),
        settings.watch.measures_only,
    )
