"""The page on a run that was watched: loss and norms over the steps, and all gradients at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.monitoring import Norms, Suggestion
from onnx_clip_pass.monitoring.adapting import percentile_of
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

_COLUMNS = 240  # of a map, each of one step or of several
_BARS, _LEAST, _GREATEST = 30, 1e-12, 1e12
_FINE = 480  # bins of all magnitudes, of which the bars are made
_MOST_HELD = 20_000_000  # norms that are held at once, for percentiles
_MOST_REPLAYED = 200_000  # norms that AutoClip and ZClip go through one by one
_PERCENTILE = 90.0
_Floats = NDArray[np.float64]
_Shares = dict[float, dict[str, float]]


def norms_page(norms: Norms) -> str:
    """The page on a run, made in one pass over its steps, whatever their number.

    Percentiles, and thresholds that follow from them, are those of runs whose norms can be held in
    memory.

    Args:
        norms: what `watch` has recorded, or `read_norms` has read.
    """
    seen = _Seen.of(norms)
    size = seen.steps * len(norms.gradients)
    shares = {q: norms.percentile(q) for q in (50.0, _PERCENTILE)} if size <= _MOST_HELD else {}
    suggested = _suggested(norms) if size <= _MOST_REPLAYED else None
    said = [*norms.notes, *([] if suggested is None else suggested.warnings)]
    return page(
        norms.head.model or "a training step",
        "run",
        _verdict(norms, seen),
        figures(
            {
                "steps": count(seen.steps),
                "gradients": count(len(norms.gradients)),
                "median of the global norm": number(percentile_of(seen.whole, 50)),
                "largest": number(percentile_of(seen.whole, 100)),
                **(
                    {"steps with a clip acting": count(seen.acted)} if norms.head.is_clipped else {}
                ),
            }
        ),
        section("Notes", notes(said)) if said else None,
        _lines("Loss", [Line("loss", seen.loss)], "the loss over the steps", seen),
        _global_norm(seen),
        _map("Norm of each gradient", norms, seen.largest_in, seen),
        _map("The share of each norm that its clip took away", norms, seen.taken_in, seen),
        section("Gradients", _table(norms, seen, shares, suggested).html()),
    )


@dataclass(slots=True)
class _Seen:
    """All that the page needs of the steps; of each gradient its size does not grow with them.

    `largest_in` and `taken_in` have for each gradient, and for neighbouring steps together, the
    largest norm (inf for one that is not finite) and the largest share that a clip took away.
    """

    steps: int
    first: int
    acted: int
    loss: _Floats
    whole: _Floats
    largest_in: _Floats
    taken_in: _Floats
    bins: NDArray[np.int64]
    zeros: _Floats
    clipped: NDArray[np.int64]

    @classmethod
    def of(cls, norms: Norms) -> _Seen:
        """Go through the steps once."""
        steps, gradients = len(norms), len(norms.gradients)
        empty = np.full((gradients, min(steps, _COLUMNS)), np.nan)
        seen = cls(
            steps, 0, 0, np.full(steps, np.nan), np.full(steps, np.nan), empty, empty.copy(),
            np.zeros((gradients, _FINE), np.int64), np.zeros(gradients),
            np.zeros(gradients, np.int64),
        )  # fmt: skip
        every = np.arange(gradients)
        for at, row in zip(range(steps), norms.rows, strict=False):
            seen.first = seen.first if at else row.step
            seen.loss[at], seen.whole[at] = row.loss, row.global_norm
            column = at * empty.shape[1] // steps
            norm = np.where(np.isfinite(row.norm), row.norm, np.inf)
            seen.largest_in[:, column] = np.fmax(seen.largest_in[:, column], norm)
            good = (norm > 0) & np.isfinite(norm)
            np.add.at(seen.bins, (every[good], _bin_of(norm[good])), 1)
            seen.zeros += row.zeros
            if (scale := row.scale) is not None and (acts := scale < 1).any():
                taken = np.where(acts, 1 - scale, np.nan)
                seen.taken_in[:, column] = np.fmax(seen.taken_in[:, column], taken)
                seen.clipped += acts
                seen.acted += 1
        return seen


def _bin_of(values: _Floats) -> NDArray[np.int64]:
    low, high = math.log(_LEAST), math.log(_GREATEST)
    share = (np.log(np.clip(values, _LEAST, _GREATEST)) - low) / (high - low)
    return np.minimum((share * _FINE).astype(np.int64), _FINE - 1)


def _edge(of_bin: int) -> float:
    return float(_LEAST * (_GREATEST / _LEAST) ** (of_bin / _FINE))


def _suggested(norms: Norms) -> Suggestion | None:
    try:
        return norms.suggest(_PERCENTILE)
    except OnnxClipError:  # no norm is finite and not 0
        return None


def _verdict(norms: Norms, seen: _Seen) -> Markup:
    what = f"{counted(seen.steps, 'step')} of {counted(len(norms.gradients))}"
    if norms.stopped:
        return verdict(f"It diverges: {norms.stopped}", f"{what}.", state="bad")
    if seen.steps and np.isfinite(seen.loss[[0, -1]]).all():
        ends = number(float(seen.loss[0])), number(float(seen.loss[-1]))
        return verdict(f"The loss went from {ends[0]} to {ends[1]}", what)
    return verdict(f"Watched {what}")


def _lines(heading: str, lines: list[Line], label: str, seen: _Seen) -> Markup:
    """A chart; nothing where there are no numbers."""
    if all(np.isnan(line.values).all() for line in lines):
        return Markup()
    return section(heading, LineChart(lines, label, seen.first).html())


def _global_norm(seen: _Seen) -> Markup:
    level = percentile_of(seen.whole, _PERCENTILE)
    lines = [
        Line("global norm", seen.whole),
        Line(f"{_PERCENTILE:g}th percentile: {number(level)}", np.full(seen.steps, level), "limit"),
    ]
    label = "the norm of all gradients together over the steps"
    return _lines("Norm of all gradients together", lines, label, seen)


def _map(heading: str, norms: Norms, values: _Floats, seen: _Seen) -> Markup:
    if np.isnan(values).all():
        return Markup()
    chart = HeatMap(norms.parameters, values, f"{heading}, over the steps", seen.first, seen.steps)
    return section(heading, chart.html())


def _table(norms: Norms, seen: _Seen, shares: _Shares, suggested: Suggestion | None) -> Table:
    columns = [Column("gradient", "name"), Column("parameter", "name", 2)]
    columns += [Column("median" if q == 50 else f"{q:g} %", "number") for q in shares]
    columns += [Column("largest", "number"), Column("distribution", "text", 2)]
    columns += [Column("acted in (%)", "number")] * norms.head.is_clipped
    columns += [Column("zeros (%)", "number", 3)]
    replayed = {} if suggested is None else {t.parameters[0]: t for t in suggested.thresholds}
    columns += [Column("AutoClip", "number", 3), Column("ZClip", "number", 3)] * bool(replayed)
    with np.errstate(invalid="ignore"):  # of a run without steps nothing is known
        parts = 100 * np.stack([seen.clipped, seen.zeros]) / (seen.steps or math.nan)
    bars, rows = _Bars.of(seen.bins), []
    for at, (gradient, parameter) in enumerate(zip(norms.gradients, norms.parameters, strict=True)):
        cells: list[object] = [gradient, parameter]
        cells += [number(found[parameter]) for found in shares.values()]
        largest = float(np.fmax.reduce(seen.largest_in[at], initial=-1))
        cells.append(number(largest if largest >= 0 else math.nan))
        cells.append(bars.of_row(seen.bins[at], shares[_PERCENTILE][parameter] if shares else None))
        cells += [number(parts[0, at], 3)] * norms.head.is_clipped + [number(parts[1, at], 3)]
        if replayed:
            found = replayed.get(parameter)
            ends = (found.autoclip, found.zclip) if found is not None else (math.nan, math.nan)
            cells += map(number, ends)
        rows.append(Row(tuple(cells), "bad" if math.isinf(largest) else ""))
    return Table(columns, rows)


@dataclass(frozen=True, slots=True)
class _Bars:
    """The magnitudes that any norm had, in a few equal steps, the same in all rows."""

    start: int
    width: int

    @classmethod
    def of(cls, bins: NDArray[np.int64]) -> _Bars:
        used = np.flatnonzero(bins.any(axis=0))
        if not len(used):
            return cls(0, 1)
        return cls(int(used[0]), math.ceil((used[-1] - used[0] + 1) / _BARS))

    def of_row(self, bins: NDArray[np.int64], limit: float | None) -> Markup:
        end = self.start + self.width * _BARS
        part = np.zeros(self.width * _BARS, np.int64)
        inside = bins[self.start : end]
        part[: len(inside)] = inside
        counts = part.reshape(_BARS, self.width).sum(axis=1).tolist()
        return Histogram(counts, _edge(self.start), _edge(end), limit).html()
