"""The progress of long work: told to a callback, or shown by a bar in a terminal or a notebook."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.tables import escape_control

__all__ = [
    "Progress",
    "ProgressBar",
    "TellProgress",
    "WantsProgress",
    "check_progress",
    "silent",
    "told",
]

_SILENT_FOR = 1.0
"""Seconds before a bar appears: most work is done by then."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of long work: what is being done, and how much of it is done.

    `doing` says it in words ("writing m.onnx"); `done` and `total` are in `unit`, with a `total` of
    0 where nobody knows how much there is.
    """

    doing: str
    done: int = 0
    total: int = 0
    unit: str = ""

    @property
    def amount(self) -> str:
        """The part that is done in words, "15 of 40 parameters"; "" where nothing is counted."""
        if not self.total:
            return ""
        if self.unit == "bytes":
            return f"{self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB"
        return f"{self.done:,} of {self.total:,} {self.unit}".rstrip()

    def __str__(self) -> str:
        return escape_control(f"{self.doing}: {self.amount}" if self.total else self.doing)


TellProgress = Callable[[Progress], None]
"""Is told the progress of long work, in the thread that does it; what it raises ends the work."""

WantsProgress = bool | TellProgress | None
"""A callback, or True for a bar where somebody watches; False and None for silence."""


@contextmanager
def told(progress: WantsProgress) -> Iterator[TellProgress]:
    """The callback to tell while the work lasts.

    Raises:
        OnnxClipError: it is neither a callback nor a bool.
    """
    check_progress(progress)
    if progress is True:
        with ProgressBar() as bar:
            yield bar
    else:
        yield progress or silent


def check_progress(progress: object) -> None:
    """Refuse what is neither a callback nor a bool, before any work is done."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise OnnxClipError(f"progress must be True or a callback, not {shown(progress)}")


def silent(_: Progress) -> None:
    """Take progress that nobody wants to know of."""


class ProgressBar:
    """A bar on standard error, where that is a terminal, or in the output of a notebook's cell.

    In a terminal it appears after a second, which little work takes, and goes when the work is
    done; where nobody watches there is none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = Progress("")
        self._bar: _Terminal | _Notebook | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> ProgressBar:
        if _in_notebook():
            self._bar = _Notebook()
        elif sys.stderr is not None and sys.stderr.isatty():
            self._timer = threading.Timer(_SILENT_FOR, self._appear)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._bar is not None:
                self._bar.close()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._last = progress
            if self._bar is not None:
                self._bar.show(progress)

    def _appear(self) -> None:
        with self._lock:
            if self._timer is not None:  # else the work is done
                self._bar = _Terminal()
                self._bar.show(self._last)


class _Terminal:
    """A bar by rich, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, amount="")
        self._bar.start()

    def show(self, now: Progress) -> None:
        self._bar.update(
            self._task,
            description=escape_control(now.doing),
            completed=now.done,
            total=now.total or None,
            amount=escape_control(now.amount),
        )

    def close(self) -> None:
        self._bar.stop()


class _Notebook:
    """A bar in HTML, for which a notebook needs no widgets."""

    def __init__(self) -> None:
        shell: Any = import_module("IPython.display")
        self._html = shell.HTML
        self._handle = shell.display(self._html(""), display_id=True)
        self._shown = ""

    def show(self, now: Progress) -> None:
        percent = 100 * now.done // now.total if now.total else None
        value = "" if percent is None else f' max="100" value="{percent}"'
        page = f"<progress{value}></progress> {escape(str(now))}"
        key = f"{now.doing} {percent}"
        if key != self._shown:  # a hundred messages for a phase, not one for each block of bytes
            self._shown = key
            self._handle.update(self._html(page))

    def close(self) -> None:
        self._handle.update(self._html(""))


def _in_notebook() -> bool:
    """Return whether this is a kernel whose output a notebook shows."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
