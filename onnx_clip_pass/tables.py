"""Tables of text that fit where they are shown: names cut in the middle, many rows as groups.

Every cell may come from a model and is not trusted: control characters are made visible, long names
are shortened, and nothing is read as markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from onnx_clip_pass.errors import shortened

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment

    _Cell = tuple[list[str], str, int]

__all__ = ["MOST_ROWS", "Table", "counted", "escape_control"]

MOST_ROWS = 40
"""From here on rows that differ in numbers alone are shown as one."""

_STEPS = (
    *(("gradient", 40), ("parameter", 40), ("evidence", 32)),  # so one long name takes not all
    *(("gradient", 24), ("parameter", 24), ("evidence", 16)),
    *(("gradient", 14), ("parameter", 14), ("clip", 10)),
)
"""The columns that are cut where there is too little space, and down to which width, in turn."""
_NAMES = ("gradient", "parameter")
_SPARE = ("evidence", "expected", "dtype")
"""Columns that are left out, one after another, where there is no space for all."""
_RIGHT = ("count", "before", "after", "change")
_BETWEEN = 2  # columns of the terminal between two of the table
_MOST_IN_HTML = 1000
_STYLES = {
    ("verdict", "right"): "green",
    ("verdict", "wrong"): "bold red",
    ("verdict", "right, never acted"): "yellow",
    ("verdict", "not run"): "yellow",
    ("clip", "-"): "dim",
    ("clip", None): "cyan",
    ("change", None): "cyan",
    ("evidence", None): "dim",
}
"""Colours of cells by heading and content; None stands for all others of a column."""
_NUMBER = re.compile(r"\d+")


def escape_control(text: object) -> str:
    """Text from outside, shortened, with control characters made visible.

    A name must not steer a terminal, and not fill it.
    """
    shown = shortened(str(text))
    if shown.isprintable():  # as nearly all are, which are many
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def counted(number: int, noun: str = "gradient") -> str:
    """A count in words: 1 gradient, 2 gradients."""
    return f"{number} {noun}" + ("s" if number != 1 else "")


@dataclass(frozen=True)
class Table:
    """Rows of text under headings, as wide as they need to be, or as there is space.

    Where there is too little, evidence is cut at its end, then names in their middle. Above
    `MOST_ROWS` rows that differ in numbers alone are one row, with their count in front. With
    `is_whole` every row is shown and nothing cut: evidence is broken between words, and where that
    does not do, each row is a block of lines.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_whole: bool = False

    @property
    def width(self) -> int:
        """The columns of a terminal in which each row that is shown is one line."""
        return sum(self._wanted) + _BETWEEN * (len(self._wanted) - 1)

    def left_out(self, space: int) -> str:
        """In words, all that is not shown in so many columns; "" if nothing."""
        if (short := self._fitting(space)) is not self:
            return short.left_out(space)
        if self._is_grouped:
            rest = f", of which the first {MOST_ROWS}" if self._shown[1][MOST_ROWS:] else ""
            groups = counted(len(self._shown[1]), "group")
            return f"{len(self.rows)} rows in {groups}{rest}"
        widths = self._widths(space)
        return "" if self.is_whole or widths in (None, self._wanted) else "… is left out"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if (short := self._fitting(options.max_width)) is not self:
            yield short
            return
        headings, rows = self._shown
        rows = rows if self.is_whole else rows[:MOST_ROWS]
        widths = self._widths(options.max_width)
        if not rows:
            return
        if widths is None:
            first = 2 + max(map(len, headings))
            space = max(options.max_width - first - _BETWEEN, 1)
            for row in rows:
                for at, (heading, cell) in enumerate(zip(headings, row, strict=True)):
                    style = _style(heading, cell)
                    parts = (_folded(console, cell, space), style, space)
                    yield from _line(
                        console, [([f"  {heading}" if at else heading], "bold", first), parts]
                    )
            return
        titles = [([name], "bold", width) for name, width in zip(headings, widths, strict=True)]
        yield from _line(console, titles, headings)
        for row in rows:
            cells = []
            for heading, cell, width in zip(headings, row, widths, strict=True):
                lines = [_cut(heading, cell, width)]
                if self.is_whole:
                    lines = _folded(console, cell, width)
                cells.append((lines, _style(heading, cell), width))
            yield from _line(console, cells, headings)

    def html(self) -> str:
        """Return it as an element of a page; of very many rows the first."""
        rows = [_html_row("td", row) for row in self.rows[:_MOST_IN_HTML]]
        more = len(self.rows) - len(rows)
        last = f"<p>and {more:,} more</p>" if more else ""
        return f"<table>{_html_row('th', self.headings)}{''.join(rows)}</table>{last}"

    def _fitting(self, space: int) -> Table:
        """This table, or the shorter one if it does not fit."""
        return self if self.is_whole or self.width <= space else self._shorter

    @cached_property
    def _shorter(self) -> Table:
        """This table with "it" for the parameter in the evidence, if it has both."""
        if not {"parameter", "evidence"} <= {*self.headings}:
            return self
        of, about = self.headings.index("parameter"), self.headings.index("evidence")
        rows = tuple(
            (*row[:about], _told_of_it(row[about], row[of]), *row[about + 1 :]) for row in self.rows
        )
        return self if rows == self.rows else replace(self, rows=rows)

    @property
    def _is_grouped(self) -> bool:
        return len(self.rows) > MOST_ROWS and not self.is_whole

    @cached_property
    def _shown(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The headings and cells that are shown."""
        rows = [tuple(map(escape_control, row)) for row in self.rows]
        return _grouped(self.headings, rows) if self._is_grouped else (self.headings, rows)

    @cached_property
    def _wanted(self) -> list[int]:
        """The width of each column in which none of its cells is cut."""
        from rich.cells import cell_len

        headings, rows = self._shown
        columns = zip(*rows, strict=True) if rows else ((),) * len(headings)
        return [
            max(map(cell_len, [heading, *cells]))
            for heading, cells in zip(headings, columns, strict=True)
        ]

    def _widths(self, space: int) -> list[int] | None:
        """The widths of columns, 0 for one that is left out; None if they do not fit.

        Names of gradients give way first, which mostly are those of parameters and something more,
        then those of parameters, evidence, and clips.
        """
        headings, wanted = self._shown[0], list(self._wanted)
        found = _shrunk(headings, wanted, space, is_whole=self.is_whole)
        for heading in () if self.is_whole else _SPARE:
            if found is None and heading in headings:
                wanted[headings.index(heading)] = 0
                found = _shrunk(headings, wanted, space)
        return found


def _shrunk(
    headings: Sequence[str], wanted: Sequence[int], space: int, *, is_whole: bool = False
) -> list[int] | None:
    """Widths of columns, smaller as far as it takes; None if it takes more than may be cut.

    Args:
        headings: of the columns.
        wanted: their widths, 0 of those that are not there.
        space: for all of them, and for what is between.
        is_whole: names are not cut.
    """
    widths = list(wanted)
    space -= _BETWEEN * (sum(map(bool, widths)) - 1)
    for heading, least in _STEPS:
        if heading in headings and not (is_whole and heading in _NAMES):
            at = headings.index(heading)
            widths[at] = max(min(widths[at], least), widths[at] - max(sum(widths) - space, 0))
    return widths if sum(widths) <= space else None


def _told_of_it(evidence: str, parameter: str) -> str:
    """Evidence with "it" for the name of the parameter, where that stands as a word."""
    words = evidence.split(" ")
    for at, word in enumerate(words):
        if word.rstrip(";,") == parameter:
            words[at] = "it" + word[len(parameter) :]
    return " ".join(words)


def _style(heading: str, cell: str) -> str:
    return _STYLES.get((heading, cell)) or _STYLES.get((heading, None)) or ""


def _cut(heading: str, text: str, columns: int) -> str:
    """A text without its end, a name without its middle, if it takes more columns than there are.

    The end of a name, which tells weight from bias, is worth as much as its beginning.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= columns:
        return text
    if heading not in _NAMES:
        return set_cell_size(text, columns - 1).rstrip() + "…"
    half = (columns - 1) // 2
    end = set_cell_size(text[::-1], half).rstrip()[::-1]
    return f"{set_cell_size(text, columns - 1 - cell_len(end))}…{end}"


def _folded(console: Console, text: str, width: int) -> list[str]:
    """A text in lines of so many columns, broken between words as far as that can be."""
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text).wrap(console, width, overflow="fold")]


