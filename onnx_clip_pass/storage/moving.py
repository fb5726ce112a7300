"""Moving bytes from file to file inside the kernel, and putting a finished file in place.

The new content of a path goes into a temporary file in the same folder and takes the path over by a
rename, so that the path holds the old content or the new one, whole, at any moment. Killed at any
point, nothing but a temporary file is left, at which no later run looks.

Where the path held a file before, the new content is forced to disk first, so that a power cut
cannot cost both. A new path has nothing to lose, and waiting for the disk would make it three times
as slow as `cp`, which does not wait either.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_clip_pass.errors import OnnxClipError

__all__ = ["Progress", "copy_range", "errors_name", "replacing", "write_all"]

Progress = Callable[[int, int], None]
"""Is told how many bytes are done, and of how many."""

_BLOCK = 1 << 26
_SMALL_BLOCK = 1 << 20
_NOT_HERE = {
    errno.EBADF,
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSOCK,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EXDEV,
}
"""How a system says that it cannot copy between two files by itself."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file that becomes `target` when the block ends, and vanishes if it raises."""
    must_last = target.is_file()
    descriptor, name = tempfile.mkstemp(
        prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        if must_last:
            _sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if must_last and os.name == "posix":  # elsewhere a folder cannot be opened
        _sync(target.parent)


@contextmanager
def errors_name(target: Path) -> Iterator[None]:
    """Turn what the system reports into an error that says which file could not be written."""
    try:
        yield
    except OSError as error:
        raise OnnxClipError(
            f"cannot write {str(target)!r}: {error.strerror}; nothing there has changed"
        ) from error


def copy_range(
    source: int, target: int, start: int, end: int, progress: Callable[[int], None] | None = None
) -> int:
    """Append the bytes from `start` to `end` of one file descriptor to another.

    Returns:
        How many bytes there were: fewer than asked for if the source ends before.
    """
    at = start
    while at < end:
        copied = _copy_block(source, target, at, min(end - at, _BLOCK))
        if not copied:
            break
        at += copied
        if progress is not None:
            progress(copied)
    return at - start


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _copy_block(source: int, target: int, at: int, count: int) -> int:
    """Copy some bytes by the best means that this system has for these files."""
    if hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(source, target, count, at)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
        else:
            if copied:  # some file systems answer 0 where they cannot
                return copied
    if hasattr(os, "sendfile"):
        try:
            return os.sendfile(target, source, at, count)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    os.lseek(source, at, os.SEEK_SET)
    block = os.read(source, min(count, _SMALL_BLOCK))
    write_all(target, block)
    return len(block)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
