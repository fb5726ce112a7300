"""The commands that write models: rewrite and strip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.artifacts import Place
from onnx_clip_pass.cli.clipping import (
    ClipOptions,
    clip_options,
    gradient_options,
    named_gradients,
)
from onnx_clip_pass.cli.finding import FindOptions, find_options
from onnx_clip_pass.cli.folders import AT, beside_folder, is_folder, rewrite_folder, strip_folder
from onnx_clip_pass.cli.options import OUTPUT, PATH, given_options, json_option, output_path
from onnx_clip_pass.cli.probing import ProbeOptions, probe_options, with_evidence
from onnx_clip_pass.cli.showing import ProgressBar, report_facts, tell_rewrite
from onnx_clip_pass.cli.verifying import (
    RunOptions,
    run_options,
    slopes_option,
    tell_verification,
)
from onnx_clip_pass.cli.words import error_facts, escape_control, print_json, say
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.files import clip_gradients_file, strip_file
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.rewrite import ClipOrRules
from onnx_clip_pass.storage import HowToBring

__all__ = ["rewrite", "strip"]


EXTERNAL_DATA = click.option(
    "--external-data",
    type=click.Choice(["copy", "link"]),
    default="copy",
    show_default=True,
    help="How weights in files of their own get into another folder: link makes hard links.",
)

TRUST_DATA = click.option(
    "--trust-data",
    is_flag=True,
    help="Use weights to which links lead out of the model's folder, and take those along that "
    "have hidden names or several.",
)


@click.command(short_help="Clip the gradients of models.")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
@click.option("-o", "--output", type=OUTPUT, help="Where to write. [default: MODEL.clipped.onnx]")
@clip_options
@gradient_options
@find_options
@AT
@EXTERNAL_DATA
@TRUST_DATA
@click.option(
    "--verify", "verifies", is_flag=True, help="Then run both models and compare: see verify."
)
@slopes_option
@probe_options
@run_options
@click.option("--dry-run", is_flag=True, help="Show what would be clipped, write nothing.")
@click.option("--in-place", is_flag=True, help="Replace MODEL itself.")
@click.option("--force", is_flag=True, help="Replace an output without a record of onnx-clip.")
@json_option
def rewrite(
    models: tuple[Path, ...],
    output: str | None,
    names: tuple[str, ...],
    map_file: Path | None,
    at: Place | None,
    external_data: HowToBring,
    trust_data: bool,
    verifies: bool,
    slopes: str,
    dry_run: bool,
    in_place: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Clip the gradients of each MODEL: each by its own norm, unless --clip says otherwise.

    MODEL is a file, or a folder of ONNX Runtime's training artifacts, which is rewritten as one.

    Every parameter that MODEL trains is clipped, or left out by --need-clip, --skip or a rule. If
    the gradient of another one is not known for sure, nothing is written, unless --partial accepts
    that it stays unclipped.

    \b
    Examples:
      onnx-clip rewrite training_model.onnx
      onnx-clip rewrite model.onnx --clip-norm 0.5 --need-clip 'encoder.*' --skip '*.bias'
      onnx-clip rewrite model.onnx --clip global-norm --clip-norm 1.0 --emit norm
      onnx-clip rewrite model.onnx --rules clip.toml --dry-run
      onnx-clip rewrite model.onnx --gradient t_9 --gradient view_1
      onnx-clip rewrite model.onnx --probe --feeds inputs.npz --loss mse_loss
      onnx-clip rewrite model.onnx --optimizer-op vendor::SGD:parameter=0,gradient=1
      onnx-clip rewrite artifacts/ -o clipped/ --at step
    """
    if in_place and output is not None:
        raise click.UsageError("--in-place and --output exclude each other")
    if verifies and (in_place or dry_run):
        raise click.UsageError("--verify needs both models: not with --in-place or --dry-run")
    if given_options("slopes") and not verifies:
        raise click.UsageError("--slopes says how to verify: add --verify")
    probing = ProbeOptions.of(options)
    if probing.probes and (names or map_file is not None):
        raise click.UsageError("--probe finds the gradients: not with --gradient or --map")
    if at is not None and not any(is_folder(model) for model in models):
        raise click.UsageError("--at is for a folder of training artifacts: give that, not a file")
    _refuse_trust(models, trust_data)
    if output is not None and len(models) > 1:
        raise click.UsageError("--output is for one model; several are written beside themselves")
    finding = FindOptions.of(options)
    finding.refuse_with(
        *(["--probe"] if probing.probes else []),
        *(["--gradient"] if names else []),
        *(["--map"] if map_file is not None else []),
    )
    clipping = ClipOptions.of(options)
    clips, arguments = clipping.clips(), clipping.arguments
    run = RunOptions.of(options)
    if not (probing.probes or verifies):
        run.refuse_without("--verify", "--probe")
    targets = [
        model if in_place else output_path(output, model) or _beside(model, "clipped")
        for model in models
    ]
    _refuse_same(models, targets)
    written = {
        "gradients": named_gradients(names, map_file),
        "external_data": external_data,
        "replace": in_place,
        "force": force,
        "dry_run": dry_run,
    }
    results = []
    failures = mismatches = 0
    for model, target in zip(models, targets, strict=True):
        facts: dict[str, Any] = {"model": str(model)}
        try:
            if is_folder(model):
                facts |= rewrite_folder(
                    model, target, clips, at=at, probes=probing.probes, verifies=verifies,
                    as_json=as_json, **written, **arguments,
                )  # fmt: skip
            else:
                if verifies:
                    run.rehearse(model)  # what cannot be run is not written either
                probed = probing.gradients(model, run) if probing.probes else None
                facts |= _rewrite_file(
                    model, target, clips, probed, as_json=as_json, trust_data=trust_data,
                    **written, **arguments, **finding.arguments(model),
                )  # fmt: skip
                if verifies:
                    found = run.verify(model, target, slopes=slopes, loss=probing.loss)
                    facts["verification"] = tell_verification(
                        target, found, as_json=as_json, is_result=False
                    )
                    mismatches += not found.ok
        except OnnxClipError as error:
            failures += 1
            is_named = len(models) == 1 or repr(str(model)) in str(error)
            say(f"error: {error}" if is_named else f"error: {model}: {error}")
            facts |= error_facts(error)
        results.append(facts)
    if as_json:
        print_json(results[0] if len(models) == 1 else {"models": results})
    if failures:
        if len(models) > 1:
            say(f"{failures} of {len(models)} models failed")
        raise click.exceptions.Exit(2)
    if mismatches:
        raise click.exceptions.Exit(1)


