"""What all benchmarks share: tables of measurements, commands run by turns, and where this runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

__all__ = [
    "Contest",
    "Result",
    "Sheet",
    "Values",
    "alternate",
    "by_turns",
    "cells",
    "failures",
    "generate",
    "machine",
    "memory_limit",
    "merged",
    "ours",
    "python",
    "ratios",
    "scaled",
    "thread_word",
]

HERE = Path(__file__).parent
PACKAGES = (
    "onnx-clip-pass",
    "onnx",
    "onnxruntime",
    "protobuf",
    "numpy",
    "onnx-ir",
    "onnx-graphsurgeon",
    "onnxscript",
)
Values = dict[str, list[float]]


@dataclass(slots=True)
class Sheet:
    """A table: what contestants took, one row each.

    `columns` holds, by heading, the measurements of each row in the order in which they were made,
    turn by turn. Those in `compared` are shown relative to the row `base` as well. `ours` are the
    rows of onnx-clip, which `compare.py` watches by the first column; `failures` are the rows that
    failed, with what they said.
    """

    title: str
    base: str
    columns: dict[str, Values]
    compared: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)


def ratios(values: Values, row: str, base: str) -> list[float]:
    """A row's measurements over those of `base`: turn by turn, or over their median."""
    if base not in values or not values[base]:
        return []
    own, other = values[row], values[base]
    if len(own) != len(other):
        other = [median(other)] * len(own)
    return [a / b if b else nan for a, b in zip(own, other, strict=True)]


def cells(sheet: Sheet) -> list[list[str]]:
    """The table as text, its headings first: median (smallest to largest), ratios as medians."""
    headings = [""]
    for heading in sheet.columns:
        headings += [heading, f"÷ {sheet.base}"] if heading in sheet.compared else [heading]
    lines = [headings]
    for row in dict.fromkeys(row for values in sheet.columns.values() for row in values):
        line = [row]
        for heading, values in sheet.columns.items():
            line.append(_spread(values.get(row, [])))
            if heading in sheet.compared:
                found = ratios(values, row, sheet.base) if row in values else []
                line.append(_number(median(found)) if found else "")
        lines.append(line)
    return lines + [
        [row, f"fails: {said}", *[""] * (len(headings) - 2)] for row, said in sheet.failures.items()
    ]


def scaled(values: Values, factor: float) -> Values:
    """The same in another unit."""
    return {row: [factor * value for value in own] for row, own in values.items()}


def ours(rows: Iterable[str]) -> tuple[str, ...]:
    """Those of the rows that are onnx-clip's."""
    return tuple(row for row in rows if row.startswith("onnx-clip"))


# -- commands by turns -------------------------------------------------------------------------


@dataclass(slots=True)
class Contest:
    """A command, and what to do before and after it without being timed."""

    command: list[str]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None


@dataclass(slots=True)
class Result:
    """What each run took: `wall` and `work` in seconds, `peak` in MB; or why one failed."""

    wall: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    failure: str = ""


def alternate(contests: Mapping[str, Contest], runs: int) -> dict[str, Result]:
    """Run A B C, A B C, …; one that fails says why and is left out from then on."""
    results = {name: Result() for name in contests}
    for _ in range(runs):
        for name, contest in contests.items():
            if not results[name].failure:
                contest.before()
                _run(contest.command, results[name])
                contest.after()
    return results


def python(name: str, source: Path, target: Path, memory: int | None = None) -> list[str]:
    """The command that runs one of `contestants.py`."""
    limit = [] if memory is None else [str(memory)]
    return [sys.executable, str(HERE / "contestants.py"), name, str(source), str(target), *limit]


def generate(kind: str, path: Path, number: int) -> None:
    """Make a model in a process of its own and wait until the disk has it."""
    subprocess.run([sys.executable, HERE / "generate.py", kind, path, str(number)], check=True)
    os.sync()


def memory_limit() -> int:
    """Three quarters of what is free: enough for a contest, and the machine survives it."""
    import psutil

    return int(0.75 * psutil.virtual_memory().available)


def by_turns(
    works: Mapping[str, Callable[[], object]], turns: int, times: int = 1, *, threads: int = 1
) -> Values:
    """Seconds of each piece of work, by turns in this process; a first turn warms up.

    Those of the processor for one thread, which others on the machine disturb less; else those of
    the clock.
    """
    now = process_time if threads == 1 else perf_counter
    seconds: Values = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            began = now()
            for _ in range(times):
                work()
            if turn:
                seconds[name].append((now() - began) / times)
    return seconds


def merged(results: Mapping[str, Result], which: str) -> Values:
    """One column of `alternate`'s results: "wall", "work" or "peak"."""
    return {name: getattr(result, which) for name, result in results.items() if not result.failure}


def failures(results: Mapping[str, Result]) -> dict[str, str]:
    """The contestants that failed, and what they said."""
    return {name: result.failure for name, result in results.items() if result.failure}


def _run(command: list[str], result: Result) -> None:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            said = errors.read().decode(errors="replace").strip().splitlines()
            result.failure = f"exit {process.returncode}: {said[-1] if said else 'no message'}"
            return
        printed = out.read().decode().split()
    result.wall.append(wall)
    result.work.append(float(printed[-1]) if printed else wall)
    result.peak.append(usage.ru_maxrss * 1024 / 1e6)


# -- where this runs ---------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, str]:
    """Where this runs and with what."""
    import psutil

    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    return {
        "date": date.today().isoformat(),
        "system": f"{platform.system()} {platform.release()}, {_file_system(folder)}",
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def thread_word(threads: int) -> str:
    """How many threads, in words."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")


def _file_system(folder: Path) -> str:
    import psutil

    above = [p for p in psutil.disk_partitions(all=True) if folder.is_relative_to(p.mountpoint)]
    return max(above, key=lambda p: len(p.mountpoint)).fstype if above else "file system unknown"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, middle, high = (_number(v) for v in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:#.3g}".rstrip(".") if value != int(value) else f"{value:.0f}"
