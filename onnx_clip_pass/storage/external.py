"""External data: which files a model's tensors lie in, and taking them along.

A tensor whose `data_location` is EXTERNAL names a file by a path relative to the model's folder,
with an offset and a length (https://onnx.ai/onnx/repo-docs/ExternalData.html). A model is untrusted
input. Before anything is read:

1. A location that is absolute, or leads out of the folder by "..", is refused.
2. So is one that leads out by a symbolic link, unless the user trusts the model.
3. Into another folder come, without that trust, no files under a hidden name (`.git/hooks/…`), and
   none with several names, of which one may be somebody's secret.

What comes along is never executable.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from onnx import GraphProto, ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.journal import PREFIX
from onnx_clip_pass.storage.moving import copy_range, new_file, share_blocks
from onnx_clip_pass.storage.sets import errors_name
from onnx_clip_pass.storage.source import Source
from onnx_clip_pass.storage.targets import unforced

__all__ = [
    "DataFile",
    "ExternalDataMode",
    "copy_external_data",
    "data_files",
    "locations",
    "missing_files",
    "tensors_of",
]

ExternalDataMode = Literal["copy", "link"]
"""`copy` shares blocks with the source where the file system can; `link` makes a hard link."""

_TRUST = "pass --trust-data (in Python: trust_data=True) if you know that it is the model's"
_DIGITS = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of external data beside a model, and what the model needs of it."""

    location: str
    path: Path
    size: int


def locations(model: ModelProto) -> set[str]:
    """The locations of a model's external data, whether it is there or not."""
    return {
        entry.value
        for tensor in _external_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def data_files(model: ModelProto, folder: Path, *, trust: bool = False) -> list[DataFile]:
    """The external data files of a model, each once.

    Args:
        model: what names them.
        folder: where it lies.
        trust: follow symbolic links out of the folder.

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
            reason = _why_not(location, folder, trust=trust)
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


def missing_files(
    files: Iterable[DataFile], folder: Path, *, force: bool, trust: bool
) -> list[DataFile]:
    """The data files that are not in another folder yet, or only with other content.

    Args:
        files: what is to lie there, at the same relative paths.
        folder: where.
        force: files of other content, of which nothing tells whose they are, may be replaced.
        trust: take along what a model must not name without its user's word.

    Raises:
        OnnxClipError: something is in the way, a folder leads out of `folder`, or a file must not
            come along. All faults are named at once.
    """
    missing = []
    faults = []
    for file in files:
        target = folder / file.location
        with errors_name(target):
            if not _lies_in(target.parent, folder):
                faults.append(
                    f"{str(target)!r} lies outside the output's folder, by a symbolic link"
                )
                continue
            if target.is_dir():  # no file can be renamed to it
                faults.append(
                    f"{str(target)!r} is a folder, where a data file is to lie; move it away, or "
                    f"write to another folder"
                )
                continue
            is_there = os.path.lexists(target)
            if is_there and _same(file.path, target):
                continue
            missing.append(file)
            reason = "" if trust else _why_untrusted(file)
            if reason:
                faults.append(f"{str(file.path)!r} {reason}; {_TRUST}")
            if is_there and not force:
                why = "exists with other content"
                faults.append(unforced(target, why, "write to another folder"))
    if faults:
        raise OnnxClipError("the external data cannot be put beside the output:", faults)
    return missing


def copy_external_data(
    file: DataFile,
    path: Path,
    how: ExternalDataMode,
    count: Callable[[int], None],
    mode: int = 0o666,
) -> None:
    """Make a copy of a file, or a link to it.

    Args:
        file: what to copy.
        path: what to make; nothing is there.
        how: as a copy or as a hard link.
        count: is told of bytes that are done.
        mode: what a copy may take over of the file's permissions.

    Raises:
        OnnxClipError: the file has changed since it was looked at, or cannot be linked.
    """
    if how == "link":
        try:
            os.link(file.path.resolve(), path)
        except OSError as error:
            raise OnnxClipError(
                f"{str(file.path)!r} cannot be linked there ({error.strerror}); use "
                f"--external-data copy (in Python: external_data='copy')"
            ) from error
        count(file.size)
        return
    with Source(file.path) as source, new_file(path, source.mode & mode) as out:
        if source.size != file.size:
            raise OnnxClipError(
                f"{str(file.path)!r} had {file.size} bytes and now has {source.size}: it was "
                f"changed while it was being read; nothing was written"
            )
        if share_blocks(source.descriptor, out):
            count(file.size)
        else:
            copy_range(source.descriptor, out, 0, file.size, count)
        source.check_unchanged()


# -- what a model says -------------------------------------------------------------------------


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors: initializers, dense or sparse, and those in attributes, whatever holds them."""
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
        yield from tensors


def _external_tensors(model: ModelProto) -> Iterator[TensorProto]:
    return (t for t in tensors_of(model) if t.data_location == TensorProto.EXTERNAL)


def _why_not(location: str, folder: Path, *, trust: bool) -> str | None:
    """The reason why a location must not be opened; None if it may."""
    if not location or "\0" in location:
        return "which is no path"
    windows = PureWindowsPath(location)
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root:  # rule 1
        return "an absolute path: it must be relative to the model's folder"
    if ".." in _parts(location):  # rule 1
        return "which leads out of the model's folder"
    if any(part.startswith(PREFIX) for part in _parts(location)):
        return "a name that onnx-clip keeps for itself"
    if not trust and not _lies_in(folder / location, folder):  # rule 2
        return f"which leads out of the model's folder by a symbolic link; {_TRUST}"
    return None


def _parts(location: str) -> set[str]:
    """The names of which a path is made, whichever system reads it."""
    return {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def _range_fault(tensor: TensorProto, entries: dict[str, str], file: DataFile) -> str | None:
    texts = [entries.get("offset") or "0", entries.get("length") or str(_size_of(tensor))]
    if not all(map(_DIGITS.fullmatch, texts)):
        return f"tensor {tensor.name!r}: offset or length of its external data is no number"
    offset, length = map(int, texts)
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


def _why_untrusted(file: DataFile) -> str:
    """The reason why a file must not come along because a model names it; "" if it may (rule 3)."""
    if any(part.startswith(".") for part in _parts(file.location)):
        return "has a hidden name, as what steers other programs has"
    names = file.path.stat().st_nlink
    if names > 1:
        return f"has {names} names (hard links), of which others may lie outside the model's folder"
    return ""


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
