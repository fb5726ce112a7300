"""The search itself: measure slopes, ask every candidate what it says of them, judge, settle.

Each parameter is moved along a mixture of all values that might be its gradient: random directions
alone would hide the true one, of a million elements, in the noise of a loss in float32. What fits
is tried by `trial`, all parameters at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient, Parameter
from onnx_clip_pass.graph import Shape, TensorType
from onnx_clip_pass.probe.harness import Harness, is_float
from onnx_clip_pass.probe.losses import type_of
from onnx_clip_pass.probe.pairing import Fit, Undecided, by_factor, laid_out, layouts, settle
from onnx_clip_pass.probe.slopes import Arrays, Point, Slope, length_of, quick_slope, slope_along
from onnx_clip_pass.probe.trial import ERRORS, NOISE, Trial, precision_of
from onnx_clip_pass.progress import Progress, TellProgress

__all__ = ["Probing", "Search"]

_MOST = 8  # values that are tried for one parameter, where noise lets many fit
_CLIPS = {"Clip", "Max", "Min", "Where"}


@dataclass(frozen=True, slots=True)
class Probing:
    """The result of probing: gradients, parameters without one and why, and the loss it used."""

    gradients: tuple[Gradient, ...]
    undecided: tuple[Undecided, ...]
    loss: str


class _Said(NamedTuple):
    """The slope along a mixture by a value, and the share of its rounding in that."""

    value: str
    layout: str
    slope: float
    blur: float


class _Measured(NamedTuple):
    """The slopes by the values of a parameter, and the one that was measured."""

    says: list[_Said]
    slope: Slope

    def fits(self, said: _Said) -> bool:
        return abs(said.slope - self.slope.value) <= ERRORS * self.slope.error + said.blur

    @property
    def is_noisy(self) -> bool:
        return not ERRORS * self.slope.error <= NOISE * abs(self.slope.value)


@dataclass(slots=True)
class Search:
    """One run of probing: measure, compare, try, settle."""

    harness: Harness
    inner: bool
    most_bytes: int
    progress: TellProgress
    undecided: dict[str, Undecided] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _feeds: Arrays = field(init=False)
    _here: float = field(init=False)
    _varied: Point = field(init=False)

    def result(self) -> Probing:
        harness = self.harness
        self._feeds, self._varied = harness.point(2).feeds, harness.point(1)
        self._here = harness.loss_at(self._feeds)
        for name, why in harness.left_out.items():
            self.undecided[name] = Undecided(name, f"taken for data ({why})", is_data=True)
        names = self._candidates(inner=self.inner)
        wanted = []
        for name, array in harness.parameters.items():
            if any(_can_fit(shape, array.shape) for shape in names.values()):
                wanted.append(name)
            elif name not in harness.index.main.initializers:
                self._leave(name, f"no value has its shape{self._further}")
        measured = self._measure(names, wanted, 1)
        exact = {name: found for name, each in measured.items() if (found := _exact(each))}
        chosen = self._tried(exact) if exact else self._by_factor(names, list(measured))
        outputs = {output.name for output in harness.model.graph.output}
        pairs = settle(chosen, self._before, list(names), outputs)
        for name, each in measured.items():
            is_number = name in harness.index.main.initializers and self._at(name).size == 1
            if not (is_number or name in self.undecided or name in chosen):
                noisy = "its slopes are too noisy to compare: the loss has kinks, or too few digits"
                none = f"no value fits its slopes{self._further}"
                self._leave(name, noisy if each.is_noisy else none)
        gradients = [self._gradient(fit, parameter, remark) for fit, parameter, remark in pairs]
        places = harness.index.main.producers
        gradients.sort(key=lambda g: places.get(g.name, (-1, 0)))
        left = self._left(names, {gradient.name for gradient in gradients})
        return Probing(tuple(gradients), tuple(left), harness.loss)

    def _leave(self, parameter: str, reason: str) -> None:
        self.undecided.setdefault(parameter, Undecided(parameter, reason))

    def _left(self, names: Mapping[str, Shape | None], taken: set[str]) -> Iterator[Undecided]:
        """Those left without a gradient; a value that is nobody's may be that of one."""
        free = [shape for name, shape in names.items() if name not in taken]
        for each in self.undecided.values():
            array = self.harness.parameters.get(each.parameter)
            is_asked = array is not None and any(_can_fit(shape, array.shape) for shape in free)
            yield replace(each, is_asked=is_asked)

    def _at(self, parameter: str) -> NDArray[Any]:
        return self.harness.parameters[parameter]

    @property
    def _further(self) -> str:
        """The other places of a gradient that is not among the outputs."""
        return "" if self.inner else "; inner=True (--inner) looks inside the graph too"

    # -- measuring -----------------------------------------------------------------------------

    def _candidates(self, *, inner: bool) -> dict[str, Shape | None]:
        """Values that may be gradients, with their shapes as far as known; outputs first."""
        index = self.harness.index
        outputs = [output.name for output in self.harness.model.graph.output]
        # to clip what the loss is computed from would change it
        never = {*self.harness.ancestors(self.harness.loss), *self.harness.from_states}
        found = {}
        for name in [*outputs, *(index.main.producers if inner else ())]:
            kind = type_of(index, name)
            if name not in never and kind.is_floating and (kind.dtype or name in outputs):
                found[name] = kind.shape
        return found

    def _measure(
        self, names: Mapping[str, Shape | None], wanted: list[str], number: int
    ) -> dict[str, _Measured]:
        """Move each parameter along a mixture of the values that can fit it; `number` draws it."""
        batches = self._batches(names, wanted)
        held = list(self._values(batches)) if len(batches) == 1 else None
        moves = {}
        for name in wanted:
            rng = np.random.default_rng([number, zlib.crc32(name.encode())])
            moves[name] = 0.5 * _unit(rng.normal(size=self._at(name).shape))
        for values in held or self._values(batches):
            for parameter, name, _, array, size in self._matching(values, wanted):
                sign = zlib.crc32(f"{number} {name}".encode()) % 2 * 2 - 1
                moves[parameter] += array * (sign / size)
        lengths = {name: length_of(self._at(name)) for name in wanted}
        for name, along in moves.items():
            moves[name] = lengths[name] * _unit(along)
        says: dict[str, list[_Said]] = {name: [] for name in wanted}
        for values in held or self._values(batches):
            for parameter, name, layout, array, size in self._matching(values, wanted):
                self.shapes[name] = values[name].shape
                slope = float(np.vdot(array, moves[parameter]))
                blur = precision_of(values[name]) * size * lengths[parameter]
                says[parameter].append(_Said(name, layout, slope, blur))
        measured = {}
        for done, name in enumerate(wanted):
            self._tell(number, done, len(wanted))
            try:
                found = self._slope(says[name], {name: moves.pop(name)})
            except OnnxClipError as error:
                self._leave(name, f"the model does not run when it is moved: {error}")
                continue
            if abs(found.slope.value) <= ERRORS * found.slope.error < np.inf:
                self._leave(name, "the loss does not move with it here: its gradient is zero")
            else:
                measured[name] = found
        self._tell(number, len(wanted), len(wanted))
        return measured

    def _tell(self, number: int, done: int, of: int) -> None:
        again = " once more" if number > 1 else ""
        doing = f"taking slopes of {self.harness.loss}{again}"
        self.progress(Progress(doing, done, of, "parameters"))

    def _slope(self, says: list[_Said], move: Arrays) -> _Measured:
        """The slope by one run if a value foretells it, else by as many as it takes."""
        harness = self.harness
        found = _Measured(
            says, quick_slope(harness.loss_at, self._feeds, move, harness.noise, self._here)
        )
        if found.is_noisy or not any(found.fits(said) for said in says):
            slope = slope_along(harness.loss_at, self._feeds, move, harness.noise)
            found = _Measured(says, slope)
        return found

    def _batches(self, names: Mapping[str, Shape | None], wanted: list[str]) -> list[list[str]]:
        """Names of values that can fit, so many at a time as may be held."""
        shapes = {self._at(parameter).shape for parameter in wanted}
        batches: list[list[str]] = []
        held = self.most_bytes
        for name, shape in names.items():
            sizes = [8 * int(np.prod(each)) for each in shapes if _can_fit(shape, each)]
            if sizes and held + max(sizes) > self.most_bytes:
                batches.append([])
                held = 0
            if sizes:
                batches[-1].append(name)
                held += max(sizes)
        return batches

    def _values(self, batches: list[list[str]]) -> Iterator[Arrays]:
        for batch in batches:
            ((_, values),) = self.harness.values(batch, [self._varied])
            yield {name: array for name, array in values.items() if is_float(array)}

    def _matching(
        self, values: Arrays, wanted: list[str]
    ) -> Iterator[tuple[str, str, str, NDArray[np.float64], float]]:
        """Parameters, values that can fit them, how they are laid out then, and their norms."""
        norms = {name: float(np.linalg.norm(array)) for name, array in values.items()}
        for parameter in wanted:
            shape = self._at(parameter).shape
            for name, array in values.items():
                if array.size == self._at(parameter).size and 0 < norms[name] < np.inf:
                    for layout in layouts(array.shape, shape):
                        if layout != "reshaped" or array.size > 1:
                            found = laid_out(array, layout, shape)
                            yield parameter, name, layout, found, norms[name]

    # -- judging -------------------------------------------------------------------------------

    def _tried(self, exact: Mapping[str, list[Fit]]) -> dict[str, list[Fit]]:
        """Of the values that fit each parameter those that go on doing so, being equal."""
        trial = Trial(self.harness, self.harness.seed)
        questions = {name: [fit.value for fit in found] for name, found in exact.items()}
        trial.solve(trial.ask(questions, self._varied))
        chosen = {}
        for name, found in exact.items():
            decision = trial.decisions[name]
            if decision.gradient is None:
                self._leave(name, decision.reason)
            else:
                equal = trial.equal[name]
                chosen[name] = [
                    Fit(fit.value, fit.layout, decision.error)
                    for fit in found
                    if fit.value in equal
                ]
        return chosen

    def _by_factor(
        self, names: Mapping[str, Shape | None], wanted: list[str]
    ) -> dict[str, list[Fit]]:
        """The values that are one multiple of the gradients, told from those behind them."""
        within = self._candidates(inner=True)
        two = [self._measure(within, wanted, number) for number in (2, 3)]
        fits = {
            name: _multiples(two[0][name], two[1][name], is_telling=self._at(name).size > 1)
            for name in two[0]
            if name in two[1]
        }
        sizes = {
            size for array in self.harness.feeds.values() for size in (array.size, *array.shape)
        }
        known = [value for value in self._varied.scalars.values() if value > 0]
        known += [each for size in sizes if size > 1 for each in (size, 1 / size)]
        chosen, doubts = by_factor(fits, self._before, set(names), known)
        for doubt in doubts:
            self._leave(doubt.parameter, doubt.reason + self._further)
        return chosen

    def _before(self, earlier: str, later: str) -> bool | None:
        """Return whether `later` is computed from `earlier`; None if a way leads through a clip."""
        ancestors = self.harness.ancestors
        if earlier not in ancestors(later):
            return False
        main = self.harness.index.main
        clips = (
            name
            for name in ancestors(later) - {earlier}
            if (node := main.producer(name)) is not None and node.op_type in _CLIPS
        )
        return None if any(earlier in ancestors(name) for name in clips) else True

    def _gradient(self, fit: Fit, parameter: str, remark: str) -> Gradient:
        harness, name = self.harness, fit.value
        value, known = type_of(harness.index, name), type_of(harness.index, parameter)
        array = self._at(parameter)
        evidence = [f"slopes of {harness.loss} by {parameter} agree within {fit.error:.1g}"]
        if fit.layout in ("transposed", "reshaped"):
            evidence.append(fit.layout)
        if fit.factor != 1:
            scalars = [
                (harness.feeds[scalar].item(), f", scaled by input {scalar!r}")
                for scalar, varied in self._varied.scalars.items()
                if abs(fit.factor - varied) <= 1e-3 * abs(varied)
            ]
            factor, why = (*scalars, (fit.factor, ""))[0]
            evidence.append(f"times {factor:.6g}{why}")
        evidence += [remark] if remark else []
        shape = known.shape if known.shape is not None else array.shape
        return Gradient(
            name=name,
            parameter=Parameter(parameter, shape, str(array.dtype), name),
            shape=value.shape if value.shape is not None else self.shapes[name],
            dtype=TensorType(value.dtype or known.dtype).dtype_name,
            evidence="; ".join(evidence),
            has_seeds=fit.layout == "with one seed",
        )


