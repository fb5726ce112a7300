"""Try `find_gradients` on random steps: `python -m tests.random_steps 300`, or `--seed 17`."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence

import onnx

from onnx_clip_pass import find_gradients

from .scoring import Pair, faults, score
from .steps import Step, random_step


def found_in(step: Step) -> list[Pair]:
    return [(found.name, found.parameter.name) for found in find_gradients(step.model)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts and a line for each step that is not exact; 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=300, help="seeds from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="show this step alone")
    parser.add_argument("--only", help="steps whose description has this text")
    parser.add_argument("--by-kind", action="store_true", help="count for each thing drawn, too")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _show(options.seed)
    counts: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for seed in range(options.first, options.first + options.count):
        step = random_step(seed)
        if options.only and options.only not in step.description:
            continue
        verdict = _judge(seed, step)
        counts[verdict] += 1
        for kind in kinds_of(step):
            kinds.setdefault(kind, Counter())[verdict] += 1
    if options.by_kind:
        for kind, of_kind in sorted(kinds.items(), key=lambda row: -row[1].total()):
            print(f"{_row(of_kind)}  {kind}")
    print(_row(counts))
    return int(counts["exact"] < counts.total())


def kinds_of(step: Step) -> set[str]:
    """What was drawn for a step, one by one."""
    net, *others = re.split(r", | and | \+ ", step.description)
    batch, _, layers = net.partition(": ")
    return {batch, *layers.split(), *others}


def _row(counts: Counter[str]) -> str:
    names = ("exact", "partial", "wrong", "error")
    return "  ".join(f"{name}: {counts[name]:3}" for name in names)


def _judge(seed: int, step: Step) -> str:
    try:
        found = found_in(step)
    except Exception as error:  # the counts are wanted whatever a finder does
        text = str(error).splitlines() or [""]
        print(f"{seed} error: {step.description}; {type(error).__name__}: {text[0]}")
        return "error"
    verdict = score(step, found)
    if verdict != "exact":
        missing, false = faults(step, found)
        print(f"{seed} {verdict}: {step.description}; missing {missing}, false {false}")
    return verdict


def _show(seed: int) -> int:
    step = random_step(seed)
    print(onnx.printer.to_text(step.model))
    print(step.description)
    for parameter, gradients in step.truth.items():
        print(f"{parameter}: {' then '.join('|'.join(sorted(names)) for names in gradients)}")
    verdict = _judge(seed, step)
    if verdict != "error":
        print(f"found {found_in(step)}: {verdict}")
    return int(verdict != "exact")


if __name__ == "__main__":
    sys.exit(main())
