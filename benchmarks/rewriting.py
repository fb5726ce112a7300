"""What does a rewrite of a graph with many gradients take, and does it grow with their number?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from files import PEERS
from harness import (
    Contest,
    Sheet,
    alternate,
    failures,
    generate,
    merged,
    ours,
    python,
    scaled,
)

KINDS = {
    "wide": "gradients that are outputs, known by name",
    "wide-sgd": "gradients that an update takes, known by structure",
}
CONTESTANTS = {
    "onnx, load and save alone": "onnx-load-save",
    "onnx-clip": "onnx-clip",
    **PEERS,
    "onnxscript's rewriter, the same": "onnxscript",
}


def sheets(*, quick: bool, turns: int) -> Iterator[Sheet]:
    """Beside peers at several sizes, then ours alone as graphs grow."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for gradients in (50, 200) if quick else (100, 1000, 5000):
            yield beside_peers(folder, gradients, turns)
        for kind in KINDS:
            yield growth(folder, kind, (100, 400) if quick else (1000, 10_000, 50_000), turns)


def beside_peers(folder: Path, gradients: int, turns: int) -> Sheet:
    """The same edit by others, from file to file, each in a fresh process."""
    source, target = folder / f"{gradients}.onnx", folder / "out.onnx"
    generate("wide", source, gradients)
    clean = partial(target.unlink, missing_ok=True)
    results = alternate(
        {n: Contest(python(c, source, target), after=clean) for n, c in CONTESTANTS.items()}, turns
    )
    return Sheet(
        f"{gradients:,} gradients in {3 * gradients:,} nodes",
        next(iter(CONTESTANTS)),
        {"work, s": merged(results, "work"), "whole process, s": merged(results, "wall")},
        compared=("work, s",),
        ours=ours(results),
        failures=failures(results),
    )


def growth(folder: Path, kind: str, counts: tuple[int, ...], turns: int) -> Sheet:
    """Time for each gradient, in graphs of these many."""
    target = folder / "out.onnx"
    contests = {}
    for count in counts:
        source = folder / f"{kind}-{count}.onnx"
        generate(kind, source, count)
        clean = partial(target.unlink, missing_ok=True)
        contests[f"{count:,}"] = Contest(python("onnx-clip", source, target), after=clean)
    results = alternate(contests, turns)
    each = {}
    for row, work in merged(results, "work").items():
        each |= scaled({row: work}, 1e6 / int(row.replace(",", "")))
    return Sheet(
        KINDS[kind],
        f"{counts[0]:,}",
        {"work for each gradient, µs": each, "peak memory, MB": merged(results, "peak")},
        compared=("work for each gradient, µs",),
        ours=tuple(contests),
        failures=failures(results),
    )
