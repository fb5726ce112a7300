"""Gradients on which clips are tried, made from those of a run, each of them for a reason.

A wrong clip shows on a gradient on which the wrong formula gives something else. These are the
stresses, and what each is to show:

1. nan, and inf, in one gradient of each group at a time, or nan in half of the clips that have
   nothing to do with each other: whether every gradient is asked if it is finite, and no other in
   its place. In gradients that are clipped, for there it shows what a policy does to the other
   elements.
2. inf, -inf, and both: a test for nan alone passes over them, and a sum makes nan of both.
3. Each gradient of a group, with either sign, so large that the others hardly count, and of the
   elements of each one alone: what is left out of a maximum shows on nothing else.
4. Nothing but zeros, and but for one element, so that one norm of several is above its threshold
   and the others are not; elements that are all of one size, just within the threshold and just
   beyond: a norm that is too large shows nowhere better, and a wrong word on what is clipped; none
   that is negative, and none that is positive: what goes wrong on one side; and one element beside
   which the powers of the others are lost where they are added up one by one.
5. The ends of the range that is promised (`promised_range`): what is computed in a narrower dtype
   than it is said to be leaves it there.
6. Parameters whose units are shorter than the smallest norm that one counts as, and longer.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips import Numerics
from onnx_clip_pass.verification.tolerance import compare
from onnx_clip_pass.verification.tolerance.expected import (
    Member,
    activating_scale,
    least_acting_scale,
)
from onnx_clip_pass.verification.tolerance.ranges import promised_range

__all__ = ["Stress", "stresses"]

Array = NDArray[Any]
Group = dict[int, Member]
"""The gradients that are clipped together, by the numbers of their targets."""

_FAR = 2.0**7
_INSIDE = 2.0**4  # from the end of a range
_MANY = 256  # elements, so that their order matters
_WELL = 2.0**4  # beyond where a clip begins to act, so that it does without the largest element


@dataclass(slots=True)
class Stress:
    """Gradients, and parameters, by the numbers of targets; `when` says what is particular."""

    when: str
    gradients: dict[int, Array] = field(default_factory=dict)
    parameters: dict[int, Array] = field(default_factory=dict)


def stresses(
    groups: Sequence[Group], values: Sequence[object], numerics: Numerics
) -> Iterator[Stress]:
    """All of them; the first are those that are most likely to show something.

    Args:
        groups: the gradients that have anything to do with each other, which are all of a graph.
        values: of each target, what is the same for those that are clips of one value.
        numerics: as recorded.
    """
    stressed = [_Stressed(group, values, numerics) for group in groups]
    acting = {n: a for each in stressed for n, a in each.acting.items()}

    def stress(when: str, changed: Iterable[dict[int, Array]]) -> Stress:
        return Stress(f"{when}: ", acting | dict(ChainMap(*changed)))

    yield stress("with nan in the gradients", [e.with_one(0, math.nan, -1) for e in stressed])
    yield stress("with -inf in the gradients", [e.with_one(0, -math.inf, 0) for e in stressed])
    yield stress("beside one large element", [each.losing() for each in stressed])
    yield stress("just within the threshold", [each.even(0.5) for each in stressed])
    for high, each_own in product((True, False), (False, True)):
        changed = [e.at_end(high=high, each_own=each_own) for e in stressed]
        if any(changed):
            word = "large" if high else "small"
            yield stress(f"with gradients as {word} as is promised", changed)
    yield stress("just beyond the threshold", [each.even(1.0) for each in stressed])
    yield stress("with one element that is not zero", [each.lone() for each in stressed])
    yield stress("with zeros as gradients", [each.zeros() for each in stressed])
    for sign, word in ((1, "positive"), (-1, "negative")):
        yield stress(f"with {word} elements alone", [each.of_sign(sign) for each in stressed])
    yield stress("with nan in the gradients", [e.with_one(0, math.nan, 0) for e in stressed])
    yield stress("with inf in the gradients", [e.with_one(0, math.inf, -1) for e in stressed])
    yield stress("with inf and -inf in the gradients", [each.with_both() for each in stressed])
    yield from _beside_parameters(groups, values, numerics, acting)
    for bit in range((len(stressed) - 1).bit_length()):
        for half in (0, 1):
            some = [each for at, each in enumerate(stressed) if at >> bit & 1 == half]
            yield stress("with nan in the gradients", [e.with_one(0, math.nan, -1) for e in some])
    for at in range(1, max(len(each.values) for each in stressed)):
        for number in (math.nan, math.inf):
            changed = [each.with_one(at, number, -1) for each in stressed]
            yield stress(f"with {number} in the gradients", changed)
    if any(len(each.values) > 1 for each in stressed):
        for at in range(max(len(each.values) for each in stressed)):
            for sign in (1, -1):
                changed = [each.with_largest(at, sign) for each in stressed]
                yield stress("with one gradient far above", changed)


class _Stressed:
    """The gradients of one group, scaled so that they are clipped."""

    def __init__(self, group: Group, values: Sequence[object], numerics: Numerics) -> None:
        self._group = group
        self._numerics = numerics
        of_value: dict[object, list[int]] = {}
        for number in group:
            of_value.setdefault(values[number], []).append(number)
        self.values = list(of_value.values())
        members = list(group.values())
        self._factor = activating_scale(members, numerics, up=True) or 1.0
        largest = max(compare.largest(m.gradient) for m in members)
        if largest * self._factor * _WELL < min(compare.top(m.gradient) for m in members) / 4:
            self._factor *= _WELL
        self.acting = {n: _times(m.gradient, self._factor) for n, m in group.items()}

    def with_one(self, at: int, element: float, place: int) -> dict[int, Array]:
        """One element of one gradient is another; nothing if there is no such gradient."""
        found: dict[int, Array] = {}
        for number in self.values[at] if at < len(self.values) else ():
            found[number] = self.acting[number].copy()
            if found[number].size:
                found[number].flat[place] = element
        return found

    def with_largest(self, at: int, sign: int) -> dict[int, Array]:
        """One gradient is clipped for itself, beside which the others hardly count."""
        if len(self.values) < 2 or at >= len(self.values):
            return {}
        own = self.values[at]
        members = [self._group[number] for number in own]
        factor = activating_scale(members, self._numerics, up=True) or self._factor
        found = {number: _times(self._group[number].gradient, sign * factor) for number in own}
        top = max(compare.largest(array) for array in found.values()) / _FAR
        for number in self.acting.keys() - found.keys():
            array = self._group[number].gradient
            largest = compare.largest(array)
            found[number] = _times(array, _power(top / largest) if largest else 1.0)
        return found

    def with_both(self) -> dict[int, Array]:
        """The first and the last element of the first gradient are inf and -inf."""
        found = self.with_one(0, math.inf, 0)
        for array in found.values():
            if array.size:
                array.flat[-1] = -math.inf
        return found

    def lone(self) -> dict[int, Array]:
        """All elements zero but the largest."""
        found = self.zeros()
        for number, array in self.acting.items():
            if array.size:
                at = int(np.argmax(np.abs(compare.wide(array))))
                found[number].flat[at] = array.flat[at]
        return found

    def losing(self) -> dict[int, Array]:
        """Elements of which one is the largest, and the powers of the others half its rounding."""
        found = {}
        for number, array in self.acting.items():
            ord, dtype = self._group[number].formulas[0].order, array.dtype
            if array.size < _MANY or ord == math.inf:
                continue
            in_float64 = dtype == np.float64 or self._numerics.norm_precision == "wide"
            unit = 2.0**-53 if in_float64 else 2.0**-24
            largest = _power(compare.largest(array))
            found[number] = _even(array, largest * (0.999 * unit) ** (1 / ord))
            found[number].flat[0] = array.dtype.type(largest)
        return found

    def even(self, share: float) -> dict[int, Array]:
        """Elements of one size, this share of the least power of two that is clipped."""
        factor = share * self._least
        return {n: _times(array, factor) for n, array in self._even.items()} if factor else {}

    @cached_property
    def _even(self) -> dict[int, Array]:
        return {n: _even(m.gradient, compare.largest(m.gradient)) for n, m in self._group.items()}

    @cached_property
    def _least(self) -> float:
        even = [m.on(gradient=self._even[number]) for number, m in self._group.items()]
        return least_acting_scale(even, self._numerics)

    def of_sign(self, sign: int) -> dict[int, Array]:
        """All elements with this sign."""
        turn = np.abs if sign > 0 else _negative  # a product may be float64 where there is no axis
        return {n: np.asarray(turn(array), array.dtype) for n, array in self.acting.items()}

    def zeros(self) -> dict[int, Array]:
        """All elements zero."""
        return {number: np.zeros_like(array) for number, array in self.acting.items()}

    def at_end(self, *, high: bool, each_own: bool) -> dict[int, Array]:
        """Gradients whose norms are near one end of what is promised of all of them.

        With `each_own` each is near the end of its own range, if these differ.
        """
        members = self._group
        count = sum(m.gradient.size * m.case.count for m in members.values())
        ranges = {}
        for number, m in members.items():
            pairs = [(formula, m.case) for formula in m.formulas]
            ranges[number] = promised_range(pairs, self._numerics)
        if each_own and len(set(ranges.values())) == 1:
            return {}
        low, most = max(low for low, _ in ranges.values()), min(top for _, top in ranges.values())
        found = {}
        for number, m in members.items():
            array, (own_low, own_most) = m.gradient, ranges[number]
            norm = (own_most if each_own else most) / max(count, 1)
            end = min(norm, compare.top(array)) if high else own_low if each_own else low
            largest = compare.largest(array) or 1.0
            factor = end / _INSIDE / largest if high else end * _INSIDE / largest
            found[number] = _times(array, _power(factor))
            if high and norm > compare.top(array):  # the norm of elements that are held is not
                found[number] = _even(array, compare.top(array) / 1.125)
        return found


def _beside_parameters(
    groups: Sequence[Group],
    values: Sequence[object],
    numerics: Numerics,
    acting: dict[int, Array],
) -> Iterator[Stress]:
    """Parameters whose largest element is far below the least norm, and units far above it."""
    if not any(m.case.parameter is not None for group in groups for m in group.values()):
        return
    for high in (False, True):
        stress = Stress(f"with {'large' if high else 'small'} parameters: ", dict(acting))
        for group in groups:
            changed = {}
            for number, member in group.items():
                parameter = member.case.parameter
                if parameter is None:
                    continue
                eps = max(formula.parameter_floor for formula in member.formulas)
                array = _parameter(parameter, eps, high=high)
                stress.parameters[number] = array
                changed[number] = member.on(parameter=array)
            if changed:
                stress.gradients |= _Stressed(group | changed, values, numerics).acting
        yield stress


def _parameter(parameter: Array, eps: float, *, high: bool) -> Array:
    """The parameter with all its elements above `eps`, or all of it below; none of them zero."""
    wide = compare.wide(parameter)
    wide = np.where((wide == 0) | ~np.isfinite(wide), 0.5, wide)
    if high:
        factor = _power(4 * eps / float(np.min(np.abs(wide), initial=math.inf)))
        return np.asarray(wide * max(factor, 1.0)).astype(parameter.dtype)
    norm = float(np.linalg.norm(wide.ravel()))
    return np.asarray(wide * _power(eps / 4 / norm)).astype(parameter.dtype) if norm else parameter


def _even(array: Array, size: float) -> Array:
    """Elements of one size, with the signs of these."""
    return np.asarray(np.where(compare.wide(array) < 0, -size, size)).astype(array.dtype)


def _power(number: float) -> float:
    """The power of two at or below a positive number, so that scaling by it rounds nothing."""
    return math.ldexp(0.5, math.frexp(number)[1]) if 0 < number < math.inf else 1.0


def _times(array: Array, factor: float) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(compare.wide(array) * factor).astype(array.dtype)


def _negative(array: Array) -> Array:
    return np.asarray(-np.abs(array))
