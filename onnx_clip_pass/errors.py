"""The one error that every caller needs to catch, and the one category of warnings."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Sequence

__all__ = ["OnnxClipError", "OnnxClipWarning", "listed", "shortened", "shown", "warn"]

_SHOWN = 10
_SHORTEST_LONG = 1000
_LONG_NAME = re.compile(r"\S{1000,}|'[^'\n]{1000,}'")
_LONGEST_LINE = 3000
_SHOWN_OF_NAME = 240
_LONGEST_VALUE = 100
_LARGEST = 1 << 63


class OnnxClipError(Exception):
    """Something a user can cause and mend: what was expected, what arrived, what to do next.

    The command line prints `message` without a traceback and exits with code 2.
    `faults` holds each fault on its own where several were found before anything was changed; the
    message shows the first few of them.
    """

    def __init__(self, message: str, faults: Iterable[str] = ()) -> None:
        self.faults = tuple(map(shortened, faults))
        shown = [f"  - {fault}" for fault in self.faults[:_SHOWN]]
        more = [f"  and {len(self.faults) - _SHOWN} more"] if self.faults[_SHOWN:] else []
        super().__init__("\n".join([shortened(message), *shown, *more]))


class OnnxClipWarning(UserWarning):
    """Something to know of a model that is clipped all the same.

    Calls that return a model in memory give these; where a report or a plan is returned, its
    `warnings` say the same. `warnings.simplefilter("error", OnnxClipWarning)` makes errors of them.
    """


def warn(messages: Iterable[str]) -> None:
    """Give warnings in the place of the caller's that called this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    for message in messages:
        warnings.warn(shortened(message), OnnxClipWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == __name__.split(".")[0]


def shortened(text: str) -> str:
    """Return a text without the middle of names and lines that nobody reads to their end."""
    if len(text) < _SHORTEST_LONG:
        return text
    names = _LONG_NAME.sub(lambda name: _without_middle(name[0], _SHOWN_OF_NAME), text)
    return "\n".join(_without_middle(line, _LONGEST_LINE) for line in names.split("\n"))


def _without_middle(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    first, last = length * 2 // 3, length // 3
    return f"{text[:first]}…[{len(text) - first - last:,} characters]…{text[-last:]}"


def listed(items: Sequence[str]) -> str:
    """The first few of some things in one line of a message, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if items[_SHOWN:] else ""
    return (", ".join(items[:_SHOWN]) or "none") + more


def shown(value: object) -> str:
    """A value of any kind in a message: never long, and never an error of its own."""
    if isinstance(value, int) and abs(value) >= _LARGEST:  # Python writes none of 5,000 digits
        return "a number of more than 63 bits"
    if isinstance(value, str | bytes) and len(value) > _LONGEST_VALUE:
        return f"{value[:_LONGEST_VALUE]!r}…"
    try:
        text = repr(value)
    except Exception:  # what is in it may be of any kind, and nested at will
        return f"a {type(value).__name__} that cannot be written"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