def _exact(measured: _Measured) -> list[Fit]:
    """The values that say what was measured, best first; of many that noise lets pass, a few."""
    said = [each for each in measured.says if measured.fits(each)]
    said.sort(key=lambda each: abs(each.slope - measured.slope.value))
    if measured.is_noisy:
        said = said[:_MOST] if np.isfinite(measured.slope.error) else []
    if any(each.layout != "reshaped" for each in said):  # a flat copy is made for a norm
        said = [each for each in said if each.layout != "reshaped"]
    return [Fit(each.value, each.layout, 0.0) for each in said]


def _multiples(first: _Measured, second: _Measured, *, is_telling: bool) -> list[Fit]:
    """The values that are the same positive multiple of the slopes along both mixtures."""
    others = {(said.value, said.layout): said for said in second.says}
    found = []
    for said in first.says:
        other = others.get((said.value, said.layout))
        if other and said.slope and first.slope.value and second.slope.value:
            both = ((said, first.slope), (other, second.slope))
            factors = [one.slope / slope.value for one, slope in both]
            error = sum(
                (ERRORS * slope.error * abs(factor) + one.blur) / abs(slope.value)
                for (one, slope), factor in zip(both, factors, strict=True)
            ) / abs(factors[0])
            apart = abs(factors[1] / factors[0] - 1)
            if factors[0] > 0 and apart <= error <= NOISE:
                found.append(Fit(said.value, said.layout, error, factors[0], is_telling))
    return found


def _unit(array: NDArray[np.float64]) -> NDArray[np.float64]:
    return array / np.linalg.norm(array)


def _can_fit(shape: Shape | None, parameter: tuple[int, ...]) -> bool:
    """Return whether a shape, as far as it is known, can be that of a gradient."""
    if shape is None:
        return True
    if all(isinstance(size, int) for size in shape):
        return any(True for _ in layouts(tuple(s for s in shape if isinstance(s, int)), parameter))
    return len(shape) in (len(parameter), len(parameter) + 1)
