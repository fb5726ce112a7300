"""The command that runs a rewritten model beside its original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnx_clip_pass.arguments import whole_in
from onnx_clip_pass.cli.folders import refuse_at_step, refuse_to_verify
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import (
    PATH,
    WHOLE,
    OptionGroup,
    by_name,
    given_options,
    json_option,
    option,
    say_together,
)
from onnx_clip_pass.cli.pages import PageOptions
from onnx_clip_pass.cli.tables import show_table
from onnx_clip_pass.cli.targets import is_folder
from onnx_clip_pass.cli.words import counted, is_quiet, print_json, say, volume_options
from onnx_clip_pass.tables import MOST_ROWS

if TYPE_CHECKING:
    from onnx_clip_pass.verification import Verification

__all__ = ["RunOptions", "slopes_option", "tell_verification", "verify"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _size(text: str) -> int:
    number = whole_in(text)
    if number < 0:
        raise ValueError
    return number


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
        callback=by_name("NAME=SIZE such as batch=4", _size),
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

        how = self.as_arguments()
        return run_both(
            original, rewritten, slopes=slopes, loss=loss, progress=not is_quiet(), **how
        )

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


@click.command(cls=Command)
@click.argument("original", type=PATH)
@click.argument("rewritten", type=PATH)
@slopes_option
@click.option(
    "--loss",
    metavar="NAME",
    help="The loss whose slopes gradients are held to. [default: the scalar output]",
)
@RunOptions.declare
@PageOptions.declare
@json_option
@volume_options
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
    refuse_at_step(rewritten)
    if loss is not None and slopes == "off":
        raise click.UsageError("--loss says whose slopes to take: not with --slopes off")
    page = PageOptions.take(options)
    page.check(original, rewritten)
    found = RunOptions.take(options).verify(original, rewritten, slopes=slopes, loss=loss)
    facts = tell_verification(found, as_json=as_json, is_result=True)
    if as_json:
        print_json({"original": str(original), "rewritten": str(rewritten)} | facts)
    page.write_on(found)
    if not found.ok:
        raise click.exceptions.Exit(1)


def tell_verification(found: Verification, *, as_json: bool, is_result: bool) -> dict[str, Any]:
    """Say what was found, unless it is told as JSON.

    Args:
        found: what was found.
        as_json: whether it is told as JSON, which the caller prints.
        is_result: whether all of it goes to standard output, being what was asked for.

    Returns:
        The facts in the types of JSON.
    """
    view = found.view()
    if not as_json and not (is_quiet() and found.ok):
        say(view.summary, is_result=True)
    for note in view.notes:
        say(f"note: {note}")
    if not as_json:
        if not is_quiet():
            show_table(view.table, is_result=is_result)
        for fault in view.faults[:MOST_ROWS]:
            say(f"wrong: {fault}", is_result=is_result)
        if view.faults[MOST_ROWS:]:
            more = counted(len(view.faults) - MOST_ROWS, "fault")
            say(f"and {more} more (--json lists them)", is_result=is_result)
    return {
        "ok": found.ok,
        "faults": found.wrong,
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
