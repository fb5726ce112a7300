"""The table of docs/parity.md is what running gives."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))

import make_parity_table
from marked import table_in


def test_the_page_has_the_table_that_running_makes():
    """The last column varies with the processor; the rest does not."""

    def without_difference(table: str) -> list[str]:
        return [line.rsplit("|", 2)[0] for line in table.splitlines()]

    made = make_parity_table.table()
    page = table_in(make_parity_table.PAGE, make_parity_table.MARK)
    assert without_difference(page) == without_difference(made)
