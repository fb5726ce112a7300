"""Losses and norms over the steps of a run, and what is asked of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import check_path
from onnx_clip_pass.clips.norms import norm_of
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.monitoring.adapting import check_count, check_percentile, percentile_of
from onnx_clip_pass.monitoring.recording import (
    Head,
    Row,
    csv_writer,
    is_csv,
    lines_writer,
    read_recorded,
)
from onnx_clip_pass.monitoring.suggesting import Each, Suggestion, suggest
from onnx_clip_pass.storage import errors_name
from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.views import View, Viewed

__all__ = ["Norms", "read_norms"]

_Numbers = NDArray[np.float64]


class _Columns(NamedTuple):
    loss: _Numbers
    norm: _Numbers
    scale: _Numbers


@dataclass(frozen=True, eq=False, repr=False)
class Norms(Viewed):
    """Losses and norms over the steps of a run.

    `head` says of what they are, `rows` holds what was measured in each step. `stopped` says why
    the run ended before its time, "" if it did not; `notes` what is to be known.
    Printed, or displayed by rich or a notebook, it shows a line for each gradient.

    `norm[t, k]` is that of gradient k in step t. Percentiles are those of finite norms, linear
    between two of them as `numpy.percentile` has it.
    """

    head: Head
    rows: Sequence[Row]
    stopped: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of the gradients, in the order of the columns."""
        return self.head.gradients

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of their parameters."""
        return self.head.parameters

    @property
    def loss(self) -> _Numbers:
        """The loss of each step; nan where the step has none."""
        return self._columns.loss.copy()

    @property
    def norm(self) -> _Numbers:
        """The L2 norms before clipping, shape (steps, gradients)."""
        return self._columns.norm.copy()

    @property
    def global_norm(self) -> _Numbers:
        """The norm of all gradients together, of each step."""
        return norm_of(self._columns.norm, axes=(1,))[:, 0]

    @property
    def scale(self) -> _Numbers | None:
        """The factors of the norms, shape (steps, gradients); None without clips."""
        return self._columns.scale.copy() if self.head.is_clipped else None

    @cached_property
    def _columns(self) -> _Columns:
        """The numbers of all steps, which may lie in a file, from one pass over it."""
        found = [(row.loss, row.norm, row.scale) for row in self.rows]
        losses, norms, scales = zip(*found, strict=True) if found else ((), (), ())
        known = [scale for scale in scales if scale is not None]
        width = len(self.gradients)
        return _Columns(
            np.array(losses, np.float64),
            np.array(norms, np.float64).reshape(len(norms), width),
            np.array(known, np.float64).reshape(len(known), width),
        )

    def percentile(self, q: float) -> dict[str, float]:
        """Return for each parameter the norm below which `q` percent of its norms are.

        Raises:
            OnnxClipError: `q` is no number from 0 to 100.
        """
        check_percentile(q)
        norms = self.norm
        return {
            name: percentile_of(norms[:, at], q) for at, name in enumerate(self.head.parameters)
        }

    def suggest(
        self,
        percentile: float = 90.0,
        *,
        groups: Sequence[str] = (),
        each: Each = "gradient",
        steps: int | None = None,
    ) -> Suggestion:
        """Return thresholds: a percentile of the finite norms that were seen before clipping.

        Args:
            percentile: of the norms that stay as they are, 0 to 100.
            groups: patterns of parameters, each a group with a global norm of its own; the first
                that matches takes a parameter.
            each: "gradient", a threshold for each of the others; "global", one for all of them.
            steps: how many count, the first ones; None for all. Of a run that was lost those
                before it.

        Raises:
            OnnxClipError: there are no finite norms, a pattern matches nothing, `percentile` is
                no number from 0 to 100, or `steps` no whole number from 1 to as many as there are.
        """
        norms = self.norm
        if steps is not None:
            check_count("steps", steps, 1)
            if steps > len(norms):
                raise OnnxClipError(
                    f"steps must be {len(norms)}, as many as the run has, or less, not {steps}"
                )
            norms = norms[:steps]
        return suggest(self.parameters, norms, percentile, groups=groups, each=each)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it: JSON lines, or comma-separated values where `path` ends in .csv.

        Raises:
            OnnxClipError: it cannot be written.
        """
        check_path("path", path)
        with errors_name(Path(path)), Path(path).open("w", encoding="utf-8", newline="") as file:
            write = csv_writer(file, self.head) if is_csv(path) else lines_writer(file, self.head)
            for row in self.rows:
                write(row)

    def plot(self) -> Any:
        """Return a figure of loss and norms over the steps; needs matplotlib.

        Raises:
            OnnxClipError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise OnnxClipError("plotting needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(8, 6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        steps = [row.step for row in self.rows]
        upper.plot(steps, self.loss)
        upper.set_ylabel("loss")
        norms = self.norm
        for at, name in enumerate(self.head.parameters[:20]):
            lower.plot(steps, norms[:, at], linewidth=0.8, label=name)
        lower.plot(steps, self.global_norm, color="black", label="all together")
        lower.set(yscale="log", ylabel="L2 norm of gradients", xlabel="step")
        lower.legend(fontsize="small")
        return figure

    def view(self) -> View:
        norms, rows = self.norm, []
        scale = self.scale
        for at, name in enumerate(self.head.parameters):
            cells = [percentile_of(norms[:, at], q) for q in (50, 90, 100)]
            acted = "-" if scale is None else f"{np.mean(scale[:, at] < 1):.0%}"
            rows.append((self.gradients[at], name, *(f"{cell:.3g}" for cell in cells), acted))
        whole = self.global_norm
        if len(whole):
            cells = [percentile_of(whole, q) for q in (50, 90, 100)]
            rows.append(("all together", "", *(f"{cell:.3g}" for cell in cells), ""))
        losses = self.loss
        told = "" if not len(losses) else f", loss {losses[0]:.4g} to {losses[-1]:.4g}"
        return View(
            f"{counted(len(whole), 'step')} of {counted(len(self.gradients))}{told}",
            Table(("gradient", "parameter", "median", "90 %", "largest", "clipped"), tuple(rows)),
            self.notes,
            (self.stopped,) if self.stopped else (),
        )


def read_norms(path: str | os.PathLike[str]) -> Norms:
    """Read what `watch` has written as JSON lines.

    A last line that is cut off, as a killed run leaves one, is left out.

    Args:
        path: the file, `to` of `watch`.

    Raises:
        OnnxClipError: it cannot be read, or is no such file.
    """
    check_path("path", path)
    recorded = read_recorded(Path(path))
    return Norms(recorded.head, recorded)
