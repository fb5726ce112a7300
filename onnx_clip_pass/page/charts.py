"""Charts as SVG: lines over steps, a map of many lines at once, the distribution of one.

Axes of values are logarithmic: norms of gradients range over many powers of ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.page.markup import Markup, element, joined
from onnx_clip_pass.page.table import count, number
from onnx_clip_pass.page.thinning import greatest, thinned

__all__ = ["HeatMap", "Histogram", "Line", "LineChart"]

_WIDTH, _HEIGHT = 1116, 230
_LEFT, _RIGHT, _TOP, _BELOW = 62, 226, 14, 26
_PLOT = _WIDTH - _LEFT - _RIGHT
_LETTERS, _HALF = 35, 17  # of a name beside a row
_DECADES = 12  # below the greatest; a line that falls further runs along the lower edge
_ROWS, _ROW, _SHORTEST = 200, 16, 2.5
_COLUMNS = 240
_LEVELS = 9
_MOST_TICKS = 7
_NAMED = 48  # rows of a map that have space for names
_BARS = 30


@dataclass(frozen=True, slots=True)
class Line:
    """A value at each step; nan and inf are marked where they are first, and leave a gap.

    `kind`: "main" is what the chart is about, "soft" what it is beside, "limit" a threshold.
    """

    name: str
    values: Sequence[float] | NDArray[Any]
    kind: Literal["main", "soft", "limit"] = "main"


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over the same steps, of which `first` is the number of the first.

    `label` says what the chart shows to whoever cannot see it.
    """

    lines: Sequence[Line]
    label: str
    first: int = 0

    def html(self) -> Markup:
        """The chart as an element."""
        steps = max((len(line.values) for line in self.lines), default=0)
        scale = _Scale.of([np.asarray(line.values, np.float64) for line in self.lines])
        across = _PLOT / max(steps - 1, 1)
        drawn = [self._drawn(line, scale, across) for line in self.lines]
        names = _apart([(scale.at(_last(line.values)), line) for line in self.lines])
        labels = [
            element(
                "text", line.name, x=_LEFT + _PLOT + 8, y=f"{y:.1f}", class_=f"name {line.kind}"
            )
            for y, line in names
        ]
        return _figure(
            self.label,
            _HEIGHT,
            scale.axis(),
            _steps_axis(self.first, steps, _HEIGHT),
            *drawn,
            *labels,
        )

    @staticmethod
    def _drawn(line: Line, scale: _Scale, across: float) -> Markup:
        path, is_down = "", False
        marks: list[str] = []
        for at in thinned(line.values, _PLOT):
            value, x = float(line.values[at]), _LEFT + at * across
            if math.isfinite(value):
                path += f"{'L' if is_down else 'M'}{x:.1f} {scale.at(value):.1f}"
            elif is_down or not marks:
                marks.append(f"M{x - 3:.1f} {_TOP - 9}l6 6m-6 0l6 -6")
            is_down = math.isfinite(value)
        parts = [element("path", d=Markup(path), class_=f"line {line.kind}")] if path else []
        if marks:
            title = element("title", f"{line.name} is not finite")
            parts.append(element("path", title, d=Markup("".join(marks)), class_="line bad"))
        return joined(parts)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The values of many rows over the same steps, dark where they are large.

    `values` is (rows, steps), with inf for what is not finite and nan for what is not known. Where
    there is no space for all, neighbours are one row or step, with the greatest value of them.
    `steps` says how many there were, if neighbours are together already.
    """

    names: Sequence[str]
    values: NDArray[Any]
    label: str
    first: int = 0
    steps: int = 0

    def html(self) -> Markup:
        """The map as an element."""
        all_rows, steps = self.values.shape
        steps = self.steps or steps
        cells = greatest(self.values, _ROWS, _COLUMNS)
        rows, columns = cells.shape
        if not cells.size:
            return Markup()
        tall = max(_SHORTEST, min(_ROW, 640 / rows))
        height = _TOP + rows * tall + _BELOW
        levels, bounds = _levels(cells)
        map_ = element(
            "svg",
            *_runs(levels),
            x=_LEFT,
            y=_TOP,
            width=_PLOT,
            height=f"{rows * tall:.1f}",
            viewBox=f"0 0 {columns} {rows}",
            preserveAspectRatio="none",
            class_="cells",
        )
        starts = np.linspace(0, all_rows, rows, endpoint=False).astype(int).tolist()
        rest = []
        for row, (start, end) in enumerate(zip(starts, [*starts[1:], all_rows], strict=True)):
            y, name = _TOP + row * tall, self.names[start]
            if end - start > 1:
                name = f"{name} … {self.names[end - 1]} ({count(end - start)})"
            cover = {"x": _LEFT, "y": f"{y:.1f}", "width": _PLOT, "height": f"{tall:.1f}"}
            rest.append(element("rect", element("title", name), class_="cover", **cover))
            if rows <= _NAMED:
                place = {"x": _LEFT + _PLOT + 8, "y": f"{y + tall / 2 + 4:.1f}"}
                rest.append(element("text", _cut(name), class_="name soft", **place))
        return joined(
            [
                _figure(self.label, height, map_, _steps_axis(self.first, steps, height), *rest),
                _legend(bounds, has_bad=bool(np.isinf(cells).any())),
            ]
        )


@dataclass(frozen=True, slots=True)
class Histogram:
    """A distribution in a cell of a table, and where a threshold is in it.

    `counts` are those of equal steps of the logarithm from `low` to `high`.
    """

    counts: Sequence[int]
    low: float
    high: float
    limit: float | None = None

    @classmethod
    def of(
        cls, values: Sequence[float] | NDArray[Any], low: float, high: float, limit: float | None
    ) -> Histogram:
        """Return that of values; what is not positive or not finite is left out."""
        found = np.asarray(values, np.float64)
        found = found[np.isfinite(found) & (found > 0)]
        ends = math.log10(low), max(math.log10(high), math.log10(low) + 1e-6)
        counts, _ = np.histogram(np.clip(np.log10(found), *ends), _BARS, ends)
        return cls(counts.tolist(), low, high, limit)

    def html(self) -> Markup:
        """The bars as an element that is one line high."""
        wide = len(self.counts) * 4
        top = max(self.counts, default=0)
        bars = "".join(
            f"M{at * 4} 18v{-max(many / top * 17, 1):.1f}h3V18z"
            for at, many in enumerate(self.counts)
            if many
        )
        parts = [element("path", d=Markup(bars))]
        if self.limit is not None and self.limit > 0 and math.isfinite(self.limit):
            span = math.log(self.high / self.low) or 1.0
            share = math.log(self.limit / self.low) / span
            x = min(max(share, 0), 1) * wide
            parts.append(element("path", d=f"M{x:.1f} 0V18", class_="limit"))
        size = {"width": wide, "height": 18, "viewBox": f"0 0 {wide} 18"}
        return element("svg", *parts, class_="bars", aria_hidden="true", **size)


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis from `low` to `high`, both positive, over the height of a chart."""

    low: float
    high: float
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, series: Sequence[NDArray[np.float64]]) -> _Scale:
        """Return one for all these values, between ticks."""
        every = np.concatenate([*series, np.zeros(0)])
        every = every[np.isfinite(every) & (every > 0)]
        if not len(every):
            return cls(0.1, 1.0, [0.1, 1.0])
        marks = [digit * 10.0**power for power in range(-320, 309) for digit in (1, 2, 5)]
        high = next((mark for mark in marks if mark >= every.max()), marks[-1])
        least = max(float(every.min()), high * 10.0**-_DECADES)
        low = next(mark for mark in reversed(marks) if mark <= least and mark < high)
        inside = [mark for mark in marks if low <= mark <= high]
        if len(inside) > _MOST_TICKS:
            inside = [mark for mark in inside if f"{mark:e}".startswith("1.")]
            inside = inside[:: math.ceil(len(inside) / _MOST_TICKS)]
        return cls(low, high, inside)

    def at(self, value: float) -> float:
        """The place of a value; what is too small, 0 and less are at the lower edge."""
        if not value > self.low:
            share = 0.0
        else:
            share = min(math.log(value / self.low) / math.log(self.high / self.low), 1.0)
        return _HEIGHT - _BELOW - share * (_HEIGHT - _BELOW - _TOP)

    def axis(self) -> Markup:
        """Lines across the chart, each with its value."""
        parts = []
        for tick in self.ticks:
            y = f"{self.at(tick):.1f}"
            parts.append(element("path", d=f"M{_LEFT} {y}h{_PLOT}", class_="grid"))
            parts.append(element("text", number(tick), x=_LEFT - 8, y=y, dy=4, class_="tick left"))
        return joined(parts)


