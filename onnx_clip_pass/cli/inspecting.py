"""The command that shows what a model holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.cli.clipping import GradientOptions
from onnx_clip_pass.cli.finding import OptimizerOptions
from onnx_clip_pass.cli.folders import inspect_folder
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import PATH, json_option, refuse
from onnx_clip_pass.cli.pages import PageOptions
from onnx_clip_pass.cli.probing import ProbeOptions
from onnx_clip_pass.cli.several import Facts, each_model
from onnx_clip_pass.cli.showing import gradient_facts, record_facts, show_view
from onnx_clip_pass.cli.targets import is_folder
from onnx_clip_pass.cli.verifying import RunOptions
from onnx_clip_pass.cli.words import doing, is_quiet, say, volume_options
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.explaining import explain_gradient
from onnx_clip_pass.inspection import Inspection, inspect_model

__all__ = ["inspect"]


@click.command(cls=Command)
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--explain",
    "explained",
    metavar="PARAMETER",
    help="Show how this parameter's new value comes from its gradient, and why that is it.",
)
@GradientOptions.declare
@OptimizerOptions.declare
@ProbeOptions.declare
@RunOptions.declare
@PageOptions.declare
@json_option
@volume_options
def inspect(
    models: tuple[Path, ...],
    explained: str | None,
    optimizer_ops: dict[str, tuple[int, int]],
    as_json: bool,
    **options: Any,
) -> None:
    """Show the gradients of each MODEL, how they are known, and what is clipped already.

    Trained parameters whose gradients are not known for sure are listed too, with what stands in
    the way, and so are states that are carried from step to step and not trained. Exit code 1 if
    another tool has changed the clip of a MODEL since it was put in.

    MODEL is a file, or a folder of ONNX Runtime's training artifacts.

    \b
    Examples:
      onnx-clip inspect model.onnx
      onnx-clip inspect model.onnx --explain fc1.weight
      onnx-clip inspect model.onnx --probe        # by slopes of the loss
      onnx-clip inspect model.onnx --json > gradients.json
      onnx-clip rewrite model.onnx --map gradients.json
      onnx-clip inspect artifacts/                # of ONNX Runtime training
    """
    probing, run = ProbeOptions.take(options), RunOptions.take(options)
    named, page = GradientOptions.take(options), PageOptions.take(options)
    if not probing.probes:
        run.refuse_without("--probe")
    refuse(
        {
            "--explain tells what the graph shows: not with --probe": explained is not None
            and probing.probes,
            f"--explain searches: not with {', '.join(named.given)}": explained is not None
            and named.given,
            "--probe finds the gradients: not with --gradient or --map": probing.probes
            and named.given,
            "--html is for one model: name one": page.html and len(models) > 1,
            "--html shows all of a model: not with --explain": page.html and explained is not None,
        }
    )
    page.check(*models)
    names = named.read()

    def on(model: Path) -> Iterator[Facts]:
        if explained is not None:
            yield _explain(model, explained, optimizer_ops, as_json=as_json)
        elif is_folder(model) and not probing.probes:
            if names is not None:
                raise OnnxClipError(
                    f"{str(model)!r} is a folder, whose gradients are known by their accumulators: "
                    f"leave {named.given[0]} out"
                )
            yield inspect_folder(model, page=page, as_json=as_json)
        else:
            with doing(f"finding the gradients of {model.name}"):
                found = inspect_model(model, optimizer_ops=optimizer_ops, gradients=names)
            if probing.probes and not found.changed:
                probed = probing.find(model, run)
                reasons = [f"{entry.parameter}: {entry.reason}" for entry in probed.undecided]
                found = replace(
                    found, gradients=probed.gradients, reason="\n".join(reasons), questions=()
                )
            yield _tell(model, found, as_json=as_json)
            page.write_on(found)

    each_model(models, on, as_json=as_json, is_wrong=lambda facts: bool(facts.get("changed")))


def _tell(model: Path, found: Inspection, *, as_json: bool) -> Facts:
    """Show what a model holds, unless it is told as JSON; return that."""
    view = found.view()
    if not as_json and not is_quiet():
        show_view(view)
    elif found.changed:
        say(view.summary, is_result=not as_json)
    return {
        "model": str(model),
        "gradients": [gradient_facts(gradient) for gradient in found.gradients],
        "reason": found.changed or found.reason or None,
        "changed": bool(found.changed),
        "questions": [question.to_json() for question in found.questions],
        "carried": list(found.carried),
        "record": record_facts(found.record),
    }


def _explain(
    model: Path, name: str, optimizer_ops: dict[str, tuple[int, int]], *, as_json: bool
) -> Facts:
    """Show all that is known of one parameter."""
    if is_folder(model):
        raise OnnxClipError(f"{str(model)!r} is a folder: --explain takes one of its models")
    with doing(f"finding the gradients of {model.name}"):
        found = explain_gradient(model, name, optimizer_ops)
    if not as_json:
        for line in found.lines():
            say(line, is_result=True)
    return {"model": str(model)} | asdict(found)
