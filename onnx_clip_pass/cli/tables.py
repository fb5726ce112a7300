"""Tables of gradients: in lines where they do not fit, in numbers where they would be long.

A table is as wide as the terminal; in a file or a pipe it is as wide as it needs to be, unless
COLUMNS says otherwise. Only what a clip and the evidence say is broken into lines.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_clip_pass.cli.words import counted, escape_control, say
from onnx_clip_pass.gradients import Gradient

__all__ = ["MOST_ROWS", "show_gradients", "show_table"]

MOST_ROWS = 40
"""From here on a table gives way to counts."""

_LEAST = {"clip": 10, "evidence": 20}
"""The least width of a column that can be broken between words."""

_BETWEEN = 2  # columns of the terminal between two of the table


def show_gradients(gradients: Iterable[tuple[Gradient, str]], *, is_result: bool) -> None:
    """Gradients and what is done to them.

    Args:
        gradients: each with its clip in words, "-" for none.
        is_result: whether this is what was asked for, which goes to standard output.
    """
    rows = list(gradients)
    if len(rows) > MOST_ROWS:
        counts = Counter((clip, gradient.dtype) for gradient, clip in rows)
        for (clip, dtype), count in counts.items():
            done = clip if clip != "-" else "not clipped"
            say(f"{counted(count)}, {dtype}: {done}", is_result=is_result)
        say("(--json lists them)", is_result=is_result)
        return
    show_table(
        ("gradient", "parameter", "shape", "dtype", "clip", "evidence"),
        [
            (
                gradient.name,
                gradient.parameter.name,
                _shape(gradient),
                gradient.dtype,
                clip,
                gradient.evidence,
            )
            for gradient, clip in rows
        ],
        is_result=is_result,
    )


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, is_result: bool) -> None:
    """A table, or a block of lines for each row where the table does not fit."""
    if not rows:
        return
    console = Console(stderr=not is_result)
    cells = [[Text(escape_control(cell)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    widest, needed = 0, 0
    for heading, column in zip(headings, zip(*cells, strict=True), strict=True):
        width = max(len(heading), *(cell.cell_len for cell in column))
        least = min(width, _LEAST.get(heading, width))
        table.add_column(heading, min_width=least, no_wrap=least == width, overflow="fold")
        widest, needed = widest + width + _BETWEEN, needed + least + _BETWEEN
    for row in cells:
        table.add_row(*row)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = widest
    if needed - _BETWEEN <= console.width:
        console.print(table)
        return
    for row in cells:
        console.print(_block(headings, row))


def _block(headings: Sequence[str], cells: Sequence[Text]) -> Table:
    block = Table.grid(padding=(0, 2))
    block.add_column(style="bold", no_wrap=True)
    block.add_column(overflow="fold")
    for number, (heading, cell) in enumerate(zip(headings, cells, strict=True)):
        block.add_row(f"  {heading}" if number else heading, cell)
    return block


def _shape(gradient: Gradient) -> str:
    if gradient.shape is None:
        return "?"
    return "[" + ", ".join("?" if d is None else str(d) for d in gradient.shape) + "]"
