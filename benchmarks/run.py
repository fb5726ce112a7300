"""Run benchmarks: print tables, keep every measurement, bring docs/measurements.md up to date.

    python benchmarks/run.py --quick                    # does everything work? a minute
    python benchmarks/run.py --json results.json --page  # all, and into the page
    python benchmarks/run.py norms running              # some

Exit code 1 if a contestant of onnx-clip fails.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from harness import Sheet, cells, machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from marked import put  # noqa: E402

BENCHMARKS = ("files", "rewriting", "norms", "running", "sessions", "watching")
PAGE = ROOT / "docs" / "measurements.md"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(BENCHMARKS))
@click.option("--quick", is_flag=True, help="Small sizes and two turns, to see that it works.")
@click.option("--turns", default=7, show_default=True, help="How often each contestant runs.")
@click.option(
    "--threads",
    type=int,
    multiple=True,
    default=(1, 2),
    show_default=True,
    help="For `running`, `norms` and `watching`: of each session. With one, times are those of the "
    "processor, which others on the machine disturb less.",
)
@click.option(
    "--training-python",
    metavar="PATH",
    help="A Python with PyTorch and onnxruntime-training, for two contestants of `running`.",
)
@click.option(
    "--torch-python",
    metavar="PATH",
    help="A Python with PyTorch and onnxscript (docs/pytorch.md), for two steps of `watching`.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Keep measurements.")
@click.option("--page", is_flag=True, help="Write the tables into docs/measurements.md.")
def main(
    names: tuple[str, ...],
    quick: bool,
    turns: int,
    threads: tuple[int, ...],
    training_python: str | None,
    torch_python: str | None,
    json_path: Path | None,
    page: bool,
) -> None:
    """Run the benchmarks NAMES, or all of them."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    facts = machine(Path(tempfile.gettempdir()))
    for what, said in facts.items():
        console.print(f"{what}: {said}", highlight=False)
    found: dict[str, list[Sheet]] = {}
    for name in names or BENCHMARKS:
        options: dict[str, Any] = {"quick": quick, "turns": 2 if quick else turns}
        if name in ("running", "norms", "watching"):
            options["threads"] = threads
        if name == "running":
            options["training_python"] = training_python
        if name == "watching":
            options["torch_python"] = torch_python
        found[name] = []
        for sheet in importlib.import_module(name).sheets(**options):
            found[name].append(sheet)
            console.print(_table(sheet))
        if json_path is not None:  # what is there after each, should the next one fail
            content = {"machine": facts, "sheets": {n: [*map(asdict, s)] for n, s in found.items()}}
            json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if page:
            _write(name, facts, found[name])
    sheets = [sheet for own in found.values() for sheet in own]
    sys.exit(any(row.startswith("onnx-clip") for sheet in sheets for row in sheet.failures))


def _table(sheet: Sheet) -> Table:
    headings, *lines = cells(sheet)
    table = Table(headings[0], title=sheet.title)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def _write(name: str, facts: dict[str, str], sheets: list[Sheet]) -> None:
    """Put the tables of one benchmark between its marks in the page."""
    parts = ["; ".join(f"{what}: {said}" for what, said in facts.items()) + "."]
    for sheet in sheets:
        headings, *lines = cells(sheet)
        rule = "|".join(["---", *["---:"] * (len(headings) - 1)])
        rows = [f"| {' | '.join(line)} |" for line in (headings, *lines)]
        parts += [f"**{sheet.title}**", "\n".join([rows[0], f"|{rule}|", *rows[1:]])]
    put(PAGE, f"<!-- {name}: made by benchmarks/run.py -->", "\n\n".join(parts))


if __name__ == "__main__":
    main()
