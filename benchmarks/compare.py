"""Compare two runs of `run.py`: has anything of onnx-clip become slower, beyond the spread?

    python benchmarks/compare.py before.json after.json

Each measurement is taken relative to its table's base in the same turn, so that runs on a faster or
slower machine compare. A row has become slower if the least of its ratios is above the greatest of
before. Exit codes: 0 nothing is slower, 1 something is, 2 the runs have nothing in common.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from harness import Sheet, ratios
from rich.console import Console
from rich.table import Table

Row = tuple[str, str]


def ratios_of_ours(path: str) -> dict[Row, list[float]]:
    """By table and row, the ratios of onnx-clip's rows in the first column."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    found: dict[Row, list[float]] = {}
    for sheet in (Sheet(**s) for sheets in content["sheets"].values() for s in sheets):
        values = next(iter(sheet.columns.values()))
        for row in sheet.ours:
            if row in values and row != sheet.base:
                found[sheet.title, row] = ratios(values, row, sheet.base)
    return found


def main(before: str, after: str) -> int:
    """Print what both runs have, and say whether anything has become slower."""
    old, new = ratios_of_ours(before), ratios_of_ours(after)
    common = [key for key in old if old[key] and new.get(key)]
    if not common:
        print("the two runs have no row of onnx-clip in common", file=sys.stderr)
        return 2
    table = Table("table", "row", "before", "after", "after / before", "")
    slower = 0
    for key in common:
        is_slower = min(new[key]) > max(old[key])
        slower += is_slower
        was, now = median(old[key]), median(new[key])
        said = "slower" if is_slower else ""
        table.add_row(*key, f"{was:.2f}", f"{now:.2f}", f"{now / was:.2f}", said)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return int(slower > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: compare.py BEFORE.json AFTER.json")
    sys.exit(main(*sys.argv[1:]))
