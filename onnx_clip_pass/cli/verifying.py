"""The command that runs a rewritten model beside its original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnx_clip_pass.arguments import whole_in
from onnx_clip_pass.cli.folders import is_folder, refuse_to_verify
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import (
    PATH,
    WHOLE,
    OptionGroup,
    given_options,
    json_option,
    option,
    say_together,
)
from onnx_clip_pass.cli.tables import MOST_ROWS, show_table
from onnx_clip_pass.cli.words import counted, escape_control, print_json, say
from onnx_clip_pass.errors import shown

if TYPE_CHECKING:
    from onnx_clip_pass.verification import Verification

__all__ = ["RunOptions", "slopes_option", "tell_verification", "verify"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _sizes(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, int]:
    """The sizes of dimensions by their names."""
    sizes: dict[str, int] = {}
    for text in texts:
        name, _, size = text.rpartition("=")
        try:
            number = whole_in(size)
        except ValueError:
            number = -1
        if not name or number < 0:
            raise click.BadParameter(f"expected NAME=SIZE such as batch=4, not {shown(text)}")
        if name in sizes:
            raise click.BadParameter(f"{name!r} is named twice")
        sizes[name] = number
    return sizes


class RunOptions(OptionGroup):
    """The options of a run."""

    feeds: tuple[Path, ...] = option(
        "--feeds",
        type=PATH,
        multiple=True,
        metavar="FILE",
        help="An .npz file with inputs by name; the others are made up. Repeatable.",
    )
    dims: dict[str, int] = option(
        "--dim",
        callback=_sizes,
        multiple=True,
        metavar="NAME=SIZE",
        help="The size of a symbolic dimension of made-up inputs. [default: 2] Repeatable.",
    )
    provider: Any = option(
        "--provider",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        help="Where ONNX Runtime runs the models; never the CPU in place of CUDA.",
    )
    seed: int = option(
        "--seed", type=WHOLE, default=0, metavar="N", help="For made-up inputs. [default: 0]"
    )

    @classmethod
    def refuse_without(cls, *runs: str) -> None:
        """Refuse options that say how to run where nothing is run.

        Args:
            runs: the options by which something would be.
        """
        idle = given_options(*cls.field_names())
        if idle:
            raise click.UsageError(
                f"{say_together(idle)} how to run a model, and none is run: add {' or '.join(runs)}"
            )

    def preflight(self, model: Path) -> None:
        """Refuse a model that cannot be run here with these options, before another is written."""
        from onnx_clip_pass.runtime import preflight

        preflight(model, **self.as_arguments())

    def verify(
        self, original: Path, rewritten: Path, *, slopes: Any = "on", loss: str | None = None
    ) -> Verification:
        """Verify with these options; the modules that run models are imported only here."""
        from onnx_clip_pass.verification import verify as run_both

        return run_both(original, rewritten, slopes=slopes, loss=loss, **self.as_arguments())

    def as_arguments(self) -> dict[str, Any]:
        """The same as arguments of whatever runs a model."""
        from onnx_clip_pass.runtime import load_feeds

        return {
            "feeds": load_feeds(self.feeds),
            "dims": self.dims,
            "provider": self.provider,
            "seed": self.seed,
        }


def slopes_option(command: _Command) -> _Command:
    """Add the option that says what is made of gradients that are no slopes of the loss."""
    return click.option(
        "--slopes",
        type=click.Choice(["on", "strict", "off"]),
        default="on",
        show_default=True,
        help="on: a multiple of the loss's slope, a parameter or a state is a wrong gradient. "
        "strict: so is all else that is no slope. off: slopes are not taken.",
    )(command)


@click.command(cls=Command, short_help="Run a rewrite beside its original.")
@click.argument("original", type=PATH)
@click.argument("rewritten", type=PATH)
@slopes_option
@click.option(
    "--loss",
    metavar="NAME",
    help="The loss whose slopes gradients are held to. [default: the scalar output]",
)
@RunOptions.declare
@json_option
def verify(
    original: Path,
    rewritten: Path,
    slopes: str,
    loss: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run ORIGINAL and REWRITTEN and compare them with the formula in float64.

    Every clipped gradient must be what the formula gives, every output what ORIGINAL gives with
    these gradients, and the same bit for bit where no clipped gradient leads. Where ORIGINAL has a
    loss, what is clipped must be its slope and no multiple of it, no parameter and no state; what
    is none of these, such as a straight-through estimate, is a note. Exit code 1 if not.
    Both are model files; of a folder of training artifacts name the training models.

    \b
    Examples:
      onnx-clip verify model.onnx model.clipped.onnx
      onnx-clip verify model.onnx model.clipped.onnx --feeds batch.npz
      onnx-clip verify model.onnx model.clipped.onnx --dim batch=8 --slopes strict
    """
    if is_folder(original):
        refuse_to_verify(original, rewritten)
    if loss is not None and slopes == "off":
        raise click.UsageError("--loss says whose slopes to take: not with --slopes off")
    found = RunOptions.take(options).verify(original, rewritten, slopes=slopes, loss=loss)
    facts = tell_verification(rewritten, found, as_json=as_json, is_result=True)
    if as_json:
        print_json({"original": str(original), "rewritten": str(rewritten)} | facts)
    if not found.ok:
        raise click.exceptions.Exit(1)


