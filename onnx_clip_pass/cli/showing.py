"""Words, tables and JSON on what was done, for all commands."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from onnx_clip_pass.cli.tables import show_gradients
from onnx_clip_pass.cli.words import counted, escape_control, say
from onnx_clip_pass.clips import clip_from_dict
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.files import Inspection
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.record import ClipEntry, Record
from onnx_clip_pass.rewrite import Clipped, Report

__all__ = [
    "ProgressBar",
    "done_by",
    "gradient_facts",
    "record_facts",
    "report_facts",
    "settings_in_words",
    "show_inspected",
    "tell_rewrite",
]

_MOST_EMITTED = 10


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


def tell_rewrite(
    source: Path,
    target: Path | None,
    report: Report,
    *,
    as_json: bool,
    what: str = "model",
    count: str | None = None,
    when: str = "",
) -> None:
    """Tell what was done: notes always, the rest unless it is told as JSON.

    Args:
        source: what was rewritten.
        target: what was written; None if nothing was.
        report: what was found and done.
        as_json: whether the report is told as JSON, elsewhere.
        what: what the source is.
        count: how many gradients were clipped, if not so many of so many.
        when: when they are clipped, with a space before it.
    """
    for warning in report.warnings:
        say(f"note: {warning}")
    if report.replaced:
        say(f"note: the {what} was clipped already; the clips it had are replaced")
    if as_json:
        return
    show_gradients(((row.gradient, _done_to(row)) for row in report.rows), is_result=False)
    if target is None:
        done = "would measure" if report.measured_only else "would clip"
        written = "nothing was written"
    else:
        done = "measured" if report.measured_only else "clipped"
        written = f"wrote {escape_control(target)}"
    count = count or f"{len(report.clipped)} of {counted(len(report.rows))}"
    where = f"{escape_control(source)}{when}"
    click.echo(f"{done} {count} in {where}, {_bounds_in_words(report)}; {written}")
    _tell_ports(report)


def show_inspected(found: Inspection) -> None:
    """The gradients that were found, each with the clip that it has."""
    done = found.record.clips if found.record else []
    clips = {(clip.gradient, clip.parameter): clip for clip in done}
    show_gradients(
        (
            (gradient, settings_in_words(clips.get((gradient.name, gradient.parameter.name))))
            for gradient in found.gradients
        ),
        is_result=True,
    )


def _tell_ports(report: Report) -> None:
    """The inputs and outputs that were added."""
    for name in report.threshold_inputs:
        click.echo(f"input {escape_control(name)}: the threshold; not fed, it is as given here")
    for emitted in report.emitted[:_MOST_EMITTED]:
        of = emitted.group or ", ".join(emitted.gradients)
        of = of if len(of) < 60 else counted(len(emitted.gradients))
        click.echo(f"output {escape_control(emitted.output)}: {emitted.quantity} of "
                   f"{escape_control(of)}")  # fmt: skip
    if len(report.emitted) > _MOST_EMITTED:
        click.echo(f"and {len(report.emitted) - _MOST_EMITTED} outputs more (--json lists them)")


def _done_to(row: Clipped) -> str:
    if row.clip is None:
        return "-"
    return row.clip.label + (f" [rule {row.rule}]" if row.rule is not None else "")


def _bounds_in_words(report: Report) -> str:
    """By what the gradients are bounded: there must be no doubt whether a norm is global."""
    found = list(dict.fromkeys(row.clip.bounds for row in report.clipped if row.clip))
    if not found:
        return "none of them"
    return "; ".join(found[:3]) + (f"; and in {len(found) - 3} other ways" if found[3:] else "")


def report_facts(report: Report) -> dict[str, Any]:
    """A report in the types of JSON."""
    return {
        "replaced": report.replaced,
        "warnings": list(report.warnings),
        "gradients": [
            gradient_facts(row.gradient)
            | {
                "clip": None if row.clip is None else row.clip.to_dict(),
                "rule": row.rule,
            }
            for row in report.rows
        ],
        "measured_only": report.measured_only,
        "threshold_inputs": list(report.threshold_inputs),
        "emitted": [asdict(emitted) for emitted in report.emitted],
        "uncovered": [each.to_json() for each in report.uncovered],
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


def record_facts(record: Record | None) -> dict[str, Any] | None:
    """A record of a rewrite in the types of JSON."""
    if record is None:
        return None
    return {
        "version": record.version,
        "clips": [entry.to_json() for entry in record.clips],
        "measures_only": record.measures_only,
        "loss_scale": record.loss_scale,
        "norm_precision": record.norm_precision,
        "nonfinite": record.nonfinite,
        "inputs": record.inputs,
        "outputs": record.outputs,
        "answers": record.answers,
        "optimizer_ops": record.optimizer_ops,
        "uncovered": [entry.to_json() for entry in record.uncovered],
    }


def done_by(record: Record) -> str:
    """The deed and the version that did it: clipped by onnx-clip 1.0."""
    verb = "measured" if record.measures_only else "clipped"
    return f"{verb} by onnx-clip {escape_control(record.version)}"


def settings_in_words(entry: ClipEntry | None) -> str:
    """A few words on a clip as a record holds it."""
    if entry is None:
        return "-"
    try:
        return clip_from_dict(entry.clip).label
    except OnnxClipError:  # written by another version: worth a look all the same
        return str(entry.clip["clip"])
