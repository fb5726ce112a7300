"""The command line: words, tables and exit codes. All work is done elsewhere.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input. Results go to standard output,
with `--json` one JSON object and nothing else; tables, progress and warnings go to standard error.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_clip_pass import __version__
from onnx_clip_pass.clips import GradientClipByNorm
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.files import clip_gradients_file, inspect_file, read_map, strip_file
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.rewrite import Clipped, Report

__all__ = ["main"]

_MOST_ROWS = 40

_MODEL = click.Path(path_type=Path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; that of the process if None.

    Returns:
        The exit code.
    """
    try:
        cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        _say("interrupted; nothing was written")
        return 2
    except OnnxClipError as error:
        _say(f"error: {error}")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 2
    return 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onnx-clip")
def cli() -> None:
    """Gradient clipping for ONNX training graphs.

    Finds the gradients of a training graph and puts the clip behind each of them:
    out = x where norm(x) <= clip_norm, else clip_norm * x / norm(x).
    """


@cli.command()
@click.argument("model", type=_MODEL)
@click.option("-o", "--output", type=_MODEL, help="Where to write. [default: MODEL.clipped.onnx]")
@click.option(
    "--clip-norm",
    type=float,
    default=1.0,
    show_default=True,
    help="The largest L2 norm of each gradient, on its own.",
)
@click.option(
    "--need-clip",
    multiple=True,
    metavar="PATTERN",
    help="Clip only these: a glob on the parameter's or gradient's name, or re:REGEX. Repeatable.",
)
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave these out. Repeatable.")
@click.option(
    "--gradient",
    "names",
    multiple=True,
    metavar="NAME",
    help="This value is a gradient; nothing is searched. Repeatable.",
)
@click.option(
    "--map",
    "map_file",
    type=_MODEL,
    metavar="FILE",
    help="JSON object, gradient name to parameter name; nothing is searched.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be clipped, write nothing.")