def tell_verification(
    model: Path, found: Verification, *, as_json: bool, is_result: bool
) -> dict[str, Any]:
    """Say what was found, unless it is told as JSON.

    Args:
        model: the rewritten model.
        found: what was found.
        as_json: whether it is told as JSON, which the caller prints.
        is_result: whether all of it goes to standard output, being what was asked for.

    Returns:
        The facts in the types of JSON.
    """
    for note in found.notes:
        say(f"note: {note}")
    faults = [*found.faults]
    faults += [
        f"gradient {row.gradient}: {fault}" for row in found.gradients for fault in row.faults
    ]
    faults += [f"output {row.name}: {fault}" for row in found.outputs for fault in row.faults]
    if not as_json:
        _show(found, is_result=is_result)
        for fault in faults[:MOST_ROWS]:
            say(f"wrong: {fault}", is_result=is_result)
        if faults[MOST_ROWS:]:
            more = counted(len(faults) - MOST_ROWS, "fault")
            say(f"and {more} more (--json lists them)", is_result=is_result)
        verdict = "is what its original and the formula say" if found.ok else "is WRONG"
        gradients = counted(len(found.gradients), "clipped gradient")
        outputs = counted(len(found.outputs), "output")
        click.echo(
            f"{escape_control(model)} {verdict}: {gradients} and {outputs} compared, "
            f"{counted(len(faults), 'fault')}"
        )
    return {
        "ok": found.ok,
        "faults": faults,
        "notes": found.notes,
        "gradients": [_plain(asdict(row)) for row in found.gradients],
        "outputs": [_plain(asdict(row)) for row in found.outputs],
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan and no inf: they become words."""
    return {
        name: str(value) if isinstance(value, float) and not isfinite(value) else value
        for name, value in row.items()
    }


def _show(found: Verification, *, is_result: bool) -> None:
    if len(found.gradients) > MOST_ROWS:
        rows = [row for row in found.gradients if row.faults][:MOST_ROWS]
    else:
        rows = found.gradients
    headings = ("gradient", "clip", "raw norm", "clipped", "expected", "error (ulps)", "verdict")
    show_table(
        headings,
        [
            (
                row.gradient,
                row.clip,
                *(
                    f"{norm:.4g}" if row.has_run else "-"
                    for norm in (row.raw_norm, row.clipped_norm, row.expected_norm)
                ),
                f"{row.error_ulps:.3g} of {row.allowed_ulps:.3g}" if row.has_run else "-",
                row.verdict,
            )
            for row in rows
        ],
        is_result=is_result,
    )
