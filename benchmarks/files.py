"""How long does a rewrite of a large file take, and how much memory, beside a plain copy?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from contestants import DATA
from harness import (
    Contest,
    Sheet,
    alternate,
    failures,
    generate,
    memory_limit,
    merged,
    ours,
    python,
)

GB = 10**9
PEERS = {
    "onnx, load, insert, save": "onnx-insert",
    "onnx_ir, the same": "onnx-ir",
    "onnx-graphsurgeon, the same": "graphsurgeon",
}


def sheets(*, quick: bool, turns: int) -> Iterator[Sheet]:
    """Weights inside the model, then outside."""
    inside_sizes, outside_sizes = ((0.01,), (0.02,)) if quick else ((0.4, 1.6), (3,))
    jobs = [("inside", inside, size) for size in inside_sizes]
    jobs += [("outside", outside, size) for size in outside_sizes]
    for place, prepare, size in jobs:
        with tempfile.TemporaryDirectory() as made:
            results = alternate(prepare(Path(made), size), turns)
        yield Sheet(
            f"{size:g} GB of weights {place} the model",
            "cp",
            {
                "whole process, s": merged(results, "wall"),
                "work alone, s": merged(results, "work"),
                "peak memory, MB": merged(results, "peak"),
            },
            compared=("whole process, s", "work alone, s"),
            ours=ours(results),
            failures=failures(results),
        )


def inside(folder: Path, size: float) -> dict[str, Contest]:
    """The contest for a model that holds its weights."""
    source, old, target = folder / "model.onnx", folder / "old.onnx", folder / "out.onnx"
    generate("inside", source, int(size * GB))
    shutil.copyfile(source, old)
    with old.open("rb+") as file:
        os.fsync(file.fileno())
    memory = memory_limit()

    def contest(command: list[str], before: Callable[[], object] = lambda: None) -> Contest:
        return Contest(command, before, partial(target.unlink, missing_ok=True))

    cp = ["cp", str(source), str(target)]
    ours = python("onnx-clip", source, target, memory)
    return {
        "cp": contest(cp),
        "cp, then sync": contest(["sh", "-c", 'cp "$1" "$2" && sync "$2"', *cp]),
        "onnx-clip": contest(ours),
        "onnx-clip, over an old file": contest(ours, partial(target.hardlink_to, old)),
    } | {name: contest(python(peer, source, target, memory)) for name, peer in PEERS.items()}


def outside(folder: Path, size: float) -> dict[str, Contest]:
    """The contest for a model with its weights outside."""
    source, beside, other = folder / "model.onnx", folder / "out.onnx", folder / "other"
    generate("outside", source, int(size * GB))
    memory = memory_limit()

    def contest(command: list[str]) -> Contest:
        return Contest(command, other.mkdir, clean)

    def clean() -> None:
        beside.unlink(missing_ok=True)
        shutil.rmtree(other)

    cp = ["cp", str(source), str(folder / DATA), str(other)]
    there = other / "model.onnx"
    return {
        "cp": contest(cp),
        "onnx-clip, beside the data": contest(python("onnx-clip", source, beside, memory)),
        "onnx, insert, beside the data": contest(
            python("onnx-insert-structure", source, beside, memory)
        ),
        "onnx-clip, other folder": contest(python("onnx-clip", source, there, memory)),
    } | {name: contest(python(peer, source, there, memory)) for name, peer in PEERS.items()}
