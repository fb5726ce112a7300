"""Run commands in fresh processes, by turns, and say what they took and where."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
from rich.console import Console

__all__ = [
    "CONSOLE",
    "Contest",
    "Result",
    "alternate",
    "generate",
    "machine",
    "python",
    "save_json",
    "spread",
]

CONSOLE = Console(width=None if sys.stdout.isatty() else 110)
HERE = Path(__file__).parent
PACKAGES = (
    "onnx-clip-pass",
    "onnx",
    "onnxruntime",
    "protobuf",
    "numpy",
    "onnx-ir",
    "onnx-graphsurgeon",
)


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


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Minimum, median and maximum."""
    return " / ".join(f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))


def machine(folder: Path) -> dict[str, Any]:
    """Where this runs and with what; printed as well, for it belongs before any number."""
    about = {
        "date": date.today().isoformat(),
        "system": f"{platform.system()} {platform.release()}, {_file_system(folder)}",
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "harness_peak_mb": round(psutil.Process().memory_info().rss / 1e6),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    for key, value in about.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if key == "versions" else value
        CONSOLE.print(f"{key}: {text}", highlight=False)
    return about


def save_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the machine, the settings and every single measurement, failures too."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _file_system(folder: Path) -> str:
    above = [p for p in psutil.disk_partitions(all=True) if folder.is_relative_to(p.mountpoint)]
    return max(above, key=lambda p: len(p.mountpoint)).fstype if above else "file system unknown"
