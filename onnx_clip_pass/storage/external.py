"""External data: which files a model's tensors lie in, and taking them along.

A tensor whose `data_location` is EXTERNAL names a file by a path relative to the model's folder,
with an offset and a length (https://onnx.ai/onnx/repo-docs/ExternalData.html). A model is untrusted
input: a location that is absolute or leads out of the folder, also by a symbolic link, is refused
before anything is read.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from onnx import GraphProto, ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.moving import copy_range, errors_name, replacing
from onnx_clip_pass.storage.source import Source

__all__ = ["DataFile", "HowToBring", "bring_along", "data_files", "locations"]

HowToBring = Literal["copy", "link"]
"""`copy` shares blocks with the source where the file system can; `link` makes a hard link."""

_FICLONE = 0x40049409  # Linux: let a file share all blocks of another


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of external data beside a model, and what the model needs of it."""

    location: str
    path: Path
    size: int


def locations(model: ModelProto) -> set[str]:
    """Where a model says that its external data lies, whether it is there or not."""
    return {
        entry.value
        for tensor in _external_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def data_files(model: ModelProto, folder: Path) -> list[DataFile]:
    """The external data files of a model, each once.

    Raises:
        OnnxClipError: a location leads out of `folder`, or a file is missing or too short for a
            tensor. All faults are named at once.
    """
    found: dict[Path, DataFile] = {}
    faults: list[str] = []
    for tensor in _external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = folder / location
        if path not in found:
            reason = _why_not(location, folder)
            if reason is not None:
                faults.append(f"tensor {tensor.name!r} has its data at {location!r}, {reason}")
                continue
            try:
                status = path.stat()
            except OSError as error:
                faults.append(
                    f"tensor {tensor.name!r} has its data in {str(path)!r}: {error.strerror}"
                )
                continue
            if not stat.S_ISREG(status.st_mode):
                faults.append(f"tensor {tensor.name!r}: {str(path)!r} is no regular file")
                continue
            found[path] = DataFile(location, path, status.st_size)
        fault = _range_fault(tensor, entries, found[path])
        if fault is not None:
            faults.append(fault)
    if faults:
        raise OnnxClipError("the model's external data cannot be used:", dict.fromkeys(faults))
    return list(found.values())


def bring_along(
    files: Iterable[DataFile],
    folder: Path,
    *,
    how: HowToBring,
    force: bool,
    count: Callable[[int], None],
) -> None:
    """Put data files into another folder, at the same relative paths.

    A file that is there with the same content is left alone. All are complete before the first
    appears; if one fails, none does.

    Args:
        files: what to bring.
        folder: where to.
        how: as copies or as hard links.
        force: replace files of other content, of which nothing tells whose they are.
        count: is told of bytes that are done.

    Raises:
        OnnxClipError: a file of other content is in the way, a folder leads out of `folder`, a file
            changes while it is copied, or the disk is full.
    """
    missing = _missing(files, folder, force=force)
    with ExitStack() as stack:
        for file in files:
            if file not in missing:
                count(file.size)
                continue
            target = folder / file.location
            stack.enter_context(errors_name(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(replacing(target))
            _bring(file, temporary, how, count)


# -- what a model says -------------------------------------------------------------------------


def _external_tensors(model: ModelProto) -> Iterator[TensorProto]:
    graphs: list[GraphProto] = [model.graph]
    for info in model.training_info:
        graphs += [info.initialization, info.algorithm]
    nodes = [node for function in model.functions for node in function.node]
    attributes = [attr for function in model.functions for attr in function.attribute_proto]
    for graph in graphs:  # grows while it is read
        tensors = list(graph.initializer)
        sparse = list(graph.sparse_initializer)
        attributes += [attr for node in (*nodes, *graph.node) for attr in node.attribute]
        for attr in attributes:
            if attr.HasField("t"):
                tensors.append(attr.t)
            if attr.HasField("g"):
                graphs.append(attr.g)
            if attr.HasField("sparse_tensor"):
                sparse.append(attr.sparse_tensor)
            tensors += attr.tensors
            graphs += attr.graphs
            sparse += attr.sparse_tensors
        for each in sparse:
            tensors += [each.values, each.indices]
        nodes, attributes = [], []
        yield from (t for t in tensors if t.data_location == TensorProto.EXTERNAL)


def _why_not(location: str, folder: Path) -> str | None:
    """Why a location must not be opened; None if it may."""
    if not location or "\0" in location:
        return "which is no path"
    windows = PureWindowsPath(location)
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        return "an absolute path: it must be relative to the model's folder"
    if ".." in PurePosixPath(location).parts or ".." in windows.parts:
        return "which leads out of the model's folder"
    if not _lies_in(folder / location, folder):
        return "which leads out of the model's folder by a symbolic link"
    return None


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def _range_fault(tensor: TensorProto, entries: dict[str, str], file: DataFile) -> str | None:
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or _size_of(tensor))
    except ValueError:
        return f"tensor {tensor.name!r}: offset or length of its external data is no number"
    if offset < 0 or length < 0:
        return f"tensor {tensor.name!r}: offset or length of its external data is negative"
    if offset + length > file.size:
        return (
            f"tensor {tensor.name!r} needs {str(file.path)!r} up to byte {offset + length}, "
            f"but the file has {file.size}"
        )
    return None


def _size_of(tensor: TensorProto) -> int:
    """The least number of bytes that a tensor takes, by its dims and dtype."""
    try:
        dtype = tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return 0
    per_byte = 4 if dtype.itemsize == 1 and dtype.kind not in "biu" else 1  # as 2-bit integers
    return math.prod(tensor.dims) * dtype.itemsize // per_byte


# -- taking it along ---------------------------------------------------------------------------


def _missing(files: Iterable[DataFile], folder: Path, *, force: bool) -> list[DataFile]:
    """The files that are not there yet, or only with other content."""
    missing = []
    faults = []
    for file in files:
        target = folder / file.location
        with errors_name(target):
            if not _lies_in(target.parent, folder):
                faults.append(
                    f"{str(target)!r} lies outside the output's folder, by a symbolic link"
                )
            elif not os.path.lexists(target):
                missing.append(file)
            elif target.is_dir():  # no file can be renamed to it
                faults.append(
                    f"{str(target)!r} is a folder, where a data file is to lie; move it away, or "
                    f"write to another folder"
                )
            elif not _same(file.path, target):
                missing.append(file)
                if not force:
                    faults.append(
                        f"{str(target)!r} exists with other content; pass --force (in Python: "
                        f"force=True) to replace it, or write to another folder"
                    )
    if faults:
        raise OnnxClipError("the external data cannot be put beside the output:", faults)
    return missing


def _same(a: Path, b: Path) -> bool:
    if not b.is_file():
        return False
    if b.samefile(a):
        return True
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while block := one.read(1 << 20):
            if block != other.read(1 << 20):
                return False
    return True


def _bring(file: DataFile, temporary: Path, how: HowToBring, count: Callable[[int], None]) -> None:
    if how == "link":
        temporary.unlink()
        try:
            os.link(file.path.resolve(), temporary)
        except OSError as error:
            raise OnnxClipError(
                f"{str(file.path)!r} cannot be linked there ({error.strerror}); use "
                f"--external-data copy (in Python: external_data='copy')"
            ) from error
        count(file.size)
        return
    # Not "wb": ext4 writes a file that was cut to nothing to disk when it is closed.
    with Source(file.path) as source, temporary.open("r+b") as out:
        if source.size != file.size:
            raise OnnxClipError(
                f"{str(file.path)!r} had {file.size} bytes and now has {source.size}: it was "
                f"changed while it was being read; nothing was written"
            )
        if _share_blocks(source.descriptor, out.fileno()):
            count(file.size)
        else:
            copy_range(source.descriptor, out.fileno(), 0, file.size, count)
        source.check_unchanged()
    shutil.copymode(file.path, temporary)


def _share_blocks(source: int, target: int) -> bool:
    """Let the file system give the new file the blocks of the old one (a reflink)."""
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True
