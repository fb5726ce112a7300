"""Rewriting, inspecting and stripping models in files."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from onnx_clip_pass.arguments import check_flags
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.errors import OnnxClipError, OnnxClipWarning
from onnx_clip_pass.gradients import Gradient, name_gradients, survey
from onnx_clip_pass.gradients.explaining import Explanation, explain
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps, checked_ops
from onnx_clip_pass.graph import Index
from onnx_clip_pass.options import checked, takes_options
from onnx_clip_pass.record import Record, read_record, undo
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Decide,
    GradientNames,
    Options,
    Report,
    Uncovered,
    as_mapping,
    clip_in_place,
    nothing_found,
    uncovered_of,
)
from onnx_clip_pass.saving import (
    FileOptions,
    Writing,
    check_target,
    files_along,
    linked,
    paths_of,
    write_model,
)
from onnx_clip_pass.storage import (
    open_model,
    recover,
)
from onnx_clip_pass.storage.reading import read_text

__all__ = [
    "ClipFileOptions",
    "Inspection",
    "clip_gradients_file",
    "explain_file",
    "inspect_file",
    "read_map",
    "strip_file",
]

_Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Inspection:
    """The contents of a file: gradients, the record of a rewrite, and why there are no gradients.

    `questions` are the trained parameters whose gradients are not known, `carried` the states that
    are carried from step to step and not trained. `changed` says of a clip that another tool has
    changed since, or of a record that is forged, what is wrong; nothing is searched then.
    """

    gradients: tuple[Gradient, ...]
    record: Record | None
    reason: str = ""
    questions: tuple[Uncovered, ...] = ()
    carried: tuple[str, ...] = ()
    changed: str = ""


class ClipFileOptions(Options, FileOptions):
    """The arguments of `clip_gradients_file`."""


@takes_options(ClipFileOptions)
def clip_gradients_file(
    source: _Path,
    target: _Path,
    clip: ClipOrRules,
    *,
    dry_run: bool = False,
    probe: bool | Decide = False,
    **options: Unpack[ClipFileOptions],
) -> Report:
    """`clip_gradients` from file to file; weights stored as external data are not read.

    Args:
        source: a model file.
        target: where to write. In the same folder external data is shared; in another one it
            comes along.
        clip: what to do, see `clip_gradients`.
        dry_run: write nothing.
        probe: as `clip_gradients` takes it; the model is then loaded with its weights.
        **options: see `ClipFileOptions`.

    Returns:
        What was found and clipped.

    Raises:
        OnnxClipError: what `clip_gradients` refuses, and files that cannot be read or written, or
            must not be replaced.
    """
    check_flags(dry_run=dry_run)
    how, others = Writing.split(FileOptions, options)
    source, target = paths_of(source, target, how)
    decide = decider(probe, source, how.progress)
    if not dry_run:
        recover(target.parent)
    with open_model(source) as structure:
        check_target(source, target, how)
        report = clip_in_place(structure.model, clip, decide=decide, **others)
        files = files_along(structure, target, how)
        if not dry_run:
            write_model(structure, target, files, how)
        notes = linked(structure, target, files, how)
    return replace(report, warnings=(*report.warnings, *notes))


@takes_options(FileOptions)
def strip_file(
    source: _Path, target: _Path, *, dry_run: bool = False, **options: Unpack[FileOptions]
) -> list[Record]:
    """Undo a rewrite from file to file, see `strip`; options as for `clip_gradients_file`.

    Returns:
        What had been done, in a list of one.

    Raises:
        OnnxClipError: the model is not clipped, or its record no longer fits it; files cannot be
            read or written, or must not be replaced.
    """
    check_flags(dry_run=dry_run)
    how = Writing(**checked(FileOptions, options))
    source, target = paths_of(source, target, how)
    if not dry_run:
        recover(target.parent)
    with open_model(source) as structure:
        check_target(source, target, how)
        record = undo(structure.model)
        if record is None:
            raise OnnxClipError(
                f"{str(source)!r} is not clipped by onnx-clip: there is nothing to undo"
            )
        files = files_along(structure, target, how)
        if not dry_run:
            write_model(structure, target, files, how)
        for note in linked(structure, target, files, how):
            warnings.warn(note, OnnxClipWarning, stacklevel=2)
    return [record]


def inspect_file(
    source: _Path, optimizer_ops: OptimizerOps = NO_OPS, gradients: GradientNames = None
) -> Inspection:
    """The gradients of a model file, and the record if it is clipped already.

    Args:
        source: a model file.
        optimizer_ops: optimizers that the caller knows, beside those that the record names.
        gradients: the gradients' names, if they are not to be searched for.

    Raises:
        OnnxClipError: the file cannot be read, or the gradients surely are none.
    """
    with open_model(Path(source)) as structure:
        record = read_record(structure.model)
        try:
            undo(structure.model)
        except OnnxClipError as error:  # worth a look all the same
            return Inspection((), record, changed=str(error))
        known = {} if record is None else record.optimizer_ops
        index = Index(structure.model)
        if gradients is not None:
            named_now = name_gradients(index, as_mapping(gradients), known).found
            return Inspection(tuple(each.gradient for each in named_now), record)
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


def explain_file(source: _Path, name: str, optimizer_ops: OptimizerOps = NO_OPS) -> Explanation:
    """`explain` for a model file; its weights are not read."""
    with open_model(Path(source)) as structure:
        return explain(structure.model, name, checked_ops(optimizer_ops))


def read_map(path: _Path) -> dict[str, str | None]:
    """Gradient name to parameter name, or None where nobody knows it, from a JSON object in a file.

    What `inspect --json` and `rewrite --json` print is taken, too: its gradients are meant.

    Raises:
        OnnxClipError: the file cannot be read or holds something else.
    """
    expected = 'expected a JSON object such as {"W_grad": "W"}, or what inspect --json prints,'
    try:
        found = json.loads(read_text(Path(path)).decode())
    except (ValueError, RecursionError) as error:
        raise OnnxClipError(f"{expected} in {str(path)!r}: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("models"), list):
        raise OnnxClipError(f"{str(path)!r} tells of several models: keep what is said of one")
    if isinstance(found, dict) and isinstance(rows := found.get("gradients"), list):
        try:
            found = {row["gradient"]: row["parameter"] for row in reversed(rows)}
        except (TypeError, KeyError):  # TypeError: no object, or no name
            found = {"": 0}
        found = {name: of if of != name else None for name, of in found.items()}
    if not isinstance(found, dict) or not all(isinstance(of, str | None) for of in found.values()):
        raise OnnxClipError(f"{expected} in {str(path)!r}, with a string for each gradient")
    return found
