"""The measures of many steps: kept in memory, in JSON lines, or read from there."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.monitoring.adapting import percentile_of
from onnx_clip_pass.monitoring.suggesting import Each, Suggestion, suggest
from onnx_clip_pass.storage.reading import open_regular
from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.views import View, Viewed

__all__ = [
    "Head",
    "Norms",
    "Recorded",
    "Row",
    "csv_writer",
    "cut_to_lines",
    "is_csv",
    "lines_writer",
    "read_norms",
]

FORMAT = 1
_LONGEST_HEAD = 64 << 20
_BLOCK = 1 << 16
_Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Head:
    """The subjects of a run: gradients and their parameters, in one order, and what is carried."""

    gradients: tuple[str, ...]
    parameters: tuple[str, ...]
    is_clipped: bool = False
    loss: str | None = None
    carried: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as the first line of a file."""
        return {
            "onnx_clip_norms": FORMAT,
            "model": self.model,
            "loss": self.loss,
            "clipped": self.is_clipped,
            "gradients": list(self.gradients),
            "parameters": list(self.parameters),
            "carried": dict(self.carried),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """The measures of one step.

    `norm`, `largest`, `zeros`, `nonfinite` and `clipped_norm` have a number for each gradient: its
    L2 norm, its largest element by magnitude, the shares of its elements that are 0 and that are
    not finite, and its norm behind its clip, if there are clips.
    """

    step: int
    loss: float
    norm: _Numbers
    largest: _Numbers
    zeros: _Numbers
    nonfinite: _Numbers
    clipped_norm: _Numbers | None = None

    @property
    def global_norm(self) -> float:
        """The norm of all gradients together: the root of the sum of their squares."""
        return _together(self.norm)

    @property
    def scale(self) -> _Numbers | None:
        """The factors of the norms; None without clips."""
        if self.clipped_norm is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(self.norm == 0, 1.0, self.clipped_norm / self.norm)
        return np.where(scale > _SAME, 1.0, scale)


_VECTORS = ("norm", "largest", "zeros", "nonfinite", "clipped_norm")


def row_to_json(row: Row) -> dict[str, Any]:
    """A row in the types of JSON, which has no nan and inf: they are the texts "nan", "inf"."""
    found: dict[str, Any] = {
        "step": row.step,
        "loss": _to_json(row.loss),
        "global_norm": _to_json(row.global_norm),
    }
    for name in _VECTORS:
        vector = getattr(row, name)
        if vector is not None:
            found[name] = [_to_json(float(each)) for each in vector]
    return found


def row_of_json(fields: Any, count: int) -> Row:
    """The row of an object that `row_to_json` gives.

    Raises:
        ValueError: it is none, or has not as many numbers as there are gradients.
    """
    if not isinstance(fields, dict):
        raise ValueError("no JSON object")
    try:
        vectors = {
            name: np.array([float(each) for each in fields[name]], np.float64)
            for name in _VECTORS
            if fields.get(name) is not None
        }
        row = Row(int(fields["step"]), float(fields["loss"]), **vectors)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing or of another type") from error
    if any(vector.shape != (count,) for vector in vectors.values()):
        raise ValueError(f"expected {count} numbers, one for each gradient")
    return row


def _to_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _together(norms: _Numbers) -> float:
    """The norm of norms, of any magnitude."""
    largest = float(np.max(norms, initial=0.0))
    if not 0 < largest < math.inf:
        return largest if not np.isnan(norms).any() else math.nan
    return largest * float(np.sqrt(np.sum((norms / largest) ** 2)))


@dataclass(frozen=True, eq=False, repr=False)
class Norms(Viewed):
    """Losses and norms over the steps of a run.

    `stopped` says why it ended before its time, "" if it did not; `notes` what is to be known.
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
        return np.array([row.loss for row in self.rows], np.float64)

    @property
    def norm(self) -> _Numbers:
        """The L2 norms before clipping, shape (steps, gradients)."""
        return self._stacked("norm")

    @property
    def global_norm(self) -> _Numbers:
        """The norm of all gradients together, of each step."""
        return np.array([row.global_norm for row in self.rows], np.float64)

    @property
    def scale(self) -> _Numbers | None:
        """The factors of the norms, shape (steps, gradients); None without clips."""
        if not self.head.is_clipped:
            return None
        scales = [row.scale for row in self.rows if row.scale is not None]
        return np.array(scales, np.float64).reshape(-1, len(self.gradients))

    def _stacked(self, name: str) -> _Numbers:
        vectors = [getattr(row, name) for row in self.rows]
        return np.array(vectors, np.float64).reshape(-1, len(self.gradients))

    def percentile(self, q: float) -> dict[str, float]:
        """Return for each parameter the norm below which `q` percent of its norms are."""
        norms = self.norm
        return {
            name: percentile_of(norms[:, at], q) for at, name in enumerate(self.head.parameters)
        }

    def suggest(
        self, percentile: float = 90.0, *, groups: Sequence[str] = (), each: Each = "gradient"
    ) -> Suggestion:
        """Return thresholds: a percentile of the finite norms that were seen before clipping.

        Args:
            percentile: of the norms that stay as they are, 0 to 100.
            groups: patterns of parameters, each a group with a global norm of its own; the first
                that matches takes a parameter.
            each: "gradient", a threshold for each of the others; "global", one for all of them.

        Raises:
            OnnxClipError: there are no finite norms, a pattern matches nothing, or `percentile` is
                no number from 0 to 100.
        """
        return suggest(self.parameters, self.norm, percentile, groups=groups, each=each)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it: JSON lines, or comma-separated values where the path ends in .csv."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
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
        if len(self):
            cells = [percentile_of(whole, q) for q in (50, 90, 100)]
            rows.append(("all together", "", *(f"{cell:.3g}" for cell in cells), ""))
        losses = self.loss
        told = "" if not len(losses) else f", loss {losses[0]:.4g} to {losses[-1]:.4g}"
        return View(
            f"{counted(len(self), 'step')} of {counted(len(self.gradients))}{told}",
            Table(("gradient", "parameter", "median", "90 %", "largest", "clipped"), tuple(rows)),
            self.notes,
            (self.stopped,) if self.stopped else (),
        )


_SAME = 1 - 1e-6
"""A ratio of norms above it is 1: both are rounded to about 1e-7."""


def is_csv(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is one of comma-separated values."""
    return Path(path).suffix == ".csv"


def lines_writer(file: Any, head: Head | None) -> Any:
    """A function that writes rows as JSON lines, each at once, behind the head if there is one."""

    def put(fields: Mapping[str, Any]) -> None:
        file.write(json.dumps(fields, allow_nan=False) + "\n")
        file.flush()

    if head is not None:
        put(head.to_json())
    return lambda row: put(row_to_json(row))


def csv_writer(file: Any, head: Head) -> Any:
    """A function that writes a line for each step and gradient, under headings."""
    writer = csv.writer(file)
    writer.writerow(("step", "loss", "global_norm", "gradient", "parameter", *_VECTORS))

    def write(row: Row) -> None:
        for at, (gradient, parameter) in enumerate(
            zip(head.gradients, head.parameters, strict=True)
        ):
            vectors = (getattr(row, name) for name in _VECTORS)
            cells = ("" if vector is None else float(vector[at]) for vector in vectors)
            writer.writerow((row.step, row.loss, row.global_norm, gradient, parameter, *cells))
        file.flush()

    return write


@dataclass(frozen=True, eq=False)
class Recorded(Sequence[Row]):
    """The steps in a file of JSON lines, read from it each time that they are gone through."""

    path: Path
    head: Head

    def __iter__(self) -> Iterator[Row]:
        with open_regular(self.path, "the norms ") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                if line.endswith(b"\n"):  # else it is cut off, as a killed run leaves it
                    yield self._row(line, number)

    def _row(self, line: bytes, number: int) -> Row:
        try:
            return row_of_json(json.loads(line), len(self.head.gradients))
        except ValueError as error:
            raise OnnxClipError(f"{str(self.path)!r}, line {number}: {error}") from error

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return tuple(self)[index]


def cut_to_lines(path: Path) -> None:
    """Cut off the last line of a file if it does not end, so that more can be added."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                file.truncate(begin + found + 1)
                return
            end = begin


def read_norms(path: str | os.PathLike[str]) -> Norms:
    """Read what `watch` has written as JSON lines.

    A last line that is cut off, as a killed run leaves one, is left out.

    Raises:
        OnnxClipError: it cannot be read, or is no such file.
    """
    path = Path(path)
    with open_regular(path, "the norms ") as file:
        line = file.readline(_LONGEST_HEAD)
    try:
        head = _head(line)
    except ValueError as error:
        raise OnnxClipError(
            f"expected norms as `onnx-clip watch` writes them, JSON lines, but {str(path)!r} is "
            f"not: {error}"
        ) from error
    return Norms(head, Recorded(path, head))


def _head(line: bytes) -> Head:
    fields = json.loads(line) if line.strip() else None
    if not isinstance(fields, dict) or "onnx_clip_norms" not in fields:
        raise ValueError("its first line does not say what is measured")
    if fields["onnx_clip_norms"] != FORMAT:
        raise ValueError(f"its format is {shown(fields['onnx_clip_norms'])}, and 1 is known")
    gradients, parameters = _texts(fields, "gradients"), _texts(fields, "parameters")
    if len(gradients) != len(parameters):
        raise ValueError("it has not as many parameters as gradients")
    carried = fields.get("carried", {})
    return Head(
        gradients,
        parameters,
        bool(fields.get("clipped")),
        fields.get("loss"),
        carried if isinstance(carried, dict) else {},
        str(fields.get("model", "")),
    )


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = fields.get(name)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{name} is no list of names")
    return tuple(found)
