"""Reading a file by position, in windows, and noticing when it changes meanwhile."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.leftovers import unfinished

__all__ = ["Memory", "Source"]

_WINDOW = 1 << 18


class Memory:
    """Bytes that are in memory, read as a `Source` is."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def at(self, start: int, end: int) -> bytes:
        return self._data[start:end]


class Source:
    """A file open for positioned reads. Never mapped: a file cut short would kill the process.

    Use as a context manager. Several threads must not share one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()
        self._opened_as = os.fstat(self.descriptor)
        self._window = b""
        self._window_at = 0

    def _open(self) -> None:
        try:
            # Not to wait for whoever writes to a pipe.
            flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            self.descriptor = os.open(self.path, os.O_RDONLY | flags)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, FileNotFoundError):
                reason = unfinished(self.path) or reason
            raise OnnxClipError(f"cannot read {str(self.path)!r}: {reason}") from error
        mode = os.fstat(self.descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            os.close(self.descriptor)
            raise OnnxClipError(
                f"cannot read {str(self.path)!r}: expected a file, of which any part can be read "
                f"at any time, not a pipe or device; save what comes out of it first (cat > FILE)"
            )

    def reopened(self) -> Source:
        """Open the file again once it is closed, as it was; use it as a context manager, too.

        Raises:
            OnnxClipError: it cannot be read, or is another by now.
        """
        self._open()
        try:
            self.check_unchanged()
        except OnnxClipError:
            os.close(self.descriptor)
            raise
        return self

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self._opened_as.st_mode)

    @property
    def size(self) -> int:
        """Its size in bytes when it was opened."""
        return self._opened_as.st_size

    @property
    def mode(self) -> int:
        """Its permissions."""
        return stat.S_IMODE(self._opened_as.st_mode)

    def at(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; fewer if the file ends before."""
        low = start - self._window_at
        if low < 0 or end - self._window_at > len(self._window):
            if end - start >= _WINDOW:
                return self._read(start, end)
            self._window = self._read(start, min(start + _WINDOW, self.size))
            self._window_at, low = start, 0
        return self._window[low : low + end - start]

    def check_unchanged(self) -> None:
        """Refuse a file that another process has written to or replaced since it was opened.

        The time of its last change tells that also where the time of writing was set back; it
        changes with permissions and names, too, for which a file is refused in vain.

        Raises:
            OnnxClipError: its size or one of its times is another, or another file has its name.
        """
        if self._is_as_opened():
            return
        raise OnnxClipError(
            f"{str(self.path)!r} was changed while it was being read; nothing was written; "
            f"try again when it is complete"
        )

    def _is_as_opened(self) -> bool:
        then = self._opened_as
        try:
            now = os.fstat(self.descriptor)
            has_its_name = os.path.samestat(now, self.path.stat())
        except OSError:  # it is gone
            return False
        facts = "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"
        return has_its_name and all(getattr(then, each) == getattr(now, each) for each in facts)

    def _read(self, start: int, end: int) -> bytes:
        chunks = []
        try:
            while start < end:
                chunk = _pread(self.descriptor, min(end - start, 1 << 30), start)
                if not chunk:
                    break
                chunks.append(chunk)
                start += len(chunk)
        except OSError as error:
            raise OnnxClipError(f"cannot read {str(self.path)!r}: {error.strerror}") from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _pread(descriptor: int, count: int, position: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, position)
    os.lseek(descriptor, position, os.SEEK_SET)
    return os.read(descriptor, count)
