"""The states of a run, the loss, and what reads what.

Pairs of inputs and outputs come from `pairs`; the outputs that are left are reports, one of which
may be the loss.
"""

from __future__ import annotations

import heapq

import numpy as np

from onnx_clip_pass.gradients.linear import REDUCED, LinearForms
from onnx_clip_pass.gradients.numbers import POINTS, Sample, is_one, sample_numbers
from onnx_clip_pass.gradients.ops import ALIASES, ELEMENTWISE, SHAPES, STEPS, VIEWS
from onnx_clip_pass.gradients.pairs import Pairs, State
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.values import Values
from onnx_clip_pass.graph import Flow, Frame, TensorType, Value
from onnx_clip_pass.graph.spec import FLOATING

__all__ = ["State", "States"]

_SPREAD = {"Concat", "Expand"}
_MEASURES = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "Sqrt"}
_LITTLE = 1e-6
_MOST_MEASURED = 10_000
_MOST_REPORTS = 16
_MOST_TERMS = 512
_WHOLE = 0.5
"""The least share of a state in what becomes of it; what is added for decay has less."""
_FLOATS = FLOATING | {0}


class States(Pairs):
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
        self.interchangeable: set[int] = set()
        self._ends: set[int] = set()
        self._averages: dict[tuple[int, int], bool] = {}
        self.forms = LinearForms(values, self.numbers, roots, new_values, self.nonfree)
        numbers = [each for each in self.outputs if values.is_scalar_like(each)]
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
        self.report_ancestors = self._ancestors(self.reports)
        self.read = self._read(self.new_values.union(*self.ways))

    def _reported_numbers(self) -> list[int]:
        """The reports that may be a loss: floating numbers that are computed."""
        values = self.values
        return [
            each
            for each in self.reports
            if values.is_scalar_like(each)
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
        """True if elementwise operators alone lead from a value to a new value, as from a gradient.

        Numbers are none of them: they may scale everything.
        """
        values = self.values
        found = [False] * len(values)
        for vertex in range(len(values) - 1, 0, -1):
            if values.is_scalar_like(vertex) and vertex not in self.new_values:
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
            is_sum = values.op[at].startswith("Reduce") and values.is_scalar_like(at)
            if values.op[at] not in ELEMENTWISE and not is_sum:
                count += updating[at]
                continue
            for each in values.takes[at]:
                if each and each not in seen and values.op[each]:
                    seen.add(each)
                    todo.append(each)
        return count

    def _find_ends(self) -> set[int]:
        """The results of updates of states: a step ends there, and the next begins."""
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

    def is_average(self, new: int, root: int) -> bool:
        """Return whether a value is made of shares of a state and of other things that add up to 1.

        What updates have made of other states counts as one thing: of a copy of new weights.
        """
        if (new, root) not in self._averages:
            self._averages[new, root] = self._adds_up(new, root)
        return self._averages[new, root]

    def _adds_up(self, new: int, root: int) -> bool:
        """True if shares add up to 1, see `is_average`."""
        is_known = self.forms.is_average(new, root)
        shares: dict[int, Sample] = {self.values.behind(new): np.ones(POINTS)}
        todo, total, others, mine = [-self.values.behind(new)], np.zeros(POINTS), False, None
        terms, is_taken_off = 0, False
        while todo and terms < _MOST_TERMS:
            at = -heapq.heappop(todo)
            share = shares.pop(at)
            is_few = len(self.values.takes[at]) <= _MOST_TERMS
            parts = self.forms.parts(at) if is_few else None
            is_made = at in self._ends or at in self.new_values
            is_end = is_made and at != self.values.behind(new)
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
            if but_numbers and values.is_scalar_like(vertex):
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
                if (
                    is_end and (not values.is_scalar_like(reader) or reader in self.forward)
                ) or found[reader]:
                    found[vertex] = True
                    break
        return found


def _canonical(flow: Flow, frame: Frame, name: str) -> Value | None:
    found = flow.resolve(frame, name)
    return None if found is None else flow.canonical(found)
