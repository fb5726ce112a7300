"""Tables of any length, which a script sorts and searches, and which serve without it too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx_clip_pass.page.markup import Markup, element, joined

__all__ = ["Column", "Row", "Table", "count", "number", "shape"]

Kind = Literal["text", "name", "number", "shape", "choice"]
_CLASSES = {"text": "t", "name": "n", "number": "r", "shape": "r", "choice": "c"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column: how it sorts and is set, and where there is space for it.

    `kind`: a name is set as code; numbers and shapes stand at the right and are sorted by size; of
    a choice there are few, of which the reader picks one. `level`: 1 is always there, 2 where the
    page is wide, 3 only among the details of a row.
    """

    heading: str
    kind: Kind = "text"
    level: Literal[1, 2, 3] = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A row; `state` is "bad" for what is wrong and "off" for what is left alone.

    `drawing` is the number, on the page, of the drawing that belongs to it.
    """

    cells: tuple[object, ...]
    state: Literal["", "bad", "off"] = ""
    drawing: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; `noun` is what one row is, for counts of them.

    The first column is always there: a click in it opens the details of a row.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    noun: str = "gradient"

    def __post_init__(self) -> None:
        if self.columns[0].level != 1:
            raise ValueError(f"the first column, {self.columns[0].heading!r}, must be of level 1")

    def html(self) -> Markup:
        """The table by itself: all rows, all columns, no script needed."""
        heads = [
            element("th", c.heading, scope="col", class_=_class(c), data_kind=c.kind)
            for c in self.columns
        ]
        classes = [_class(c) for c in self.columns]
        body = (
            element(
                "tr",
                *(
                    element("td", cell, class_=c)
                    for cell, c in zip(row.cells, classes, strict=True)
                ),
                class_=row.state or None,
                data_drawing=row.drawing,
            )
            for row in self.rows
        )
        lines = (Markup(f"{line}\n") for line in body)
        return element(
            "div",
            element(
                "table",
                element("thead", element("tr", *heads)),
                Markup("\n"),
                element("tbody", *lines),
                data_noun=self.noun,
            ),
            class_="table",
        )


def _class(column: Column) -> str | None:
    level = f"l{column.level}" if column.level > 1 else ""
    return f"{_CLASSES[column.kind]} {level}".strip() or None


def number(value: float, digits: int = 4) -> str:
    """A number as a table shows it; a dash for one that is not known."""
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:.{digits}g}" if abs(value) < 1e5 or math.isinf(value) else f"{value:.3e}"


def count(value: int) -> str:
    """A count, its thousands apart."""
    return f"{value:,}"


def shape(dims: Sequence[int | str | None] | None) -> Markup:
    """The sizes of a tensor with signs between them, at which a line may break."""
    if dims is None:
        return Markup("?")
    if not dims:
        return Markup("scalar")
    return joined(
        part
        for at, size in enumerate(dims)
        for part in ([Markup("<wbr>\N{MULTIPLICATION SIGN}")] if at else [])
        + ["?" if size is None else size]
    )
