"""Rewriting and stripping models in files, and maps of gradients."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from onnx_clip_pass.arguments import check_flags
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.errors import OnnxClipError, warn
from onnx_clip_pass.options import checked, takes_options
from onnx_clip_pass.record import Record, undo
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Decide,
    Options,
    Report,
    clip_in_place,
)
from onnx_clip_pass.saving import (
    FileOptions,
    Writing,
    beside,
    check_target,
    files_along,
    linked,
    paths_of,
    places_of,
    write_model,
)
from onnx_clip_pass.storage import (
    open_model,
    recover,
)
from onnx_clip_pass.storage.reading import read_text

__all__ = [
    "ClipFileOptions",
    "clip_gradients_file",
    "read_map",
    "strip_file",
]

_Path = str | os.PathLike[str]


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
            comes along. The first values of the states of clips, see `initial_states`, go to
            `NAME.clip_state.npz` beside it.
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
        small = beside(
            structure.model, target, [source, *places_of(files, target)], force=how.force
        )
        if not dry_run:
            write_model(structure, target, files, how, small)
        notes = linked(structure, target, files, how)
    return replace(report, warnings=(*report.warnings, *notes))


@takes_options(FileOptions)
def strip_file(
    source: _Path, target: _Path, *, dry_run: bool = False, **options: Unpack[FileOptions]
) -> list[Record]:
    """`strip` from file to file; weights stored as external data are not read.

    Args:
        source: the file of a model that was rewritten.
        target: where to write. In the same folder external data is shared; in another one it
            comes along.
        dry_run: write nothing.
        **options: see `FileOptions`.

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
        warn(linked(structure, target, files, how))
    return [record]


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