def _last(values: Sequence[float] | NDArray[Any]) -> float:
    """The last finite value, at which the name of a line stands."""
    return next((float(v) for v in reversed(values) if math.isfinite(v)), 0.0)


def _apart(names: list[tuple[float, Line]]) -> list[tuple[float, Line]]:
    """Names at least a line apart from each other."""
    found: list[tuple[float, Line]] = []
    for y, line in sorted(names, key=lambda entry: entry[0]):
        found.append((max(y + 4, found[-1][0] + 15) if found else y + 4, line))
    return found


def _steps_axis(first: int, steps: int, height: float) -> Markup:
    """The numbers of steps below a chart, at round ones."""
    last = first + max(steps - 1, 0)
    rough = max(steps, 2) / 8
    power = 10 ** math.floor(math.log10(rough))
    apart = max(next(m * power for m in (1, 2, 5, 10) if m * power >= rough), 1)
    parts = []
    for step in range(math.ceil(first / apart) * int(apart), last + 1, int(apart)):
        x = _LEFT + (step - first) * _PLOT / max(steps - 1, 1)
        parts.append(
            element("text", count(step), x=f"{x:.1f}", y=f"{height - 8:.1f}", class_="tick")
        )
    parts.append(
        element("text", "step", x=_LEFT + _PLOT + 8, y=f"{height - 8:.1f}", class_="tick right")
    )
    return joined(parts)


