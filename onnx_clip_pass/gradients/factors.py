"""Numbers between a gradient and its update: which of them belong to the gradient.

Those that average (1/n of n terms), that undo a scale of the loss, or that the forward pass
computes; all others, rates and schedules and signs, are the update's.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from onnx_clip_pass.gradients.ops import (
    ALIASES,
)
from onnx_clip_pass.gradients.training import Training

__all__ = ["Factors"]

_LEAST_SCALE = 8
_MOST_OPERANDS = 16
_MOST_TERMS = 1000


class Factors(Training):
    """Questions about numbers that scale values of a run."""

    def is_of_gradient(
        self, vertex: int, inner: int, end: int, is_last: bool, is_taken_up: bool
    ) -> bool:
        """Return whether a number by which `vertex` is `inner` scaled belongs to the gradient.

        Args:
            vertex: the product.
            inner: what is scaled.
            end: the value that no number has scaled.
            is_last: whether no number scales the product.
            is_taken_up: whether a state takes it up, and not only a new weight.
        """
        states, values = self.states, self.values
        takes = values.takes[vertex]
        factors = [each for each in takes if each not in (inner, 0)]
        if len(factors) != 1 or values.op[vertex] not in ("Mul", "Div"):
            return False
        (factor,) = factors
        cone = self.chains.cone(factor)
        if cone.ends:
            return self.chains.core[end] not in cone.ends and not self.flows(end, factor)
        if cone.has_shape or (
            len(cone.inputs) <= _MOST_OPERANDS
            and any(self.flows(each, end, unknown=False) for each in cone.inputs)
        ):
            return True
        if cone.has_state:
            return False
        if cone.inputs and inner == end:
            is_mean = values.op[vertex] == "Div" or is_taken_up or not is_last
            return self._terms(end) > 1 and is_mean
        number = states.numbers[factor]
        if number is None or cone.inputs:
            return False
        times = float(number[0]) if values.op[vertex] == "Div" else 1 / float(number[0] or np.inf)
        if times <= 0:
            return False
        terms = self._terms(end) / times
        if inner == end and terms >= 1 and times > 1 and abs(terms - round(terms)) < 1e-3:
            return True
        if any(abs(times - scale) < 1e-3 * scale for scale in self._scales):
            return True
        if is_taken_up and values.op[vertex] == "Div" and times > 1:
            return True
        if is_last:
            return False
        return (values.op[vertex] == "Div" and times > 1) or any(
            abs(times * k - size) < 1e-3 * size and times > 2
            for size in self._sizes(end)
            for k in (1, 2)
        )

    def _terms(self, end: int) -> int:
        """Return how many terms or trips are added up at the end of a walk; 1 if it is no sum."""
        count, todo = 0, [end]
        while todo and count < _MOST_TERMS:
            at = todo.pop()
            if self.values.op[at] in ("Add", "Sum", *ALIASES):
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
    def _scales(self) -> set[float]:
        """Large constants that the backward pass reads: what a loss may be scaled by."""
        values, states = self.values, self.states
        return {
            float(number[0])
            for vertex in range(1, len(values))
            if states.read[vertex]
            and values.is_constant(vertex)
            and (number := states.numbers[vertex]) is not None
            and number[0] >= _LEAST_SCALE
        }
