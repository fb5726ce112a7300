"""Doubts about a value that a walk ends at: the reasons of questions."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from onnx_clip_pass.gradients.chains import NOBODY
from onnx_clip_pass.gradients.factors import Factors
from onnx_clip_pass.gradients.numbers import POINTS, array_of
from onnx_clip_pass.gradients.ops import (
    ELEMENTWISE,
    LINEAR,
    PRODUCTS,
    SCATTERS,
)
from onnx_clip_pass.gradients.steps import StateUpdate
from onnx_clip_pass.graph import attribute
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Doubts"]

_MOST_ROWS = 4096
_MOST_TERMS = 512


class Doubts(Factors):
    """Questions about the candidates of a run.

    `penalized` are the parameters of which the loss has terms, `averaged` those of which something
    is summed up along axes; `backward` says which one step each value leads to past a contraction.
    """

    averaged: set[int]
    penalized: set[int]
    backward: list[int]
    stateful: list[bool]

    def tell_reach(self) -> None:
        """Tell which steps each value leads to, and which states gradients are made of."""
        targets = {update.new: number for number, update in enumerate(self.state_updates, 1)}
        self.reach = self.chains.lead_to(targets, past_contraction=False)
        self.backward = self.chains.lead_to(targets, past_contraction=True)
        self.stateful = self.chains.made_of({state.root for state in self.carried})

    def find_penalties(self) -> None:
        """Find the parameters of which the loss has terms, and those averaged along axes."""
        values, states = self.values, self.states
        self.penalized = set[int]().union(
            *(
                states.roots & (states.forms.ways[term].keys() | self.free_of_data(term))
                for term in self._terms_of_loss()
            )
        )
        self.averaged = {
            root
            for vertex in range(1, len(values))
            if not values.is_scalar_like(vertex)
            and (values.op[vertex].startswith("Reduce") or "Norm" in values.op[vertex])
            for each in values.takes[vertex]
            if each and not states.nonfree[each]
            for root in states.forms.ways[each]
        }

    def _terms_of_loss(self) -> Iterator[int]:
        """The terms of the loss that do not depend on data, or sums of what does not."""
        values = self.values
        seen, todo = {0, self.states.loss}, [self.states.loss]
        while todo:
            at = todo.pop()
            if not at or not values.is_scalar_like(at):
                continue
            summed = values.takes[at][0] if values.op[at].startswith("Reduce") else 0
            if not self.fed[at]:
                yield at
            elif summed and not self.states.nonfree[summed]:
                yield summed  # from an anchor, which is given
            elif values.op[at] in LINEAR:
                todo += set(values.takes[at]) - seen
                seen.update(values.takes[at])

    def free_of_data(self, vertex: int) -> set[int]:
        """The sources of a value that do not depend on data, the first few of them."""
        seen, todo = {vertex}, [vertex]
        while todo and len(seen) < _MOST_ROWS:
            new = {each for each in self.values.takes[todo.pop()] if each} - seen
            new = {each for each in new if not self.fed[each]}
            seen |= new
            todo += new
        return seen

    def rival(self, number: int, update: StateUpdate, end: int) -> int:
        """A value above the end of the walk that may be the gradient as well; 0 for none.

        Orthogonalised gradients are made of gradients by contractions, and look like gradients.
        """
        chains, values = self.chains, self.values
        found = 0
        at = chains.tree.above[end] if values.op[end] in PRODUCTS else ROOT
        while at != ROOT and values.op[at] and self.reach[at] == number:
            if (
                values.op[at] in PRODUCTS
                and values.is_like(at, update.root)
                and values.shape(at) is not None
                and at not in self.states.forward
                and self.backward[at] in (NOBODY, number)
            ):
                found = at
            at = chains.tree.above[at]
        return found

    def is_ascent(self, update: StateUpdate) -> bool:
        """Return whether all that depends on data is added to a state, as a force moves a body.

        Coefficients that the graph is given, such as rates, are taken to be positive.
        """
        values, forms, depends = self.values, self.states.forms, self.chains.depends
        start = update.new
        while forms.parts(start) is None and update.root in forms.ways[start]:
            via = forms.ways[start][update.root].via
            if via == start:
                break
            start = via  # behind bounds and masks of the new value
        shares = {start: np.ones(POINTS)}
        todo, signs = [-start], []
        while todo and len(shares) < _MOST_TERMS:
            at = -heapq.heappop(todo)
            parts = forms.parts(at) if len(values.takes[at]) <= _MOST_TERMS else None
            is_number = values.is_scalar_like(at) and not values.is_scalar_like(update.root)
            if parts is None and depends[at] and not is_number:
                signs.append(bool(np.all(shares[at] > 0)))
            for each, part in () if at == update.base else parts or ():  # what a step before adds
                if each not in shares:
                    heapq.heappush(todo, -each)
                    shares[each] = np.zeros(POINTS)
                shares[each] = shares[each] + shares[at] * part
        return bool(signs) and all(signs)

    def fault(self, update: StateUpdate, picked: int) -> str:
        values, chains = self.values, self.chains
        if not picked:
            return ""
        if picked in self.new_values.bases(update):
            return "several values of the backward pass are added to it, each in its own way"
        is_made = bool(self.values.op[picked])
        if is_made and picked in self.states.forward and not self.is_optimizer:
            return "the loss is computed from the same value, and would change with it"
        if not values.is_like(picked, update.root) and (
            values.size(picked) is None or values.size(picked) != values.size(update.root)
        ):
            return self._fault_of_rows(update, picked)
        if self.stateful[picked] or self._after_state[picked]:
            return "its update joins states that depend on data in ways of their own"
        sources = chains.sources[picked]
        if (
            sources
            and not values.is_scalar_like(picked)
            and all(map(values.is_scalar_like, sources))
            and (values.op[picked] in ELEMENTWISE)
        ):
            return "its update depends on the data only through a number"
        return ""

    def _fault_of_rows(self, update: StateUpdate, picked: int) -> str:
        """Gradients by rows are clipped if no row occurs twice or the update adds them up."""
        values = self.values
        for vertex in self.new_values.bases(update):
            if values.op[vertex] in SCATTERS:
                node = values.value[vertex].node
                how = None if node is None else attribute(node, "reduction")
                if how is not None and how.s == b"add":
                    return ""
                if self._is_distinct(values.takes[vertex][1]):
                    return ""
                return "its rows are replaced, and nothing says that none occurs twice"
        return "no value of its shape is all that its update takes from the backward pass"

    def _is_distinct(self, indices: int) -> bool:
        values = self.values
        at = values.behind(indices)
        if values.op[at] in ("Range", "Unique", "TopK", "NonZero"):
            return True
        rows = array_of(values, at, _MOST_ROWS)
        return rows is not None and np.unique(rows).size == rows.size

    @cached_property
    def _after_state(self) -> list[bool]:
        """Return whether a value is computed from the new value of a state that is no parameter."""
        values, states = self.values, self.states
        carried = {
            values.behind(state.new)
            for state in self.carried
            if state.new not in states.forward
            and not values.is_scalar_like(state.new)
            and self.chains.depends[state.new]
        }
        found = [False] * len(values)
        for vertex in range(1, len(values)):
            found[vertex] = any(
                found[each] or each in carried
                for each in values.takes[vertex]
                if not values.is_scalar_like(each)
            )
        return found
