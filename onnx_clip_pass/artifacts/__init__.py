"""A folder of ONNX Runtime's training artifacts, rewritten as one unit.

The clip goes into one of its two models, the checkpoint and everything else come along untouched:

- at the *step*: into the optimizer model, which gets the gradients when all micro-batches of a step
  are added up, as PyTorch and Paddle clip; it gets them without names, so all are clipped alike.
- at the *micro-batch*: into the training model, before its accumulators, by name and rule.

With one micro-batch a step the two are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

from onnx_clip_pass.arguments import check_choice, check_flags, check_path
from onnx_clip_pass.artifacts.layout import Layout, check_training_model, find_layout
from onnx_clip_pass.artifacts.placing import check_target
from onnx_clip_pass.artifacts.sequence import clip_sequence, find_optimizer
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.inspection import Inspection, clip_table, done_by, inspect_model, words_of
from onnx_clip_pass.options import checked, takes_options
from onnx_clip_pass.progress import told
from onnx_clip_pass.record import Record, read_record, undo
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Options,
    Report,
    Settings,
    clip_in_place,
)
from onnx_clip_pass.rewrite.selecting import as_clips
from onnx_clip_pass.rules import Rule
from onnx_clip_pass.saving import WriteOptions, Writing
from onnx_clip_pass.storage import (
    Structure,
    data_files,
    errors_name,
    open_model,
    recover,
    write_folder,
    write_structures,
)
from onnx_clip_pass.tables import counted
from onnx_clip_pass.views import View, Viewed

__all__ = [
    "ArtifactsInspection",
    "ClipStage",
    "clip_artifacts",
    "inspect_artifacts",
    "strip_artifacts",
]

ClipStage = Literal["step", "micro-batch"]
"""The stage at which gradients are clipped: after micro-batches are added up, or before."""

_Path = str | os.PathLike[str]
_AT_STEP = {"norm_precision", "nonfinite", "layout", "partial", "optimizer_ops", "emit_as"}
"""The options that can be had at the step, or make no difference there."""


@dataclass(frozen=True, slots=True, repr=False)
class ArtifactsInspection(Viewed):
    """The contents of a folder.

    `training` is what the training model holds. `optimizer` is the op type of the optimizer node,
    "" if there is none, for which `reason` then says why; `record` is that of the optimizer model.
    `changed` says what is wrong with a clip in it that another tool has changed since; `folder` is
    where it is.
    """

    training: Inspection
    optimizer: str
    record: Record | None
    reason: str = ""
    changed: str = ""
    folder: Path = Path()

    def view(self) -> View:
        training, clips = self.training, [] if self.record is None else self.record.clips
        at_step = "; ".join(f"{words_of(clip)} (step)" for clip in clips)
        return View(
            f"{counted(len(training.gradients))} in the training artifacts {self.folder}, "
            f"optimizer: {self.optimizer or 'unknown'}",
            clip_table(training, at_step or "-"),
            faults=tuple(filter(None, (training.changed, self.changed))),
            further=tuple(filter(None, (training.reason, self.reason))),
            first=(
                f"at the micro-batch: {_in_words(training.record)}",
                f"at the step: {_in_words(self.record)}",
            ),
        )


class ClipFolderOptions(Options, WriteOptions):
    """Options of `clip_artifacts`."""


@takes_options(ClipFolderOptions, "threshold_input")
def clip_artifacts(
    folder: _Path,
    target: _Path,
    clip: ClipOrRules,
    *,
    at: ClipStage = "step",
    dry_run: bool = False,
    **options: Unpack[ClipFolderOptions],
) -> Report:
    """Clip the gradients of a folder of training artifacts; a clip that it has is replaced.

    Args:
        folder: what `generate_artifacts` of onnxruntime-training has written, under any prefix.
        target: the folder to write. It appears whole or not at all.
        clip: what to do, see `clip_gradients`; at the step one clip without `need_clip`.
        at: "step", after all micro-batches of a step are added up, or "micro-batch", each before it
            is added.
        external_data: how what is not rewritten gets into the other folder: "copy" or "link" (hard
            links: training that saves into the checkpoint then changes both).
        replace: allow `target` to be `folder`, whose models are then replaced.
        force: replace a target that onnx-clip did not write, or in which has been trained since.
            Files that the artifacts have not are never removed.
        dry_run: write nothing.
        **options: `progress`, and those of `clip_gradients` but `threshold_input`, which the
            runtime cannot feed; at the step only `norm_precision`, `nonfinite` and `layout`. What
            is emitted the runtime returns behind the loss, from every call of the module.

    Returns:
        What was found and clipped. At the step it has one row for the whole sequence.

    Raises:
        OnnxClipError: it is no such folder, or of another version; the step is asked for by name,
            or without an optimizer model; what `clip_gradients` refuses; and files that cannot be
            read or written, or must not be replaced. Nothing is written then.
    """
    check_path("folder", folder)
    check_path("target", target)
    check_flags(dry_run=dry_run)
    check_choice("at", at, ClipStage)
    how, others = Writing.split(WriteOptions, options)
    clips, settings = as_clips(clip), Settings.of(**others)
    if settings.options["threshold_input"] is not None:
        raise OnnxClipError(
            "the training runtime feeds no input that it does not know, so a threshold input would "
            "stay at its default; rewrite the folder again for another threshold"
        )
    asked = [clips] if isinstance(clips, Clip) else [rule.clip for rule in clips if rule.clip]
    if any(formula.history_size for each in asked for formula in each.formulas):
        raise OnnxClipError(
            "the training runtime carries no state that it does not know, so a percentile of the "
            "norms so far would never be known; clip by a number"
        )
    others["partial"] = True  # what trains the parameters is another model of the folder
    folder, target = Path(folder), Path(target)
    if not dry_run:
        recover(target.parent, target)
    layout = find_layout(folder)
    wishes = [name for name in settings.said if name not in _AT_STEP]
    uniform = _check_stage(layout, clips, at, wishes)
    chosen = layout.training if uniform is None else layout.optimizer
    with _open_models(layout) as (structures, was_clipped):
        model = structures[chosen].model
        if uniform is not None:
            report = clip_sequence(model, uniform, settings.numerics, layout.shown(chosen))
        else:
            report = clip_in_place(model, clips, **others)
        changed = {name: structures[name] for name in (*was_clipped, chosen)}
        _check_written(layout, target, changed, how)
        if not dry_run:
            _write(layout, target, changed, how)
    links = how.external_data == "link" and not how.replace
    return _with_notes(report, layout, chosen, replaced=bool(was_clipped), links=links)


@takes_options(WriteOptions)
def strip_artifacts(
    folder: _Path, target: _Path, *, dry_run: bool = False, **options: Unpack[WriteOptions]
) -> list[Record]:
    """Undo the rewrite of a folder of training artifacts.

    Args:
        folder: what `clip_artifacts` has written.
        target: the folder to write. It appears whole or not at all.
        dry_run: write nothing.
        external_data: how what is not rewritten gets into the other folder, see `clip_artifacts`.
        replace: allow `target` to be `folder`, whose models are then replaced.
        force: replace a target that onnx-clip did not write, or in which has been trained since.
        **options: see `WriteOptions`.

    Returns:
        What had been done, for each model that was clipped.

    Raises:
        OnnxClipError: it is no such folder; neither model is clipped, or what was added has been
            changed since; files cannot be read or written, or must not be replaced. Nothing is
            written then.
    """
    check_path("folder", folder)
    check_path("target", target)
    check_flags(dry_run=dry_run)
    how = Writing(**checked(WriteOptions, options))
    folder, target = Path(folder), Path(target)
    if not dry_run:
        recover(target.parent, target)
    layout = find_layout(folder)
    with _open_models(layout) as (structures, was_clipped):
        if not was_clipped:
            raise OnnxClipError(
                f"the artifacts in {str(layout.folder)!r} are not clipped by onnx-clip: there is "
                f"nothing to undo"
            )
        changed = {name: structures[name] for name in was_clipped}
        _check_written(layout, target, changed, how)
        if not dry_run:
            _write(layout, target, changed, how)
        return list(was_clipped.values())


def inspect_artifacts(folder: _Path) -> ArtifactsInspection:
    """The gradients of a folder's training model, its optimizer, and what is clipped already.

    Printed, it is what `onnx-clip inspect` shows of a folder.

    Args:
        folder: of training artifacts.

    Raises:
        OnnxClipError: it is no folder of artifacts, or a model in it cannot be read.
    """
    check_path("folder", folder)
    layout = find_layout(Path(folder))
    found = partial(ArtifactsInspection, folder=Path(folder))
    training = inspect_model(layout.folder / layout.training)
    if not layout.optimizer:
        return found(training, "", None, "there is no optimizer model")
    with open_model(layout.folder / layout.optimizer) as structure:
        record = read_record(structure.model)
        try:
            undo(structure.model)
        except OnnxClipError as error:  # worth a look all the same
            return found(training, "", record, changed=str(error))
        try:
            optimizer = find_optimizer(structure.model, layout.shown(layout.optimizer))
        except OnnxClipError as error:
            return found(training, "", record, str(error))
    return found(training, optimizer.op_type, record)


def _in_words(record: Record | None) -> str:
    if record is None:
        return "not clipped"
    done = {words_of(clip) for clip in record.clips}
    names = [clip.gradient for clip in record.clips]
    count = "all gradients" if names == ["gradients"] else counted(len(names))
    return f"{done_by(record)}: {count}, {'; '.join(sorted(done))}"


def _check_stage(
    layout: Layout,
    clip: Clip | list[Rule],
    at: str,
    wishes: list[str],
) -> Clip | None:
    """The clip for all gradients alike at the step; None at the micro-batch.

    `wishes` are the arguments that only the micro-batch can fulfil.
    """
    if at == "micro-batch":
        return None
    if isinstance(clip, Clip):
        named = ["need_clip"] if any(f.need_clip is not None for f in clip.formulas) else []
    else:
        named = ["rules"]
    named += [wish for wish in wishes if wish in ("skip", "gradients")]
    if named:
        raise OnnxClipError(
            f"--at step, which is the default for a folder, cannot pick by name "
            f"({', '.join(named)}): the optimizer model gets all gradients as one sequence without "
            f"names, in an order that the runtime does not promise. Clip all of them alike, or "
            f"pass --at micro-batch (in Python at='micro-batch'): it clips the gradients of each "
            f"micro-batch before they are added up, which is the same if a step has only one"
        )
    if wishes:
        raise OnnxClipError(
            f"--at step, which is the default for a folder, cannot have {', '.join(wishes)}: the "
            f"runtime feeds and fetches its own inputs and outputs of the optimizer model alone; "
            f"pass --at micro-batch (in Python at='micro-batch')"
        )
    if not layout.optimizer:
        raise OnnxClipError(
            f"{str(layout.folder)!r} has no {layout.prefix}optimizer_model.onnx, which --at step "
            f"clips in: make the artifacts with optimizer=…, or pass --at micro-batch "
            f"(in Python at='micro-batch')"
        )
    assert isinstance(clip, Clip)
    return clip


@contextmanager
def _open_models(layout: Layout) -> Iterator[tuple[dict[str, Structure], dict[str, Record]]]:
    """The models of a folder as they were before any rewrite, and the records of rewrites."""
    structures: dict[str, Structure] = {}
    was_clipped: dict[str, Record] = {}
    with ExitStack() as stack:
        for name in filter(None, (layout.training, layout.optimizer)):
            structure = stack.enter_context(open_model(layout.folder / name))
            structures[name] = structure
            try:
                if record := undo(structure.model):
                    was_clipped[name] = record
            except OnnxClipError as error:
                raise OnnxClipError(f"{layout.shown(name)}: {error}") from error
        check_training_model(structures[layout.training].model, layout.shown(layout.training))
        yield structures, was_clipped


def _check_written(
    layout: Layout, target: Path, changed: Mapping[str, Structure], how: Writing
) -> None:
    """Refuse what `_write` must not do."""
    with errors_name(target):
        is_itself = how.replace and target.exists() and target.samefile(layout.folder)
    if not how.replace:
        check_target(layout, target, force=how.force)
    elif not is_itself:
        raise OnnxClipError(
            f"expected {str(layout.folder)!r} as the target where it is to be replaced, not "
            f"{str(target)!r}"
        )
    for structure in changed.values():
        if structure.may_have_external_data:
            data_files(structure.model, layout.folder)


def _write(layout: Layout, target: Path, changed: Mapping[str, Structure], how: Writing) -> None:
    """Write the folder with these models in place of its own."""
    with told(how.progress) as progress:
        if how.replace:  # the training model first: without it the runtime loads none of them
            names = sorted(changed, key=lambda name: name != layout.training)
            root = layout.folder.resolve()
            models = {(root / name).resolve(): changed[name] for name in names}
            write_structures(models, root=root, progress=progress)
            return
        write_folder(
            target,
            layout.folder,
            layout.folders,
            layout.files,
            changed,
            how=how.external_data,
            progress=progress,
        )


def _with_notes(
    report: Report, layout: Layout, chosen: str, *, replaced: bool, links: bool
) -> Report:
    notes = list(report.warnings)
    converted = layout.in_ort_format(chosen)
    if converted:
        notes.append(
            f"{converted} is the same model in ORT format and is not clipped: convert {chosen} "
            f"again, with python -m onnxruntime.tools.convert_onnx_models_to_ort"
        )
    if links:
        notes.append(
            "what is not rewritten comes along as hard links: training that saves into the "
            "checkpoint changes it in both folders; --external-data copy (in Python: "
            "external_data='copy') makes copies"
        )
    return replace(report, warnings=tuple(notes), replaced=replaced)
