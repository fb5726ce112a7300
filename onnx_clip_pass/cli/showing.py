"""What the commands share in telling people and programs what was done."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_clip_pass.clips import clip_of
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.rewrite import Clipped, Report

__all__ = [
    "MODEL",
    "MOST_ROWS",
    "ProgressBar",
    "bounds_in_words",
    "count_gradients",
    "done_in_words",
    "error_facts",
    "escape_control",
    "gradient_facts",
    "json_option",
    "print_json",
    "report_facts",
    "say",
    "settings_in_words",
    "show_gradients",
    "show_table",
    "tell_ports",
    "tell_rewrite",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

MOST_ROWS = 40
"""From here on a table gives way to counts."""
_MOST_EMITTED = 10
MODEL = click.Path(path_type=Path)
"""The type of an argument that is a model."""


class ProgressBar:
    """A bar on standard error, from the second second on and only where a person watches."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            console = Console(stderr=True)
            if time.monotonic() - self._start < 1 or not console.is_terminal:
                return
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.DownloadColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(escape_control(self._title))
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)


def tell_rewrite(model: Path, target: Path | None, report: Report, *, as_json: bool) -> None:
    """What was done to one model: notes always, the rest unless it is told as JSON."""
    for warning in report.warnings:
        say(f"note: {warning}")
    if report.replaced:
        say("note: the model was clipped already; the clips it had are replaced")
    if as_json:
        return
    show_gradients((row.gradient, _done_to(row)) for row in report.rows)
    done = done_in_words(report, target)
    count = f"{len(report.clipped)} of {count_gradients(len(report.rows))}"
    written = "nothing was written" if target is None else f"wrote {escape_control(target)}"
    click.echo(f"{done} {count} in {escape_control(model)}, {bounds_in_words(report)}; {written}")
    tell_ports(report)


def done_in_words(report: Report, target: Path | None) -> str:
    """What was done, or would be if there were a target."""
    if target is None:
        return "would measure" if report.measured_only else "would clip"
    return "measured" if report.measured_only else "clipped"


def tell_ports(report: Report) -> None:
    """The inputs and outputs that were added."""
    for name in report.threshold_inputs:
        click.echo(f"input {escape_control(name)}: the threshold; not fed, it is as given here")
    for emitted in report.emitted[:_MOST_EMITTED]:
        of = emitted.group or ", ".join(emitted.gradients)
        of = of if len(of) < 60 else count_gradients(len(emitted.gradients))
        click.echo(f"output {escape_control(emitted.output)}: {emitted.quantity} of "
                   f"{escape_control(of)}")  # fmt: skip
    if len(report.emitted) > _MOST_EMITTED:
        click.echo(f"and {len(report.emitted) - _MOST_EMITTED} outputs more (--json lists them)")


def _done_to(row: Clipped) -> str:
    if row.clip is None:
        return "-"
    return row.clip.label + (f" [rule {row.rule}]" if row.rule is not None else "")


def bounds_in_words(report: Report) -> str:
    """By what the gradients are bounded: there must be no doubt whether a norm is global."""
    found = list(dict.fromkeys(row.clip.bounds for row in report.clipped if row.clip))
    if not found:
        return "none of them"
    return "; ".join(found[:3]) + (f"; and in {len(found) - 3} other ways" if found[3:] else "")


def escape_control(text: object) -> str:
    """Text from outside, with control characters made visible: a name must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(message: str) -> None:
    """A message on standard error."""
    click.echo("\n".join(escape_control(line) for line in message.split("\n")), err=True)


def print_json(facts: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=True))


def json_option(command: _Command) -> _Command:
    """Add `--json` to a command; its object then says what went wrong, as the message does."""

    @wraps(command)
    def telling(*arguments: Any, as_json: bool, **options: Any) -> Any:
        try:
            return command(*arguments, as_json=as_json, **options)
        except (OnnxClipError, click.ClickException) as error:
            if as_json:
                print_json(error_facts(error))
            raise

    add = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    )
    return cast(_Command, add(telling))


def error_facts(error: Exception) -> dict[str, Any]:
    """What went wrong, in the types of JSON; all faults, where there are several."""
    faults = getattr(error, "faults", ())
    return {"error": str(error)} | ({"faults": list(faults)} if faults else {})


def count_gradients(number: int) -> str:
    """How many gradients, in words."""
    return f"{number} gradient" + ("s" if number != 1 else "")


def show_gradients(gradients: Iterable[tuple[Gradient, str]]) -> None:
    """Gradients and what is done to them, on standard error; counts where that would be long."""
    rows = list(gradients)
    if not rows:
        return
    if len(rows) > MOST_ROWS:
        counts = Counter((clip, gradient.dtype) for gradient, clip in rows)
        for (clip, dtype), count in counts.items():
            say(f"{count_gradients(count)}, {dtype}: {clip if clip != '-' else 'not clipped'}")
        say("(--json lists them)")
        return
    headings = ("gradient", "parameter", "shape", "dtype", "clip", "evidence")
    show_table(
        headings,
        [
            (
                gradient.name,
                gradient.parameter.name,
                _shape(gradient),
                gradient.dtype,
                clip,
                gradient.evidence,
            )
            for gradient, clip in rows
        ],
    )


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard error."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(escape_control(cell)) for cell in cells))
    Console(stderr=True, soft_wrap=False).print(table)


def _shape(gradient: Gradient) -> str:
    if gradient.shape is None:
        return "?"
    return "[" + ", ".join("?" if d is None else str(d) for d in gradient.shape) + "]"


def report_facts(report: Report) -> dict[str, Any]:
    """A report in the types of JSON."""
    return {
        "replaced": report.replaced,
        "warnings": list(report.warnings),
        "gradients": [
            gradient_facts(row.gradient)
            | {
                "clip": None
                if row.clip is None
                else {"type": type(row.clip).__name__, **row.clip.settings()},
                "rule": row.rule,
            }
            for row in report.rows
        ],
        "measured_only": report.measured_only,
        "threshold_inputs": list(report.threshold_inputs),
        "emitted": [asdict(emitted) for emitted in report.emitted],
    }


def gradient_facts(gradient: Gradient) -> dict[str, Any]:
    """A gradient in the types of JSON."""
    return {
        "gradient": gradient.name,
        "parameter": gradient.parameter.name,
        "graph": gradient.graph,
        "shape": None if gradient.shape is None else list(gradient.shape),
        "dtype": gradient.dtype,
        "evidence": gradient.evidence,
    }


def settings_in_words(entry: dict[str, Any] | None) -> str:
    """What a record says of one clip, in a few words."""
    if entry is None:
        return "-"
    try:
        return clip_of(entry).label
    except OnnxClipError:  # written by another version: worth a look all the same
        return str(entry.get("clip"))
