"""Make the parity table of docs/artifacts.md: `python tests/training/parity_table.py [--write]`.

Needs the environment of `nox -s ort_training`. Without `--write` it prints the table.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from parity import CASES, STEPS, Case, Result, measure

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from marked import put  # noqa: E402

__all__ = ["PAGE", "rows_of"]

PAGE = ROOT / "docs" / "artifacts.md"
MARK = "<!-- made by tests/training/parity_table.py -->"
_HEAD = """\
| folder | optimizer | micro-batches a step | clip_norm | at the step | global norm at the step | need_clip | at the micro-batch | unclipped |
|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def rows_of(results: Iterable[tuple[Case, Result]]) -> list[str]:
    """A row for each folder, optimizer and number of micro-batches."""
    runs: dict[tuple[str, str, int], dict[str, tuple[Case, Result]]] = {}
    for case, result in results:
        key = (case.task.folder, case.optimizer, case.micro_batches)
        place = "global norm" if case.is_global else case.at
        runs.setdefault(key, {})[place] = (case, result)
    rows = []
    for (folder, optimizer, micro_batches), places in runs.items():
        (_, step), (_, joint), (case, micro) = (
            places[place] for place in ("step", "global norm", "micro-batch")
        )
        cells = [
            folder,
            optimizer,
            str(micro_batches),
            f"{step.clip_norm:g}",
            f"{step.clipped:.0e} ({step.share:.0%})",
            f"{joint.clipped:.0e} ({joint.share:.0%})",
            f"`{case.need_clip}`",
            f"{micro.clipped:.0e} ({micro.share:.0%})",
            f"{step.unclipped:.0e}",
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return rows


def main() -> None:
    packages = ("onnxruntime-training-cpu", "torch", "numpy")
    made_with = ", ".join(f"{package} {version(package)}" for package in packages)
    head = f"{STEPS} steps; {platform.machine()}, Python {platform.python_version()}, {made_with}."
    results = [(case, measure(case)) for case in CASES]
    apart = [result.by_clipping for _, result in results]
    scale = f"With and without clipping, runs end {min(apart):.0%} to {max(apart):.0%} apart."
    table = f"{head}\n{scale}\n\n{_HEAD}{''.join(rows_of(results))}"
    if "--write" in sys.argv[1:]:
        put(PAGE, MARK, table.rstrip())
    else:
        print(table)


if __name__ == "__main__":
    main()
