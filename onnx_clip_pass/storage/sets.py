"""Putting new content in the place of old, one file, a folder or several files as one.

What happens on disk, and what is left where it is cut short: `journal.py`. New content that
replaces nothing is not forced to disk: it has nothing to lose, and waiting would make it three
times as slow as `cp`, which does not wait either.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.journal import Entry, Journal, walk
from onnx_clip_pass.storage.leftovers import check_alone
from onnx_clip_pass.storage.moving import sync

__all__ = ["errors_name", "replacing"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EPERM, errno.EXDEV}
"""ENOENT: there is nothing to exchange any more. EXDEV: a mount point, as a rename will say too."""


@contextmanager
def replacing(
    target: Path, others: Sequence[Path] = (), *, root: Path | None = None
) -> Iterator[dict[Path, Path]]:
    """The paths at which to make new content; all are moved into place when the block ends.

    If the block or anything after it raises, every path is as it was. What replaces a file or
    folder keeps its mode and, where the system lets us, its owner.

    Args:
        target: the main path: it takes its place last, and is never there beside a mixture.
        others: further files.
        root: the folder in which they all are; that of `target` if None.

    Raises:
        OnnxClipError: instead of an `OSError`; it says what has changed.
    """
    journal = Journal(target.parent if root is None else root, [target, *others])
    try:
        journal.create()
        yield {entry.target: entry.fresh for entry in journal.entries}
        for entry in journal.entries:
            _seal(entry, must_last=journal.must_last)
        journal.begin()
        check_alone(journal)
        _move_into_place(journal)
        journal.is_done = True
    except BaseException as error:
        is_done = _settled(journal, error)
        if not isinstance(error, OSError):
            raise
        if not is_done:  # NFS, for one, may report the failure of what it has done
            raise _refusal(target, error) from error
    else:
        _settled(journal)


@contextmanager
def errors_name(target: Path) -> Iterator[None]:
    """Turn what the system reports into an error that says which file could not be written.

    Only for what happens before anything takes its place.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(target, error) from error


def _refusal(target: Path, error: OSError) -> OnnxClipError:
    return OnnxClipError(
        f"cannot write {str(target)!r}: {error.strerror}; nothing there has changed"
    )


def _settled(journal: Journal, cause: BaseException | None = None) -> bool:
    """Finish or undo, and return whether the new content is in place."""
    main = journal.entries[0]
    shown = repr(str(main.target))
    try:
        return journal.settle()
    except OSError as error:
        why = getattr(cause, "strerror", None) or type(cause).__name__
        if journal.is_done or main.is_placed:
            fault = (
                f"{shown} is written, but may not outlast a power cut, or leaves something behind"
            )
        elif any(os.path.lexists(entry.old) for entry in journal.entries):
            fault = f"cannot write {shown}: {why}; what was there could not be put back"
        else:
            fault = f"cannot write {shown}: {why}; what was written could not be removed"
        raise OnnxClipError(
            f"{fault} ({error.strerror}); run the same command again: it puts that in order first"
        ) from error
    finally:
        journal.close()


def _move_into_place(journal: Journal) -> None:
    """Let the new content take its place; an exception may leave that half done."""
    main, *others = journal.entries
    is_folder = main.fresh.is_dir()
    if is_folder and main.had and _exchange(main.fresh, main.target):
        return
    if main.had and (is_folder or any(other.had for other in others)):
        with suppress(FileNotFoundError):
            main.target.rename(main.old)
        journal.sync_folders()
    for other in others:
        if other.had:
            other.target.rename(other.old)
        other.fresh.replace(other.target)
    if others:
        journal.sync_folders()
    main.fresh.replace(main.target)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at once; return whether this system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _seal(entry: Entry, *, must_last: bool) -> None:
    """Make new content ready to take its place."""
    if must_last:
        if entry.fresh.is_dir():
            for current, _, names in walk(entry.fresh):
                for path in (*(current / name for name in names), current):
                    sync(path)
        else:
            sync(entry.fresh)
    with suppress(FileNotFoundError):
        _keep(entry.target.lstat(), entry.fresh)


def _keep(was: os.stat_result, fresh: Path) -> None:
    """Give new content the mode and owner of what it replaces."""
    now = fresh.lstat()
    is_linked = stat.S_ISREG(now.st_mode) and now.st_nlink > 1  # to the source, which keeps its own
    if stat.S_IFMT(was.st_mode) != stat.S_IFMT(now.st_mode) or is_linked:
        return
    mode = stat.S_IMODE(was.st_mode)
    if (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
        for user in (was.st_uid, -1):
            with suppress(OSError):
                os.chown(fresh, user, was.st_gid)
                break
        if fresh.lstat().st_gid != was.st_gid:
            mode &= ~stat.S_IRWXG  # which would be another group's
    if not stat.S_ISDIR(now.st_mode):
        mode &= 0o777
    with suppress(PermissionError):  # of file systems without modes
        fresh.chmod(mode)
