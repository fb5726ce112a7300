"""The options that say how gradients are found where the graph leaves something open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.arguments import whole_in
from onnx_clip_pass.cli.options import OptionGroup, given_options, option, say_together
from onnx_clip_pass.deciding import Apart
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.optimizer import checked_ops
from onnx_clip_pass.progress import TellProgress

__all__ = ["FindOptions", "OptimizerOptions"]


def _optimizers(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """The inputs of optimizers by the names of their operators."""
    found: dict[str, tuple[int, int]] = {}
    for text in texts:
        name, _, inputs = text.rpartition(":")
        slots = dict(part.split("=", 1) for part in inputs.split(",") if "=" in part)
        try:
            numbers = (whole_in(slots["parameter"]), whole_in(slots["gradient"]))
            known = checked_ops({name: numbers})
        except (KeyError, ValueError, OnnxClipError):
            known = {}
        if not known or len(slots) != 2:
            raise click.BadParameter(
                f"expected an operator and the numbers of two of its inputs, such as "
                f"vendor::SGD:parameter=0,gradient=1, not {shown(text)}"
            )
        if name in found:
            raise click.BadParameter(f"{name!r} is named twice")
        found |= known
    return found


class OptimizerOptions(OptionGroup):
    """The optimizers that the user tells of."""

    optimizer_ops: dict[str, tuple[int, int]] = option(
        "--optimizer-op",
        multiple=True,
        callback=_optimizers,
        metavar="OP:parameter=N,gradient=N",
        help="An optimizer that onnx-clip does not know, with the numbers of its inputs: "
        "vendor::SGD:parameter=0,gradient=1. Repeatable.",
    )


class FindOptions(OptimizerOptions):
    """The options about open questions."""

    no_run: bool = option(
        "--no-run",
        is_flag=True,
        help="Never run the model unasked. Else, where several values may be a gradient, it is "
        "run for at most 20 s (if ONNX Runtime is there and the model below 256 MB) and the "
        "slopes of its loss decide.",
    )

    def refuse_with(self, *others: str) -> None:
        """Refuse options about questions where nothing is searched and so nothing is open.

        Args:
            others: the options by which gradients are known.
        """
        idle = given_options("partial", "no_run")
        if idle and others:
            raise click.UsageError(
                f"{say_together(idle)} what to do where the search leaves something open, and "
                f"nothing is searched: not with {', '.join(others)}"
            )

    def arguments(self, model: Path, progress: TellProgress) -> dict[str, Any]:
        """Return the same as arguments of `clip_gradients_file`.

        Args:
            model: what is rewritten.
            progress: is told when it is run.
        """
        return {
            "probe": False if self.no_run else Apart(model, progress=progress),
            "optimizer_ops": self.optimizer_ops,
        }
