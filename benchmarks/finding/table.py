"""The table "optimizer by optimizer: found exactly, asked, or not" of a folder of exported steps.

    python table.py FOLDER...              # counts, and a table in Markdown
    python table.py FOLDER --only Adam     # which gradients were found, and how far each output is
    python table.py FOLDER --json FILE     # the same for programs
    python table.py FOLDER --named         # are the cases themselves right?

Each model is clipped by `clip_gradients(model, GradientClipByNorm(clip_norm))` with no option, and,
where there is such an option, with `probe=True`; the clipped model is run on ONNX Runtime's CPU
provider and compared with what the framework computed with the same clip.

- *exact*: all outputs agree (see `cases.TOLERANCE`).
- *asked*: refused with a message that asks for what is missing; nothing was clipped.
- *partial*: the new values of some parameters agree, those of others do not.
- *wrong*: the new value of no parameter agrees.

`--named` adds a column in which the gradients are given, as the values that equal the framework's:
what is not exact there is a case that says nothing of the search, or a rewrite that is wrong.

An optimizer that takes the sign of a gradient alone moves a parameter equally with and without the
clip; a case in which the clip changes no output by much is marked *blind*.
Needs onnx, onnxruntime and NumPy.
"""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cases
import numpy as np
import onnx
from named import gradients_by_value
from running import run

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients

ORDER = ("exact", "asked", "partial", "wrong", "failed", "absent")


@dataclass
class Outcome:
    """What became of a case in one way."""

    result: str
    message: str = ""
    seconds: float = 0.0
    outputs: list[float] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """A case with its outcomes, by way."""

    truth: cases.Truth
    outcomes: dict[str, Outcome]


def ways(*, named: bool = False) -> dict[str, dict[str, Any]]:
    """The ways in which models are clipped, with their options."""
    found: dict[str, dict[str, Any]] = {"without a run": {}}
    if named:
        found["named"] = {"gradients": "by value"}
    if "probe" in inspect.signature(clip_gradients).parameters:
        found["with slopes"] = {"probe": True}
    return found


def row_of(folder: Path, chosen: dict[str, dict[str, Any]]) -> Row:
    """Clip the model of a case in each way, and compare."""
    truth, arrays = cases.load(folder)
    return Row(truth, {way: _outcome(folder, truth, arrays, o) for way, o in chosen.items()})


def _outcome(
    folder: Path, truth: cases.Truth, arrays: dict[str, np.ndarray], options: dict[str, Any]
) -> Outcome:
    model = onnx.load(folder / "model.onnx")
    if options.get("gradients") == "by value":
        options = {"gradients": gradients_by_value(model, truth, arrays)}
        if options["gradients"] is None:
            return Outcome("absent", "the gradients are not among the values of the graph")
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clipped = clip_gradients(model, GradientClipByNorm(truth.clip_norm), **options)
    except OnnxClipError as error:
        return Outcome("asked", str(error).strip(), time.perf_counter() - began)
    except Exception as error:  # a fault of ours is a result too
        return Outcome("failed", f"{type(error).__name__}: {error}", time.perf_counter() - began)
    seconds = time.perf_counter() - began
    distances = _distances(clipped, truth, arrays)
    return Outcome(_judged(truth, distances), "", seconds, distances, _found(clipped))


def _distances(
    model: onnx.ModelProto, truth: cases.Truth, arrays: dict[str, np.ndarray]
) -> list[float]:
    got = run(model, truth, arrays, [output["name"] for output in truth.outputs])
    return [cases.distance(value, arrays[f"clipped_{place}"]) for place, value in enumerate(got)]


def _judged(truth: cases.Truth, distances: list[float]) -> str:
    wrong = [place for place, distance in enumerate(distances) if distance > truth.tolerance]
    if not wrong:
        return "exact"
    # A parameter is right if its new value is, and the new values of its states are.
    sound = 0
    places = [
        place
        for place, output in enumerate(truth.outputs)
        if output["role"] in ("parameter", "gradient")
    ]
    for place in places:
        name = truth.outputs[place]["is"]
        its = [
            other
            for other in wrong
            if other == place
            or (truth.outputs[other]["role"] == "state" and name in truth.outputs[other]["is"])
        ]
        sound += truth.outputs[place]["telling"] and not its
    return "partial" if sound else "wrong"


