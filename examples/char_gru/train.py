"""Train a small GRU on text at a rate where it is lost, and compare what keeps it.

    python examples/char_gru/train.py prepare .                     # a run, for `onnx-clip watch`
    python examples/char_gru/train.py compare --picture gru.png     # clips beside each other

The text is the documentation of the operators of opset 17, as the installed onnx has it: another
version has another text, and gives other figures. Needs onnx-clip and onnxruntime; matplotlib for
the picture. docs/lost_run.md tells the story, with onnx 1.23.2.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import step

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByPercentile,
    Rule,
    ZClip,
    clip_gradients,
    initial_states,
    watch,
)

STEPS, BATCH, LENGTH = 500, 4, 48
WARMUP, RATES = 100, (5.0, 7.0)
"""Of plain SGD, at the highest, after the warm-up: too much for this net."""
FIXED = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Clip = float | ZClip | GradientClipByPercentile | list[Rule]
"""A threshold of all gradients together, which the loop feeds, or clips that are in the graph."""

Found = dict[str, dict[float, list["Run"]]]
"""Runs by the name of their clip and by the rate."""

OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain})


def text() -> str:
    """Return what onnx says of each operator of opset 17, under its name."""
    found = []
    for name in OPERATORS:
        with suppress(onnx.defs.SchemaError):  # of a later opset
            found.append(f"{name}\n{onnx.defs.get_schema(name, 17, '').doc}")
    return "\n".join(found)


TEXT = text()
LETTERS = sorted(set(TEXT))
GUESSING = math.log(len(LETTERS))
"""The loss of a net that gives all letters the same probability."""
CODES = np.array([LETTERS.index(letter) for letter in TEXT])
TRAIN, HELD_OUT = np.split(CODES, [len(CODES) * 9 // 10])


def pieces(codes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return pieces of text, one a column, each a letter longer than what is guessed of it."""
    starts = random.integers(0, len(codes) - LENGTH, count)
    return codes[starts + np.arange(LENGTH + 1)[:, None]]


def batches(seed: int, highest: float = RATES[0]) -> Iterator[dict[str, np.ndarray]]:
    """Yield what the step is fed beside its weights: the rate goes up, then down as a cosine."""
    random = np.random.default_rng([seed, 1])
    for at in range(STEPS):
        down = 0.5 + 0.5 * math.cos(math.pi * max(0, at - WARMUP) / (STEPS - WARMUP))
        rate = highest * min(1, (at + 1) / WARMUP) * down
        yield {"text": pieces(TRAIN, BATCH, random), "lr": np.array(rate, np.float32)}


@dataclass
class Run:
    """The losses of a run, step by step, and that on text it was not trained on, at its end."""

    losses: list[float] = field(default_factory=list)
    held_out: float = math.nan


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return a session on one thread, which is the fastest for a net of this size."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # a threshold input has a default, which is warned of
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def train(clip: Clip, seed: int, rate: float = RATES[0]) -> Run:
    """Train from the same start on the same batches as all other runs of that seed."""
    model = step.make(len(LETTERS))
    if isinstance(clip, ZClip | float):
        limit = GradientClipByGlobalNorm(1.0)
        clipped = clip_gradients(model, limit, threshold_input="clip_norm", emit="norm")
    else:
        clipped = clip_gradients(model, clip)
    session, run = session_of(clipped), Run()
    weights = step.initial(len(LETTERS), seed)
    states = weights | initial_states(clipped)
    new = [f"{name}.new" if name in weights else f"{name}_new" for name in states]
    for batch in batches(seed, rate):
        if isinstance(clip, ZClip | float):
            limit = clip if isinstance(clip, float) else clip.threshold
            batch["clip_norm"] = np.array(limit, np.float32)
            norm, loss, *found = session.run(["default_group/norm", "loss", *new], states | batch)
            if isinstance(clip, ZClip):
                clip.update(norm.item())
        else:
            loss, *found = session.run(["loss", *new], states | batch)
        states = dict(zip(states, found, strict=True))
        run.losses.append(loss.item())
    held_out = {"text": pieces(HELD_OUT, 256, np.random.default_rng(0))}
    held_out |= {"lr": np.array(0, np.float32)} | {name: states[name] for name in weights}
    run.held_out = session_of(model).run(["loss"], held_out)[0].item()
    return run


def suggested(seed: int, rate: float = RATES[0]) -> list[Rule]:
    """Return rules from an unclipped run, from the steps before it does worse than guessing."""
    norms = watch(
        step.make(len(LETTERS)),
        batches(seed, rate),
        steps=2 * WARMUP,
        initial=step.initial(len(LETTERS), seed),
    )
    return norms.suggest(90, steps=lost_at(norms.loss)).rules


def lost_at(losses: Sequence[float]) -> int | None:
    """Return the first of five steps in a row that do worse than guessing, after the first ten."""
    is_worse = np.asarray(losses)[10:] > GUESSING
    in_a_row = np.lib.stride_tricks.sliding_window_view(is_worse, 5).all(axis=1)
    return 10 + int(in_a_row.argmax()) if in_a_row.any() else None


