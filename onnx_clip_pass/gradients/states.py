"""States: inputs and initializers whose new values a run returns, paired with these.

An output is the new value of the root of its dtype and shape that leads to it by elementwise and
layout operators, best by a linear way that passes no other output; each root once, and where there
is only one choice it is made first. A Loop, a Scan and `training_info` say themselves what becomes
of what.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_clip_pass.gradients.linear import FACTOR, REDUCED, LinearForms, Way
from onnx_clip_pass.gradients.naming import is_named_after, parameter_names
from onnx_clip_pass.gradients.numbers import POINTS, Sample, is_one, sample_numbers
from onnx_clip_pass.gradients.ops import ALIASES, ELEMENTWISE, SHAPES, STEPS, VIEWS
from onnx_clip_pass.gradients.pairing import Strangeness, lone_pairs, match
from onnx_clip_pass.gradients.roles import is_surely_data
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.values import Values
from onnx_clip_pass.graph import Flow, Frame, TensorType, Value

__all__ = ["State", "States"]

_SPREAD = {"Concat", "Expand"}
_MEASURES = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "Sqrt"}
_LITTLE = 1e-6
_MOST_MEASURED = 10_000
_MOST_REPORTS = 16
_MOST_FACTORS = 16
_MOST_TERMS = 512
_WHOLE = 0.5
"""The least share of a state in what becomes of it; what is added for decay has less."""
_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, 0}


class State(NamedTuple):
    """A root, the value that is returned for it, and the way from one to the other, if known."""

    root: int
    new: int
    way: Way | None


class States:
    """The states of a run, the reports (outputs that are no new values), and what reads what."""

    def __init__(self, flow: Flow, run: Run) -> None:
        self.flow = flow
        self.run = run
        self.values = values = Values(flow, run.frames)
        self.numbers = sample_numbers(values)
        frame = run.frames[-1]
        self.outputs = [
            number
            for name in dict.fromkeys(frame.scope.outputs)
            if name and (number := values.find(_canonical(flow, frame, name)))
        ]
        roots = self._roots()
        new_values = {values.behind(each) for each in self.outputs} - set(roots)
        self.nonfree = self._nonfree()
        self.contracted = self._nonfree(but_numbers=True)
        self._ends: set[int] = set()
        self._averages: dict[tuple[int, int], bool] = {}
        self.forms = LinearForms(values, self.numbers, roots, new_values, self.nonfree)
        numbers = [each for each in self.outputs if values.is_single(each)]
        self._inner = self._ancestors(numbers) - set(numbers)
        self.states = self._bound() if run.bound is not None else self._paired(roots)
        self.of_new = {state.new: state for state in self.states}
        self.new_values = {values.behind(state.new) for state in self.states} | set(self.of_new)
        self.roots = {state.root for state in self.states}
        self.reports = [each for each in self.outputs if each not in self.of_new]
        self.ways = self._between()
        self._ends = self._find_ends()
        self.loss, self.forward = 0, set[int]()
        self.is_loss_sure = False
        self.read = self._read(self.new_values.union(*self.ways))
        numbers = self._reported_numbers()
        self.loss, self.forward = self._loss(numbers)
        self.reported = self._ancestors(numbers)
        self.handed_out = self._ancestors(self.reports)
        self.read = self._read(self.new_values.union(*self.ways))

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
                continue  # an input that is handed through
            for root, way in ways[new].items():
                if way.roughness and way.lean is not None and np.all(way.lean < 0):
                    continue
                if way.passed and way.roughness in (FACTOR, REDUCED):
                    continue  # made of other states
                if way.passed and values.is_constant(root) and values.is_single(root):
                    continue
                if self._is_weighed(new, root) or self._is_called_loss(new, root):
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
            match(
                [
                    (new, root)
                    for new, root in offers[tier]
                    if new not in taken and root not in given
                ],
                self._strangeness,
                taken,
                given,
            )
        found = [
            State(taken[new], new, way if way.roughness != REDUCED else None)
            for new in self.outputs
            if new in taken
            for way in (ways[new][taken[new]],)
        ]
        return found + self._replaced(roots, taken)

    def _is_called_loss(self, new: int, root: int) -> bool:
        values = self.values
        is_loss, is_of_loss = ("loss" in values.name(each).lower() for each in (new, root))
        return values.is_single(new) and is_loss and not is_of_loss

    @cached_property
    def _is_contracted(self) -> list[bool]:
        """Whether elementwise operators lead from a value to a contraction."""
        values = self.values
        found = [False] * len(values)
        for vertex in range(len(values) - 1, 0, -1):
            found[vertex] = any(
                found[reader] or (op not in ELEMENTWISE and op not in SHAPES)
                for reader in values.readers[vertex]
                if (op := values.op[reader])
            )
        return found

    def _is_weighed(self, new: int, root: int) -> bool:
        """Return whether a number weighs what data make: a task's weight times its loss, say."""
        values, at = self.values, self.values.behind(new)
        operands = [values.behind(each) for each in values.takes[at]]
        return (
            values.is_single(root)
            and values.op[at] in ("Mul", "Div")
            and root in operands
            and any(self.nonfree[each] for each in operands)
        )

    def _strangeness(self, pair: tuple[int, int]) -> Strangeness:
        """What speaks against a pair, most first; a long way does least.

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
            and self.values.is_single(root)
            and not self._is_contracted[root]
        )
        is_taken_off = way.lean is not None and not np.all(way.lean >= 0)
        return is_constant, new in self._inner, is_taken_off, is_whole or is_lesser, way.length

    def _end_in_contractions(self, new_values: Collection[int]) -> list[bool]:
        """Whether contractions make a value, and no new values of states, by elementwise ops."""
        values = self.values
        made = [False] * len(values)
        found = [False] * len(values)
        for each in new_values:
            made[values.behind(each)] = True
        for vertex in range(1, len(values)):
            if values.op[vertex] not in ELEMENTWISE:
                found[vertex] = self.nonfree[vertex] and not values.is_single(vertex)
            elif not made[vertex]:
                takes = values.takes[vertex]
                made[vertex] = any(made[each] for each in takes)
                found[vertex] = any(found[each] for each in takes)
        return [is_end and not is_made for is_end, is_made in zip(found, made, strict=True)]

    def _replaced(self, roots: Iterable[int], taken: dict[int, int]) -> list[State]:
        """The states that are left: what one root and one output of a kind are, it is replaced by.

        Of several the one whose gradient the output is made of: that is computed by what the root
        is multiplied by.
        """
        values, given = self.values, set(taken.values())
        read = self._ancestors(new for new in self.outputs if new not in taken)
        ends = self._end_in_contractions(taken)
        kinds: dict[object, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for root in roots:
            if root not in given and not values.is_single(root):
                kinds[_kind(values, root)][0].append(root)
        for new in self.outputs:
            if new not in taken and values.op[values.behind(new)]:
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

    def _beside(self, root: int) -> set[int]:
        """What a root is multiplied by, element by element or in contractions."""
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
        """What the contractions multiply that a value is made of by elementwise operators."""
        values, found = self.values, set[int]()
        seen, todo = {new}, [new]
        while todo:
            at = todo.pop()
            takes = {each for each in values.takes[at] if each}
            if values.op[at] not in ELEMENTWISE:
                if values.op[at].startswith("Reduce"):
                    takes |= {e for x in takes if values.op[x] == "Mul" for e in values.takes[x]}
                found.update(map(values.behind, takes))
                continue
            todo += [each for each in takes - seen if not values.is_single(each)]
            seen |= takes
        return found - {0}

    def _reported_numbers(self) -> list[int]:
        """The reports that may be a loss: floating numbers that are computed."""
        values = self.values
        return [
            each
            for each in self.reports
            if values.is_single(each)
            and (values.types[each] or TensorType()).dtype in _FLOATS
            and values.op[each]
        ]

    def _loss(self, numbers: list[int]) -> tuple[int, set[int]]:
        """The report that is the loss, and what it is computed from in its step; 0 for none.

        That is the one called so; else one that depends on no new values and measures nothing that
        updates take, as norms of gradients do; then the one that depends on most parameters.
        """
        called = [each for each in numbers if "loss" in self.values.name(each).lower()]
        found = [(each, self._ancestors([each])) for each in (called or numbers)[:_MOST_REPORTS]]
        if not found:
            return 0, set()
        updating = self._updating()

        def rank(report: tuple[int, set[int]]) -> tuple[int, ...]:
            vertex, behind = report
            read = sum(self.read[root] for root in self.roots & self._ancestors([vertex], STEPS))
            measured = self._measured(vertex, updating) + (self.values.op[vertex] in _MEASURES)
            dims = len(self.values.shape(vertex) or ())
            return len(behind & self._ends), measured, dims, -read, len(behind)

        best = min(found, key=rank)
        self.is_loss_sure = bool(called) or rank(best)[:2] == (0, 0)
        return best

    def _updating(self) -> list[bool]:
        """Whether elementwise operators alone lead from a value to a new value, as from a gradient.

        Numbers are none of them: they may scale everything.
        """
        values = self.values
        found = [False] * len(values)
        for vertex in range(len(values) - 1, 0, -1):
            if values.is_single(vertex) and vertex not in self.new_values:
                continue
            found[vertex] = vertex in self.new_values or any(
                found[reader] and values.op[reader] in ELEMENTWISE
                for reader in values.readers[vertex]
            )
        return found

    def _measured(self, report: int, updating: list[bool]) -> int:
        """Of how many values that updates take a report is a norm or a mean."""
        values = self.values
        seen, todo, count = {report}, [report], 0
        while todo and len(seen) < _MOST_MEASURED:
            at = todo.pop()
            is_sum = values.op[at].startswith("Reduce") and values.is_single(at)
            if values.op[at] not in ELEMENTWISE and not is_sum:
                count += updating[at]
                continue
            for each in values.takes[at]:
                if each and each not in seen and values.op[each]:
                    seen.add(each)
                    todo.append(each)
        return count

    def _find_ends(self) -> set[int]:
        """What updates make of states: a step ends there, and what is computed of it is another."""
        found = set()
        for state, between in zip(self.states, self.ways, strict=True):
            new = self.values.behind(state.new)
            for each in {*between, new}:
                way = self.forms.ways[each].get(state.root)
                if (
                    way is not None
                    and way.share is not None
                    and self.nonfree[each]
                    and not self.forms.is_average(each, state.root)
                    and not self.forms.is_average(new, state.root)
                ):
                    found.add(each)
        return found

    def _ancestors(self, vertices: Iterable[int], but: Collection[str] = ()) -> set[int]:
        """What values are computed from in their step, not through the operators in `but`."""
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

    def is_average(self, new: int, root: int) -> bool:
        """Return whether a value is made of shares of a state and of other things that add up to 1.

        What updates have made of other states counts as one thing: of a copy of new weights.
        """
        if (new, root) not in self._averages:
            self._averages[new, root] = self._adds_up(new, root)
        return self._averages[new, root]

    def _adds_up(self, new: int, root: int) -> bool:
        """Whether shares add up to 1, see `is_average`."""
        is_known = self.forms.is_average(new, root)
        shares: dict[int, Sample] = {self.values.behind(new): np.ones(POINTS)}
        todo, total, others, mine = [-self.values.behind(new)], np.zeros(POINTS), False, None
        terms, is_taken_off = 0, False
        while todo and terms < _MOST_TERMS:
            at = -heapq.heappop(todo)
            share = shares.pop(at)
            is_few = len(self.values.takes[at]) <= _MOST_TERMS
            parts = self.forms.parts(at) if is_few else None
            is_end = at in self._ends and at != self.values.behind(new)
            is_own = at == root or (is_end and root in self.forms.ways[at])
            if is_own or is_end or parts is None or not self.values.op[at]:
                total = total + share
                others = others or (is_end and not is_own)
                is_taken_off = is_taken_off or bool(np.all(share < -_LITTLE))
                if is_own:
                    mine = share if mine is None else mine + share
                continue
            terms += len(parts)
            for each, part in parts:
                if each not in shares:
                    heapq.heappush(todo, -each)
                    shares[each] = np.zeros(POINTS)
                shares[each] = shares[each] + share * part
        if todo or is_taken_off:  # too much to be read, or centering, whose shares cancel out
            return is_known and not is_taken_off
        return is_known or (others and mine is not None and is_one(total) and not is_one(mine))

    def _nonfree(self, *, but_numbers: bool = False) -> list[bool]:
        """Return whether a value has more behind it than elementwise operators on roots.

        Numbers, such as norms, count as roots if `but_numbers`.
        """
        values = self.values
        found = [False] * len(values)
        for vertex in range(1, len(values)):
            op = values.op[vertex]
            if not op or op in ("Constant", "ConstantOfShape", *SHAPES) or "Random" in op:
                continue
            if but_numbers and values.is_single(vertex):
                continue
            is_plain = op in ELEMENTWISE or op == "Expand"
            found[vertex] = not is_plain or any(found[x] for x in values.takes[vertex])
        return found

    def _between(self) -> list[set[int]]:
        """For each state the values between it and its new value, both of them left out."""
        ways = self.forms.ways
        found = []
        for state in self.states:
            path = set()
            if state.way is not None and state.way.roughness < REDUCED:
                path = set(self.forms.path(state.new, state.root))
            seen, todo = {state.new}, [(state.new, np.ones(POINTS))]
            while todo:
                at, weight = todo.pop()
                for each, part in self.forms.parts(at) or ():
                    way = ways[each].get(state.root)
                    if way is not None and way.share is not None and each not in seen:
                        seen.add(each)
                        todo.append((each, weight * part))
                        # What a gradient is made of counts against it: descent takes it off.
                        if np.all(way.share > _WHOLE) and np.all(weight * part >= 0):
                            path.add(each)
            found.append(path - {state.root, state.new})
        return found

    def _read(self, ends: set[int]) -> list[bool]:
        """Return whether the backward pass or the loss can depend on a value.

        It does if a way leads from it to a contraction or to the loss without passing through a
        new value, or through what lies between a state and its new value; what is summed up to one
        number is none, unless it is the loss.
        """
        values = self.values
        found = [False] * len(values)
        for vertex in range(len(values) - 1, 0, -1):
            if vertex == self.loss:
                found[vertex] = True
                continue
            for reader in values.readers[vertex]:
                op = values.op[reader]
                if op in SHAPES or (reader in ends and op not in ALIASES):
                    continue
                is_end = op not in ELEMENTWISE and op not in VIEWS and op not in _SPREAD
                if (is_end and (not values.is_single(reader) or reader in self.forward)) or found[
                    reader
                ]:
                    found[vertex] = True
                    break
        return found


def _canonical(flow: Flow, frame: Frame, name: str) -> Value | None:
    found = flow.resolve(frame, name)
    return None if found is None else flow.canonical(found)


def _kind(values: Values, vertex: int) -> tuple[int, object]:
    known = values.types[vertex]
    return (0, None) if known is None else (known.dtype, known.shape)
