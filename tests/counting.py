"""How work grows with the input, by counting and never by the clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import onnx_clip_pass

__all__ = ["growth", "lines"]

_PACKAGE = str(Path(onnx_clip_pass.__file__).parent)


def lines(run: Callable[[], object]) -> int:
    """The lines of the package that are executed while `run` runs; a loop counts each iteration."""
    count = 0

    def inside(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
        return inside

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return inside if frame.f_code.co_filename.startswith(_PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def growth(prepare: Callable[[int], Callable[[], object]], size: int) -> float:
    """By what the work is multiplied where the size is doubled: 2 if it is linear, 4 if quadratic.

    Args:
        prepare: makes the input of a size, which does not count, and gives what works on it.
        size: large enough that what does not grow is little.
    """
    prepare(2 * size)()  # what is imported or kept at the first time
    return lines(prepare(2 * size)) / lines(prepare(size))
