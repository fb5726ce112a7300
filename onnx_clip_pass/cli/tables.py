"""Tables on the stream that they belong to.

A table is as wide as the terminal; in a file or a pipe it is as wide as it needs to be, unless
COLUMNS says otherwise.
"""

from __future__ import annotations

import os

from rich.console import Console

from onnx_clip_pass.cli.words import say
from onnx_clip_pass.views import Table

__all__ = ["show_table"]


def show_table(table: Table, *, is_result: bool) -> None:
    """Print a table, or the counts that stand for its rows.

    Args:
        table: what to print; nothing if it is empty.
        is_result: whether this is what was asked for, which goes to standard output.
    """
    if not table.rows:
        return
    console = Console(stderr=not is_result)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = table.width
    console.print(table)
    if table.is_long:
        say("(--json lists them)", is_result=is_result)
