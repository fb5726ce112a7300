"""The one error that every caller needs to catch."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["OnnxClipError"]


class OnnxClipError(Exception):
    """Something a user can cause and mend: what was expected, what arrived, what to do next.

    The command line prints it as one message without a traceback and exits with code 2.
    `faults` holds each fault on its own where several were found before anything was changed.
    """

    def __init__(self, message: str, faults: Iterable[str] = ()) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join([message, *(f"  - {fault}" for fault in self.faults)]))
