"""Writing a structure back as a whole model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import EncodeError

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.external import DataFile, HowToBring, bring_along
from onnx_clip_pass.storage.moving import (
    Progress,
    copy_range,
    errors_name,
    replacing,
    write_all,
)
from onnx_clip_pass.storage.source import Source
from onnx_clip_pass.storage.structure import Piece, Structure

__all__ = ["write_bytes", "write_structure"]


def write_structure(
    structure: Structure,
    target: Path,
    files: Sequence[DataFile] = (),
    *,
    how: HowToBring = "copy",
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the model as it now is; its weights go from file to file without passing through here.

    Permissions are those of the source.

    Args:
        structure: the model, its source still open.
        target: where to write.
        files: external data to bring along, see `bring_along`. The model is complete before they
            appear, and takes the path over last.
        how: how to bring it.
        force: replace data files of other content.
        progress: is told how many bytes are done, and of how many.

    Raises:
        OnnxClipError: the folder cannot be written, the disk is full, or the source is cut short or
            changed meanwhile. `target` is then as it was.
    """
    try:
        pieces = structure.pieces()
    except (EncodeError, ValueError) as error:
        raise OnnxClipError(f"cannot write {str(target)!r}: {error}") from error
    total = sum(len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces)
    total += sum(file.size for file in files)
    done = 0

    def count(copied: int) -> None:
        nonlocal done
        done += copied
        if progress is not None:
            progress(done, total)

    with errors_name(target), replacing(target) as temporary:
        _write_pieces(pieces, structure.source, temporary, count)
        bring_along(files, target.parent, how=how, force=force, count=count)


def write_bytes(target: Path, data: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        OnnxClipError: the folder cannot be written or the disk is full; `target` is as it was.
    """
    mask = os.umask(0)
    os.umask(mask)
    with errors_name(target), replacing(target) as temporary:
        temporary.write_bytes(data)
        temporary.chmod(0o666 & ~mask)


def _write_pieces(
    pieces: list[Piece], source: Source, temporary: Path, count: Callable[[int], None]
) -> None:
    descriptor = os.open(temporary, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        for piece in pieces:
            if isinstance(piece, bytes):
                write_all(descriptor, piece)
                count(len(piece))
                continue
            start, end = piece
            if copy_range(source.descriptor, descriptor, start, end, count) < end - start:
                source.check_unchanged()
                raise OnnxClipError(f"{str(source.path)!r} ends before byte {end}")
    finally:
        os.close(descriptor)
    temporary.chmod(os.fstat(source.descriptor).st_mode & 0o777)
    source.check_unchanged()
