"""Linear form: how much of each state is in a value, and by which way it got there.

Add, Sub, Sum, Mean, Neg, Mul and Div by numbers, Where and If by a number, and aliases are
flattened: `m + w * (g - m)` is `w * g + (1 - w) * m`, however it is decomposed. Everything else in
such a sum is a core. Each value holds its form with respect to a few states, the nearest ones, so
that the whole takes linear time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from onnx_clip_pass.gradients.numbers import POINTS, Sample, is_one
from onnx_clip_pass.gradients.ops import (
    ALIASES,
    ELEMENTWISE,
    KNOWN_DOMAINS,
    PHI,
    SCATTERS,
    SIDE_SLOTS,
)
from onnx_clip_pass.gradients.values import Values
from onnx_clip_pass.graph import TensorType

__all__ = ["FACTOR", "REDUCED", "UNKNOWN", "LinearForms", "Way"]

_MOST_STATES = 8
_ONES = np.ones(POINTS)
_NOWHERE: Mapping[int, Way] = MappingProxyType({})
LINEAR, BENT, FACTOR, REDUCED, UNKNOWN = range(5)
"""The roughness of a way, see `Way.roughness`."""


class Way(NamedTuple):
    """The way from a state to a value; ways compare by what speaks for them, the best one first.

    `passed` counts new values of other states on the way, `roughness` is 0 for a linear way, 1
    where masks, bounds or other elementwise operators are on it, 2 where the state is a factor of
    something else, 3 for reductions, 4 for an operator that nobody knows; `via` is the operand by
    which it comes, `share` the coefficient, `lean` the one that it had before the way got rough.
    """

    passed: int
    roughness: int
    length: int
    via: int
    share: Sample | None
    lean: Sample | None = None


class LinearForms:
    """The linear form of every value with respect to the states that lead to it.

    `ways[v]` holds the states; `total[v]` is the sum of all coefficients, those of cores included.
    """

    def __init__(
        self,
        values: Values,
        numbers: list[Sample | None],
        states: Collection[int],
        new_values: Collection[int],
        nonfree: list[bool],
    ) -> None:
        """`states` are the roots to be followed, `new_values` what is returned for some of them.

        `nonfree` says which values have more behind them than elementwise operators on roots.
        """
        self.values = values
        self.numbers = numbers
        self.total: list[Sample | None] = [None] * len(values)
        self.ways: list[Mapping[int, Way]] = [_NOWHERE] * len(values)
        self._new_values = new_values
        self._nonfree = nonfree
        self._given: dict[int, dict[TensorType | None, list[int]]] = {}
        self._turns: Counter[tuple[int, TensorType | None]] = Counter()
        followed = set(states)
        with np.errstate(all="ignore"):
            for vertex in range(1, len(values)):
                if vertex in followed:
                    self.ways[vertex] = {vertex: Way(0, 0, 0, vertex, _ONES, _ONES)}
                elif values.op[vertex]:
                    self._follow(vertex)

    def parts(self, vertex: int) -> list[tuple[int, Sample]] | None:
        """The operands of a linear operator, each with its coefficient; None for a core."""
        op, takes = self.values.op[vertex], self.values.takes[vertex]
        if op in ALIASES:
            return [(takes[0], _ONES)] if takes and takes[0] else None
        if op in ("Add", "Sum"):
            return [(each, _ONES) for each in takes if each]
        if op == "Mean":
            return [(each, _ONES / len(takes)) for each in takes if each]
        if op == "Sub" and len(takes) == 2:
            return [(takes[0], _ONES), (takes[1], -_ONES)]
        if op == "Neg":
            return [(takes[0], -_ONES)]
        if op in ("Mul", "Div") and len(takes) == 2:
            return self._scaled(op, *takes)
        if op in ("Where", PHI) and len(takes) == 3:
            condition = self.numbers[takes[0]]
            if condition is None:
                return None
            chosen = (condition != 0).astype(np.float64)
            parts = [(takes[1], chosen), (takes[2], 1 - chosen)]
            return [(each, share) for each, share in parts if np.any(share)]
        return None

    def is_average(self, vertex: int, state: int) -> bool:
        """Return whether a value is made of shares of a state and of others that add up to 1."""
        way = self.ways[vertex].get(state)
        return (
            way is not None
            and way.roughness == 0
            and is_one(self.total[vertex])
            and not is_one(way.share)
        )

    def path(self, vertex: int, state: int) -> list[int]:
        """The values on the way from a state to a value, the value first and the state last."""
        path = [vertex]
        while path[-1] != state:
            path.append(self.ways[path[-1]][state].via)
        return path

    def _scaled(self, op: str, a: int, b: int) -> list[tuple[int, Sample]] | None:
        by = self.numbers[b] if b else None
        if a and b and self._linear_in(a) == self._linear_in(b) != set():
            return None  # the square of a state of one element
        if by is not None and not (op == "Mul" and self._is_rather_a_number(a, b)):
            return [(a, by if op == "Mul" else 1 / by)]
        scale = self.numbers[a] if op == "Mul" and a else None
        return None if scale is None else [(b, scale)]

    def _is_rather_a_number(self, a: int, b: int) -> bool:
        """True if of two numbers `a` is the factor.

        That is a constant; then what no state is linearly in; then what no data have gone into.
        """
        if self.numbers[a] is None:
            return False
        if self.values.is_constant(b) or not self.values.is_scalar_like(b):
            return False
        if self.values.is_constant(a):
            return True
        is_linear = bool(self._linear_in(b))
        if is_linear != bool(self._linear_in(a)):
            return is_linear
        if self._nonfree[a] != self._nonfree[b]:
            return self._nonfree[b]
        return bool(self.ways[b]) and not self.ways[a]

    def _follow(self, vertex: int) -> None:
        values = self.values
        op, takes = values.op[vertex], values.takes[vertex]
        parts = self.parts(vertex)
        if parts is not None:
            is_alias = op in ALIASES
            totals = [
                share
                if (inner := self.total[each]) is None
                or (not is_alias and values.behind(each) in self._new_values)
                else _times(inner, share)
                for each, share in parts
            ]
            self.total[vertex] = totals[0] if len(totals) == 1 else np.sum(totals, axis=0)
            self._merge(vertex, parts, LINEAR)
            if op == "Mul" and len(takes) == 2 and parts[0][0] in takes:
                (scaled, _), factor = parts[0], takes[takes[0] == parts[0][0]]
                if self._is_number_as_well(scaled, factor):
                    self._merge(vertex, [(factor, self.numbers[scaled])], LINEAR)
            return
        if op in SCATTERS:
            self._merge(vertex, [(takes[0], None)], BENT)
        elif op in ELEMENTWISE:
            side = SIDE_SLOTS.get(op, ())
            operands = [each for slot, each in enumerate(takes) if each and slot not in side]
            wide = [each for each in operands if not values.is_scalar_like(each)]
            operands = wide or operands
            nonfree = [each for each in operands if self._nonfree[each]]
            factors = [each for each in operands if nonfree and each not in nonfree]
            self._merge(vertex, [(each, None) for each in nonfree or operands], BENT)
            roughness = BENT if op in ("Max", "Min") else FACTOR
            self._merge(vertex, [(each, None) for each in factors], roughness)
        elif op.startswith("Reduce") or op in ("Expand", "Slice", "Concat"):
            side = SIDE_SLOTS.get(op, ())
            operands = [each for slot, each in enumerate(takes) if each and slot not in side]
            self._merge(vertex, [(each, None) for each in operands], REDUCED)
        elif "::" in op or self._is_unknown(vertex):
            self._merge(vertex, [(each, None) for each in self._held(vertex)], UNKNOWN)

    def _linear_in(self, number: int) -> set[int]:
        """The states in which a number is linear."""
        return {
            state
            for state, way in self.ways[number].items()
            if way.share is not None
            and self.numbers[number] is not None
            and not self.values.is_constant(state)
        }

    def _is_number_as_well(self, scaled: int, factor: int) -> bool:
        """True if a factor may be what is scaled: both are numbers, and no data are in either."""
        return (
            self.numbers[scaled] is not None
            and not self._nonfree[scaled]
            and not self.values.is_constant(self.values.behind(factor))
        )

    def _held(self, vertex: int) -> Sequence[int]:
        """The states that an operator is given, as they are; of many those whose turn it is.

        An operator that has many of them returns their new values, most likely in the same order.
        """
        values = self.values
        hub = values.hub(vertex)
        if hub and hub in self._given:
            given = self._given[hub]
        else:
            given = defaultdict(list)
            for each in values.operands(vertex):
                if each and values.behind(each) in self.ways[each]:
                    given[values.types[each] if hub else None].append(each)
            self._given[hub] = given
        held = given[values.types[vertex] if hub else None]
        turn = self._turns[hub, values.types[vertex]]
        self._turns[hub, values.types[vertex]] += 1
        return held[turn : turn + _MOST_STATES] if hub else held

    def _is_unknown(self, vertex: int) -> bool:
        node = self.values.value[vertex].node
        return node is not None and node.domain not in KNOWN_DOMAINS

    def _merge(
        self, vertex: int, parts: Sequence[tuple[int, Sample | None]], roughness: int
    ) -> None:
        is_alias = self.values.op[vertex] in ALIASES
        if not any(self.ways[operand] for operand, _ in parts):
            return
        found = dict(self.ways[vertex])
        for operand, share in parts:
            passed = 0 if is_alias else int(self.values.behind(operand) in self._new_values)
            for state, way in self.ways[operand].items():
                if roughness == REDUCED and self.values.is_scalar_like(state):
                    continue
                ours = None if share is None or way.share is None else _times(way.share, share)
                new = Way(
                    way.passed + passed,
                    max(way.roughness, roughness),
                    way.length + 1,
                    operand,
                    ours,
                    way.lean if ours is None else ours,
                )
                other = found.get(state)
                is_choice = self.values.op[vertex] in ("Where", PHI)
                found[state] = new if other is None else _joined(other, new, is_choice)
        if len(found) > _MOST_STATES:
            nearest = sorted(found, key=lambda state: found[state][:3])[:_MOST_STATES]
            found = {state: found[state] for state in nearest}
        self.ways[vertex] = found


def _times(share: Sample, by: Sample) -> Sample:
    """A product; what is multiplied by 1 stays the same object, since most of it is."""
    return share if by is _ONES else share * by


def _joined(a: Way, b: Way, is_choice: bool) -> Way:
    """Two ways of one state: by the better one, or the one with the larger share.

    A choice is as rough as the rougher of what it chooses from.
    """
    if is_choice and a.roughness != b.roughness:
        return max(a, b, key=lambda way: way.roughness)._replace(passed=min(a.passed, b.passed))
    if a.share is None or b.share is None or a.roughness != b.roughness:
        return min(a, b, key=lambda way: way[:3])
    larger = a if np.sum(np.abs(a.share)) >= np.sum(np.abs(b.share)) else b
    return larger._replace(
        passed=min(a.passed, b.passed),
        length=min(a.length, b.length),
        share=a.share + b.share,
        lean=a.share + b.share,
    )