@click.option("--in-place", is_flag=True, help="Replace MODEL itself.")
@click.option("--force", is_flag=True, help="Replace an output that onnx-clip did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def rewrite(
    model: Path,
    output: Path | None,
    clip_norm: float,
    need_clip: tuple[str, ...],
    skip: tuple[str, ...],
    names: tuple[str, ...],
    map_file: Path | None,
    dry_run: bool,
    in_place: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Clip the gradients of MODEL, each by its own norm.

    \b
    Examples:
      onnx-clip rewrite training_model.onnx
      onnx-clip rewrite model.onnx -o out.onnx --clip-norm 0.5 --need-clip 'encoder.*' --skip '*.bias'
      onnx-clip rewrite model.onnx --gradient t_9 --gradient view_1
    """
    if in_place and output is not None:
        raise click.UsageError("--in-place and --output exclude each other")
    if names and map_file is not None:
        raise click.UsageError("--gradient and --map exclude each other: put the names in the map")
    target = model if in_place else output or model.with_name(f"{model.stem}.clipped.onnx")
    report = clip_gradients_file(
        model,
        target,
        GradientClipByNorm(clip_norm, list(need_clip) or None),
        gradients=read_map(map_file) if map_file is not None else list(names) or None,
        skip=skip,
        replace=in_place,
        force=force,
        dry_run=dry_run,
    )
    for warning in report.warnings:
        _say(f"note: {warning}")
    if as_json:
        _print_json({"model": str(model), "output": None if dry_run else str(target)} | _facts(report))
        return
    _show(report.rows)
    count, of = len(report.clipped), len(report.rows)
    done = "would clip" if dry_run else "clipped"
    norm = "each gradient by its own norm" if count else "nothing"
    click.echo(f"{done} {count} of {of} gradients in {escape_control(model)}: {norm}", err=as_json)
    if report.replaced:
        _say("note: the model was clipped already; the clips it had are replaced")
    if not dry_run:
        click.echo(f"wrote {escape_control(target)}")


@cli.command()
@click.argument("model", type=_MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def inspect(model: Path, as_json: bool) -> None:
    """Show the gradients of MODEL, how they are known, and what is clipped already."""
    found = inspect_file(model)
    if as_json:
        _print_json(
            {
                "model": str(model),
                "gradients": [_gradient_facts(gradient) for gradient in found.gradients],
                "record": found.record and {
                    "version": found.record.version,
                    "clips": found.record.clips,
                },
            }
        )
        return
    _show([Clipped(gradient, None) for gradient in found.gradients])
    click.echo(f"{len(found.gradients)} gradients in {escape_control(model)}")
    if found.reason:
        click.echo(found.reason)
    if found.record is None:
        click.echo("not clipped by onnx-clip")
        return
    click.echo(f"clipped by onnx-clip {found.record.version}:")
    for clip in found.record.clips[:_MOST_ROWS]:
        words = {k: v for k, v in clip.items() if k not in ("gradient", "parameter", "graph", "clip")}
        settings = ", ".join(f"{name}={value}" for name, value in words.items())
        click.echo(escape_control(f"  {clip.get('gradient')}  {clip.get('clip')}({settings})"))
    if len(found.record.clips) > _MOST_ROWS:
        click.echo(f"  and {len(found.record.clips) - _MOST_ROWS} more")


@cli.command()
@click.argument("model", type=_MODEL)
@click.option("-o", "--output", type=_MODEL, help="Where to write. [default: MODEL.stripped.onnx]")
@click.option("--in-place", is_flag=True, help="Replace MODEL itself.")
@click.option("--force", is_flag=True, help="Replace an output that exists.")
def strip(model: Path, output: Path | None, in_place: bool, force: bool) -> None:
    """Undo a rewrite: write MODEL as it was before it was clipped."""
    if in_place and output is not None:
        raise click.UsageError("--in-place and --output exclude each other")
    target = model if in_place else output or model.with_name(f"{model.stem}.stripped.onnx")
    strip_file(model, target, replace=in_place, force=force)
    click.echo(f"wrote {escape_control(target)}")


# -- showing -----------------------------------------------------------------------------------


def escape_control(text: object) -> str:
    """Text from outside, with control characters made visible: a name must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _say(message: str) -> None:
    click.echo("\n".join(escape_control(line) for line in message.split("\n")), err=True)


def _print_json(facts: dict[str, Any]) -> None:
    click.echo(json.dumps(facts, indent=2, ensure_ascii=True))


def _show(rows: Sequence[Clipped]) -> None:
    """The table on standard error; counts in its place where it would be long."""
    if not rows:
        return
    if len(rows) > _MOST_ROWS:
        counts = Counter((row.clip.label if row.clip else "not clipped", row.gradient.dtype) for row in rows)
        for (clip, dtype), count in counts.items():
            _say(f"{count} gradients, {dtype}: {clip}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("gradient", "parameter", "shape", "dtype", "clip", "evidence"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (
            row.gradient.name,
            row.gradient.parameter.name,
            _shape(row.gradient),
            row.gradient.dtype,
            row.clip.label if row.clip else "-",
            row.gradient.evidence,
        )
        table.add_row(*(escape(escape_control(cell)) for cell in cells))
    Console(stderr=True, soft_wrap=False).print(table)


def _shape(gradient: Gradient) -> str:
    if gradient.shape is None:
        return "?"
    return "[" + ", ".join("?" if d is None else str(d) for d in gradient.shape) + "]"


def _facts(report: Report) -> dict[str, Any]:
    return {
        "replaced": report.replaced,
        "warnings": list(report.warnings),
        "gradients": [
            _gradient_facts(row.gradient)
            | {
                "clip": None
                if row.clip is None
                else {"type": type(row.clip).__name__, **row.clip.settings()}
            }
            for row in report.rows
        ],
    }


def _gradient_facts(gradient: Gradient) -> dict[str, Any]:
    return {
        "gradient": gradient.name,
        "parameter": gradient.parameter.name,
        "graph": gradient.graph,
        "shape": None if gradient.shape is None else list(gradient.shape),
        "dtype": gradient.dtype,
        "evidence": gradient.evidence,
    }
