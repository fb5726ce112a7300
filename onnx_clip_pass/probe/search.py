"""The search itself: measure slopes, ask every candidate what it says of them, judge, settle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.gradients.found import Gradient, Parameter
from onnx_clip_pass.graph import Shape, TensorType
from onnx_clip_pass.probe.bench import Bench, is_float
from onnx_clip_pass.probe.pairing import (
    Fit,
    Measure,
    Undecided,
    by_factor,
    judge,
    layouts,
    moves,
    project,
    settle,
)
from onnx_clip_pass.probe.slopes import Point, Slope, direction, slope_along

__all__ = ["Probing", "Search"]

_DIRECTIONS = 2  # at each of two points
_PRECISION = {8: 1e-5, 4: 2e-4}  # of a gradient as a graph computes it, by the size of its dtype
_CLIPS = {"Clip", "Max", "Min", "Where"}


@dataclass(frozen=True, slots=True)
class Probing:
    """What probing found: gradients, parameters left without one and why, and the loss it used."""

    gradients: tuple[Gradient, ...]
    undecided: tuple[Undecided, ...]
    loss: str


@dataclass(slots=True)
class Search:
    """One run of probing: measure, project, judge, settle."""

    bench: Bench
    outputs: Mapping[str, tuple[int, ...]]
    inner: bool
    most_bytes: int
    progress: Callable[[int, int], None] | None
    undecided: list[Undecided] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def result(self) -> Probing:
        bench = self.bench
        self.undecided += [
            Undecided(name, f"taken for data ({why}); name it with data= (--data) to probe it")
            for name, why in bench.left_out.items()
        ]
        names = self._candidates(inner=self.inner)
        wanted = {
            name: array
            for name, array in bench.parameters.items()
            if any(_can_fit(shape, array.shape) for shape in names.values())
        }
        self.undecided += [
            Undecided(name, f"no value has its shape{self._further}")
            for name in bench.parameters.keys() - wanted.keys()
            if name not in bench.index.main.initializers
        ]
        points, slopes = self._measure(list(wanted))
        still = {name for name in wanted if not moves(slopes[name])}
        self.undecided += [
            Undecided(name, "the loss does not move with it here: its gradient is zero")
            for name in wanted
            if name in still
        ]
        slopes = {name: found for name, found in slopes.items() if name not in still}
        fits = self._fits(names, points, slopes)
        exact = {p: kept for p, found in fits.items() if (kept := _exact(found))}
        allowed = set(names)
        chosen, factor = exact, False
        if not exact and any(fits.values()):
            chosen, factor = self._by_factor(fits, allowed, points, slopes), True
        order = [*self.outputs, *(name for name in names if name not in self.outputs)]
        pairs, doubts = settle(chosen, self._before, order)
        self.undecided += doubts
        said = {entry.parameter for entry in self.undecided} | {p for _, p, _ in pairs}
        self.undecided += [
            Undecided(p, self._why_nothing_fits(found))
            for p, found in slopes.items()
            if p not in said and not self._is_constant(p)
        ]
        gradients = [
            self._gradient(fit, parameter, remark, points, by_factor=factor)
            for fit, parameter, remark in pairs
        ]
        places = self.bench.index.main.producers
        gradients.sort(key=lambda g: places.get(g.name, (-1, 0)))
        return Probing(tuple(gradients), tuple(self.undecided), bench.loss)

    # -- measuring -----------------------------------------------------------------------------

    def _candidates(self, *, inner: bool) -> dict[str, Shape | None]:
        """Values that may be gradients, with their shapes as far as known."""
        bench = self.bench
        found: dict[str, Shape | None] = dict(self.outputs)
        main = bench.index.main
        for name in main.producers if inner else ():
            known = main.declared(name)
            if known is not None and (not known.dtype or known.shape is None):
                inferred = bench.index.inferred(main, name)
                known = TensorType(known.dtype or inferred.dtype, known.shape or inferred.shape)
            if name != bench.loss and known is not None and known.is_floating and known.dtype:
                found.setdefault(name, known.shape)
        behind = bench.ancestors(bench.loss)  # to clip one of these would change the loss
        return {
            name: shape
            for name, shape in found.items()
            if name not in behind and name not in bench.from_states
        }

    def _measure(self, names: list[str]) -> tuple[list[Point], dict[str, list[Slope]]]:
        """The slopes at two points; where the first lies on a kink, at one beside it."""
        for first in (0, 2):
            points = [self.bench.point(first), self.bench.point(1)]
            slopes = {}
            for number, name in enumerate(names):
                if self.progress is not None:
                    self.progress(number, len(names))
                slopes[name] = [
                    slope_along(self.bench.loss_at, point, name, each)
                    for point in points
                    for each in range(_DIRECTIONS if points[0].feeds[name].size > 1 else 1)
                ]
                if first == 0 and any(slope.has_kink for slope in slopes[name]):
                    break
            else:
                break
        if self.progress is not None:
            self.progress(len(names), len(names))
        return points, slopes

    def _fits(
        self,
        names: Mapping[str, Shape | None],
        points: list[Point],
        slopes: dict[str, list[Slope]],
    ) -> dict[str, list[Fit]]:
        """Every value that fits a parameter, exactly or but for a factor."""
        says: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
        for batch in self._batches(names, slopes):
            for point, values in self.bench.values(batch, points):
                for name, array in values.items():
                    if not is_float(array):
                        continue
                    self.shapes[name] = array.shape
                    for parameter in slopes:
                        at = point.feeds[parameter]
                        for layout in layouts(array.shape, at.shape):
                            says.setdefault((parameter, name, layout), []).extend(
                                self._say(array, layout, point, points, parameter, slopes)
                            )
        fits: dict[str, list[Fit]] = {parameter: [] for parameter in slopes}
        for (parameter, name, layout), said in says.items():
            found, size, precision = (np.array(column) for column in zip(*said, strict=True))
            measure = Measure(name, layout, found, size, float(precision.max()))
            half = len(said) // 2
            fit = judge(measure, slopes[parameter], np.repeat([0, 1], half))
            if fit is not None:
                fits[parameter].append(fit)
        return fits

    def _say(
        self,
        array: NDArray[Any],
        layout: str,
        point: Point,
        points: list[Point],
        parameter: str,
        slopes: dict[str, list[Slope]],
    ) -> list[tuple[float, float, float]]:
        """What one value says of each slope at a point, its size, and its precision."""
        found = slopes[parameter]
        half = len(found) // 2
        here = found[:half] if point is points[0] else found[half:]
        said = []
        for number, slope in enumerate(here):
            at = point.feeds[parameter]
            along = direction(parameter, at, point.number, number, slope.attempt)
            unit = np.linalg.norm(along) / max(np.sqrt(along.size), 1)
            size = float(np.linalg.norm(np.asarray(array, np.float64)) * unit)
            precision = max(
                _PRECISION.get(array.dtype.itemsize, 0.03),
                1e-5 if self.bench.is_double else 2e-3,
            )
            said.append((project(array, layout, along), size, precision))
        return said

    def _batches(
        self,
        names: Mapping[str, Shape | None],
        slopes: dict[str, list[Slope]],
    ) -> list[list[str]]:
        """Names of values that can fit, so many at a time as may be held at two points."""
        batches: list[list[str]] = [[]]
        held = 0
        for name, shape in names.items():
            sizes = [
                self.bench.parameters[parameter].size * 16
                for parameter in slopes
                if _can_fit(shape, self.bench.parameters[parameter].shape)
            ]
            if not sizes:
                continue
            if batches[-1] and held + max(sizes) > self.most_bytes:
                batches.append([])
                held = 0
            batches[-1].append(name)
            held += max(sizes)
        return [batch for batch in batches if batch]

    # -- judging -------------------------------------------------------------------------------

    def _by_factor(
        self,
        fits: dict[str, list[Fit]],
        allowed: set[str],
        points: list[Point],
        slopes: dict[str, list[Slope]],
    ) -> dict[str, list[Fit]]:
        if not self.inner:  # what the outputs are computed from
            above: set[str] = set()
            for found in fits.values():
                for fit in found:
                    above |= self.bench.ancestors(fit.measure.value)
            shapes = self._candidates(inner=True)
            within = {name: shape for name, shape in shapes.items() if name in above - allowed}
            for parameter, found in self._fits(within, points, slopes).items():
                fits[parameter] += found
        sizes = {size for array in self.bench.feeds.values() for size in array.shape}
        sizes |= {array.size for array in self.bench.feeds.values()}

        knobs = [
            (value, points[1].knobs[name]) for name, value in points[0].knobs.items() if value > 0
        ]
        chosen, doubts = by_factor(fits, self._before, allowed, knobs, sizes)
        self.undecided += [
            Undecided(doubt.parameter, doubt.reason + self._further) for doubt in doubts
        ]
        return chosen

    def _before(self, earlier: str, later: str) -> bool | None:
        """Whether `later` is computed from `earlier`; None if a way leads through a clip."""
        if earlier not in self.bench.ancestors(later):
            return False
        main = self.bench.index.main
        clips = (
            name
            for name in self.bench.ancestors(later) - {earlier}
            if (node := main.producer(name)) is not None and node.op_type in _CLIPS
        )
        return None if any(earlier in self.bench.ancestors(name) for name in clips) else True

    def _is_constant(self, parameter: str) -> bool:
        """Whether it is a number in the formula of the loss rather than a parameter."""
        bench = self.bench
        return parameter in bench.index.main.initializers and bench.parameters[parameter].size == 1

    def _why_nothing_fits(self, slopes: list[Slope]) -> str:
        value = max(abs(slope.value) for slope in slopes)
        if max(slope.error for slope in slopes) > 0.02 * value:
            return "its slopes are too noisy to compare: the loss has kinks, or too few digits"
        return f"no value fits its slopes{self._further}"

    @property
    def _further(self) -> str:
        """Where else a gradient may be that is not among the outputs."""
        return "" if self.inner else "; inner=True (--inner) looks inside the graph too"

    def _gradient(
        self, fit: Fit, parameter: str, remark: str, points: list[Point], *, by_factor: bool
    ) -> Gradient:
        bench, name = self.bench, fit.measure.value
        main = bench.index.main
        value, known = main.declared(name) or TensorType(), main.declared(parameter) or TensorType()
        array = bench.parameters[parameter]
        evidence = [
            f"slopes of {bench.loss} by {parameter} agree within {fit.error:.1g}",
            *([fit.measure.layout] if fit.measure.layout == "transposed" else []),
        ]
        first, second = fit.factors
        if by_factor:
            turning = [n for n, v in points[0].knobs.items() if abs(second / first - 1) > 1e-2]
            scaled = f", scaled by input {', '.join(map(repr, turning))}" if turning else ""
            evidence.append(f"times {first:.6g}{scaled}")
        evidence += [remark] if remark else []
        dtype = value.dtype or bench.index.inferred(main, name).dtype or known.dtype
        shape = value.shape if value.shape is not None else self.shapes[name]
        return Gradient(
            name=name,
            parameter=Parameter(
                parameter,
                known.shape if known.shape is not None else array.shape,
                str(array.dtype),
                name,
            ),
            shape=shape,
            dtype=TensorType(dtype).dtype_name,
            evidence="; ".join(evidence),
            has_seeds=fit.measure.layout == "with one seed",
        )


def _exact(found: list[Fit]) -> list[Fit]:
    return [fit for fit in found if fit.factors == (1.0, 1.0)]


def _can_fit(shape: Shape | None, parameter: tuple[int, ...]) -> bool:
    """Whether a shape, as far as it is known, can be that of a gradient."""
    if shape is None:
        return True
    if all(isinstance(size, int) for size in shape):
        return any(True for _ in layouts(tuple(s for s in shape if isinstance(s, int)), parameter))
    return len(shape) in (len(parameter), len(parameter) + 1)
