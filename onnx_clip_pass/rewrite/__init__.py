"""Plan which gradient gets which clip, then put the nodes in.

Nothing is changed before everything is planned.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Unpack

from onnx import ModelProto

from onnx_clip_pass.clips import Clip
from onnx_clip_pass.graph import Editor, Index
from onnx_clip_pass.record import undo, write_record
from onnx_clip_pass.rewrite.coverage import Decide, Uncovered, Verdict, uncovered_of
from onnx_clip_pass.rewrite.edits import Edit
from onnx_clip_pass.rewrite.emitting import Made, emit
from onnx_clip_pass.rewrite.finding import find
from onnx_clip_pass.rewrite.metrics import EmitAs, Emitted
from onnx_clip_pass.rewrite.planning import PlannedEdits, plan
from onnx_clip_pass.rewrite.recording import record_of, report_of
from onnx_clip_pass.rewrite.reporting import Clipped, Reduced, Report, gradient_table
from onnx_clip_pass.rewrite.selecting import GradientNames, as_clips, as_mapping, nothing_found
from onnx_clip_pass.rewrite.settings import Options, Settings
from onnx_clip_pass.rewrite.thresholds import LossScale
from onnx_clip_pass.rules import Rule, Rules

__all__ = [
    "ClipOrRules",
    "Clipped",
    "Decide",
    "Edit",
    "EmitAs",
    "Emitted",
    "GradientNames",
    "LossScale",
    "Made",
    "Options",
    "PlannedEdits",
    "Reduced",
    "Report",
    "Settings",
    "Uncovered",
    "Verdict",
    "as_clips",
    "as_mapping",
    "clip_in_place",
    "emit",
    "gradient_table",
    "nothing_found",
    "plan_edits",
    "report_of",
    "uncovered_of",
    "without_collecting",
]

ClipOrRules = Clip | Sequence[Rule]
"""One clip, with its own `need_clip`, or rules of which the first that matches is taken."""


def clip_in_place(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    decide: Decide | None = None,
    **options: Unpack[Options],
) -> Report:
    """Clip the gradients of the model itself; if it raises, a previous clip may be gone already.

    Args:
        model: a training graph.
        clip: what to do.
        decide: what decides questions by running the model; None where nothing may be run.
        **options: see `clip_gradients`.
    """
    with without_collecting():
        planned = plan_edits(model, clip, decide=decide, **options)
        made = emit(Editor(planned.index), planned)
        if any(row.clip for row in planned.rows):
            record = record_of(planned, made)
            write_record(model, record, made.added.nodes, made.added.initializers)
        return report_of(planned, made, model)


def plan_edits(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    decide: Decide | None = None,
    **options: Unpack[Options],
) -> PlannedEdits:
    """Plan what `clip_in_place` does; a clip that the model has is undone, nothing else changes."""
    clips, settings = as_clips(clip), Settings.of(**options)
    if isinstance(clips, Rules) and clips.optimizer_ops:
        ops = {**clips.optimizer_ops, **settings.optimizer_ops}
        settings = replace(settings, optimizer_ops=ops)
    before = undo(model)
    index = Index(model)
    found = find(index, clips, settings, before, decide)
    return plan(index, found, found.settings, replaces=before is not None)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep the garbage collector from going over millions of new objects that all live on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
