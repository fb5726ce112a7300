"""Locks that end with their process, however it ends."""

from __future__ import annotations

import errno
import os
import platform
import sys

__all__ = ["has_ended", "lock", "owner"]

_HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30  # what is locked there cannot be read by others: not where anything is written

    def _take(descriptor: int, *, wait: bool) -> None:
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, at, os.SEEK_SET)
else:
    import fcntl

    def _take(descriptor: int, *, wait: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def lock(descriptor: int, *, wait: bool) -> bool | None:
    """Lock an open file for as long as it is open.

    Returns:
        Whether it is locked now, and not by another process; None where the file system has no
        locks, as Lustre by default.
    """
    try:
        _take(descriptor, wait=wait)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def owner() -> list[str | int]:
    """The identity of this process, to be noted where there are no locks."""
    return [platform.node(), os.getpid()]


def has_ended(host: str, process: int) -> bool:
    """Return whether a process is known to have ended; of other hosts nothing is known."""
    if host != platform.node() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
