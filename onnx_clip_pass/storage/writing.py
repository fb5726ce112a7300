"""Writing structures back as whole models."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from google.protobuf.message import EncodeError

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.progress import Progress, TellProgress
from onnx_clip_pass.storage.external import (
    DataFile,
    ExternalDataMode,
    copy_external_data,
    missing_files,
)
from onnx_clip_pass.storage.moving import copy_range, new_file, write_all
from onnx_clip_pass.storage.sets import errors_name, replacing
from onnx_clip_pass.storage.source import Source
from onnx_clip_pass.storage.structure import Piece, Structure

__all__ = ["write_bytes", "write_folder", "write_structures"]


def write_structures(
    structures: Mapping[Path, Structure],
    files: Sequence[DataFile] = (),
    *,
    root: Path | None = None,
    how: ExternalDataMode = "copy",
    force: bool = False,
    trust: bool = False,
    beside: Mapping[Path, bytes] | None = None,
    progress: TellProgress | None = None,
) -> None:
    """Write models as they now are; weights go from file to file without passing through here.

    All that is written replaces what was there as one, see `replacing`. What is new has the
    permissions of what it is made from, but for those to run it, as far as the umask allows.

    Args:
        structures: models by where to write them, the main one first, their sources still open.
        files: external data to copy along, beside the main one; what is there with the same
            content is left alone.
        root: the folder in which all of this is; that of the main model if None.
        how: how to copy external data.
        force: replace data files of other content.
        trust: copy files that a model must not name without its user's word.
        beside: small files by where to write them.
        progress: is told how many bytes are done, and of how many.

    Raises:
        OnnxClipError: the folder cannot be written, the disk is full, or a source is cut short or
            changed meanwhile; or what `missing_files` refuses.
    """
    main = next(iter(structures))
    pieces = {target: _pieces(structure, target) for target, structure in structures.items()}
    total = sum(_size(each) for each in pieces.values()) + sum(file.size for file in files)
    done = 0

    def count(copied: int) -> None:
        nonlocal done
        done += copied
        if progress is not None:
            progress(Progress(f"writing {main.name}", done, total, "bytes"))

    missing = missing_files(files, main.parent, force=force, trust=trust)
    places = {file: main.parent / file.location for file in missing}
    beside = beside or {}
    others = [*list(structures)[1:], *places.values(), *beside]
    with replacing(main, others, root=root) as fresh:
        _write_small(beside, fresh)
        for target, structure in structures.items():
            with errors_name(target), new_file(fresh[target], structure.source.mode & 0o666) as out:
                _write_pieces(pieces[target], structure.source, out, count)
        for file in files:
            if file not in places:
                count(file.size)
                continue
            with errors_name(places[file]):
                copy_external_data(file, fresh[places[file]], how, count)


def write_folder(
    target: Path,
    source: Path,
    folders: Iterable[str],
    files: Mapping[str, DataFile],
    structures: Mapping[str, Structure],
    *,
    how: ExternalDataMode = "copy",
    progress: TellProgress | None = None,
) -> None:
    """Write a folder as one: it is built beside its place and takes it over when it is complete.

    Its permissions are those of what it replaces, or of the source's as the umask allows.

    Args:
        target: the folder to write; what is in it is replaced as a whole.
        source: the folder that it is made from.
        folders: those in it, outer ones first, by their paths relative to it.
        files: those in it, by their relative paths, and where each is copied from.
        structures: models that are written in place of files of these paths.
        how: how to copy the others.
        progress: is told how many bytes are done, and of how many.

    Raises:
        OnnxClipError: it cannot be written, or a file that is not ours appeared in what it
            replaces.
    """
    total = sum(file.size for file in files.values())
    done = 0

    def count(copied: int) -> None:
        nonlocal done
        done += copied
        if progress is not None:
            progress(Progress(f"writing {target.name}", min(done, total), total, "bytes"))

    place = target.resolve()  # a link to a folder stays
    with replacing(place) as fresh:
        built = fresh[place]
        mode = stat.S_IMODE(source.stat().st_mode)
        built.mkdir(mode | stat.S_IRWXU)
        for name in folders:
            (built / name).mkdir()
        for name, file in files.items():
            if name not in structures:
                copy_external_data(file, built / name, how, count, mode=0o777)
                continue
            structure = structures[name]
            with new_file(built / name, structure.source.mode & 0o777) as out:
                pieces = _pieces(structure, built / name)
                _write_pieces(pieces, structure.source, out, count)
        built.chmod(built.stat().st_mode & (mode | ~0o777))


def write_bytes(target: Path, data: bytes, beside: Mapping[Path, bytes] | None = None) -> None:
    """Write a small file, and others with it, whole or not at all.

    Raises:
        OnnxClipError: the folder cannot be written or the disk is full; `target` is as it was.
    """
    beside = beside or {}
    with replacing(target, [*beside]) as fresh:
        _write_small({target: data, **beside}, fresh)


def _write_small(files: Mapping[Path, bytes], fresh: Mapping[Path, Path]) -> None:
    for target, data in files.items():
        with errors_name(target), new_file(fresh[target], 0o666) as out:
            write_all(out, data)


def _pieces(structure: Structure, target: Path) -> list[Piece]:
    try:
        return structure.pieces()
    except (EncodeError, ValueError) as error:
        raise OnnxClipError(f"cannot write {str(target)!r}: {error}") from error


def _size(pieces: list[Piece]) -> int:
    return sum(len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces)


def _write_pieces(
    pieces: list[Piece], source: Source, descriptor: int, count: Callable[[int], None]
) -> None:
    for piece in pieces:
        if isinstance(piece, bytes):
            write_all(descriptor, piece)
            count(len(piece))
            continue
        start, end = piece
        if copy_range(source.descriptor, descriptor, start, end, count) < end - start:
            source.check_unchanged()
            raise OnnxClipError(f"{str(source.path)!r} ends before byte {end}")
    source.check_unchanged()
