"""The options `--probe` of rewrite and inspect: gradients found by running the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_clip_pass.cli.options import OptionGroup, given_options, option, say_together
from onnx_clip_pass.cli.verifying import RunOptions
from onnx_clip_pass.cli.words import is_quiet, say
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.rewrite import Report

if TYPE_CHECKING:
    from onnx_clip_pass.probe import Probing

__all__ = ["ProbeOptions", "with_evidence"]


class ProbeOptions(OptionGroup):
    """The options of a probe."""

    probes: bool = option(
        "--probe",
        is_flag=True,
        help="Run the model and find gradients by the slopes of its loss, not by name.",
    )
    loss: str | None = option(
        "--loss", metavar="NAME", help="With --probe: the loss. [default: the scalar output]"
    )
    inner: bool = option("--inner", is_flag=True, help="With --probe: not only among the outputs.")
    data: tuple[str, ...] = option(
        "--data",
        multiple=True,
        metavar="NAME",
        help="With --probe: a parameter that looks like data. Repeatable.",
    )

    def __post_init__(self) -> None:
        idle = given_options("loss", "inner", "data")
        if idle and not self.probes:
            raise click.UsageError(f"{say_together(idle)} how to probe: add --probe")

    def find(self, model: Path, run: RunOptions) -> Probing:
        """Probe a model; the modules that run models are imported only here."""
        from onnx_clip_pass.probe import probe

        how = run.as_arguments() | {"progress": not is_quiet()}
        return probe(model, loss=self.loss, inner=self.inner, data=self.data, **how)

    def gradients(self, model: Path, run: RunOptions) -> tuple[Gradient, ...]:
        """The gradients; what could not be decided is told.

        Raises:
            OnnxClipError: no gradient is found; the reasons are in the message.
        """
        found = self.find(model, run)
        reasons = [f"{entry.parameter}: {entry.reason}" for entry in found.undecided]
        if any(entry.is_data for entry in found.undecided):
            reasons.append("what is taken for data but is a parameter: name it with --data")
        if not found.gradients:
            raise OnnxClipError(
                f"no gradients found: no value is known by the slopes of {found.loss!r}", reasons
            )
        for reason in reasons:
            say(f"note: {reason}")
        return found.gradients


def with_evidence(report: Report, probed: Iterable[Gradient]) -> Report:
    """A report on gradients that were named because a probe had found them, with its evidence."""
    known = {(each.name, each.parameter.name): each.evidence for each in probed}

    def said(gradient: Gradient) -> Gradient:
        evidence = known.get((gradient.name, gradient.parameter.name), gradient.evidence)
        return replace(gradient, evidence=evidence)

    return replace(
        report, rows=tuple(replace(row, gradient=said(row.gradient)) for row in report.rows)
    )