def _levels(cells: NDArray[np.float64]) -> tuple[NDArray[np.int64], list[float]]:
    """The level of each cell, -1 for what is not known and one more for what is not finite.

    Also the least value of each level: the same steps of the logarithm between all values.
    """
    good = cells[np.isfinite(cells) & (cells > 0)]
    low, high = (good.min(), good.max()) if len(good) else (0.1, 1.0)
    low = max(low, high * 10.0**-_DECADES)
    bounds = np.geomspace(low, max(high, low * 1.0001), _LEVELS + 1)[:-1]
    with np.errstate(invalid="ignore"):
        levels = np.clip(np.searchsorted(bounds, cells, side="right") - 1, 0, _LEVELS - 1)
    levels[np.isinf(cells)] = _LEVELS
    levels[np.isnan(cells)] = -1
    return levels.astype(np.int64), bounds.tolist()


def _runs(levels: NDArray[np.int64]) -> list[Markup]:
    """One path for each level, of the runs of cells that have it."""
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(levels.tolist()):
        x = 0
        for level, run in groupby(row):
            width = len(list(run))
            if level >= 0:
                paths.setdefault(level, []).append(f"M{x} {y}h{width}v1h-{width}z")
            x += width
    return [
        element("path", d=Markup("".join(parts)), class_="bad" if level == _LEVELS else f"v{level}")
        for level, parts in sorted(paths.items())
    ]


def _legend(bounds: list[float], *, has_bad: bool) -> Markup:
    """The levels of a map, each with the least value that has it."""
    wide = 58
    parts = []
    entries = [(f"v{at}", number(bound, 3)) for at, bound in enumerate(bounds)]
    entries += [("bad", "not finite")] * has_bad
    for at, (kind, text) in enumerate(entries):
        x = at * wide
        parts.append(element("rect", x=x, y=0, width=wide - 2, height=10, class_=kind))
        parts.append(element("text", text, x=x, y=24, class_="tick right"))
    size = {"width": len(entries) * wide, "height": 28}
    return element("div", element("svg", *parts, class_="cells", **size), class_="legend")


def _cut(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[:_HALF]}…{name[-_HALF:]}"


def _figure(label: str, height: float, *parts: Markup) -> Markup:
    svg = element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
        width=_WIDTH,
        height=f"{height:.0f}",
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        class_="shrinks",
    )
    return element("div", svg, class_="drawing chart")