def _line(
    console: Console, cells: Sequence[_Cell], headings: Sequence[str] = ()
) -> Iterator[Segment]:
    """A row, in as many lines as its longest cell takes; no cell has more columns than its own.

    Args:
        console: that has the styles.
        cells: of each the lines, the style and the width; those of width 0 are left out.
        headings: of them, by which numbers stand on the right.
    """
    from rich.cells import cell_len
    from rich.segment import Segment

    there = [at for at, (_, _, width) in enumerate(cells) if width]
    for number in range(max(len(cells[at][0]) for at in there)):
        parts, space = [], 0
        for at in there:
            lines, style, width = cells[at]
            text = lines[number] if number < len(lines) else ""
            left = width - cell_len(text)
            is_right = bool(headings) and headings[at] in _RIGHT
            if text:
                space += left if is_right else 0
                parts += [Segment(" " * space)] if space else []
                parts.append(Segment(text, console.get_style(style) if style else None))
                space = 0 if is_right else left
            else:
                space += left
            space += _BETWEEN
        yield from parts
        yield Segment.line()


def _html_row(tag: str, cells: Iterable[str]) -> str:
    style = ' style="text-align: left; white-space: pre-wrap"'
    inner = "".join(f"<{tag}{style}>{escape(escape_control(cell))}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


# -- groups ------------------------------------------------------------------------------------

_ALIKE = (*_NAMES, "shape")
_EXACT = ("dtype", "clip", "verdict")
"""The cells that rows of one group have in common: those but for numbers in them, these whole."""


def _grouped(
    headings: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Rows that differ in numbers alone as one each, the count of them in front.

    If that leaves too many, names need not be alike either: first those of gradients, which
    exporters make up, then those of parameters, and at last shapes.
    """
    masked = [tuple(_NUMBER.sub("*", cell) for cell in row) for row in rows]
    names, exact = (
        [at for at, heading in enumerate(headings) if heading in those]
        for those in (_ALIKE, _EXACT)
    )
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for dropped in range(len(names) + 1):
        groups = {}
        for row, mask in zip(rows, masked, strict=True):
            key = (*(mask[at] for at in names[dropped:]), *(row[at] for at in exact))
            groups.setdefault(key, []).append(row)
        if len(groups) <= MOST_ROWS:
            break
    found = [
        (
            str(len(group)),
            *(
                _MERGED.get(heading, _pattern)(cells)
                for heading, cells in zip(headings, zip(*group, strict=True), strict=True)
            ),
        )
        for group in groups.values()
    ]
    return ("count", *headings), found


def _pattern(cells: Sequence[str]) -> str:
    """One text for several: with * for the numbers in which they differ."""
    if len(set(cells)) == 1:
        return cells[0]
    if len({_NUMBER.sub("*", cell) for cell in cells}) > 1:
        return f"{len(set(cells))} different"
    numbers = zip(*map(_NUMBER.findall, cells), strict=True)
    alike = [found[0] if len(set(found)) == 1 else "*" for found in numbers]
    return _NUMBER.sub(lambda _: alike.pop(0), cells[0])


def _range(cells: Sequence[str]) -> str:
    """The least and the largest of some numbers."""
    numbers = sorted({cell for cell in cells if cell != "-"}, key=float)
    return " to ".join(dict.fromkeys([numbers[0], numbers[-1]])) if numbers else "-"


def _worst(cells: Sequence[str]) -> str:
    """The error that comes nearest to the one that is allowed, or goes farthest beyond."""

    def share(cell: str) -> float:
        error, _, allowed = cell.partition(" of ")
        return float(error) / float(allowed) if float(allowed or 0) else float(error != "0")

    return max((cell for cell in cells if cell != "-"), key=share, default="-")


_MERGED: dict[str, Callable[[Sequence[str]], str]] = {
    **dict.fromkeys(("raw norm", "clipped", "expected"), _range),
    "error (ulps)": _worst,
}
"""The cell of a group by heading, where it is no pattern."""
