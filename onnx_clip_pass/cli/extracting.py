"""The command that writes the clip alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from onnx_clip_pass.arguments import whole_in
from onnx_clip_pass.cli.clipping import ClipOptions, GradientOptions, clip_options
from onnx_clip_pass.cli.finding import FindOptions
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import (
    OUTPUT,
    PATH,
    TEXT,
    OptionGroup,
    json_option,
    option,
)
from onnx_clip_pass.cli.showing import report_facts, tell_rewrite
from onnx_clip_pass.cli.targets import target_of
from onnx_clip_pass.cli.words import doing, print_json, volume_options
from onnx_clip_pass.errors import shown
from onnx_clip_pass.extract import Phase, ShardAxis, extract_clip_file

__all__ = ["extract"]


def _axis(_context: click.Context, _option: click.Parameter, text: str | None) -> ShardAxis:
    if text is None or text == "flat":
        return text  # type: ignore[return-value]
    try:
        return whole_in(text)
    except ValueError:
        raise click.UsageError(
            f"--shard-axis: expected an axis such as 0, or flat, not {shown(text)}"
        ) from None


class PhaseOptions(OptionGroup):
    """The phase of a clip, for gradients of which several workers have parts."""

    phase: Phase | None = option(
        "--phase",
        type=click.Choice(get_args(Phase)),
        help="For gradients in parts on several workers. norms: what they add up. scale: from "
        "that to the clipped parts.",
    )
    shard_axis: ShardAxis = option(
        "--shard-axis",
        metavar="AXIS",
        type=TEXT,
        callback=_axis,
        help="The axis along which each gradient is in parts, or flat: needed for norms over some "
        "axes.",
    )
    replicated: tuple[str, ...] = option(
        "--replicated",
        multiple=True,
        type=TEXT,
        metavar="PATTERN",
        help="Several workers have the same part of these, which counts once. Repeatable.",
    )


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    help="Where to write. [default: MODEL.clip.onnx, or MODEL.PHASE.onnx]",
)
@PhaseOptions.declare
@clip_options
@GradientOptions.declare
@FindOptions.declare
@click.option("--force", is_flag=True, help="Replace an output that extract did not write.")
@json_option
@volume_options
def extract(
    model: Path,
    output: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the clip of MODEL alone: its gradients in, NAME.clipped out, in the same order.

    For gradients that are averaged over workers, or kept outside of ONNX, before they are clipped.
    Where workers have parts of gradients, it is two models, by --phase.

    \b
    Examples:
      onnx-clip extract model.onnx                # writes model.clip.onnx
      onnx-clip extract model.onnx -o clip.onnx --clip global-norm --clip-norm 5
      onnx-clip extract model.onnx --phase norms  # writes model.norms.onnx
    """
    parts = PhaseOptions.take(options)
    finding, named = FindOptions.take(options), GradientOptions.take(options)
    finding.refuse_with(*named.given)
    clipping = ClipOptions.of(options)
    if clipping.arguments["measure_only"]:
        raise click.UsageError("--measure-only clips nothing: there is no clip to extract")
    name = model.name.removesuffix(".onnx")
    beside = model.with_name(f"{name}.{parts.phase or 'clip'}.onnx")
    target = target_of(output, model, beside, beside.name)
    with doing(f"finding the gradients of {model.name}") as progress:
        report = extract_clip_file(
            model,
            target,
            clipping.clips(),
            phase=parts.phase,
            shard_axis=parts.shard_axis,
            replicated=parts.replicated,
            gradients=named.read(),
            force=force,
            **clipping.arguments,
            **finding.arguments(model, progress),
        )
    tell_rewrite(model, target, report, as_json=as_json)
    if as_json:
        print_json({"model": str(model), "output": str(target)} | report_facts(report))
