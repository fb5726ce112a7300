"""The command that writes the clip alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.cli.clipping import ClipOptions, GradientOptions, clip_options
from onnx_clip_pass.cli.finding import FindOptions
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import OUTPUT, PATH, json_option, output_path
from onnx_clip_pass.cli.showing import report_facts, tell_rewrite
from onnx_clip_pass.cli.words import print_json
from onnx_clip_pass.extract import extract_clip_file

__all__ = ["extract"]


@click.command(cls=Command, short_help="Write the clip of a model alone.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=OUTPUT, help="Where to write. [default: MODEL.clip.onnx]")
@clip_options
@GradientOptions.declare
@FindOptions.declare
@click.option("--force", is_flag=True, help="Replace an output that extract did not write.")
@json_option
def extract(
    model: Path,
    output: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the clip of MODEL alone: its gradients in, NAME.clipped out, in the same order.

    For gradients that are averaged over workers, or kept outside of ONNX, before they are clipped.

    \b
    Examples:
      onnx-clip extract model.onnx                # writes model.clip.onnx
      onnx-clip extract model.onnx -o clip.onnx --clip global-norm --clip-norm 5
    """
    finding, named = FindOptions.take(options), GradientOptions.take(options)
    finding.refuse_with(*named.given)
    clipping = ClipOptions.of(options)
    if clipping.arguments["measure_only"]:
        raise click.UsageError("--measure-only clips nothing: there is no clip to extract")
    beside = model.with_name(f"{model.name.removesuffix('.onnx')}.clip.onnx")
    target = output_path(output, model) or beside
    report = extract_clip_file(
        model,
        target,
        clipping.clips(),
        gradients=named.read(),
        force=force,
        **clipping.arguments,
        **finding.arguments(model),
    )
    tell_rewrite(model, target, report, as_json=as_json)
    if as_json:
        print_json({"model": str(model), "output": str(target)} | report_facts(report))