def _found(model: onnx.ModelProto) -> dict[str, Any]:
    """The gradients that were clipped and their parameters, as the record says."""
    for entry in model.metadata_props:
        if "clip" in entry.key:
            try:
                return {entry.key: json.loads(entry.value)}
            except ValueError:
                return {entry.key: entry.value}
    return {}


def markdown(rows: Iterable[Row]) -> str:
    """Return the table: a line for each case."""
    rows = list(rows)
    names = list(rows[0].outcomes)
    lines = [
        f"| optimizer | options | network | from | {' | '.join(names)} |",
        f"|---|---|---|---|{'---|' * len(names)}",
    ]
    for row in rows:
        truth = row.truth
        results = [_cell(truth, row.outcomes[name]) for name in names]
        cells = (
            truth.optimizer,
            truth.options,
            truth.architecture + (", gradients" if truth.kind == "gradients" else ""),
            truth.source,
            *results,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Iterable[Row]) -> str:
    """Return a shorter table: a line for each optimizer, its options and networks counted."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        truth = row.truth
        name = "gradients alone" if truth.kind == "gradients" else truth.optimizer
        groups.setdefault((truth.source, name.lower(), name), []).append(row)
    names = list(next(iter(groups.values()))[0].outcomes)
    lines = [
        f"| from | optimizer | steps | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for (source, _, optimizer), group in sorted(groups.items()):
        cells = []
        for name in names:
            kinds = Counter(row.outcomes[name].result for row in group)
            cells.append(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
        lines.append(f"| {source} | {optimizer} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(truth: cases.Truth, outcome: Outcome) -> str:
    if outcome.result == "exact" and not truth.telling:
        return "exact (blind)"
    return outcome.result


def counts(rows: Iterable[Row]) -> str:
    """Return how many cases came out how, by way."""
    rows = list(rows)
    lines = []
    for way in rows[0].outcomes:
        found = Counter(row.outcomes[way].result for row in rows)
        said = ", ".join(f"{found[result]} {result}" for result in ORDER if found[result])
        seconds = sum(row.outcomes[way].seconds for row in rows)
        lines.append(f"{way}: {said} of {len(rows)} ({seconds:.1f} s)")
    return "\n".join(lines)


def details(row: Row) -> str:
    """Return what is known of one case."""
    truth = row.truth
    lines = [f"{truth.name}: clip norm {truth.clip_norm}, tolerance {truth.tolerance}"]
    for place, described in enumerate(truth.inputs):
        lines.append(f"  input {place} {described['name']}: {described['role']} {described['is']}")
    for way, outcome in row.outcomes.items():
        lines.append(f"{way}: {outcome.result} in {outcome.seconds:.2f} s")
        lines += [f"  {line}" for line in outcome.message.splitlines()]
        for output, distance in zip(truth.outputs, outcome.outputs, strict=False):
            verdict = "right" if distance <= truth.tolerance else f"off by {distance:.1e}"
            blind = "" if output["telling"] else " (clipping does not change it)"
            lines.append(f"  {output['name']}: {output['role']} {output['is']}: {verdict}{blind}")
        if outcome.found:
            lines.append(json.dumps(outcome.found, indent=1))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if a case is partial, wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--only", metavar="NAME", help="a name, or a pattern of names: details")
    parser.add_argument("--named", action="store_true", help="a column with the gradients given")
    parser.add_argument("--summary", action="store_true", help="a line for each optimizer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes here")
    chosen = parser.parse_args(arguments)
    folders = [
        path.parent
        for folder in chosen.folders
        for path in sorted(folder.rglob("truth.json"))
        if chosen.only is None or fnmatch.fnmatch(path.parent.name, chosen.only)
    ]
    if not folders:
        parser.error("no folder holds a truth.json; export_torch.py and export_optax.py write them")
    chosen_ways = ways(named=chosen.named)
    rows = [row_of(folder, chosen_ways) for folder in folders]
    for row in rows:
        if chosen.only is not None:
            print(details(row), end="\n\n")
        for way, outcome in row.outcomes.items():
            if outcome.result != "exact" and chosen.only is None:
                message = (outcome.message.splitlines() or [""])[0]
                said = message if len(message) < 120 else f"{message[:117]}..."
                print(f"{row.truth.name} ({way}): {outcome.result} {said}".rstrip())
    print(counts(rows), end="\n\n")
    if chosen.only is None:
        print(summary(rows) if chosen.summary else markdown(rows))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    bad = ("partial", "wrong", "failed")
    return int(any(outcome.result in bad for row in rows for outcome in row.outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
