"""How long does a rewrite of a large file take, and how much memory, beside a plain copy?

Wall time of a fresh process (Python's start and imports included), seconds of the work alone, peak
memory; for models with their weights inside, and for one with its weights outside.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import click
import psutil
from contestants import DATA
from harness import (
    CONSOLE,
    Contest,
    Result,
    alternate,
    generate,
    machine,
    python,
    save_json,
    spread,
)
from rich.table import Table
from rich.text import Text

_GB = 10**9


def inside(folder: Path, size: float) -> dict[str, Contest]:
    """The contest for a model that holds its weights."""
    source, old, target = folder / "model.onnx", folder / "old.onnx", folder / "out.onnx"
    generate("inside", source, int(size * _GB))
    shutil.copyfile(source, old)
    with old.open("rb+") as file:
        os.fsync(file.fileno())
    memory = _memory_limit()

    def contest(command: list[str], before: Callable[[], object] = lambda: None) -> Contest:
        return Contest(command, before, partial(target.unlink, missing_ok=True))

    cp = ["cp", str(source), str(target)]
    return {
        "cp": contest(cp),
        "cp, then sync": contest(["sh", "-c", 'cp "$1" "$2" && sync "$2"', *cp]),
        "onnx-clip": contest(python("onnx-clip", source, target, memory)),
        "onnx-clip, replacing": contest(
            python("onnx-clip", source, target, memory), partial(target.hardlink_to, old)
        ),
        "onnx load, insert, save": contest(python("onnx-insert", source, target, memory)),
        "onnx_ir load, save": contest(python("onnx-ir", source, target, memory)),
        "graphsurgeon import, export": contest(python("graphsurgeon", source, target, memory)),
    }


def outside(folder: Path, size: float) -> dict[str, Contest]:
    """The contest for a model with its weights outside, all zeros in a sparse file."""
    source, beside, other = folder / "model.onnx", folder / "out.onnx", folder / "other"
    generate("outside", source, int(size * _GB))
    memory = _memory_limit()

    def contest(command: list[str]) -> Contest:
        return Contest(command, other.mkdir, clean)

    def clean() -> None:
        beside.unlink(missing_ok=True)
        shutil.rmtree(other)

    cp = ["cp", "--sparse=never", str(source), str(folder / DATA), str(other)]
    there = other / "model.onnx"
    return {
        "cp, model and data": contest(cp),
        "onnx-clip, data shared": contest(python("onnx-clip", source, beside, memory)),
        "onnx insert, data shared": contest(
            python("onnx-insert-structure", source, beside, memory)
        ),
        "onnx-clip, other folder": contest(python("onnx-clip", source, there, memory)),
        "onnx load, insert, save": contest(python("onnx-insert", source, there, memory)),
        "onnx_ir load, save": contest(python("onnx-ir", source, there, memory)),
        "graphsurgeon import, export": contest(python("graphsurgeon", source, there, memory)),
    }


def show(title: str, results: dict[str, Result]) -> None:
    """Print one table; ratios are those of runs next to each other, and their median is shown."""
    table = Table("", "wall s", "÷ cp", "work s", "work ÷ cp", "peak MB", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    copied = next(iter(results.values())).wall
    for name, result in results.items():
        if result.failure:
            table.add_row(name, Text(result.failure, "red"))
            continue
        table.add_row(
            name,
            spread(result.wall),
            _ratio(result.wall, copied),
            f"{median(result.work):.2f}",
            _ratio(result.work, copied),
            f"{max(result.peak):.0f}",
        )
    CONSOLE.print(table)


@click.command()
@click.option("--sizes", default="0.1,0.4,1.6", help="GB, weights inside; below 2.")
@click.option("--outside", "outside_sizes", default="6", help="GB, weights outside.")
@click.option("--runs", default=5, help="How often each contestant has its turn.")
@click.option("--quick", is_flag=True, help="Tiny sizes and two runs, to see that it works.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to make a temporary folder.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="All numbers, in a file."
)
def main(
    sizes: str,
    outside_sizes: str,
    runs: int,
    quick: bool,
    folder: Path | None,
    json_path: Path | None,
) -> None:
    """Compare onnx-clip with cp, onnx, onnx_ir and onnx-graphsurgeon on large files."""
    if quick:
        sizes, outside_sizes, runs = "0.01", "0.02", 2
    jobs = [("inside", inside, float(size)) for size in sizes.split(",") if size]
    jobs += [("outside", outside, float(size)) for size in outside_sizes.split(",") if size]
    tables: dict[str, dict[str, Result]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        about = machine(Path(temporary))
        CONSOLE.print(f"each {runs} times, by turns; min / median / max; peaks are the largest\n")
        for place, prepare, size in jobs:
            with tempfile.TemporaryDirectory(dir=temporary) as made:
                title = f"{size:g} GB, weights {place}"
                tables[title] = alternate(prepare(Path(made), size), runs)
                show(title, tables[title])
    content = {t: {n: asdict(r) for n, r in results.items()} for t, results in tables.items()}
    save_json(json_path, {"machine": about, "runs": runs, "results": content})
    ours = [
        r for results in tables.values() for n, r in results.items() if n.startswith("onnx-clip")
    ]
    sys.exit(any(result.failure for result in ours))


def _ratio(values: list[float], copied: list[float]) -> str:
    if len(copied) != len(values):
        return "-"
    return f"{median(v / c for v, c in zip(values, copied, strict=True)):.1f}"


def _memory_limit() -> int:
    """Three quarters of what is free: enough for a contest, and the machine survives it."""
    return int(0.75 * psutil.virtual_memory().available)


if __name__ == "__main__":
    main()
