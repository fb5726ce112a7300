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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from onnx_clip_pass.errors import shortened

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["MOST_ROWS", "Table", "View", "Viewed", "counted", "escape_control"]

MOST_ROWS = 40
"""From here on a table gives way to counts."""

_LEAST = {"clip": 10, "evidence": 20}
"""The least width of a column that can be broken between words."""

_BETWEEN = 2  # columns of the terminal between two of the table
_MOST_IN_HTML = 1000


def escape_control(text: object) -> str:
    """Text from outside, shortened, with control characters made visible.

    A name must not steer a terminal, and not fill it.
    """
    shown = shortened(str(text))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def counted(number: int, noun: str = "gradient") -> str:
    """A count in words: 1 gradient, 2 gradients."""
    return f"{number} {noun}" + ("s" if number != 1 else "")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headings, and the lines that stand for them where they are many.

    As wide as it needs to be, or as there is room; where it does not fit, each row is a block of
    lines. Only a clip and the evidence are broken into lines.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    counts: tuple[str, ...] = ()

    @property
    def is_long(self) -> bool:
        """True if the counts stand for the rows."""
        return len(self.rows) > MOST_ROWS and bool(self.counts)

    @property
    def width(self) -> int:
        """The columns of a terminal in which each row is one line."""
        return sum(width + _BETWEEN for width, _ in self._widths())

    def _cells(self) -> list[list[Any]]:
        from rich.text import Text

        return [[Text(escape_control(cell)) for cell in row] for row in self.rows]

    def _widths(self) -> list[tuple[int, int]]:
        """Of each column the width that it needs, and the least that it can do with."""
        found = []
        for heading, column in zip(self.headings, zip(*self._cells(), strict=True), strict=True):
            width = max(len(heading), *(cell.cell_len for cell in column))
            found.append((width, min(width, _LEAST.get(heading, width))))
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table as Grid
        from rich.text import Text

        if not self.rows:
            return
        if self.is_long:
            yield from (Text(escape_control(line)) for line in self.counts)
            return
        cells, widths = self._cells(), self._widths()
        if sum(least + _BETWEEN for _, least in widths) - _BETWEEN > options.max_width:
            yield from (_block(self.headings, row) for row in cells)
            return
        grid = Grid(box=None, pad_edge=False, header_style="bold")
        for heading, (width, least) in zip(self.headings, widths, strict=True):
            grid.add_column(heading, min_width=least, no_wrap=least == width, overflow="fold")
        for row in cells:
            grid.add_row(*row)
        yield grid

    def html(self) -> str:
        """Return it as an element of a page; of very many rows the first."""
        rows = [_html_row("td", row) for row in self.rows[:_MOST_IN_HTML]]
        more = len(self.rows) - len(rows)
        last = f"<p>and {more:,} more</p>" if more else ""
        return f"<table>{_html_row('th', self.headings)}{''.join(rows)}</table>{last}"


def _block(headings: Sequence[str], cells: Sequence[Any]) -> Any:
    from rich.table import Table as Grid

    block = Grid.grid(padding=(0, 2))
    block.add_column(style="bold", no_wrap=True)
    block.add_column(overflow="fold")
    for number, (heading, cell) in enumerate(zip(headings, cells, strict=True)):
        block.add_row(f"  {heading}" if number else heading, cell)
    return block


def _html_row(tag: str, cells: Iterable[str]) -> str:
    style = ' style="text-align: left; white-space: pre-wrap"'
    inner = "".join(f"<{tag}{style}>{escape(escape_control(cell))}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


@dataclass(frozen=True, slots=True)
class View:
    """A result for people.

    `summary` is all of it in a line; `notes` are what to know of it, `faults` what is wrong, and
    `further` lines on what was added.
    """

    summary: str
    table: Table
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    further: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return everything but the summary and the table, a line each."""
        faults = [f"wrong: {fault}" for fault in self.faults[:MOST_ROWS]]
        if self.faults[MOST_ROWS:]:
            faults.append(f"and {counted(len(self.faults) - MOST_ROWS, 'fault')} more")
        return [*faults, *(f"note: {note}" for note in self.notes), *self.further]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(escape_control(self.summary))
        yield self.table
        yield from (Text(escape_control(line)) for line in self.lines())

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        width = max(_room() or self.table.width, 20)
        console = Console(file=text, width=width, color_system=None, force_terminal=False)
        console.print(self, soft_wrap=not _room())
        return "\n".join(map(str.rstrip, text.getvalue().splitlines()))

    def html(self) -> str:
        """Return it as an element of a page."""
        lines = "".join(f"<li>{escape(escape_control(line))}</li>" for line in self.lines())
        return (
            f'<div class="onnx-clip"><p>{escape(escape_control(self.summary))}</p>'
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
