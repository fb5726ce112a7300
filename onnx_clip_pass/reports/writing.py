"""Writing a page where the user named it, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from onnx_clip_pass.arguments import check_path
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.page import GENERATOR
from onnx_clip_pass.storage import errors_name, file_at, write_bytes

__all__ = ["check_page_target", "write_page"]

_MARK = f'<meta name="generator" content="{GENERATOR}">'.encode()
_HEAD = 4096


def check_page_target(target: Path) -> None:
    """Refuse a path that no page can be written to, or at which something else is.

    Raises:
        OnnxClipError: its folder is not there, or a file is that is no page of ours.
    """
    with errors_name(target):
        if not file_at(target, "report.html"):
            return
        with target.open("rb") as file:
            is_ours = _MARK in file.read(_HEAD)
    if not is_ours:
        raise OnnxClipError(
            f"{str(target)!r} exists and is no page of onnx-clip; remove it, or give another name"
        )


def write_page(target: str | os.PathLike[str], text: str) -> None:
    """Write a page whole or not at all, over an older page if there is one.

    Raises:
        OnnxClipError: as `check_page_target`, or the disk is full.
    """
    check_path("target", target)
    check_page_target(Path(target))
    write_bytes(Path(target), text.encode())
