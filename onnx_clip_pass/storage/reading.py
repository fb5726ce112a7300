"""Opening what a user names: regular files alone, which end and are there at once.

A pipe would be waited for, a device may never end, and both can be read but once.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

import onnx
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.messages import check_messages
from onnx_clip_pass.storage.texts import explained

__all__ = ["open_regular", "read_messages", "read_text"]

_LARGEST_TEXT = 4 << 20
_HEAD = 1 << 10


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


def read_messages(path: Path) -> ModelProto:
    """Return the messages of a model, which has its weights but for those in files of their own.

    Raises:
        OnnxClipError: it cannot be read, or is no model.
    """
    called = repr(str(path))
    with open_regular(path) as file:
        try:
            check_messages(file.read(), called)
            file.seek(0)
            return onnx.load(file, load_external_data=False)
        except OSError as error:
            raise OnnxClipError(f"cannot read {called}: {error.strerror}") from error
        except OnnxClipError:
            raise
        except Exception as error:  # protobuf and onnx raise several kinds
            file.seek(0)
            known = explained(path, file.read(_HEAD))
            raise OnnxClipError(known or f"{called} is no ONNX model: {error}") from error


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
