"""Compare two runs of `bench_running.py`: does anything of ours cost more, beyond the spread?

    python benchmarks/compare.py before.json after.json

A form has become slower if its fastest run is slower than the slowest of before, each relative to
the bound of its own run. Exit code 1 if one has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench_running import OURS
from rich.console import Console
from rich.table import Table


def rows(path: str) -> dict[tuple[str, int, str], list[float]]:
    """Costs relative to the bound, by set, threads and form."""
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return {
        (row["set"], row["threads"], form): [cost / row["bound"] for cost in costs]
        for row in content["running"]
        for form, costs in row["costs"].items()
        if form in OURS
    }


def main(before: str, after: str) -> int:
    """Print what is in both, and say whether anything has become slower."""
    old, new = rows(before), rows(after)
    table = Table("set", "threads", "form", "before", "after", "ratio", "")
    slower = 0
    for key in sorted(old.keys() & new.keys()):
        was, is_now = old[key], new[key]
        is_slower = min(is_now) > max(was)
        slower += is_slower
        name, threads, form = key
        table.add_row(
            name,
            str(threads),
            form,
            f"{median(was):.2f}",
            f"{median(is_now):.2f}",
            f"{median(is_now) / median(was):.2f}",
            "slower" if is_slower else "",
        )
    Console().print(table)
    if not old.keys() & new.keys():
        print("the two runs have nothing in common", file=sys.stderr)
        return 2
    return int(bool(slower))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: compare.py BEFORE.json AFTER.json")
    sys.exit(main(*sys.argv[1:]))
