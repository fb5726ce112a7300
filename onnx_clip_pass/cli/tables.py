"""Tables on the stream that they belong to.

A table is as wide as the terminal; in a file or a pipe it is as wide as it needs to be, unless
COLUMNS says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from onnx_clip_pass.cli.words import console, is_quiet, is_verbose, say, width
from onnx_clip_pass.tables import Table
from onnx_clip_pass.views import View

__all__ = ["show_table", "show_view"]


def show_table(table: Table, *, is_result: bool) -> None:
    """Print a table, and how to see what of it does not fit.

    Args:
        table: what to print; nothing if it is empty.
        is_result: whether this is what was asked for, which goes to standard output.
    """
    if not table.rows:
        return
    table = replace(table, is_whole=is_verbose())
    out = console(is_result=is_result)
    out.width = width(is_result=is_result) or table.width
    out.print(table)
    if left_out := table.left_out(out.width):
        say(f"({left_out}; -v shows all)", is_result=is_result)


def show_view(view: View) -> None:
    """Print what was asked for: the table, all lines, and last the summary; quietly the notes."""
    if is_quiet():
        for line in replace(view, further=()).lines():
            say(line)
        return
    show_table(view.table, is_result=True)
    for line in (*view.lines(), view.summary):
        say(line, is_result=True)
