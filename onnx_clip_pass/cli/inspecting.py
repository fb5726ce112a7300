"""The command that shows what a model holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.cli.finding import OptimizerOptions, tell_uncovered
from onnx_clip_pass.cli.folders import inspect_folder, is_folder
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import PATH, json_option
from onnx_clip_pass.cli.probing import ProbeOptions
from onnx_clip_pass.cli.showing import done_by, gradient_facts, record_facts, show_inspected
from onnx_clip_pass.cli.verifying import RunOptions
from onnx_clip_pass.cli.words import counted, escape_control, print_json
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.files import explain_file, inspect_file
from onnx_clip_pass.record import Record

__all__ = ["inspect"]


@click.command(cls=Command, short_help="Show gradients, and what is clipped.")
@click.argument("model", type=PATH)
@click.option(
    "--explain",
    "explained",
    metavar="PARAMETER",
    help="Show how this parameter's new value comes from its gradient, and why that is it.",
)
@OptimizerOptions.declare
@ProbeOptions.declare
@RunOptions.declare
@json_option
def inspect(
    model: Path,
    explained: str | None,
    optimizer_ops: dict[str, tuple[int, int]],
    as_json: bool,
    **options: Any,
) -> None:
    """Show the gradients of MODEL, how they are known, and what is clipped already.

    Trained parameters whose gradients are not known for sure are listed too, with what stands in
    the way, and so are states that are carried from step to step and not trained.

    MODEL is a file, or a folder of ONNX Runtime's training artifacts.

    \b
    Examples:
      onnx-clip inspect model.onnx
      onnx-clip inspect model.onnx --explain fc1.weight
      onnx-clip inspect model.onnx --probe        # by slopes of the loss
      onnx-clip inspect artifacts/                # of ONNX Runtime training
    """
    probing, run = ProbeOptions.take(options), RunOptions.take(options)
    if not probing.probes:
        run.refuse_without("--probe")
    if is_folder(model) and not probing.probes:
        if explained is not None:
            raise OnnxClipError(f"{str(model)!r} is a folder: --explain takes one of its models")
        inspect_folder(model, as_json=as_json)
        return
    if explained is not None:
        if probing.probes:
            raise click.UsageError("--explain tells what the graph shows: not with --probe")
        _explain(model, explained, optimizer_ops, as_json=as_json)
        return
    found = inspect_file(model, optimizer_ops)
    if probing.probes:
        probed = probing.find(model, run)
        reason = "\n".join(f"{entry.parameter}: {entry.reason}" for entry in probed.undecided)
        found = replace(found, gradients=probed.gradients, reason=reason, questions=())
    if as_json:
        print_json(
            {
                "model": str(model),
                "gradients": [gradient_facts(gradient) for gradient in found.gradients],
                "reason": found.reason or None,
                "questions": [question.to_json() for question in found.questions],
                "carried": list(found.carried),
                "record": record_facts(found.record),
            }
        )
        return
    show_inspected(found)
    click.echo(f"{counted(len(found.gradients))} in {escape_control(model)}")
    tell_uncovered(found.questions)
    if found.carried:
        click.echo(escape_control(f"carried, not trained: {listed(found.carried)}"))
    for line in found.reason.splitlines():
        click.echo(escape_control(line))
    for line in _in_words(found.record):
        click.echo(line)


def _explain(
    model: Path, name: str, optimizer_ops: dict[str, tuple[int, int]], *, as_json: bool
) -> None:
    """Show all that is known of one parameter."""
    found = explain_file(model, name, optimizer_ops)
    if as_json:
        print_json({"model": str(model)} | asdict(found))
        return
    for line in found.lines():
        click.echo(escape_control(line))


def _in_words(record: Record | None) -> list[str]:
    """A few lines on what a rewrite did."""
    if record is None:
        return ["not clipped by onnx-clip"]
    lines = [
        f"{done_by(record)}: {len(record.clips)} of them, norms {record.norm_precision}, "
        f"nan and inf: {record.nonfinite}, laid out for {record.layout}"
    ]
    if record.measures_only:
        lines.append("nothing is clipped: the gradients are only measured")
    if record.loss_scale != 1:
        lines.append(f"thresholds are for gradients without the loss scale {record.loss_scale}")
    if record.inputs:
        lines.append(f"inputs that set thresholds: {', '.join(record.inputs)}")
    if record.outputs:
        more = f" and {len(record.outputs) - 5} more" if record.outputs[5:] else ""
        lines.append(f"outputs that were added: {', '.join(record.outputs[:5])}{more}")
    if record.answers:
        lines.append(f"the slopes of the loss decided for {listed(list(record.answers))}")
    names = list(dict.fromkeys(entry.parameter for entry in record.uncovered))
    if names:
        lines.append(f"not covered, as was accepted (--partial): {listed(names)}")
    return [escape_control(line) for line in lines]
