"""The contents of a model: its gradients, what is clipped already, and what is not known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnx_clip_pass.arguments import model_or_path
from onnx_clip_pass.clips import clip_from_dict
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients import Gradient, name_gradients, survey
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps, checked_ops
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import ClipEntry, Record, read_record, undo
from onnx_clip_pass.rewrite import (
    GradientNames,
    Uncovered,
    as_mapping,
    gradient_table,
    nothing_found,
    uncovered_of,
)
from onnx_clip_pass.storage import open_model
from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.validity import blaming
from onnx_clip_pass.views import View, Viewed

__all__ = ["Inspection", "clip_table", "done_by", "inspect_model", "record_lines", "words_of"]

_MOST_QUESTIONS = 20


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Viewed):
    """The contents of a model.

    `gradients` are those that are known, and `reason` says why there are none; `record` is what a
    rewrite has left, None where there was none. `questions` are the trained parameters whose
    gradients are not known, `carried` the states that are carried from step to step and not
    trained. `changed` says of a clip that another tool has changed since, or of a record that is
    forged, what is wrong; nothing is searched then. `source` is the path of the model; None of one
    in memory.
    """

    gradients: tuple[Gradient, ...]
    record: Record | None
    reason: str = ""
    questions: tuple[Uncovered, ...] = ()
    carried: tuple[str, ...] = ()
    changed: str = ""
    source: Path | None = None

    def view(self) -> View:
        where = "the model" if self.source is None else str(self.source)
        further = [f"not known: {each.in_words()}" for each in self.questions[:_MOST_QUESTIONS]]
        if self.questions[_MOST_QUESTIONS:]:
            further.append(f"and {len(self.questions) - _MOST_QUESTIONS} more are not known")
        further += [f"carried, not trained: {listed(self.carried)}"] * bool(self.carried)
        count = counted(len(self.gradients))
        return View(
            f"changed since: {where}: {self.changed}" if self.changed else f"{count} in {where}",
            clip_table(self),
            further=(*further, *self.reason.splitlines()),
            first=tuple(record_lines(self.record)),
        )


def inspect_model(
    model: ModelProto | str | os.PathLike[str],
    *,
    gradients: GradientNames = None,
    optimizer_ops: OptimizerOps = NO_OPS,
) -> Inspection:
    """The gradients of a model, the record if it is clipped already, and what is left open.

    Printed, or shown by rich or a notebook, it is what `onnx-clip inspect` shows.

    Args:
        model: a model, or its path; weights are not read.
        gradients: the gradients' names, if they are not to be searched for.
        optimizer_ops: optimizers that the caller knows, beside those that the record names.

    Raises:
        OnnxClipError: the file cannot be read, or the gradients surely are none.
    """
    source = model_or_path("model", model)
    if isinstance(source, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(source)
        with blaming(lambda: source, "this"):
            return _inspected(copy, None, gradients, optimizer_ops)
    with open_model(source) as structure:
        return _inspected(structure.model, source, gradients, optimizer_ops)


def _inspected(
    model: ModelProto, source: Path | None, gradients: GradientNames, optimizer_ops: OptimizerOps
) -> Inspection:
    """The contents of a model, which is changed."""
    record = read_record(model)
    try:
        undo(model)
    except OnnxClipError as error:  # worth a look all the same
        return Inspection((), record, changed=str(error), source=source)
    known = {} if record is None else record.optimizer_ops
    index = Index(model)
    if gradients is not None:
        named_now = name_gradients(index, as_mapping(gradients), known).found
        return Inspection(tuple(each.gradient for each in named_now), record, source=source)
    seen = survey(index, {**known, **checked_ops(optimizer_ops)})
    if record is not None:
        seen = seen.answered(record.answers)
    found = tuple(found_gradient.gradient for found_gradient in seen.found)
    named = _named_before(index, record, {gradient.name for gradient in found})
    told = {name for each in named for name in (each.name, each.parameter.name)}
    questions = [
        each
        for each in seen.questions
        if told.isdisjoint({each.name, *(value.name for value in each.candidates)})
    ]
    is_empty = not (found or named or questions)
    return Inspection(
        found + named,
        record,
        nothing_found(seen, can_name=False) if is_empty else "",
        uncovered_of(questions),
        tuple(dict.fromkeys(seen.flow.root_name(value) for value in seen.carried)),
        source=source,
    )


def _named_before(index: Index, record: Record | None, known: set[str]) -> tuple[Gradient, ...]:
    """The gradients that the rewrite was told, as a probe tells them, beside those known anyway."""
    named = {} if record is None or record.named is None else record.named
    wanted = {name: parameter for name, parameter in named.items() if name not in known}
    try:
        return tuple(
            found_gradient.gradient for found_gradient in name_gradients(index, wanted).found
        )
    except OnnxClipError:  # of a record that is forged: what the graph tells is worth a look
        return ()


def clip_table(found: Inspection, otherwise: str = "-") -> Table:
    """The table of the gradients that were found, each with the clip that it has.

    Args:
        found: in a model.
        otherwise: the clip of a gradient that has none of its own there, in words.
    """
    done = found.record.clips if found.record else []
    clips = {(clip.gradient, clip.parameter): clip for clip in done}
    rows = []
    for gradient in found.gradients:
        entry = clips.get((gradient.name, gradient.parameter.name))
        rows.append((gradient, otherwise if entry is None else words_of(entry)))
    return gradient_table(rows)


def record_lines(record: Record | None) -> list[str]:
    """A few lines on what a rewrite did."""
    if record is None:
        return ["not clipped by onnx-clip"]
    lines = [
        f"{done_by(record)}: {len(record.clips)} of them, norms {record.norm_precision}, "
        f"nan and inf: {record.nonfinite}, laid out for {record.layout}"
    ]
    if record.measures_only:
        lines.append("nothing is clipped: the gradients are only measured")
    if record.loss_scale != 1:
        lines.append(f"thresholds are for gradients without the loss scale {record.loss_scale}")
    if record.threshold_inputs:
        lines.append(f"inputs that set thresholds: {', '.join(record.threshold_inputs)}")
    if record.states:
        pairs = listed([f"{new} to {name}" for name, new in record.states.items()])
        lines.append(f"states, to be carried from step to step: {pairs}")
    measures = [measure.output for measure in record.emitted]
    if measures:
        more = f" and {len(measures) - 5} more" if measures[5:] else ""
        lines.append(f"outputs that were added: {', '.join(measures[:5])}{more}")
    if record.answers:
        lines.append(f"the slopes of the loss decided for {listed(list(record.answers))}")
    names = list(dict.fromkeys(entry.parameter for entry in record.uncovered))
    if names:
        lines.append(f"not covered, as was accepted (--partial): {listed(names)}")
    return lines


def done_by(record: Record) -> str:
    """The deed and the version that did it: clipped by onnx-clip 1.0."""
    verb = "measured" if record.measures_only else "clipped"
    return f"{verb} by onnx-clip {record.version}"


def words_of(entry: ClipEntry) -> str:
    """A few words on a clip as a record holds it."""
    try:
        return clip_from_dict(entry.clip).label
    except OnnxClipError:  # written by another version: worth a look all the same
        return str(entry.clip["clip"])
