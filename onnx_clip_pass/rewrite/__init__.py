"""Plan which gradient gets which clip, then put the nodes in.

Nothing is changed before everything is planned.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Unpack

from onnx import ModelProto

from onnx_clip_pass.clips import Clip
from onnx_clip_pass.graph import Editor, Index, bodies_of
from onnx_clip_pass.record import undo, write_record
from onnx_clip_pass.rewrite.coverage import Decide, Uncovered, Verdict, accepted, uncovered_of
from onnx_clip_pass.rewrite.emitting import Made
from onnx_clip_pass.rewrite.emitting import emit as emit_clips
from onnx_clip_pass.rewrite.finding import Finds, find
from onnx_clip_pass.rewrite.planning import Edit, plan
from onnx_clip_pass.rewrite.reporting import (
    Clipped,
    Report,
    lacking_kernels,
    notes_on,
    notes_on_coverage,
    record_of,
)
from onnx_clip_pass.rewrite.selecting import GradientNames, as_clips, nothing_found
from onnx_clip_pass.rewrite.settings import Options, Settings
from onnx_clip_pass.rewrite.steering import LossScale
from onnx_clip_pass.rewrite.watching import EmitAs, Emitted
from onnx_clip_pass.rules import Rule, Rules

__all__ = [
    "ClipOrRules",
    "Clipped",
    "Decide",
    "EmitAs",
    "Emitted",
    "GradientNames",
    "LossScale",
    "Options",
    "Planned",
    "Report",
    "Settings",
    "Uncovered",
    "Verdict",
    "clip_in_place",
    "emit_clips",
    "nothing_found",
    "plan_clips",
    "uncovered_of",
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
    """Clip the gradients of the model itself; if it raises, the model may be left undone.

    Args:
        model: a training graph.
        clip: what to do.
        decide: what decides questions by running the model; None where nothing may be run.
        **options: see `clip_gradients`.
    """
    with _without_collecting():
        planned = plan_clips(model, clip, decide=decide, **options)
        editor = Editor(planned.index)
        made = emit_clips(editor, planned.edits, planned.settings)
        bodies = list(bodies_of(model)) if editor.is_unsettled else []  # as they stand now
        editor.finish("a gradient of the group is computed from a clipped one; use another group")
        if any(row.clip for row in planned.rows):
            record = record_of(
                editor, planned.edits, planned.finds.selected.chosen, planned.settings,
                made.emitted, bodies, planned.finds.answers, planned.finds.uncovered,
            )  # fmt: skip
            write_record(model, record, editor.added.nodes, editor.added.initializers)
        return planned.report(made, editor)


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be put into which model, and what there is to say of it."""

    index: Index
    settings: Settings
    finds: Finds
    edits: list[Edit]
    rows: tuple[Clipped, ...]
    notes: tuple[str, ...]
    replaces: bool

    def report(self, made: Made, editor: Editor) -> Report:
        """The report once the edits are made, in this model or in another."""
        return Report(
            self.rows,
            (*self.notes, *lacking_kernels(made.used)),
            self.replaces,
            made.emitted,
            tuple(editor.added.inputs),
            self.settings.watch.measures_only,
            self.finds.uncovered,
        )


def plan_clips(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    decide: Decide | None = None,
    **options: Unpack[Options],
) -> Planned:
    """Plan what `clip_in_place` does; a clip that the model has is undone, nothing else changes."""
    clips, settings = as_clips(clip), Settings.of(**options)
    if isinstance(clips, Rules) and clips.optimizer_ops:
        ops = {**clips.optimizer_ops, **settings.optimizer_ops}
        settings = replace(settings, optimizer_ops=ops)
    before = undo(model)
    index = Index(model)
    finds = find(index, clips, settings, before, decide)
    seen, (sightings, warnings, _, bare) = finds.seen, finds.selected
    edits = plan(index, seen, sightings, settings)
    notes = notes_on(seen, sightings)  # the index is out of date when edits are made
    notes += finds.notes + accepted(finds.uncovered) + notes_on_coverage(index, bare, settings)
    rows = tuple(
        Clipped(sighting.gradient, choice.clip, choice.rule)
        if choice is not None
        else Clipped(sighting.gradient, None)
        for sighting, choice in sightings
    )
    return Planned(index, settings, finds, edits, rows, (*warnings, *notes), before is not None)


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
