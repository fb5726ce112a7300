"""The record of a run: steps, and files of them in JSON lines or comma-separated values."""

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

from onnx_clip_pass.clips.norms import norm_of
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.storage.reading import open_regular

__all__ = [
    "Head",
    "Recorded",
    "Row",
    "csv_writer",
    "cut_to_steps",
    "is_csv",
    "lines_writer",
    "read_recorded",
]

FORMAT = 1
_LONGEST_HEAD = 64 << 20
_SAME = 1 - 1e-6
"""A ratio of norms above it is 1: both are rounded to about 1e-7."""
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
    micro_batches: int = 1

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
            "micro_batches": self.micro_batches,
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
        return float(norm_of(self.norm).item())

    @property
    def scale(self) -> _Numbers | None:
        """The factors of the norms; None without clips."""
        if self.clipped_norm is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(self.norm == 0, 1.0, self.clipped_norm / self.norm)
        return np.where(scale > _SAME, 1.0, scale)


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
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
    if odd := [name for name in _VECTORS if not isinstance(fields.get(name, []), list)]:
        raise ValueError(f"{odd[0]} is no list of numbers")
    try:
        vectors = {
            name: np.array([float(each) for each in fields[name]], np.float64)
            for name in _VECTORS
            if name in fields
        }
        row = Row(int(fields["step"]), float(fields["loss"]), **vectors)
    except OverflowError as error:
        raise ValueError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing or of another type") from error
    if any(vector.shape != (count,) for vector in vectors.values()):
        raise ValueError(f"expected {count} numbers, one for each gradient")
    return row


def _to_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


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
    """A function that writes a line for each step and gradient, under headings.

    Programs for tables run what begins like a formula, and a model may have names that do: these
    begin with an apostrophe, which tells such programs that they are text.
    """
    writer = csv.writer(file)
    names = [
        [f"'{name}" if name.startswith(_FORMULAS) else name for name in pair]
        for pair in zip(head.gradients, head.parameters, strict=True)
    ]
    writer.writerow(("step", "loss", "global_norm", "gradient", "parameter", *_VECTORS))

    def write(row: Row) -> None:
        for at, pair in enumerate(names):
            vectors = (getattr(row, name) for name in _VECTORS)
            cells = ("" if vector is None else float(vector[at]) for vector in vectors)
            writer.writerow((row.step, row.loss, row.global_norm, *pair, *cells))
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
            return row_of_json(_json(line), len(self.head.gradients))
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


def cut_to_steps(path: Path, steps: int) -> None:
    """Cut a file of JSON lines off behind so many steps, so that more can be added."""
    with path.open("r+b") as file:
        for _ in range(steps + 1):
            file.readline()
        file.truncate(file.tell())


def read_recorded(path: Path) -> Recorded:
    """Read what `watch` has written as JSON lines; a last line that is cut off is left out.

    Raises:
        OnnxClipError: it cannot be read, or is no such file.
    """
    with open_regular(path, "the norms ") as file:
        line = file.readline(_LONGEST_HEAD)
    try:
        return Recorded(path, _head(line))
    except ValueError as error:
        raise OnnxClipError(
            f"expected norms as `onnx-clip watch` writes them, JSON lines, but {str(path)!r} is "
            f"not: {error}"
        ) from error


def _head(line: bytes) -> Head:
    fields = _json(line) if line.strip() else None
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
        fields.get("micro_batches", 1),
    )


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _is_name(each: object) -> bool:
    """Return whether it is text that can be written again: no halves of characters."""
    return isinstance(each, str) and not any("\ud800" <= letter <= "\udfff" for letter in each)


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = fields.get(name)
    if not isinstance(found, list) or not all(_is_name(each) for each in found):
        raise ValueError(f"{name} is no list of names")
    return tuple(found)
