"""A result as people see it: in a line, a table and notes; as text, for rich and as HTML.

`Report`, `Plan` and `Verification` give a `View` of themselves. Python shows it where they are
printed, rich and notebooks where they are displayed, and the command line on its two streams. All
names in it come from models and are not trusted: control characters are made visible, and nothing
is read as markup.
"""

from __future__ import annotations

import os
import shutil
import sys
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from onnx_clip_pass.tables import MOST_ROWS, Table, counted, escape_control

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["View", "Viewed"]

_NO_MATH = "tex2jax_ignore mathjax_ignore"  # or a notebook would typeset names with dollars


@dataclass(frozen=True, slots=True)
class View:
    """A result for people.

    `summary` is all of it in a line, and `first` are lines that belong to it; `notes` are what to
    know of it, `faults` what is wrong, and `further` lines on what is there besides the table.
    """

    summary: str
    table: Table
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    first: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return everything but the summary and the table, a line each."""
        faults = [f"wrong: {fault}" for fault in self.faults[:MOST_ROWS]]
        if self.faults[MOST_ROWS:]:
            faults.append(f"and {counted(len(self.faults) - MOST_ROWS, 'fault')} more")
        return [*faults, *(f"note: {note}" for note in self.notes), *self.further]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield from (Text(escape_control(line)) for line in (self.summary, *self.first))
        yield self.table
        yield from (Text(escape_control(line)) for line in self.lines())

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        width = max(_room() or self.table.width, 20)
        console = Console(
            file=text,
            width=width,
            color_system=None,
            force_terminal=False,
            force_jupyter=False,  # else it goes to the cell, and the text stays empty
        )
        console.print(self, soft_wrap=not _room())
        return "\n".join(map(str.rstrip, text.getvalue().splitlines()))

    def html(self) -> str:
        """Return it as an element of a page."""
        lines = "".join(f"<li>{escape(escape_control(line))}</li>" for line in self.lines())
        above = "<br>".join(escape(escape_control(line)) for line in (self.summary, *self.first))
        return (
            f'<div class="onnx-clip {_NO_MATH}"><p>{above}</p>'
            f"{self.table.html() if self.table.rows else ''}"
            f"{f'<ul>{lines}</ul>' if lines else ''}</div>"
        )


def _room() -> int:
    """The columns that there are for text; 0 where nobody says how many."""
    is_told = "COLUMNS" in os.environ or (sys.stdout is not None and sys.stdout.isatty())
    return shutil.get_terminal_size().columns if is_told else 0


class Viewed:
    """The base of results that people look at: they are shown as their view."""

    __slots__ = ()

    @abstractmethod
    def view(self) -> View:
        """Return it as people see it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[View]:
        yield self.view()

    def __repr__(self) -> str:
        return str(self.view())

    def _repr_html_(self) -> str:
        return self.view().html()
