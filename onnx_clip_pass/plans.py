"""Rewrites that are planned and looked at before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from google.protobuf.message import EncodeError
from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from onnx_clip_pass.arguments import check_path, model_or_path
from onnx_clip_pass.clipping import clipped_copy
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.errors import OnnxClipError, warn
from onnx_clip_pass.options import checked, takes_options
from onnx_clip_pass.progress import WantsProgress
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Clipped,
    Decide,
    Emitted,
    Options,
    Report,
    Uncovered,
    clip_in_place,
)
from onnx_clip_pass.saving import (
    FileOptions,
    Writing,
    beside,
    check_target,
    files_along,
    linked,
    places_of,
    write_model,
)
from onnx_clip_pass.storage import (
    Structure,
    open_model,
    recover,
    tensors_of,
    whole,
    write_bytes,
)
from onnx_clip_pass.views import View, Viewed

__all__ = ["Plan", "plan_clips"]

_Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Plan(Viewed):
    """A rewrite that is worked out, all faults checked, and nothing written.

    Printed, or displayed by rich or a notebook, it shows what `onnx-clip rewrite --dry-run` does.
    `report` is what `clip_gradients_file` would return, and `source` the path of the model, None of
    one in memory.
    """

    report: Report
    _rewritten: ModelProto | Structure
    source: Path | None

    @property
    def rows(self) -> tuple[Clipped, ...]:
        """Every gradient found, in graph order, with its clip; None for what is left alone."""
        return self.report.rows

    @property
    def clipped(self) -> tuple[Clipped, ...]:
        """The rows that are clipped, or measured."""
        return self.report.clipped

    @property
    def warnings(self) -> tuple[str, ...]:
        """Things to know before it is applied."""
        return self.report.warnings

    @property
    def uncovered(self) -> tuple[Uncovered, ...]:
        """Trained parameters that would stay unclipped, since their gradients are not known."""
        return self.report.uncovered

    @property
    def emitted(self) -> tuple[Emitted, ...]:
        """The outputs that would be added."""
        return self.report.emitted

    def view(self) -> View:
        where = "the model" if self.source is None else str(self.source)
        return self.report.as_view(self.report.summary(where, is_done=False))

    def apply(self) -> ModelProto:
        """Return the rewritten model, with all its weights, as a new one.

        Raises:
            OnnxClipError: the file has been changed since it was planned, or its weights cannot be
                read, lie outside of its folder, or are more than a model in memory holds; `save`
                takes any number.
        """
        if isinstance(self._rewritten, ModelProto):
            model = ModelProto()
            model.CopyFrom(self._rewritten)
            return model
        with self._rewritten.source.reopened():
            return whole(self._rewritten)

    @takes_options(FileOptions)
    def save(self, target: _Path, **options: Unpack[FileOptions]) -> None:
        """Write the rewritten model; of a plan from a path the weights go from file to file.

        Args:
            target: where to write. In the folder of the model external data is shared; in another
                one it comes along.
            **options: see `FileOptions` in `onnx_clip_pass.saving`.

        Raises:
            OnnxClipError: the file has been changed since it was planned, or files cannot be read
                or written, or must not be replaced. Then `target` is as it was.
        """
        how = Writing(**checked(FileOptions, options))
        check_path("target", target)
        target = how.place(target)
        recover(target.parent)
        if isinstance(self._rewritten, ModelProto):
            check_target(None, target, how)
            small = beside(self._rewritten, target, force=how.force)
            write_bytes(target, _serialized(self._rewritten), small)
            return
        with self._rewritten.source.reopened() as source:
            check_target(source.path, target, how)
            files = files_along(self._rewritten, target, how)
            taken = [source.path, *places_of(files, target)]
            small = beside(self._rewritten.model, target, taken, force=how.force)
            write_model(self._rewritten, target, files, how, small)
            warn(linked(self._rewritten, target, files, how))


@takes_options(Options)
def plan_clips(
    model: ModelProto | _Path,
    clip: ClipOrRules,
    *,
    probe: bool | Decide = False,
    progress: WantsProgress = None,
    **options: Unpack[Options],
) -> Plan:
    """Plan what `clip_gradients` does to a model, to look at it first.

    Args:
        model: a training graph, or its path; it stays as it is. The weights of a file are not read.
        clip: what to do, see `clip_gradients`.
        probe: as `clip_gradients` takes it; a file is then loaded with its weights.
        progress: of such a run, as `clip_gradients` takes it.
        **options: see `Options` in `onnx_clip_pass.rewrite`.

    Returns:
        The plan: `rows`, `warnings` and `uncovered` to be looked at, `apply()` for a new model and
        `save(target)` for a file of any size.

    Raises:
        OnnxClipError: what `clip_gradients` refuses, and a file that cannot be read.

    Example:
        plan = plan_clips("model.onnx", GradientClipByGlobalNorm(1.0), skip="*.bias")
        print(plan)
        plan.save("model.clipped.onnx")
    """
    source = model_or_path("model", model)
    if isinstance(source, ModelProto):
        return Plan(*clipped_copy(source, clip, probe, progress, options), None)
    decide = decider(probe, source, progress)
    with open_model(source) as structure:
        report = clip_in_place(structure.model, clip, decide=decide, **options)
    return Plan(report, structure, source)


def _serialized(model: ModelProto) -> bytes:
    if any(uses_external_data(tensor) for tensor in tensors_of(model)):
        raise OnnxClipError(
            "the model's weights are in files of their own, and a model in memory does not say in "
            "which folder: load them with it, or plan from its path (plan_clips(path, …))"
        )
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError) as error:  # of more than 2 GB
        raise OnnxClipError(
            f"the model cannot be written as one file ({error}); save it with external data "
            f"(onnx.save), and plan from its path"
        ) from error
