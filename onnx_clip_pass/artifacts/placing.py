"""Folders that may be replaced: nothing is removed but files whose names the new one has too."""

from __future__ import annotations

import filecmp
import os
from functools import partial
from pathlib import Path

from onnx_clip_pass.artifacts.layout import Layout
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.record import is_clipped
from onnx_clip_pass.storage import check_replaceable, files_in, holds

__all__ = ["check_target"]


def check_target(layout: Layout, target: Path, *, force: bool) -> None:
    """Refuse a target that must not be written.

    1. It lies in the artifacts, or they in it.
    2. It holds a file that the artifacts have not: no `force` removes what is not ours.
    3. Without `force`: neither of its models bears our record, or another file in it is not that of
       the artifacts (as a checkpoint is not, once the folder has been trained in).

    Raises:
        OnnxClipError: for one of these reasons, or the folder around it is missing.
    """
    shown = repr(str(target))
    try:
        parent, place, source = target.parent, target.resolve(), layout.folder.resolve()
        if not parent.is_dir():
            raise OnnxClipError(f"cannot write {shown}: there is no folder {str(parent)!r}")
        if place == source:
            raise OnnxClipError(
                f"the output {shown} is the folder itself; pass --in-place (in Python: "
                f"replace=True) to replace its model"
            )
        if place.is_relative_to(source) or source.is_relative_to(place):  # rule 1
            raise OnnxClipError(
                f"cannot write {shown}: of the output and the artifacts one lies within the other; "
                f"give a folder beside {str(layout.folder)!r}"
            )
        if not os.path.lexists(target):
            return
        if not target.is_dir():
            raise OnnxClipError(f"cannot write {shown}: it is there and is no folder")
        _check_contents(layout, target, force=force)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise OnnxClipError(f"cannot write {shown}: {reason}") from error


def _check_contents(layout: Layout, target: Path, *, force: bool) -> None:
    shown = repr(str(target))
    there = files_in(target)
    foreign = [name for name in there if name not in layout.files]
    if foreign:  # rule 2
        raise OnnxClipError(
            f"{shown} exists and holds {foreign[0]!r}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
            + f", which {str(layout.folder)!r} has not: nothing is removed that onnx-clip did not "
            f"write; move it away or give another output"
        )
    if force or not there:
        return
    models = (layout.training, layout.optimizer)
    ours = {name for name in models if name in there and holds(is_clipped, target / name)}
    check_replaceable(target, lambda _: bool(ours), force=force)  # rule 3
    for name in there:
        if name not in ours:
            check_replaceable(
                target / name,
                partial(filecmp.cmp, layout.files[name].path, shallow=False),
                force=force,
                otherwise="is not that of the artifacts any more, as after training",
            )