@click.command(short_help="Undo a rewrite.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=OUTPUT, help="Where to write. [default: MODEL.stripped.onnx]")
@EXTERNAL_DATA
@TRUST_DATA
@click.option("--in-place", is_flag=True, help="Replace MODEL itself.")
@click.option("--force", is_flag=True, help="Replace an output without a record of onnx-clip.")
def strip(
    model: Path, output: str | None, trust_data: bool, in_place: bool, **options: Any
) -> None:
    """Undo a rewrite: write MODEL, a file or a folder, as it was before it was clipped."""
    if in_place and output is not None:
        raise click.UsageError("--in-place and --output exclude each other")
    target = model if in_place else output_path(output, model) or _beside(model, "stripped")
    _refuse_trust([model], trust_data)
    if is_folder(model):
        strip_folder(model, target, replace=in_place, **options)
        return
    with ProgressBar(f"writing {target.name}") as progress:
        strip_file(
            model, target, trust_data=trust_data, replace=in_place, progress=progress, **options
        )
    click.echo(f"wrote {escape_control(target)}")


def _refuse_trust(models: Sequence[Path], trust_data: bool) -> None:
    if trust_data and any(is_folder(model) for model in models):
        raise click.UsageError(
            "--trust-data is for a model file: what leads out of a folder of training artifacts is "
            "never used"
        )


def _rewrite_file(
    model: Path,
    target: Path,
    clip: ClipOrRules,
    probed: Sequence[Gradient] | None,
    *,
    as_json: bool,
    **options: Any,
) -> dict[str, Any]:
    """Rewrite a file and tell of it.

    Args:
        model: the file.
        target: where to write.
        clip: what to do, or rules.
        probed: the gradients, where they were found by a probe.
        as_json: whether the report goes to standard output as JSON, which the caller prints.
        options: of `clip_gradients_file`.

    Returns:
        The report in the types of JSON.
    """
    if probed is not None:
        options["gradients"] = {each.name: each.parameter.name for each in probed}
    with ProgressBar(f"writing {target.name}") as progress:
        report = clip_gradients_file(model, target, clip, progress=progress, **options)
    if probed is not None:
        report = with_evidence(report, probed)
    is_written = not options["dry_run"]
    tell_rewrite(model, target if is_written else None, report, as_json=as_json)
    return {"output": str(target) if is_written else None} | report_facts(report)


def _refuse_same(models: Sequence[Path], targets: Sequence[Path]) -> None:
    """Refuse two models that would be written to one place, of which the last would win."""
    taken: dict[str, Path] = {}
    for model, target in zip(models, targets, strict=True):
        place = os.path.realpath(target)
        if place in taken:
            is_one = os.path.realpath(model) == os.path.realpath(taken[place])
            way_out = "name it once" if is_one else "rewrite one of them alone, with --output"
            raise click.UsageError(
                f"{str(taken[place])!r} and {str(model)!r} would both be written to "
                f"{str(target)!r}: {way_out}"
            )
        taken[place] = model


def _beside(model: Path, word: str) -> Path:
    """The default output: model.onnx gives model.clipped.onnx."""
    if is_folder(model):
        return beside_folder(model, word)
    return model.parent / f"{model.stem}.{word}.onnx"
