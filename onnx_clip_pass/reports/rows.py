"""Parts that the pages have in common: columns of gradients, what is not covered or was added."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.page import (
    Column,
    Markup,
    Row,
    Table,
    count,
    details,
    element,
    joined,
    lines,
    number,
    section,
    shape,
)
from onnx_clip_pass.record import Uncovered
from onnx_clip_pass.reports.inserted import Inserted
from onnx_clip_pass.verification.report import GradientCheck

__all__ = [
    "CHECKED",
    "GRADIENT",
    "added_section",
    "checked_cells",
    "counted",
    "gradient_cells",
    "row_of",
    "uncovered_section",
]

GRADIENT = (
    Column("gradient", "name"),
    Column("parameter", "name", 2),
    Column("shape", "shape", 2),
    Column("dtype", "choice", 2),
)
"""Columns of what a gradient is."""

CHECKED = (
    Column("verdict", "choice"),
    Column("norm", "number"),
    Column("clipped", "number"),
    Column("expected", "number", 3),
    Column("error (ulps)", "number", 2),
    Column("allowed (ulps)", "number", 3),
    Column("faults", "text", 3),
)
"""Columns of what a verification says of one."""

_MOST_OPS = 8


def counted(found: int, noun: str = "gradient") -> str:
    """A count in words: 1 gradient, 2,000 gradients."""
    return f"{count(found)} {noun}" + ("s" if found != 1 else "")


def gradient_cells(gradient: Gradient) -> tuple[object, ...]:
    """The cells of `GRADIENT`."""
    return gradient.name, gradient.parameter.name, shape(gradient.shape), gradient.dtype


def checked_cells(check: GradientCheck | None) -> tuple[object, ...]:
    """The cells of `CHECKED`."""
    if check is None:
        return ("",) * len(CHECKED)
    if not check.has_run:
        return check.verdict, *("",) * (len(CHECKED) - 2), lines(check.faults)
    return (
        check.verdict,
        number(check.raw_norm),
        number(check.clipped_norm),
        number(check.expected_norm),
        number(check.error_ulps, 3),
        number(check.allowed_ulps, 3),
        lines(check.faults),
    )


def row_of(
    cells: tuple[object, ...],
    gradient: str,
    inserted: Inserted,
    *,
    is_clipped: bool,
    is_wrong: bool = False,
) -> Row:
    """A row of a gradient, with the drawing of its nodes."""
    drawing = inserted.drawing_of.get(gradient) if is_clipped else None
    return Row(cells, "bad" if is_wrong else "" if is_clipped else "off", drawing)


def uncovered_section(found: Sequence[Uncovered], heading: str) -> Markup:
    """The trained parameters without a known gradient: how each is computed, and what lacks."""
    columns = (
        Column("parameter", "name"),
        Column("its new value", "name", 2),
        Column("may be its gradient", "name", 2),
        Column("what is in the way"),
    )
    rows = [
        Row((each.parameter, each.formula, ", ".join(each.candidates) or "no value", each.why))
        for each in found
    ]
    return section(heading, Table(columns, rows, "parameter").html()) if rows else Markup()


def added_section(inserted: Inserted, new_operators: Sequence[tuple[str, int]] = ()) -> Markup:
    """The nodes that were put in, drawn; the most frequent form is open.

    Args:
        inserted: what was added.
        new_operators: those of it that the model did not use before, with the opset.
    """
    if not inserted.nodes:
        return Markup()
    shown = islice(inserted.ops, _MOST_OPS)
    ops = ", ".join(f"{count(number)} {op}" for op, number in shown)
    more = f", and {len(inserted.ops) - _MOST_OPS} more" if inserted.ops[_MOST_OPS:] else ""
    forms = []
    for at, (drawing, of) in enumerate(inserted.drawings, 1):
        is_only = len(inserted.drawings) == 1
        title = f"around {'each of ' if of > 1 else ''}{counted(of)}"
        body = drawing.html()
        forms.append(
            element(
                "div",
                body if is_only else details(title, body, is_open=at == 1),
                id=f"drawing-{at}",
            )
        )
    bodies = [details(each.label, each.html(), is_open=True) for each in inserted.bodies]
    summary = element(
        "p",
        f"{counted(inserted.nodes, 'node')} and {counted(inserted.constants, 'constant')}: "
        f"{ops}{more}.",
        class_="caption",
    )
    if new_operators:
        names = ", ".join(f"{name} (opset {opset})" for name, opset in new_operators)
        summary = joined([summary, element("p", f"New to the model: {names}.", class_="caption")])
    return section("Nodes that were put in", summary, joined(forms), joined(bodies))
