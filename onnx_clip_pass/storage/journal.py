"""The journal of a replacement: what is to be finished or undone if its run ends in between.

A replacement puts new content in the place of old: one file, a folder, or several files as one, of
which the first, a model, is the *main* one. Everything that it makes has the token of its journal:

    .onnx-clip-<user>.journals/<token>    beside the main path, from before the first new file until
                                          after the last old one is gone; locked while its run lives
    .onnx-clip-<token>.<n>.new            the new content of the n-th path, beside it
    .onnx-clip-<token>.<n>.old            what was there, moved aside

1. The journal lists the paths. All new content is written beside its places; where something is
   replaced, it is forced to disk.
2. The journal notes which new content it is (*begun*).
3. Several files, of which any but the main one is there already: the main one is moved aside, so
   that nobody loads a mixture. The others change places.
4. The main one takes its place, by one rename. That is the commit: before it, everything is undone,
   after it, finished. A folder is exchanged for the old one (RENAME_EXCHANGE); where that cannot be
   done it is moved aside as in 3.
5. What was moved aside is removed, and the journal last.

So a run that dies leaves the old content or the new, or, in 3, no main path at all: readers fail,
and `unfinished` says why. A later run finds the journal without its lock, and settles it. It
touches nothing but files with the token, and paths that hold what the journal notes or nothing. A
journal is taken for ours if it belongs to this user, and its paths stay in its folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.locking import has_ended, lock, owner
from onnx_clip_pass.storage.moving import sync, write_all

__all__ = ["PREFIX", "Entry", "Journal", "files_in", "journals_in", "walk"]

PREFIX = ".onnx-clip-"
"""The beginning of the names of all that is made beside an output, and removed again."""

_TOKEN = re.compile(r"[0-9a-f]{16}")
_HEAD = b'{"onnx-clip journal": 1, "paths": '
_MOST_BYTES = 1 << 26


@dataclass(slots=True)
class Entry:
    """A path that is replaced, and where its new and its old content are meanwhile."""

    target: Path
    fresh: Path
    old: Path
    had: bool
    """True if the path was there before."""
    identity: list[int] | None = None
    """Of the new content, once the journal has begun."""

    @property
    def is_placed(self) -> bool:
        """True if the new content is in its place."""
        return self.identity is not None and _identity(self.target) == self.identity


class Journal:
    """A replacement of `targets`, the main one first; nothing is written before `create`."""

    def __init__(self, root: Path, targets: Sequence[Path], token: str = "") -> None:
        self.root = root
        self.token = token or secrets.token_hex(8)
        self.path = folder_of(root) / self.token
        self.entries = [self._entry(target, number) for number, target in enumerate(targets)]
        self.made: list[Path] = []  # folders that were not there
        self.is_begun = False
        self.is_done = False
        self._descriptor: int | None = None
        self._owner = ("", 0)

    @property
    def must_last(self) -> bool:
        """True if a power cut could cost something that was there."""
        return any(entry.had for entry in self.entries)

    def create(self) -> None:
        """Write the journal and the folders that the paths need."""
        for folder in {entry.target.parent: None for entry in self.entries}:
            missing = [each for each in (folder, *folder.parents) if not each.exists()]
            self.made += [each for each in reversed(missing) if each not in self.made]
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        while self._descriptor is None:
            with suppress(FileExistsError):
                self.path.parent.mkdir(0o700)  # not found: a folder that takes none, as in /proc
            if self.path.parent.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            try:
                descriptor = os.open(self.path, flags, 0o600)
            except FileNotFoundError:  # another run has just removed the folder of journals
                continue
            lock(descriptor, wait=True)
            if os.fstat(descriptor).st_nlink:  # else one who found it without lock removed it
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        paths = json.dumps([self._relative(entry.target) for entry in self.entries]).encode()
        made = json.dumps([self._relative(each) for each in self.made])
        rest = f', "made": {made}, "owner": {json.dumps(owner())}}}\n'
        write_all(self._descriptor, _HEAD + paths + rest.encode())
        for each in self.made:
            each.mkdir()

    def read(self) -> bool:
        """Open a journal and take over what it says; return whether it is one, of this user."""
        if not stat.S_ISREG(self.path.lstat().st_mode):
            return False
        self._descriptor = os.open(self.path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        status = os.fstat(self._descriptor)
        is_mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
        if not is_mine or status.st_size > _MOST_BYTES:
            return False
        data = b"".join(iter(lambda: os.read(self._descriptor or -1, 1 << 16), b""))
        head, _, note = data.partition(b"\n")
        if not head.endswith(b"}"):  # its run died before it made anything
            return _HEAD.startswith(head[: len(_HEAD)])
        try:
            listing = json.loads(head)
            paths = [_vetted(self.root, each) for each in listing["paths"]]
            self.made = [_vetted(self.root, each) for each in listing["made"]]
            host, process = listing["owner"]
            self._owner = str(host), int(process)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        self.entries = [self._entry(path, number) for number, path in enumerate(paths)]
        self.is_begun = _take(self.entries, note)
        return bool(paths)

    def lock(self) -> bool:
        """Lock the journal; return whether its run has ended and it is still there."""
        assert self._descriptor is not None
        is_locked = lock(self._descriptor, wait=False)
        if is_locked is None:
            is_locked = has_ended(*self._owner)
        return is_locked and bool(os.fstat(self._descriptor).st_nlink)

    def begin(self) -> None:
        """Note what the new content is; from here on a later run knows what to undo."""
        assert self._descriptor is not None
        for entry in self.entries:
            entry.had, entry.identity = os.path.lexists(entry.target), _identity(entry.fresh)
        note = json.dumps([[entry.had, entry.identity] for entry in self.entries])
        write_all(self._descriptor, note.encode() + b"\n")
        self.is_begun = True
        is_one_file = len(self.entries) == 1 and not self.entries[0].fresh.is_dir()
        if self.must_last and not is_one_file:  # which one rename replaces
            os.fsync(self._descriptor)
            sync(self.path.parent)
            sync(self.root)

    def settle(self) -> bool:
        """Finish the replacement if it is committed, else undo it, and remove what is left of it.

        An interrupt waits until that is done, a second one does not.

        Returns:
            Whether the new content is in place.

        Raises:
            OSError: something could not be moved or removed; to be tried again.
            OnnxClipError: something else was put where it is to be undone, and nothing was touched;
                or in an old folder, which is kept.
        """
        try:
            return self._settle()
        except KeyboardInterrupt:
            self._settle()
            raise

    def _settle(self) -> bool:
        is_done = self.is_done or (self.is_begun and self.entries[0].is_placed)
        if is_done:
            self.sync_folders()  # before what could replace it after a power cut is removed
        elif self.is_begun:
            self._undo()
        kept = [
            path
            for entry in self.entries
            for path in (entry.fresh, entry.old)
            if not _drop(path, entry.target if is_done else None)
        ]
        if not is_done:
            for folder in reversed(self.made):
                with suppress(OSError):  # somebody uses it, or it is gone
                    folder.rmdir()
        self.close()  # before it is removed: Windows wants that
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # other runs have theirs there
            self.path.parent.rmdir()
        if kept:
            raise OnnxClipError(
                f"{str(self.entries[0].target)!r} is written; something appeared in the old folder "
                f"while it was replaced, and is kept in {str(kept[0])!r}"
            )
        return is_done

    def close(self) -> None:
        """Let go of the journal, whatever state it is in."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)

    def overlaps(self, other: Journal) -> bool:
        """True if both replace a path, and at least one of them several."""
        mine = {entry.target for entry in self.entries}
        theirs = {entry.target for entry in other.entries}
        return bool(mine & theirs) and max(len(mine), len(theirs)) > 1

    def _undo(self) -> None:
        main, *others = self.entries
        if not (os.path.lexists(main.fresh) or os.path.lexists(main.old)):
            return  # that is done, or somebody has written the main one again
        foreign = [each for each in self.entries if _is_foreign(each)]
        if foreign:
            raise OnnxClipError(
                "a run of onnx-clip did not finish, and what it was replacing has been written "
                "since by somebody else: keep what you need of both, then remove "
                f"{str(self.path)!r}",
                [f"{str(e.target)!r}, replaced: {str(e.old)!r}" for e in foreign],
            )
        for entry in others:
            if os.path.lexists(entry.old):
                entry.old.replace(entry.target)
            elif entry.is_placed and not entry.had:
                entry.target.unlink()
        self.sync_folders()
        if os.path.lexists(main.old):
            main.old.replace(main.target)
            self.sync_folders()

    def sync_folders(self) -> None:
        """Force to disk where the paths lead, if a power cut could cost something."""
        if self.must_last:
            for folder in {entry.target.parent: None for entry in self.entries}:
                sync(folder)

    def _entry(self, target: Path, number: int) -> Entry:
        name = f"{PREFIX}{self.token}.{number}"
        fresh, old = target.with_name(f"{name}.new"), target.with_name(f"{name}.old")
        return Entry(target, fresh, old, os.path.lexists(target))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def folder_of(root: Path) -> Path:
    """The folder of the journals of this user's runs."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    return root / f"{PREFIX}{user}.journals"


def journals_in(root: Path) -> list[Journal]:
    """The journals of runs into a folder, not read yet."""
    folder = folder_of(root)
    try:
        if folder.is_symlink():
            return []
        names = sorted(entry.name for entry in os.scandir(folder))
    except (OSError, ValueError):  # there are none, or no such folder, which others will say
        return []
    return [Journal(root, [], name) for name in names if _TOKEN.fullmatch(name)]


def files_in(folder: Path) -> list[str]:
    """Everything in a folder that is no folder, links included.

    Raises:
        OSError: part of it cannot be listed.
    """
    return sorted(
        (current / name).relative_to(folder).as_posix()
        for current, folders, names in walk(folder)
        for name in (*names, *(each for each in folders if (current / each).is_symlink()))
    )


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """The folders and files of `os.walk`, from the innermost folders outwards.

    Raises:
        OSError: a folder cannot be listed, of which `os.walk` says nothing.
    """

    def fail(error: OSError) -> None:
        raise error

    for current, folders, names in os.walk(folder, topdown=False, onerror=fail):
        yield Path(current), folders, names


def _take(entries: list[Entry], note: bytes) -> bool:
    """Take over what a journal notes as it begins; False where it has not."""
    try:
        found = json.loads(note)
        for entry, (had, identity) in zip(entries, found, strict=True):
            ino, changed = identity
            if not all(isinstance(each, int) for each in (ino, changed)):
                return False
            entry.had, entry.identity = bool(had), [ino, changed]
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _vetted(root: Path, text: Any) -> Path:
    """A path within a folder.

    Raises:
        ValueError: it is none.
    """
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError(text)
    place = root / path
    try:
        is_inside = place.parent.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:
        raise ValueError(text) from error
    if not is_inside:
        raise ValueError(text)
    return place


def _identity(path: Path) -> list[int] | None:
    """The identity of content, wherever it is renamed to; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return [status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns]


def _is_foreign(entry: Entry) -> bool:
    """True if undoing would remove what the journal does not know."""
    if os.path.lexists(entry.old):
        return os.path.lexists(entry.target) and not entry.is_placed
    return entry.fresh.is_dir() and _identity(entry.fresh) != entry.identity


def _drop(path: Path, successor: Path | None) -> bool:
    """Remove a file, or of a folder all that its successor has too, or all of it without one.

    Returns:
        Whether nothing is left of it.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return True
    if successor is None:
        shutil.rmtree(path)
        return True
    ours = set(files_in(successor))
    for current, _, names in walk(path):
        for each in (current / name for name in names):
            if each.relative_to(path).as_posix() in ours:
                each.unlink()
        try:
            current.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    return not path.exists()
