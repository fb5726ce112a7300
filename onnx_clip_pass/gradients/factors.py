"""Numbers between a gradient and its update: which of them belong to the gradient.

Going from the value that the backward pass computes towards the update, a number belongs to the
gradient

1. if the forward pass computes or reads it (a scale of the loss, a temperature, a count), but not
   if it is made of the loss (a rate that falls with it) or of weights alone (their norm);
2. if it averages the terms of a sum, such as micro-batches;
3. if it is a constant that the forward pass has as well: of `0.7 * loss`, of a square, of a mean
   over the batch, unless the backward pass has it already; or if it undoes a scale of the loss.

A constant that is added is the slope of a term of the loss that is linear in the parameter. All
other numbers are the update's: rates, schedules, signs, shares of moments. So is the last one
before a new weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np

from onnx_clip_pass.gradients.chains import MANY, Link
from onnx_clip_pass.gradients.constants import Constants
from onnx_clip_pass.gradients.ops import ALIASES
from onnx_clip_pass.gradients.steps import StateUpdate
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Factors"]

_MOST_OPERANDS = 16
_MOST_TERMS = 1000
_MOST_NUMBERS = 64
_SAME = 1e-3
_SUMS = {"Add", "Sub", "Sum"}
_LEFT_BY_SQUARES = (0.5, 1.0, 2.0)


class Factors(Constants):
    """Questions about numbers that scale values of a run.

    `reach` says which one step each value leads to.
    """

    reach: list[int]

    def with_numbers(self, update: StateUpdate, trail: list[int]) -> int:
        """Return the place on a trail of the last value whose numbers belong to the gradient.

        Args:
            update: the update.
            trail: from where the optimizer begins up to what the backward pass computes.
        """
        chains, values = self.chains, self.values
        best, end = len(trail) - 1, trail[-1]
        base = self.new_values.bases(update)
        is_taken_up = trail[0] != update.new
        behind = [] if self._is_share(trail[0]) else list(self.down(trail[0], update.new))
        is_taken_up_whole = is_taken_up and all(self._is_scaled(each, end) for each in trail[:-1])
        is_scaled_behind = any(self._is_scaling(each) for each in behind if each not in base)
        first = next(
            (i for i, v in enumerate(trail) if v not in base and self._is_scaling(v)), best
        )
        norms = [(i, norm) for i, v in enumerate(trail) if (norm := self._norm(v, end))]
        pending, spent, numbers = 1.0, list[float](), 0
        for index in range(best - 1, -1, -1):
            vertex, inner = trail[index], trail[index + 1]
            if not chains.link[vertex] or values.op[vertex] == "Neg":
                continue
            if chains.link[vertex] == Link.TERM and self._is_drift(vertex, update.root):
                best = index
                continue
            if (
                chains.link[vertex] == Link.MIX
                and vertex not in base
                and any(
                    self._is_of_forward_pass(each, end)
                    for each in self._numbers_between(vertex, inner)
                )
            ):
                best, pending = index, 1.0
                continue
            factors = [each for each in values.takes[vertex] if each not in (inner, 0)]
            if (
                chains.link[vertex] != Link.NUMBER
                or len(factors) != 1
                or values.op[vertex] not in ("Mul", "Div")
            ):
                break
            numbers += 1
            if numbers > _MOST_NUMBERS or self._is_of_clip(
                vertex, [norm for place, norm in norms if place < index]
            ):
                break
            is_followed = is_taken_up_whole or is_scaled_behind or first < index
            is_of_gradient = self._is_of_forward_pass(factors[0], end)
            constant = self._constant(values.op[vertex], factors[0])
            if is_of_gradient is None and constant is None:
                is_mean = values.op[vertex] == "Div" or is_taken_up or is_followed
                terms = self._terms(end) if is_mean and inner == end else 1
                pending /= terms
                is_of_gradient = terms > 1 or self._has_seed(end, trail[best:])
            elif is_of_gradient is None:
                assert constant is not None
                if constant == (1.0, 1.0) and inner == trail[best] and self.reach[inner] == MANY:
                    best = index  # the value behind it is of other gradients, too
                    continue
                pending *= constant[0]
                is_of_gradient = self._is_of_backward_pass(
                    pending,
                    update.root,
                    end,
                    is_followed=is_followed,
                    is_first=inner == end,
                    sign=constant[1],
                    spent=spent,
                )
                if not is_of_gradient and values.op[vertex] == "Div" and constant[0] < 1:
                    is_of_gradient = is_followed or (is_taken_up and not self.is_descent(trail))
                if not is_of_gradient:
                    continue
            elif not any(abs(pending - each) < _SAME for each in _LEFT_BY_SQUARES):
                break
            if not is_of_gradient:
                break
            spent.append(pending)
            best, pending = index, 1.0
        return best

    def _numbers_between(self, vertex: int, inner: int) -> set[int]:
        """The numbers by which a sum or a choice of multiples of `inner` is made of it."""
        values, chains = self.values, self.chains
        seen, todo, found = {vertex, inner}, [vertex], set[int]()
        while todo and len(seen) < _MOST_NUMBERS:
            at = todo.pop()
            for each in values.takes[at]:
                if each in seen or not each:
                    continue
                seen.add(each)
                if chains.depends[each] and chains.tree.dominates(inner, each):
                    todo.append(each)
                elif values.is_scalar_like(each) and values.op[at] not in {*_SUMS, "Mean"}:
                    found.add(each)
        return found

    def _is_drift(self, vertex: int, root: int) -> bool:
        """True if all else that is added is what a term of the loss leaves, linear in `root`."""
        values, states, sources = self.values, self.states, self.chains.sources[vertex]
        if values.op[vertex] not in _SUMS:
            return False
        others = [each for each in values.takes[vertex] if each and each not in sources]
        if others and states.is_loss_sure and not self._has_linear_term(root):
            return False
        return all(
            self._is_uniform(each) or (states.is_loss_sure and self._is_fixed(each))
            for each in others
        )

    def down(self, vertex: int, new: int) -> Iterator[int]:
        """The values of the chain from a new value up to the one that is made of `vertex`."""
        at = new
        while at not in (vertex, ROOT):
            yield at
            at = self.chains.tree.above[at]

    def is_descent(self, trail: list[int]) -> bool:
        """Return whether the end of a trail is taken off at its start, as a rate times it is."""
        sign = 1.0
        for above, below in pairwise(trail):
            share = dict(self.states.forms.parts(above) or ()).get(below)
            if share is None or not (np.all(share < 0) or np.all(share > 0)):
                return False
            sign *= float(np.sign(share[0]))
        return sign < 0

    def _is_share(self, vertex: int) -> bool:
        """True if a value is a moment that consumes a share of what it is made of."""
        forms = self.states.forms
        return any(
            forms.is_average(vertex, state.root)
            for state in self.new_values.on_the_way.get(vertex, ())
        )

    def _has_seed(self, end: int, trail: list[int]) -> bool:
        """True if an input scales the backward pass, not the loss, and nothing has undone it."""
        states = self.states
        undone = {
            each
            for vertex in trail
            for factor in self.values.takes[vertex]
            if self.values.is_scalar_like(factor)
            for each in self.chains.cone(factor).inputs
        }
        return states.is_loss_sure and any(
            self.flows(each, end, unknown=False)
            for each in self._numbers_given
            if each not in states.forward and each not in undone
        )

    @cached_property
    def _numbers_given(self) -> list[int]:
        """Floating inputs of one element that are no states, the first few."""
        values, states = self.values, self.states
        return [
            vertex
            for vertex in range(1, len(values))
            if not values.op[vertex]
            and values.is_scalar_like(vertex)
            and not values.is_constant(vertex)
            and vertex not in states.roots
            and (known := values.types[vertex]) is not None
            and known.is_floating
        ][:_MOST_OPERANDS]

    def _is_scaled(self, vertex: int, end: int) -> bool:
        """True if a link is a number, none of the norm of what it scales."""
        return self.chains.link[vertex] in (Link(0), Link.NUMBER) and not self._norm(vertex, end)

    def _norm(self, vertex: int, end: int) -> int:
        """The factor of a product that is made of what it scales, as for a clip; 0 for none."""
        if self.chains.link[vertex] != Link.NUMBER:
            return 0
        core = self.chains.core[end]
        others = set(self.values.takes[vertex]) - {0, *self.chains.sources[vertex]}
        return next((each for each in others if core in self.chains.cone(each).ends), 0)

    def _is_scaling(self, vertex: int) -> bool:
        """True if an update does more than to add something to a value, or to turn its sign."""
        return bool(self.chains.link[vertex] & ~Link.TERM) and self.values.op[vertex] != "Neg"

    def _is_of_clip(self, vertex: int, norms: list[int]) -> bool:
        """True if a norm that is taken without a number scales the product: the clip's bound."""
        return bool(norms) and not any(self.flows(vertex, norm, unknown=False) for norm in norms)

    def _is_of_forward_pass(self, factor: int, end: int) -> bool | None:
        """True if a number is the forward pass's, or surely the update's; None for others."""
        states, cone = self.states, self.chains.cone(factor)
        if cone.ends:
            if states.is_loss_sure and self.flows(states.loss, factor, unknown=False):
                return False
            if not any(self.chains.depends[each] or each in states.forward for each in cone.ends):
                return False
            return self.chains.core[end] not in cone.ends and not self.flows(end, factor)
        if cone.has_shape or (cone.inputs and factor in states.forward):
            return True
        if len(cone.inputs) <= _MOST_OPERANDS and any(
            each in states.forward or self.flows(each, end, unknown=False)
            for each in cone.inputs
            if self.values.is_scalar_like(each) or each not in states.roots
        ):
            return True
        return False if cone.has_state else None

    def _is_of_backward_pass(
        self,
        times: float,
        root: int,
        end: int,
        *,
        is_followed: bool,
        is_first: bool,
        sign: float,
        spent: list[float],
    ) -> bool:
        """True if a constant averages, undoes a scale, or is left by derivatives."""
        if not is_followed:
            return False
        terms = self._terms(end) * times
        if is_first and sign > 0 and terms >= 1 and times < 1 and abs(terms - round(terms)) < _SAME:
            return True
        if sign > 0 and any(abs(times * scale - 1) < _SAME for scale in self._scales):
            return True
        of_root = self._of_root(root)
        between = self._constants_of_forward - self._loss_terms.constants - of_root.constants
        there = [*(self._constants_behind(end) - between), *spent]
        product = float(np.prod(there))
        wholes = self._derivatives(of_root, end)
        if there and any(abs(product / whole - 1) < _SAME for whole in wholes):
            return False  # the backward pass has it already
        return any(
            abs(times * each / whole - 1) < _SAME
            for each in {1.0, product, *there}
            for whole in wholes
            if abs(whole / each - 1) > _SAME
        )

    def _terms(self, end: int) -> int:
        """Return how many terms or trips are added up at the end of a walk; 1 if it is no sum."""
        count, todo = 0, [end]
        while todo and count < _MOST_TERMS:
            at = todo.pop()
            if self.values.op[at] in _SUMS | ALIASES:
                todo += self.chains.sources[at]
            else:
                count += 1
        if self.values.op[end] == "Loop":
            trips = self.states.numbers[self.values.operands(end)[0]]
            if trips is not None:
                return int(trips[0])
        return max(count, 1)
