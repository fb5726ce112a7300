"""Putting a whole folder in place at once.

The new folder is built beside its place and takes it over, so that under that name there never is a
folder half written; `storage/journal.py` says how. Nothing is ever removed but files whose names
the new folder has too.
"""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_clip_pass.artifacts.layout import Layout
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.record import read_record
from onnx_clip_pass.storage import files_in, open_model, replacing

__all__ = ["building", "check_target"]


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


@contextmanager
def building(layout: Layout, target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends, and vanishes if it raises.

    Permissions are those of what it replaces, or of the artifacts' folder as the umask allows.

    Raises:
        OnnxClipError: it cannot be written, or a file that is not ours appeared in what it
            replaces.
    """
    place = target.resolve()  # a link to a folder stays
    with replacing(place) as fresh:
        mode = stat.S_IMODE(layout.folder.stat().st_mode)
        fresh[place].mkdir(mode | stat.S_IRWXU)
        yield fresh[place]
        fresh[place].chmod(fresh[place].stat().st_mode & (mode | ~0o777))


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
    ours = {name for name in models if name in there and _bears_record(target / name)}
    if not ours:  # rule 3
        raise OnnxClipError(
            f"{shown} exists and bears no record of onnx-clip; pass --force (in Python: "
            f"force=True) to replace it, or give another output"
        )
    for name in there:
        if name not in ours and not filecmp.cmp(
            target / name, layout.files[name].path, shallow=False
        ):
            raise OnnxClipError(
                f"{str(target / name)!r} is not that of the artifacts any more, as after training; "
                f"pass --force (in Python: force=True) to replace it, or give another output"
            )


def _bears_record(path: Path) -> bool:
    try:
        with open_model(path) as structure:
            return read_record(structure.model) is not None
    except OnnxClipError:
        return False
