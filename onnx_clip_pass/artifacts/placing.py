"""Putting a whole folder in place at once.

The new folder is built beside its place and takes it over by a rename, so that under that name
there never is a folder half written. What it replaces is moved aside first and removed last; killed
in between, the old folder is whole beside the new one, under a name that begins with a dot.

Nothing is ever removed but files whose names the new folder has too.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_clip_pass.artifacts.layout import Layout
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.record import read_record
from onnx_clip_pass.storage import open_model
from onnx_clip_pass.storage.moving import errors_name

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

    Permissions are those of the artifacts' folder.

    Raises:
        OnnxClipError: it cannot be written, or a file that is not ours appeared in what it
            replaces.
    """
    place = target.resolve()  # a link to a folder stays
    with errors_name(target):
        temporary = Path(_aside(place, ".tmp"))
        try:
            yield temporary
            shutil.copymode(layout.folder, temporary)
            if place.is_dir():
                _sync(temporary)
                _swap(temporary, place)
            else:
                temporary.rename(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _check_contents(layout: Layout, target: Path, *, force: bool) -> None:
    shown = repr(str(target))
    there = _files_in(target)
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


def _files_in(folder: Path) -> list[str]:
    """Everything in a folder that is no folder, links included."""
    return sorted(
        (Path(current) / name).relative_to(folder).as_posix()
        for current, folders, names in os.walk(folder)
        for name in (*names, *(each for each in folders if (Path(current) / each).is_symlink()))
    )


def _aside(place: Path, suffix: str) -> str:
    return tempfile.mkdtemp(prefix=f".{place.name[:40]}.", suffix=suffix, dir=place.parent)


def _swap(temporary: Path, place: Path) -> None:
    """Let one folder take the place of another, of which then only what is not ours is left."""
    ours = set(_files_in(temporary))
    old = Path(_aside(place, ".old"))
    old.rmdir()
    place.rename(old)
    try:
        temporary.rename(place)
    except BaseException:
        old.rename(place)
        raise
    _remove(old, ours)


def _remove(folder: Path, names: Collection[str]) -> None:
    """Remove these files of a folder, and the folder if nothing else is in it."""
    for current, folders, _ in os.walk(folder, topdown=False):
        here = Path(current)
        for path in list(here.iterdir()):
            if path.relative_to(folder).as_posix() in names:
                path.unlink()
        for each in folders:
            _remove_if_empty(here / each)
    if not _remove_if_empty(folder):
        raise OnnxClipError(
            f"the output is written; something appeared in the old one while it was replaced, and "
            f"is kept in {str(folder)!r}"
        )


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _sync(folder: Path) -> None:
    """Force a folder to disk before it replaces another: a power cut must not cost both."""
    for current, _, names in os.walk(folder):
        for path in (*(Path(current) / name for name in names), Path(current)):
            if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
