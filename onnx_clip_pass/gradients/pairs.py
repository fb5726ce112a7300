"""Pairs of inputs or initializers and the outputs that are their new values.

An output is the new value of the root of its dtype and shape that leads to it by elementwise and
layout operators, best by a linear way that passes no other output; each root once, and where there
is only one choice it is made first. A Loop, a Scan and `training_info` say themselves what becomes
of what. What is left is replaced: by the one output of its kind, or by the one that is made of its
gradient, which is computed by what the root is multiplied by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from onnx_clip_pass.gradients.linear import FACTOR, REDUCED, LinearForms, Way
from onnx_clip_pass.gradients.naming import is_named_after, parameter_names
from onnx_clip_pass.gradients.numbers import Sample, is_one
from onnx_clip_pass.gradients.ops import ALIASES, ELEMENTWISE, SHAPES
from onnx_clip_pass.gradients.pairing import Strangeness, lone_pairs, match
from onnx_clip_pass.gradients.roles import is_surely_data
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.values import Values
from onnx_clip_pass.graph import Flow
from onnx_clip_pass.graph.spec import FLOATING

__all__ = ["Pairs", "State"]

_MOST_FACTORS = 16
_MOST_LOOKED_AT = 1_000_000
_FLOATS = FLOATING | {0}


class State(NamedTuple):
    """A root, the value that is returned for it, and the way from one to the other, if known."""

    root: int
    new: int
    way: Way | None


class Pairs:
    """The roots and outputs of a run, and how they are paired.

    `interchangeable` are outputs that nothing but the length of their ways tells apart.
    """

    flow: Flow
    run: Run
    values: Values
    numbers: list[Sample | None]
    forms: LinearForms
    nonfree: list[bool]
    contracted: list[bool]
    outputs: list[int]
    interchangeable: set[int]
    _inner: set[int]
    _looked_at = 0
    _ends: set[int]

    def _roots(self) -> list[int]:
        """Inputs and initializers of the run that may be states."""
        values, bound = self.values, self.run.bound
        types = {_kind(values, each) for each in self.outputs}
        found = []
        for frame in self.run.frames:
            scope = frame.scope
            for name in dict.fromkeys((*scope.inputs, *scope.initializers)):
                number = values.named(frame, name)
                known = values.types[number]
                if number and not values.op[number] and known is not None:
                    is_wanted = (
                        name in bound
                        if bound is not None
                        else (
                            _kind(values, number) in types
                            and known.dtype in _FLOATS
                            and not is_surely_data(self.flow, values.value[number])
                        )
                    )
                    if is_wanted:
                        found.append(number)
        names = {values.name(each) for each in found}
        return [
            each
            for each in found
            if bound is not None or names.isdisjoint(parameter_names(values.name(each)))
        ]

    def _bound(self) -> list[State]:
        frames, values = self.run.frames, self.values
        found = []
        for name, new_name in (self.run.bound or {}).items():
            root, new = values.named(frames[-1], name), values.named(frames[-1], new_name)
            if root and new and root != new:
                found.append(State(root, new, self.forms.ways[new].get(root)))
        return found

    def _paired(self, roots: Iterable[int]) -> list[State]:
        """Pair outputs with roots, the surest pairs first."""
        values, ways = self.values, self.forms.ways
        offers: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for new in self.outputs:
            if not values.op[values.behind(new)]:
                continue  # an input that is an output as well
            for root, way in ways[new].items():
                if way.roughness and way.lean is not None and np.all(way.lean < 0):
                    continue
                if way.passed and way.roughness in (FACTOR, REDUCED):
                    continue  # made of other states
                if way.passed and values.is_constant(root) and values.is_scalar_like(root):
                    continue
                if self._only_weighs(root) or self._is_called_loss(new, root):
                    continue
                if (
                    _kind(values, root) == _kind(values, new)
                    or (
                        values.is_like(root, new)
                        and None in (values.shape(root), values.shape(new))
                    )
                ) and not is_named_after(values.name(new), values.name(root)):
                    offers[way.passed, way.roughness].append((new, root))
        taken: dict[int, int] = {}
        given: set[int] = set()
        for tier in sorted(offers):
            pairs = [
                (new, root) for new, root in offers[tier] if new not in taken and root not in given
            ]
            match(pairs, self._strangeness, taken, given)
            self.interchangeable |= self._that_may_change_places(pairs, taken)
        found = [
            State(taken[new], new, way if way.roughness != REDUCED else None)
            for new in self.outputs
            if new in taken
            for way in (ways[new][taken[new]],)
        ]
        return found + self._replaced(roots, taken)

    def _that_may_change_places(
        self, pairs: list[tuple[int, int]], taken: Mapping[int, int]
    ) -> set[int]:
        """Outputs that might as well be each other's, but for the length of their ways."""
        by_new: dict[int, set[int]] = defaultdict(set)
        for new, root in pairs:
            by_new[new].add(root)
        new_of = {root: new for new, root in taken.items()}

        def objections(new: int, root: int) -> Strangeness:
            return (*self._strangeness((new, root))[:-1], 0)

        return {
            new
            for new, roots in by_new.items()
            if len(roots) > 1 and (own := taken.get(new, 0)) in roots
            for rival in roots - {own}
            if (other := new_of.get(rival, 0)) in by_new
            and own in by_new[other]
            and objections(new, own) == objections(new, rival)
            and objections(other, rival) == objections(other, own)
        }

    def _is_called_loss(self, new: int, root: int) -> bool:
        values = self.values
        is_loss, is_of_loss = ("loss" in values.name(each).lower() for each in (new, root))
        return values.is_scalar_like(new) and is_loss and not is_of_loss

    @cached_property
    def _is_contracted(self) -> list[bool]:
        """True if elementwise operators lead from a value to a contraction."""
        values = self.values
        found = [False] * len(values)
        for vertex in range(len(values) - 1, 0, -1):
            found[vertex] = any(
                found[reader] or (op not in ELEMENTWISE and op not in SHAPES)
                for reader in values.readers[vertex]
                if (op := values.op[reader])
            )
        return found

    def _only_weighs(self, root: int) -> bool:
        """True for a number that only scales what data make: a rate, a sign, a task's weight."""
        values = self.values
        readers = values.readers[root][: _MOST_FACTORS + 1]
        return (
            values.is_scalar_like(root)
            and 0 < len(readers) <= _MOST_FACTORS
            and all(
                values.op[reader] in ("Mul", "Div")
                and any(self.nonfree[each] for each in values.takes[reader] if each != root)
                for reader in readers
            )
        )

    def _strangeness(self, pair: tuple[int, int]) -> Strangeness:
        """The objections to a pair, the gravest first; a long way is the least.

        A constant; a value that the loss may be computed from; a root that is taken off; one that
        is added as it is to another that is scaled.
        In `mu * m + g` it is m that lives on; in `b * m + (1 - b) * g` what has the larger share.
        """
        new, root = pair
        way = self.forms.ways[new][root]
        is_whole = is_lesser = False
        if way.share is not None and not self.contracted[new]:
            rivals = [
                each.share
                for state, each in self.forms.ways[new].items()
                if state != root and each.share is not None
            ]
            is_whole = is_one(way.share) and any(not is_one(share) for share in rivals)
            if is_one(self.forms.total[new]):
                is_lesser = any(np.all(share > way.share) for share in rivals)
        is_constant = (
            self.values.is_constant(root)
            and self.values.is_scalar_like(root)
            and not self._is_contracted[root]
        )
        is_taken_off = way.lean is not None and not np.all(way.lean >= 0)
        return is_constant, new in self._inner, is_taken_off, is_whole or is_lesser, way.length

    def _end_in_contractions(self, new_values: Collection[int]) -> list[bool]:
        """True if contractions make a value, and no new values of states, by elementwise ops."""
        values = self.values
        made = [False] * len(values)
        found = [False] * len(values)
        for each in new_values:
            made[values.behind(each)] = True
        for vertex in range(1, len(values)):
            if values.op[vertex] not in ELEMENTWISE:
                found[vertex] = self.nonfree[vertex] and not values.is_scalar_like(vertex)
            elif not made[vertex]:
                takes = values.takes[vertex]
                made[vertex] = any(made[each] for each in takes)
                found[vertex] = any(found[each] for each in takes)
        return [is_end and not is_made for is_end, is_made in zip(found, made, strict=True)]

    def _replaced(self, roots: Iterable[int], taken: dict[int, int]) -> list[State]:
        """The states that are left: what one root and one output of a kind are, it is replaced by.

        Of several the one whose gradient the output is made of: that is computed by what the root
        is multiplied by. The new value of a weight that stands there twice is no other state's,
        unless it is a copy for the forward pass, which does not read the weight then.
        """
        values, given = self.values, set(taken.values())
        read = self._ancestors(new for new in self.outputs if new not in taken)
        ends = self._end_in_contractions(taken)
        kinds: dict[object, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for root in roots:
            if root not in given and not values.is_scalar_like(root):
                kinds[_kind(values, root)][0].append(root)
        known = {self._unnamed(new) for new, root in taken.items() if self._is_contracted[root]}
        for new in self.outputs:
            is_made = values.op[values.behind(new)] and self._unnamed(new) not in known
            if new not in taken and is_made:
                kinds[_kind(values, new)][1].append(new)
        found = []
        for left, made in kinds.values():
            names = {values.name(root) for root in left}
            made = [new for new in made if names.isdisjoint(parameter_names(values.name(new)))]
            # What ends in a contraction is made of none that is read; it fits by keys of those.
            news = {new: {(ends[new], factor) for factor in self._factors_in(new)} for new in made}
            beside = {
                root: {
                    (end, each) for each in self._beside(root) for end in (False, root not in read)
                }
                for root in left
            }
            sure = lone_pairs(news, beside) if len(left) > 1 or len(made) > 1 else []
            done = {each for pair in sure for each in pair}
            left = [root for root in left if root not in done]
            unread = [root for root in left if root not in read]
            rest = [
                (new, fitting[0], len(fitting))
                for new in made
                if new not in done and (fitting := unread if ends[new] else left)
            ]
            if len(rest) == 1 and rest[0][2] == 1:
                sure.append(rest[0][:2])
            found += [State(root, new, None) for new, root in sure]
        return found

    def _unnamed(self, vertex: int) -> int:
        """The value that an output is under another name."""
        while self.values.op[vertex] == "Identity":
            vertex = self.values.takes[vertex][0]
        return vertex

    def _ancestors(self, vertices: Iterable[int], but: Collection[str] = ()) -> set[int]:
        """The sources of values in their step, not through the operators in `but`."""
        seen = set(vertices) - {0}
        todo = list(seen)
        while todo:
            at = todo.pop()
            for source in () if self.values.op[at] in but else self.values.takes[at]:
                if source and source not in seen:
                    seen.add(source)
                    if source not in self._ends:
                        todo.append(source)
        return seen

    def _beside(self, root: int) -> set[int]:
        """The factors of a root, element by element or in contractions."""
        values, found = self.values, set[int]()
        todo = [root]
        for at in todo:  # grows while it is read
            for reader in values.readers[at]:
                if values.op[reader] in ALIASES:
                    todo.append(reader)
                elif (
                    values.op[reader] not in ELEMENTWISE - {"Mul"}
                    and len(values.takes[reader]) <= _MOST_FACTORS
                ):
                    found.update(map(values.behind, values.takes[reader]))
        return found - {0, root}

    def _factors_in(self, new: int) -> set[int]:
        """The operands of the contractions that a value is made of by elementwise operators.

        Nothing where values of a run share so much that this would take long.
        """
        values, found = self.values, set[int]()
        seen, todo = {new}, [new]
        while todo:
            self._looked_at += 1
            if self._looked_at > _MOST_LOOKED_AT:
                return set()
            at = todo.pop()
            takes = {each for each in values.takes[at] if each}
            if values.op[at] not in ELEMENTWISE:
                if values.op[at].startswith("Reduce"):
                    takes |= {e for x in takes if values.op[x] == "Mul" for e in values.takes[x]}
                found.update(map(values.behind, takes))
                continue
            todo += [each for each in takes - seen if not values.is_scalar_like(each)]
            seen |= takes
        return found - {0}


def _kind(values: Values, vertex: int) -> tuple[int, object]:
    known = values.types[vertex]
    return (0, None) if known is None else (known.dtype, known.shape)
