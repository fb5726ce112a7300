"""Constants of the forward and the backward pass: the factors of a derivative of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from onnx_clip_pass.gradients.numbers import array_of
from onnx_clip_pass.gradients.ops import ALIASES, LINEAR, SIDE_SLOTS
from onnx_clip_pass.gradients.training import Training

__all__ = ["Constants"]

_LEAST_SCALE = 8
_MOST_OPERANDS = 16
_MOST_SEEN = 512
_MOST_READ = 65536
_MOST_CONSTANTS = 12
_TIMES = {"Div", "Mul", "Where"}
_ADDITIVE = LINEAR | {"ReduceMean", "ReduceSum"}
_MEAN_LOSSES = {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"}


class _Scales(NamedTuple):
    """Constants that scale values on some ways: their products by way, and each."""

    products: set[float]
    constants: set[float]
    values: frozenset[int] = frozenset()
    """The values on the ways, of the terms of a loss."""


class Constants(Training):
    """Questions about numbers that are written in a run."""

    def _is_uniform(self, vertex: int) -> bool:
        """True for a constant of which all elements are one number."""
        if self.states.numbers[vertex] is None:
            return self._number(vertex) is not None
        cone = self.chains.cone(vertex)
        return not cone.inputs and not cone.ends

    def _number(self, vertex: int) -> float | None:
        """The number that a value is, or that a constant tensor is filled with; None for others."""
        number = self.states.numbers[vertex]
        if number is not None:
            return float(number[0])
        if vertex not in self._filled:
            array = array_of(self.values, vertex, _MOST_READ) if self._is_fixed(vertex) else None
            is_filled = array is not None and array.size > 0 and bool(np.all(array == array[0]))
            self._filled[vertex] = float(array[0]) if array is not None and is_filled else None
        return self._filled[vertex]

    @cached_property
    def _filled(self) -> dict[int, float | None]:
        return {}

    def _constant(self, op: str, factor: int) -> tuple[float, float] | None:
        """Size and sign of a constant by which a value is multiplied; None if it is none."""
        number = self._number(factor)
        if not number or self.chains.cone(factor).inputs:
            return None
        times = number if op == "Mul" else 1 / number
        return abs(times), float(np.sign(times))

    def _multipliers(self, vertex: int) -> Iterator[float]:
        """The sizes of the constants by which a Mul or a Div multiplies."""
        op, takes = self.values.op[vertex], self.values.takes[vertex]
        for each in takes[op == "Div" :] if op in ("Mul", "Div") else ():
            if (constant := self._constant(op, each)) is not None:
                yield constant[0]

    def _derivatives(self, of_root: _Scales, end: int) -> set[float]:
        """Constants that the derivative of the loss by a parameter may have as its factor."""
        of_loss = self._loss_terms.products
        if not self.states.is_loss_sure or self._is_mean_inside:
            of_loss = of_loss | {times / size for size in self._sizes(end) for times in (1, 2)}
        return {a * b for a in of_loss for b in of_root.products}

    def _of_root(self, root: int) -> _Scales:
        """Constants by which functions of a parameter alone scale it before it meets the data."""
        values, found, todo = self.values, set[float](), [(root, 1.0)]
        each_alone = set[float]()
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
                elif constant is None and values.op[reader] != "ReduceMean":
                    constant = 1.0
                if constant is not None:
                    each_alone.add(constant)
                    todo.append((reader, times * constant))
        return _Scales(found or {1.0}, each_alone)

    def _has_linear_term(self, root: int) -> bool:
        """True if the loss has a term that is linear in a parameter alone, whose slope is fixed."""
        values, todo, seen = self.values, [root], {root}
        while todo and len(seen) < _MOST_SEEN:
            at = todo.pop()
            if at in self._loss_terms.values:
                return True
            for reader in values.readers[at][:_MOST_OPERANDS]:
                others = [each for each in values.takes[reader] if each and each != at]
                is_linear = values.op[reader] in _ADDITIVE and (
                    values.op[reader] not in _TIMES or (others and all(map(self._is_fixed, others)))
                )
                if is_linear and reader in self.states.forward and reader not in seen:
                    seen.add(reader)
                    todo.append(reader)
        return False

    def _is_fixed(self, vertex: int) -> bool:
        """True for a constant that is no weight."""
        at = self.values.behind(vertex)
        is_weight = at in self.states.roots and at in self.states.forward
        return self.values.is_constant(at) and not is_weight

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
    def fed(self) -> bytearray:
        """Flags of what is computed from more than parameters and constants."""
        values, roots = self.values, self.states.roots
        found = bytearray(len(values))
        for vertex in range(1, len(values)):
            found[vertex] = (
                any(found[each] for each in values.takes[vertex])
                if values.op[vertex]
                else not (vertex in roots or values.is_constant(vertex))
            )
        return found

    @cached_property
    def _loss_terms(self) -> _Scales:
        """Constants by which the terms of the loss are scaled, powers and means taken in."""
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
            elif op in ("Mul", "Div") and len(set(takes)) == 2 and values.is_scalar_like(at):
                todo += [(each, times) for each in takes]  # a weight that is given
            else:
                is_square = op == "ReduceSumSquare" or (op == "Mul" and len(set(takes)) == 1)
                power = self._constant("Mul", takes[1]) if op == "Pow" else None
                left = 2.0 if is_square else power[0] if power else 1.0
                each_alone.add(left)
                found.add(times * left)
        return _Scales(found or {1.0}, each_alone, frozenset(seen))

    @cached_property
    def _is_mean_inside(self) -> bool:
        """True if operators that average inside compute the loss."""
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
            found.update(self._multipliers(at))
            new = [
                each
                for each in values.takes[at]
                if each and each not in seen and each not in forward and self.chains.depends[each]
            ]
            seen.update(new)
            todo += new
        return found - {1.0}

    def _sizes(self, end: int) -> set[int]:
        """The number of terms of a contraction: rows of a batch, or all elements of its operand."""
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
        return {each for vertex in self.states.forward for each in self._multipliers(vertex)}

    @cached_property
    def _scales(self) -> set[float]:
        """Large constants by which the backward pass multiplies, and the forward pass does not."""
        values, states = self.values, self.states
        return {
            each
            for vertex in range(1, len(values))
            if values.op[vertex] == "Mul" and states.read[vertex] and vertex not in states.forward
            for each in self._multipliers(vertex)
            if each >= _LEAST_SCALE
        } - self._constants_of_forward
