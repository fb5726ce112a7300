"""Checks of what may be written: a file to be, and one that is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.structure import open_model

__all__ = ["check_replaceable", "file_at", "holds", "unforced"]


def file_at(target: Path, name: str) -> bool:
    """Return whether there is a file to be replaced; `name` is for an example of a path.

    Raises:
        OnnxClipError: there is no folder for it, or something else in its place.
    """
    if "\0" in target.name:  # to which the system says that there is no such file
        raise OnnxClipError(f"cannot write {str(target)!r}: no name of a file holds a NUL")
    if not target.parent.is_dir():
        raise OnnxClipError(
            f"cannot write {str(target)!r}: there is no folder {str(target.parent)!r}"
        )
    if target.is_dir():
        raise OnnxClipError(
            f"cannot write {str(target)!r}: it is a folder; give a file in it, such as "
            f"{str(target / name)!r}"
        )
    if target.exists() and not target.is_file():
        raise OnnxClipError(f"cannot write {str(target)!r}: it is there and is no regular file")
    return target.exists()


def check_replaceable(
    target: Path,
    is_ours: Callable[[Path], bool],
    *,
    force: bool,
    otherwise: str = "exists and bears no record of onnx-clip",
) -> None:
    """Refuse to replace what onnx-clip did not write.

    Args:
        target: what is there.
        is_ours: whether onnx-clip wrote it; not asked with `force`, which replaces all.
        force: replace it in any case.
        otherwise: what the error says of one that is not ours.

    Raises:
        OnnxClipError: it is not ours.
    """
    if not (force or is_ours(target)):
        raise OnnxClipError(unforced(target, otherwise))


def unforced(target: Path, why: str, instead: str = "give another output") -> str:
    """Return that something is replaced by force only, and why."""
    return (
        f"{str(target)!r} {why}; pass --force (in Python: force=True) to replace it, or {instead}"
    )


def holds(test: Callable[[ModelProto], bool], path: Path) -> bool:
    """Return whether a file is a model of which the test is true; not so if it cannot be read."""
    try:
        with open_model(path) as structure:
            return test(structure.model)
    except OnnxClipError:
        return False