def compare(seeds: Sequence[int], rates: Sequence[float] = RATES) -> Found:
    """Return runs by clip and by rate, one for each seed."""
    clips: dict[str, Callable[[int, float], Clip]] = {"no clip": lambda *_: math.inf}
    clips |= {f"clip_norm {limit:g}": lambda *_, limit=limit: limit for limit in FIXED}
    clips |= {
        "suggested rules": suggested,
        "twice the moving median": lambda *_: GradientClipByPercentile(50, 100, factor=2),
        "AutoClip": lambda *_: GradientClipByPercentile(),
        "ZClip": lambda *_: ZClip(),
    }
    return {
        name: {rate: [train(make(seed, rate), seed, rate) for seed in seeds] for rate in rates}
        for name, make in clips.items()
    }


def prepare(folder: Path, seed: int) -> None:
    """Write the step, the weights it begins with, and its batches, each a file."""
    if (folder / "step.onnx").exists():
        raise SystemExit(f"there is a step.onnx in {str(folder)!r}: give a folder without one")
    (folder / "batches").mkdir(parents=True, exist_ok=True)
    onnx.save(step.make(len(LETTERS)), folder / "step.onnx")
    np.savez(folder / "start.npz", **step.initial(len(LETTERS), seed))
    for at, batch in enumerate(batches(seed)):
        np.savez(folder / "batches" / f"{at:03}.npz", **batch)


def draw(found: Found, path: str) -> None:
    """One run with and without rules; runs by their fixed threshold; the others by their clip."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.6), layout="constrained", width_ratios=(4, 3, 3)
    )
    lowest, *_ = rates = list(found["no clip"])
    for name, color in (("no clip", "tab:red"), ("suggested rules", "tab:blue")):
        runs = found[name][lowest]
        left.semilogy(runs[len(runs) // 2].losses, color=color, lw=0.8, label=name)
    left.axhline(GUESSING, color="gray", lw=0.8, ls=":")
    left.annotate("guessing", (STEPS, GUESSING), ha="right", va="bottom", size=8)
    left.set(title=f"one run, rate {lowest:g}", xlabel="step", ylabel="loss (log scale)")
    left.set_yticks(ticks := (2, 3, 5, 10, 20, 30), labels=map(str, ticks))
    left.minorticks_off()
    left.legend(frameon=False)

    fixed = [limit for limit in FIXED if f"clip_norm {limit:g}" in found]
    others = [name for name in found if not name.startswith("clip_norm")]
    for rate, color, marker in zip(rates, ("black", "tab:orange"), "os", strict=False):
        ends = np.array([held_out(found[f"clip_norm {limit:g}"][rate]) for limit in fixed])
        middle.fill_between(fixed, ends.min(1), ends.max(1), color=color, alpha=0.15, lw=0)
        label = f"rate {rate:g}"
        middle.semilogx(fixed, np.median(ends, 1), f"{marker}-", color=color, ms=4, label=label)
        for at, name in enumerate(others):
            ends = held_out(found[name][rate])
            height = np.full(len(ends), at + 0.12 - 0.24 * (rate == lowest))
            right.plot(ends, height, marker, ms=4, alpha=0.6, color=color)
    middle.set(title="a fixed threshold", xlabel="clip_norm, all gradients (log scale)")
    middle.set(ylabel="held-out loss at the end")
    middle.legend(frameon=False)
    right.set(title="others", xlabel="held-out loss at the end", yticks=range(len(others)))
    right.set_yticklabels(others)
    right.invert_yaxis()
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def held_out(runs: Sequence[Run]) -> np.ndarray:
    """The loss of each run at its end, on text that was not trained on."""
    return np.array([run.held_out for run in runs])


def table(found: Found) -> Iterator[str]:
    """Yield the lines of a table in Markdown: the median, and the best and the worst."""
    rates = list(next(iter(found.values())))
    yield "| clip |" + "".join(f" rate {rate:g} |" for rate in rates)
    yield "|---|" + "---|" * len(rates)
    for name, runs in found.items():
        ends = [held_out(runs[rate]) for rate in rates]
        cells = [f" {np.median(e):.2f} ({e.min():.2f} to {e.max():.2f}) |" for e in ends]
        yield f"| {name} |" + "".join(cells)


def main() -> None:
    """Write a run, or compare clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_one = commands.add_parser("prepare", help="write a step, its weights and its batches")
    of_one.add_argument("folder", type=Path)
    of_one.add_argument("--seed", type=int, default=3)
    of_all = commands.add_parser("compare", help="train with each clip, and print a table")
    of_all.add_argument("--seeds", type=int, default=5, help="how many of each")
    of_all.add_argument("--picture", metavar="FILE")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.folder, options.seed)
        return
    found = compare(range(1, options.seeds + 1))
    print(*table(found), sep="\n")
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
