"""The page on a run that was watched."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.monitoring import Norms, Suggestion
from onnx_clip_pass.page import (
    Column,
    HeatMap,
    Histogram,
    Line,
    LineChart,
    Markup,
    Row,
    Table,
    count,
    figures,
    notes,
    number,
    page,
    section,
    verdict,
)
from onnx_clip_pass.tables import counted

__all__ = ["norms_page"]

_Floats = NDArray[np.float64]
_PERCENTILE = 90.0


def norms_page(norms: Norms) -> str:
    """The page on losses and norms, and on the thresholds that follow from them."""
    suggested = _suggested(norms)
    first = norms.rows[0].step if len(norms) else 0
    whole, matrix = norms.global_norm, norms.norm
    warnings = [] if suggested is None else list(suggested.warnings)
    return page(
        norms.head.model or "a training step",
        "run",
        _verdict(norms),
        figures(
            {
                "steps": count(len(norms)),
                "gradients": count(len(norms.gradients)),
                "median of the global norm": number(_percentile(whole, 50)),
                "largest": number(_percentile(whole, 100)),
            }
        ),
        section("Notes", notes([*norms.notes, *warnings])) if norms.notes or warnings else None,
        _losses(norms, first),
        section(
            "Norm of all gradients together",
            LineChart([Line("global norm", whole)], "the global norm over the steps", first).html(),
        ),
        section(
            "Norm of each gradient",
            HeatMap(
                norms.parameters,
                np.where(np.isfinite(matrix), matrix, np.inf).T,
                "the norm of each gradient over the steps",
                first,
            ).html(),
        ),
        _acted(norms, first),
        section("Gradients", _gradients(norms, suggested).html()),
    )


def _suggested(norms: Norms) -> Suggestion | None:
    try:
        return norms.suggest(_PERCENTILE)
    except OnnxClipError:  # no norm is finite and not 0
        return None


def _verdict(norms: Norms) -> Markup:
    what = f"{counted(len(norms), 'step')} of {counted(len(norms.gradients))}"
    if norms.stopped:
        return verdict(f"It diverges: {norms.stopped}", f"{what}.", state="bad")
    losses = norms.loss
    if len(losses) and np.isfinite(losses[[0, -1]]).all():
        return verdict(f"The loss went from {number(losses[0])} to {number(losses[-1])}", what)
    return verdict(f"Watched {what}")


def _losses(norms: Norms, first: int) -> Markup | None:
    losses = norms.loss
    if not len(losses) or np.isnan(losses).all():
        return None
    return section("Loss", LineChart([Line("loss", losses)], "the loss over steps", first).html())


def _acted(norms: Norms, first: int) -> Markup | None:
    """The share of each norm that its clip took away, over the steps."""
    scale = norms.scale
    if scale is None or not (scale < 1).any():
        return None
    taken = np.where(scale < 1, 1 - scale, np.nan).T
    map_ = HeatMap(norms.parameters, taken, "the share of each norm that was clipped off", first)
    return section("The share of each norm that its clip took away", map_.html())


def _gradients(norms: Norms, suggested: Suggestion | None) -> Table:
    matrix, scale = norms.norm, norms.scale
    limits = {} if suggested is None else {t.parameters[0]: t for t in suggested.thresholds}
    finite = matrix[np.isfinite(matrix) & (matrix > 0)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    columns = [
        Column("gradient", "name", 2),
        Column("parameter", "name"),
        Column("median", "number"),
        Column(f"{_PERCENTILE:g} %", "number"),
        Column("largest", "number"),
        Column("distribution", "text", 2),
        Column("AutoClip", "number", 3),
        Column("ZClip", "number", 3),
        Column("zeros", "number", 3),
    ]
    columns += [Column("acted in", "number")] if scale is not None else []
    rows = []
    for at, (gradient, parameter) in enumerate(zip(norms.gradients, norms.parameters, strict=True)):
        own, found = matrix[:, at], limits.get(parameter)
        limit = None if found is None else found.limit
        zeros = float(np.mean([row.zeros[at] for row in norms.rows])) if len(norms) else math.nan
        cells: tuple[object, ...] = (
            gradient,
            parameter,
            *(number(_percentile(own, q)) for q in (50, _PERCENTILE, 100)),
            Histogram(own, low, high, limit).html() if low < high else "",
            number(math.nan if found is None else found.autoclip),
            number(math.nan if found is None else found.zclip),
            f"{zeros:.0%}" if math.isfinite(zeros) else "",
        )
        cells += (f"{np.mean(scale[:, at] < 1):.0%}",) if scale is not None else ()
        is_odd = not np.isfinite(own).all()
        rows.append(Row(cells, "bad" if is_odd else ""))
    return Table(columns, rows)


def _percentile(values: _Floats, q: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, q)) if finite.size else math.nan
