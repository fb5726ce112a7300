"""The command line: words, tables and exit codes. All work is done elsewhere.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input. Results go to standard output,
with `--json` one JSON object and nothing else; tables, progress and warnings go to standard error.
"""

from __future__ import annotations

import json
import sys
import time
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
from onnx_clip_pass.storage import HowToBring

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
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
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
    return code if isinstance(code, int) else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onnx-clip")
def cli() -> None:
    """Gradient clipping for ONNX training graphs.

    Finds the gradients of a training graph and puts the clip behind each of them:
    out = x where norm(x) <= clip_norm, else clip_norm * x / norm(x).
    """


_EXTERNAL_DATA = click.option(
    "--external-data",
    type=click.Choice(["copy", "link"]),
    default="copy",
    show_default=True,
    help="How weights in files of their own get into another folder: link makes hard links.",
)


@cli.command()
@click.argument("models", type=_MODEL, nargs=-1, required=True, metavar="MODEL...")
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
@_EXTERNAL_DATA
@click.option("--dry-run", is_flag=True, help="Show what would be clipped, write nothing.")
@click.option("--in-place", is_flag=True, help="Replace MODEL itself.")
@click.option("--force", is_flag=True, help="Replace an output that onnx-clip did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def rewrite(
    models: tuple[Path, ...],
    output: Path | None,
    clip_norm: float,
    need_clip: tuple[str, ...],
    skip: tuple[str, ...],
    names: tuple[str, ...],
    map_file: Path | None,
    external_data: HowToBring,
    dry_run: bool,
    in_place: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Clip the gradients of each MODEL, each gradient by its own norm.

    \b
    Examples:
      onnx-clip rewrite training_model.onnx
      onnx-clip rewrite model.onnx --clip-norm 0.5 --need-clip 'encoder.*' --skip '*.bias'
      onnx-clip rewrite model.onnx --gradient t_9 --gradient view_1
    """
    if in_place and output is not None:
        raise click.UsageError("--in-place and --output exclude each other")
    if names and map_file is not None:
        raise click.UsageError("--gradient and --map exclude each other: put the names in the map")
    if output is not None and len(models) > 1:
        raise click.UsageError("--output is for one model; several are written beside themselves")
    clip = GradientClipByNorm(clip_norm, list(need_clip) or None)
    gradients = read_map(map_file) if map_file is not None else list(names) or None
    results = []
    failures = 0
    for model in models:
        target = model if in_place else output or model.with_name(f"{model.stem}.clipped.onnx")
        facts: dict[str, Any] = {"model": str(model)}
        try:
            with _Progress(f"writing {target.name}") as progress:
                report = clip_gradients_file(
                    model,
                    target,
                    clip,
                    gradients=gradients,
                    skip=skip,
                    external_data=external_data,
                    replace=in_place,
                    force=force,
                    dry_run=dry_run,
                    progress=progress,
                )
        except OnnxClipError as error:
            if len(models) == 1:
                raise
            failures += 1
            _say(f"error: {model}: {error}")
            results.append(facts | {"error": str(error)})
            continue
        results.append(facts | {"output": None if dry_run else str(target)} | _facts(report))
        _tell(model, None if dry_run else target, report, as_json=as_json)
    if as_json:
        _print_json(results[0] if len(models) == 1 else {"models": results})
    if failures:
        _say(f"{failures} of {len(models)} models failed")
        raise click.exceptions.Exit(2)


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
                "record": found.record
                and {
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
        words = {
            k: v for k, v in clip.items() if k not in ("gradient", "parameter", "graph", "clip")
        }
        settings = ", ".join(f"{name}={value}" for name, value in words.items())
        click.echo(escape_control(f"  {clip.get('gradient')}  {clip.get('clip')}({settings})"))
    if len(found.record.clips) > _MOST_ROWS:
        click.echo(f"  and {len(found.record.clips) - _MOST_ROWS} more")


@cli.command()
@click.argument("model", type=_MODEL)
@click.option("-o", "--output", type=_MODEL, help="Where to write. [default: MODEL.stripped.onnx]")
@_EXTERNAL_DATA
@click.option("--in-place", is_flag=True, help="Replace MODEL itself.")
@click.option("--force", is_flag=True, help="Replace an output that onnx-clip did not write.")
def strip(
    model: Path, output: Path | None, external_data: HowToBring, in_place: bool, force: bool
) -> None:
    """Undo a rewrite: write MODEL as it was before it was clipped."""
    if in_place and output is not None:
        raise click.UsageError("--in-place and --output exclude each other")
    target = model if in_place else output or model.with_name(f"{model.stem}.stripped.onnx")
    with _Progress(f"writing {target.name}") as progress:
        strip_file(
            model,
            target,
            external_data=external_data,
            replace=in_place,
            force=force,
            progress=progress,
        )
    click.echo(f"wrote {escape_control(target)}")


# -- showing -----------------------------------------------------------------------------------


class _Progress:
    """A bar on standard error, from the second second on and only where a person watches."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
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


def _tell(model: Path, target: Path | None, report: Report, *, as_json: bool) -> None:
    """What was done to one model: notes always, the rest unless it is told as JSON."""
    for warning in report.warnings:
        _say(f"note: {warning}")
    if report.replaced:
        _say("note: the model was clipped already; the clips it had are replaced")
    if as_json:
        return
    _show(report.rows)
    done = "would clip" if target is None else "clipped"
    count = f"{len(report.clipped)} of {len(report.rows)}"
    click.echo(
        f"{done} {count} gradients in {escape_control(model)}, each by its own norm"
        + ("" if target is None else f"; wrote {escape_control(target)}")
    )


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
        counts = Counter(
            (row.clip.label if row.clip else "not clipped", row.gradient.dtype) for row in rows
        )
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
