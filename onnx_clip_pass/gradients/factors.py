"""Numbers between a gradient and its update: which of them belong to the gradient.

Going from the value that the backward pass computes towards the update, a number belongs to the
gradient

1. if the forward pass computes or reads it (a scale of the loss, a temperature, a count), but not
   if it is made of the loss (a rate that falls with it) or of weights alone (their norm);
2. if it averages the terms of a sum, such as micro-batches;
3. if it is a constant that the forward pass has as well: of `0.7 * loss`, of a square, of a mean
   over the batch, unless the backward pass has it already; or if it undoes a scale of the loss.

All other numbers are the update's: rates, schedules, signs, shares of moments. So is the last one
before a new weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
from onnx import numpy_helper

from onnx_clip_pass.gradients.chains import Link
from onnx_clip_pass.gradients.ops import ALIASES, ELEMENTWISE, SIDE_SLOTS
from onnx_clip_pass.gradients.training import Step, Training
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Factors"]

_LEAST_SCALE = 8
_MOST_OPERANDS = 16
_MOST_TERMS = 1000
_MOST_SEEN = 512
_MOST_READ = 65536
_MOST_CONSTANTS = 12
_SAME = 1e-3
_LEFT_BY_SQUARES = (0.5, 1.0, 2.0)
_MEAN_LOSSES = {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"}


class Factors(Training):
    """Questions about numbers that scale values of a run."""

    def with_numbers(self, step: Step, trail: list[int]) -> int:
        """Return the place on a trail of the last value whose numbers belong to the gradient.

        Args:
            step: the update.
            trail: from where the optimizer begins up to what the backward pass computes.
        """
        chains, values = self.chains, self.values
        best, end = len(trail) - 1, trail[-1]
        base = self.bases(step)
        is_taken_up = trail[0] != step.new
        behind = [] if self._is_share(trail[0]) else list(self.down(trail[0], step.new))
        is_taken_up_whole = is_taken_up and all(self._is_scaled(each, end) for each in trail[:-1])
        pending, spent = 1.0, list[float]()
        for index in range(best - 1, -1, -1):
            vertex, inner = trail[index], trail[index + 1]
            if not chains.link[vertex] or values.op[vertex] == "Neg":
                continue
            if chains.link[vertex] == Link.TERM and self._is_drift(vertex):
                best = index
                continue
            factors = [each for each in values.takes[vertex] if each not in (inner, 0)]
            if (
                chains.link[vertex] != Link.NUMBER
                or len(factors) != 1
                or values.op[vertex] not in ("Mul", "Div")
            ):
                break
            if self._is_of_clip(vertex, trail[:index], end):
                break
            is_followed = is_taken_up_whole or any(
                chains.link[each] & ~Link.TERM and values.op[each] != "Neg"
                for each in (*trail[:index], *behind)
                if each not in base
            )
            is_of_gradient = self._is_of_forward_pass(factors[0], end)
            constant = self._constant(values.op[vertex], factors[0])
            if is_of_gradient is None and constant is None:
                is_mean = values.op[vertex] == "Div" or is_taken_up or is_followed
                terms = self._terms(end) if is_mean and inner == end else 1
                pending /= terms
                is_of_gradient = terms > 1 or self._has_seed(end, trail[best:])
            elif is_of_gradient is None:
                assert constant is not None
                pending *= constant[0]
                is_of_gradient = self._is_of_backward_pass(
                    pending,
                    step.root,
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

    def _is_drift(self, vertex: int) -> bool:
        """Whether a constant is added, as by a term of the loss that is linear in a parameter."""
        values, sources = self.values, self.chains.sources[vertex]
        others = [each for each in values.takes[vertex] if each and each not in sources]
        is_sum = values.op[vertex] in ("Add", "Sub", "Sum")
        return is_sum and all(self._is_uniform(each) for each in others)

    def _is_uniform(self, vertex: int) -> bool:
        """Whether a value is a constant of which all elements are one number."""
        values, at = self.values, self.values.behind(vertex)
        if self.states.numbers[vertex] is not None:
            cone = self.chains.cone(vertex)
            return not cone.inputs and not cone.ends
        tensor = values.value[at].frame.scope.initializers.get(values.name(at))
        if tensor is None or not values.is_constant(at) or tensor.external_data:
            return False
        if (values.size(at) or 0) > _MOST_READ:
            return False
        array = numpy_helper.to_array(tensor).reshape(-1)
        return array.size > 0 and bool(np.all(array == array[0]))

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
        """Whether a value is a moment that takes up a share of what it is made of."""
        forms = self.states.forms
        return any(forms.is_average(vertex, state.root) for state in self._made.get(vertex, ()))

    def _has_seed(self, end: int, trail: list[int]) -> bool:
        """Whether an input scales the backward pass, not the loss, and nothing has undone it."""
        states = self.states
        undone = {
            each
            for vertex in trail
            for factor in self.values.takes[vertex]
            if self.values.is_single(factor)
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
            and values.is_single(vertex)
            and not values.is_constant(vertex)
            and vertex not in states.roots
            and (known := values.types[vertex]) is not None
            and known.is_floating
        ][:_MOST_OPERANDS]

    def _is_scaled(self, vertex: int, end: int) -> bool:
        """Whether a link is a number, none of the norm of what it scales."""
        return self.chains.link[vertex] in (Link(0), Link.NUMBER) and not self._norm(vertex, end)

    def _norm(self, vertex: int, end: int) -> int:
        """The factor of a product that is made of what it scales, as for a clip; 0 for none."""
        if self.chains.link[vertex] != Link.NUMBER:
            return 0
        core = self.chains.core[end]
        others = set(self.values.takes[vertex]) - {0, *self.chains.sources[vertex]}
        return next((each for each in others if core in self.chains.cone(each).ends), 0)

    def _is_of_clip(self, vertex: int, ahead: list[int], end: int) -> bool:
        """Whether a norm that is taken without a number scales the product: the clip's bound."""
        norms = [norm for each in ahead if (norm := self._norm(each, end))]
        return bool(norms) and not any(self.flows(vertex, norm, unknown=False) for norm in norms)

    def _constant(self, op: str, factor: int) -> tuple[float, float] | None:
        """Size and sign of a constant by which a value is multiplied; None if it is none."""
        number = self.states.numbers[factor]
        if number is None or self.chains.cone(factor).inputs or not number[0]:
            return None
        times = float(number[0] if op == "Mul" else 1 / number[0])
        return abs(times), float(np.sign(times))

    def _is_of_forward_pass(self, factor: int, end: int) -> bool | None:
        """Whether a number is the forward pass's, or surely the update's; None for others."""
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
            if self.values.is_single(each) or each not in states.roots
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
        """Whether a constant averages, undoes a scale, or is left by derivatives."""
        if not is_followed:
            return False
        terms = self._terms(end) * times
        if is_first and sign > 0 and terms >= 1 and times < 1 and abs(terms - round(terms)) < _SAME:
            return True
        if sign > 0 and any(abs(times * scale - 1) < _SAME for scale in self._scales):
            return True
        between = self._constants_of_forward - self._loss_terms[1]
        there = [*(self._constants_behind(end) - between), *spent]
        product = float(np.prod(there))
        wholes = self._derivatives(root, end)
        if there and any(abs(product / whole - 1) < _SAME for whole in wholes):
            return False  # the backward pass has it already
        return any(
            abs(times * each / whole - 1) < _SAME
            for each in {1.0, product, *there}
            for whole in wholes
            if abs(whole / each - 1) > _SAME
        )

    def _derivatives(self, root: int, end: int) -> set[float]:
        """Constants that the derivative of the loss by a parameter may have as its factor."""
        of_loss, of_root = self._loss_terms[0], self._of_root(root)
        if not self.states.is_loss_sure or self._is_mean_inside:
            of_loss = of_loss | {times / size for size in self._sizes(end) for times in (1, 2)}
        return {a * b for a in of_loss for b in of_root}

    def _of_root(self, root: int) -> set[float]:
        """Constants by which functions of a parameter alone scale it before it meets the data."""
        values, found, todo = self.values, set[float](), [(root, 1.0)]
        while todo and len(found) < _MOST_CONSTANTS:
            at, times = todo.pop()
            for reader in values.readers[at][:_MOST_OPERANDS]:
                if reader not in self.states.forward:
                    continue
                if self.chains.depends[reader]:
                    found.add(times)
                    continue
                constant = self._scaled_by(reader, at)
                if values.op[reader] == "Pow":
                    constant = (self._constant("Mul", values.takes[reader][1]) or (1.0,))[0]
                elif constant is None and values.op[reader] in ELEMENTWISE:
                    constant = 1.0
                if constant is not None:
                    todo.append((reader, times * constant))
        return found or {1.0}

    def _scaled_by(self, vertex: int, operand: int) -> float | None:
        """The constant of which a value is its operand multiplied; 1 for an alias."""
        values = self.values
        takes = values.takes[vertex]
        if values.op[vertex] in ALIASES or values.op[vertex] == "Neg":
            return 1.0 if takes[:1] == (operand,) else None
        if values.op[vertex] not in ("Mul", "Div") or len(takes) != 2 or takes[0] == takes[1]:
            return None
        other = takes[1] if takes[0] == operand else takes[0]
        if values.op[vertex] == "Div" and other == takes[0]:
            return None
        constant = self._constant(values.op[vertex], other)
        return None if constant is None else constant[0]

    @cached_property
    def _loss_terms(self) -> tuple[set[float], set[float]]:
        """The factors of the terms of the loss, with what is left of powers and means; and each."""
        values, found, each_alone = self.values, set[float](), set[float]()
        seen, todo = set[int](), [(self.states.loss, 1.0)]
        while todo and len(seen) < _MOST_SEEN:
            at, times = todo.pop()
            takes, op = values.takes[at], values.op[at]
            if not at or at in seen:
                continue
            seen.add(at)
            if op in ("Add", "Sub", "Sum", "Mean", "ReduceSum", "ReduceMean", *ALIASES):
                if op == "ReduceMean":
                    share = (values.size(at) or 1) / (values.size(takes[0]) or 1)
                    each_alone.add(share)
                    times *= share
                side = SIDE_SLOTS.get(op, ())
                todo += [(each, times) for slot, each in enumerate(takes) if slot not in side]
                continue
            inner = [each for each in dict.fromkeys(takes) if self._scaled_by(at, each) is not None]
            if inner:
                constant = self._scaled_by(at, inner[0]) or 1.0
                each_alone.add(constant)
                todo.append((inner[0], times * constant))
            elif op in ("Mul", "Div") and len(set(takes)) == 2 and values.is_single(at):
                todo += [(each, times) for each in takes]  # a weight that is given
            else:
                is_square = op == "ReduceSumSquare" or (op == "Mul" and len(set(takes)) == 1)
                power = self._constant("Mul", takes[1]) if op == "Pow" else None
                left = 2.0 if is_square else power[0] if power else 1.0
                each_alone.add(left)
                found.add(times * left)
        return found or {1.0}, each_alone

    @cached_property
    def _is_mean_inside(self) -> bool:
        """Whether operators that average inside compute the loss."""
        return any(self.values.op[vertex] in _MEAN_LOSSES for vertex in self.states.forward)

    def _constants_behind(self, end: int) -> set[float]:
        """Constants by which the backward pass has multiplied what a value is made of."""
        values, forward = self.values, self.states.forward
        seen, todo, found = {end}, [end], set[float]()
        while todo and len(seen) < _MOST_SEEN:
            at = todo.pop()
            if values.op[at] == "Mean":
                found.add(1 / len(values.takes[at]))
            elif values.op[at] == "ReduceMean" and values.size(values.takes[at][0]):
                found.add((values.size(at) or 1) / (values.size(values.takes[at][0]) or 1))
            elif values.op[at] in ("Mul", "Div"):
                numbers = values.takes[at] if values.op[at] == "Mul" else values.takes[at][1:]
                constants = [self._constant(values.op[at], each) for each in numbers]
                found.update(each[0] for each in constants if each is not None)
            new = [
                each
                for each in values.takes[at]
                if each and each not in seen and each not in forward and self.chains.depends[each]
            ]
            seen.update(new)
            todo += new
        return found - {1.0}

    def _terms(self, end: int) -> int:
        """Return how many terms or trips are added up at the end of a walk; 1 if it is no sum."""
        count, todo = 0, [end]
        while todo and count < _MOST_TERMS:
            at = todo.pop()
            if self.values.op[at] in ("Add", "Sub", "Sum", *ALIASES):
                todo += self.chains.sources[at]
            else:
                count += 1
        if self.values.op[end] == "Loop":
            trips = self.states.numbers[self.values.operands(end)[0]]
            if trips is not None:
                return int(trips[0])
        return max(count, 1)

    def _sizes(self, end: int) -> set[int]:
        """How many terms a contraction adds up: rows of a batch, or all elements of its operand."""
        values = self.values
        sizes: set[int] = set()
        todo = [end]
        for at in todo:  # grows while it is read
            takes, made = values.takes[at], values.size(at)
            if values.op[at] in ALIASES or values.op[at] in ("Add", "Sum"):
                todo += [each for each in takes if each and len(todo) < _MOST_OPERANDS]
                continue
            for each in self.chains.sources[at]:
                size, shape = values.size(each), values.shape(each) or ()
                if size is None:
                    continue
                sizes.add(size)
                if made and values.op[at].startswith("Reduce") and size % made == 0:
                    sizes.add(size // made)
                elif values.op[at] == "MatMul" and isinstance(shape[-1], int) and each == takes[0]:
                    sizes.add(shape[-1])
        return sizes - {0, 1}

    @cached_property
    def _constants_of_forward(self) -> set[float]:
        """Constants by which the forward pass multiplies."""
        values = self.values
        return {
            constant[0]
            for vertex in self.states.forward
            if values.op[vertex] in ("Mul", "Div")
            for each in values.takes[vertex][values.op[vertex] == "Div" :]
            if (constant := self._constant(values.op[vertex], each))
        }

    @cached_property
    def _scales(self) -> set[float]:
        """Large constants by which the backward pass multiplies, and the forward pass does not."""
        values, states = self.values, self.states
        return {
            constant[0]
            for vertex in range(1, len(values))
            if values.op[vertex] == "Mul" and states.read[vertex] and vertex not in states.forward
            for each in values.takes[vertex]
            if (constant := self._constant("Mul", each)) and constant[0] >= _LEAST_SCALE
        } - self._constants_of_forward
