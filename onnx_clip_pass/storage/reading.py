"""Opening what a user names: regular files alone, which end and are there at once.

A pipe would be waited for, a device may never end, and both can be read but once.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from onnx_clip_pass.errors import OnnxClipError

__all__ = ["open_regular", "read_text"]

_LARGEST_TEXT = 4 << 20


def open_regular(path: Path, what: str = "") -> IO[bytes]:
    """Open a regular file for reading.

    Args:
        path: the file.
        what: what it is to be, for errors: "the feeds ".

    Raises:
        OnnxClipError: it cannot be read, or is a folder, a pipe, a device.
    """
    try:
        file = open(path, "rb", opener=_at_once)  # noqa: SIM115 - paths take no opener
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise OnnxClipError(f"cannot read {what}{str(path)!r}: {reason}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OnnxClipError(
            f"cannot read {what}{str(path)!r}: expected a file, not a folder, pipe or device"
        )
    return file


def read_text(path: Path, what: str = "") -> bytes:
    """Return the bytes of a text that is written by hand, which is never long.

    Raises:
        OnnxClipError: it cannot be read, is no regular file, or is too long.
    """
    with open_regular(path, what) as file:
        try:
            data = file.read(_LARGEST_TEXT + 1)
        except OSError as error:
            raise OnnxClipError(f"cannot read {what}{str(path)!r}: {error.strerror}") from error
    if len(data) > _LARGEST_TEXT:
        raise OnnxClipError(
            f"{what}{str(path)!r} has more than {_LARGEST_TEXT:,} bytes, more than any needs"
        )
    return data


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever writes to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
