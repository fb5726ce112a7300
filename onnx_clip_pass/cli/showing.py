"""Words, tables and JSON on what was done, for all commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_clip_pass.cli.tables import show_table
from onnx_clip_pass.cli.words import counted, is_quiet, is_verbose, say
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.record import Record
from onnx_clip_pass.rewrite import Report
from onnx_clip_pass.rewrite.operators import operator_table
from onnx_clip_pass.views import View

__all__ = [
    "gradient_facts",
    "record_facts",
    "report_facts",
    "show_view",
    "tell_rewrite",
    "tell_undone",
]


def show_view(view: View) -> None:
    """Print what was asked for: the summary first, what is not known and the like last."""
    for line in (view.summary, *view.first):
        say(line, is_result=True)
    show_table(view.table, is_result=True)
    for line in view.further:
        say(line, is_result=True)


def tell_rewrite(
    source: Path,
    target: Path | None,
    report: Report,
    *,
    as_json: bool,
    what: str = "model",
    count: str = "",
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
    view = report.as_view(
        report.summary(f"{source}{when}", is_done=target is not None, count=count), what
    )
    for note in view.notes:
        say(f"note: {note}")
    if as_json or is_quiet():
        return
    written = "nothing was written" if target is None else f"wrote {target}"
    say(f"{view.summary}; {written}", is_result=True)
    show_table(view.table, is_result=False)
    if is_verbose() and report.operators:
        show_table(operator_table(report.operators), is_result=False)
    for line in view.further:
        say(line, is_result=True)


def tell_undone(
    source: Path, target: Path | None, records: Sequence[Record], *, as_json: bool
) -> None:
    """Tell what was undone, unless it is told as JSON.

    Args:
        source: what was stripped.
        target: what was written; None if nothing was.
        records: what had been done.
        as_json: whether it is told as JSON, elsewhere.
    """
    if as_json or is_quiet():
        return
    count = sum(len(record.clips) for record in records)
    done, written = (
        ("would undo", "nothing was written") if target is None else ("undid", f"wrote {target}")
    )
    versions = ", ".join(dict.fromkeys(record.version for record in records))
    say(
        f"{done} {counted(count, 'clip')} of onnx-clip {versions} in {source}; {written}",
        is_result=True,
    )


def report_facts(report: Report) -> dict[str, Any]:
    """A report in the types of JSON."""
    return {
        "replaced": report.replaced,
        "layout": report.layout,
        "new_operators": [
            {"operator": operator, "opset": opset} for operator, opset in report.new_operators
        ],
        "operators": {name: [before, after] for name, before, after in report.operators},
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
        "states": dict(report.states),
        "emitted": [asdict(emitted) for emitted in report.emitted],
        "uncovered": [each.to_json() for each in report.uncovered],
        "reduced": None if report.reduced is None else report.reduced._asdict(),
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
        "layout": record.layout,
        "inputs": record.inputs,
        "outputs": record.outputs,
        "states": record.states,
        "answers": record.answers,
        "optimizer_ops": record.optimizer_ops,
        "uncovered": [entry.to_json() for entry in record.uncovered],
    }
