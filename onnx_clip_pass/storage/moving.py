"""Moving bytes from file to file, inside the kernel where that can be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["copy_range", "new_file", "share_blocks", "sync", "write_all"]

_FICLONE = 0x40049409  # Linux: let a file share all blocks of another
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
"""The errors by which a system says that it cannot copy between two files by itself."""


@contextmanager
def new_file(path: Path, mode: int) -> Iterator[int]:
    """The descriptor of a file that is made, with a mode that the umask reduces."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Force a file to disk, or the names in a folder."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def share_blocks(source: int, target: int) -> bool:
    """Let the file system give an empty file the blocks of another, where it can (a reflink)."""
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True


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
