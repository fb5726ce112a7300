"""Rewriting, inspecting and stripping models in files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnx_clip_pass.clips import Clip
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient, survey
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import Record, read_record, undo
from onnx_clip_pass.rewrite import GradientNames, Report, clip_in_place, nothing_found
from onnx_clip_pass.storage import read_model, write_model

__all__ = ["Inspection", "clip_gradients_file", "inspect_file", "read_map", "strip_file"]

_Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file holds: gradients, the record of a rewrite, and why there are no gradients."""

    gradients: tuple[Gradient, ...]
    record: Record | None
    reason: str = ""


def clip_gradients_file(
    source: _Path,
    target: _Path,
    clip: Clip,
    *,
    gradients: GradientNames = None,
    skip: Sequence[str] = (),
    replace: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Report:
    """`clip_gradients` from file to file; weights stored as external data are not read.

    Args:
        source: a model file.
        target: where to write; beside `source` if that has external data.
        clip, gradients, skip: see `clip_gradients`.
        replace: allow `target` to be `source`.
        force: replace a target that bears no record of onnx-clip.
        dry_run: write nothing.

    Returns:
        What was found and clipped.

    Raises:
        OnnxClipError: what `clip_gradients` refuses, and files that cannot be read or written, or
            must not be replaced.
    """
    source, target = Path(source), Path(target)
    model = read_model(source)
    if not dry_run:
        _check_target(source, target, model, replace=replace, force=force)
    report = clip_in_place(model, clip, gradients=gradients, skip=skip)
    if not dry_run:
        write_model(model, target, mode_of=source)
    return report


def strip_file(
    source: _Path, target: _Path, *, replace: bool = False, force: bool = False
) -> None:
    """Undo a rewrite from file to file, see `strip`."""
    source, target = Path(source), Path(target)
    model = read_model(source)
    _check_target(source, target, model, replace=replace, force=force)
    if not undo(model):
        raise OnnxClipError(f"{str(source)!r} is not clipped by onnx-clip: there is nothing to undo")
    write_model(model, target, mode_of=source)


def inspect_file(source: _Path) -> Inspection:
    """The gradients of a model file, and the record if it is clipped already."""
    model = read_model(Path(source))
    record = read_record(model)
    undo(model)
    seen = survey(Index(model))
    gradients = tuple(sighting.gradient for sighting in seen.found)
    return Inspection(gradients, record, "" if gradients else nothing_found(seen))


def read_map(path: _Path) -> dict[str, str]:
    """Gradient name to parameter name, from a JSON object in a file.

    Raises:
        OnnxClipError: the file cannot be read or holds something else.
    """
    expected = 'expected a JSON object such as {"W_grad": "W"}'
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OnnxClipError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OnnxClipError(f"{expected} in {str(path)!r}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise OnnxClipError(f"{expected} in {str(path)!r}, with a string for each gradient")
    return found


def _check_target(
    source: Path, target: Path, model: ModelProto, *, replace: bool, force: bool
) -> None:
    if not target.parent.is_dir():
        raise OnnxClipError(f"cannot write {str(target)!r}: there is no folder {str(target.parent)!r}")
    if target.is_dir():
        raise OnnxClipError(f"cannot write {str(target)!r}: it is a folder")
    is_source = target.exists() and target.samefile(source)
    if is_source and not replace:
        raise OnnxClipError(
            f"the output {str(target)!r} is the model itself; pass --in-place to replace it"
        )
    if target.exists() and not is_source and not force and not _bears_record(target):
        raise OnnxClipError(
            f"{str(target)!r} exists and onnx-clip did not write it; pass --force to replace it, "
            f"or another --output"
        )
    if not is_source and target.parent.resolve() != source.parent.resolve():
        names = sorted(_external_locations(model))
        if names:
            raise OnnxClipError(
                f"{str(source)!r} has external data ({', '.join(names[:3])}), which is found only "
                f"from its own folder; write the output beside it"
            )


def _bears_record(path: Path) -> bool:
    try:
        return read_record(read_model(path)) is not None
    except OnnxClipError:
        return False


def _external_locations(model: ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
