"""Expressions of numbers and tensors: what kind of value an op computes, and of what.

The ops told apart here are those that optimizers, schedules and clips are written with.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Set
from typing import Any, TypeVar

from onnx import NodeProto, TensorProto, numpy_helper

from onnx_clip_pass.graph import Flow, Value, attribute

__all__ = [
    "ALIASES",
    "ELEMENTWISE",
    "MAX_STEPS",
    "NORM_OPS",
    "REDUCTIONS",
    "RESHAPERS",
    "Expressions",
    "every_way_ends_well",
    "worked_out",
]

ALIASES = {"Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze"}
"""Ops whose result is their first input, but for its type or the way its dimensions are cut."""

ELEMENTWISE = ALIASES | {
    "Abs", "Add", "Clip", "Div", "Max", "Mean", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sign",
    "Sqrt", "Square", "Sub", "Sum", "Where",
}  # fmt: skip
"""Ops that optimizers are written with: one element of the result needs one of each operand."""

REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare",
}  # fmt: skip
_SCHEDULES = {"Ceil", "Cos", "Exp", "Floor", "Log", "Mod", "Sin"}
"""Ops that learning rates and coefficients are computed with."""

_RANDOM = {
    "Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
"""Ops whose result is noise: nothing that a backward pass computes."""

NORM_OPS = ELEMENTWISE | REDUCTIONS | {
    "And", "Concat", "Equal", "Exp", "Expand", "Flatten", "Greater", "GreaterOrEqual", "IsInf",
    "IsNaN", "Less", "LessOrEqual", "Log", "Not", "Or",
}  # fmt: skip
"""Ops that a norm, a coefficient of clipping or a test for overflow is written with."""

RESHAPERS = {"Concat", "Expand", "Flatten"}
"""Those of them whose result can have more elements than a reduction or a number."""

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "Less": operator.lt, "LessOrEqual": operator.le, "Equal": operator.eq,
    "Greater": operator.gt, "GreaterOrEqual": operator.ge,
}  # fmt: skip

MAX_STEPS = 1000

Known = TypeVar("Known")


class Expressions:
    """Questions about values, answered from a `Flow` and remembered."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._single: dict[Value, bool] = {}
        self._free: dict[Value, bool] = {}

    # -- what kind of value --------------------------------------------------------------------

    def is_single(self, value: Value) -> bool:
        """Whether the value surely has one element: a learning rate, a norm, a coefficient."""
        return worked_out(value, self._single, self._is_single)

    def _is_single(self, value: Value) -> Generator[Value, bool, bool]:
        known = value.type
        if known is not None and known.shape is not None:
            return known.is_single
        node = value.node
        if node is None:
            return False
        if node.op_type == "Constant":
            return constant_of(node) is not None
        if node.op_type in REDUCTIONS:
            return attribute(node, "axes") is None and len(node.input) < 2
        if node.op_type == "Gather":  # a learning rate from a table
            table, at = self.flow.operand(value, 0), self.flow.operand(value, 1)
            shape = None if table is None or table.type is None else table.type.shape
            return shape is not None and len(shape) == 1 and at is not None and (yield at)
        operands = self._behind(value, node, (NORM_OPS | _SCHEDULES) - RESHAPERS) or []
        return bool(operands) and (yield from _for_all(operands))

    def is_free(self, value: Value) -> bool:
        """Whether elementwise ops alone compute it from inputs, initializers and noise.

        Parameters, moments and decay terms are free; what a backward pass computes is not, since
        it has matrix products and reductions in it.
        """
        return worked_out(value, self._free, self._is_free)

    def _is_free(self, value: Value) -> Generator[Value, bool, bool]:
        node = value.node
        if node is None or node.op_type in {"Constant", "ConstantOfShape"} | _RANDOM:
            return True
        operands = self._behind(value, node, ELEMENTWISE | _SCHEDULES)
        return operands is not None and (yield from _for_all(operands))

    def _behind(self, value: Value, node: NodeProto, ops: Set[str]) -> list[Value] | None:
        """What a function, an If or one of these ops makes it of; None if another op makes it."""
        insides = self.flow.inside(value)
        if not insides and node.op_type not in ops:
            return None
        operands = insides or self.flow.operands(value)
        return operands[:1] if node.op_type in ALIASES else operands

    def is_made_of(self, value: Value, only: Value) -> bool:
        """Whether elementwise ops compute `value` from `only`, noise and free numbers, as decay."""

        def behind(at: Value) -> list[Value] | None:
            node = at.node
            if at == only or (node is not None and node.op_type in _RANDOM):
                return []
            if node is None or node.op_type not in ELEMENTWISE:
                return None
            operands = [
                x
                for x in self.flow.operands(at)
                if x == only or not (self.is_single(x) and self.is_free(x))
            ]
            return operands[: 1 if node.op_type in ALIASES else None] or None

        return every_way_ends_well(value, behind)

    def leaves(self, value: Value) -> set[Value]:
        """The inputs, initializers and results of other ops that elementwise ops compute it of."""
        found: set[Value] = set()
        todo = [value]
        seen = {value}
        for at in todo:  # grows while it is read
            node = at.node
            if node is None or node.op_type not in ELEMENTWISE | _SCHEDULES:
                found.add(at)
                continue
            operands = self.flow.operands(at)
            new = [x for x in operands[: 1 if node.op_type in ALIASES else None] if x not in seen]
            seen.update(new)
            todo += new
        return found

    def number(self, value: Value | None) -> float | None:
        """The number that a one-element constant holds, if it is one and lies in the model."""
        if value is None:
            return None
        tensor = value.frame.scope.initializers.get(value.name)
        node = value.node
        if tensor is not None and value.name not in value.frame.scope.inputs:
            return _number(tensor)
        if node is None:
            return None
        if node.op_type == "Constant":
            return constant_of(node)
        if node.op_type in ALIASES:
            return self.number(self.flow.operand(value, 0))
        return None

    def choices(self, value: Value) -> list[Value]:
        """What a Where or an If chooses from, without what a test of two constants rules out."""
        insides = self.flow.inside(value)
        if insides:
            return insides
        test, *choices = self.flow.operands(value)
        compare = None if test.node is None else _COMPARISONS.get(test.node.op_type)
        numbers = [self.number(x) for x in self.flow.operands(test)] if compare else []
        a, b = numbers if len(numbers) == 2 else (None, None)
        if compare is None or a is None or b is None:
            return choices
        return choices[:1] if compare(a, b) else choices[1:]

    # -- one step back -------------------------------------------------------------------------

    def aliased(self, value: Value) -> Value | None:
        """The value behind an Identity, a Cast, a Reshape or the output of a function."""
        node = value.node
        if node is None:
            return None
        insides = self.flow.inside(value)
        if insides:
            return insides[0] if len(insides) == 1 else None
        return self.flow.operand(value, 0) if node.op_type in ALIASES else None

    def behind_aliases(self, value: Value) -> Value:
        """The value at the end of a chain of aliases."""
        for _ in range(MAX_STEPS):
            inner = self.aliased(value)
            if inner is None:
                break
            value = inner
        return value

    def scaled(self, value: Value) -> tuple[Value, Value | None] | None:
        """For x * s, s * x, x / s or -x with a one-element s: (x, s); s is None for -x."""
        node = value.node
        if node is None:
            return None
        if node.op_type == "Neg":
            inner = self.flow.operand(value, 0)
            return None if inner is None else (inner, None)
        if node.op_type not in ("Mul", "Div") or len(node.input) != 2:
            return None
        a, b = self.flow.operand(value, 0), self.flow.operand(value, 1)
        if a is None or b is None:
            return None
        if node.op_type == "Mul" and self.is_single(a):
            is_b = self.is_single(b) and self._is_rather_a_factor(b, a)
            return (a, b) if is_b else (b, a)
        return (a, b) if self.is_single(b) else None

    def _is_rather_a_factor(self, b: Value, a: Value) -> bool:
        """Whether of two single numbers b is the factor: a constant, or at least free; or last."""
        ranks = [(self.number(x) is not None, self.is_free(x)) for x in (a, b)]
        return ranks[1] >= ranks[0]

    def is_zero(self, value: Value) -> bool:
        """Whether the value is surely nothing but zeros."""
        node = value.node
        if node is not None and node.op_type == "ConstantOfShape":
            fill = attribute(node, "value")
            return fill is None or _number(fill.t) == 0
        if node is not None and node.op_type == "Mul":
            return any(self.number(x) == 0 for x in self.flow.operands(value))
        if node is not None and node.op_type == "Expand":
            return self.number(self.flow.operand(value, 0)) == 0
        return self.number(value) == 0


def worked_out(
    value: Value,
    known: dict[Value, Known],
    work: Callable[[Value], Generator[Value, Known, Known]],
) -> Known:
    """What `work` returns for a value, where it asks for that of others by yielding them.

    As by recursion, but as deep as graphs are. What is found is kept in `known`.
    """
    waiting = [] if value in known else [(value, work(value))]
    answer: Any = None
    while waiting:
        at, search = waiting[-1]
        try:
            asked = search.send(answer)
        except StopIteration as done:
            answer = known[at] = done.value
            waiting.pop()
            continue
        answer = known.get(asked)
        if asked not in known:
            waiting.append((asked, work(asked)))
    return known[value]


def _for_all(values: Iterable[Value]) -> Generator[Value, bool, bool]:
    """For `worked_out`: whether the answer is yes for each of them."""
    for value in values:
        if not (yield value):
            return False
    return True


def every_way_ends_well(value: Value, behind: Callable[[Value], list[Value] | None]) -> bool:
    """Whether no way back from a value ends badly.

    `behind` gives what a value is to be followed to: nothing where a way ends well, None where it
    ends badly.
    """
    todo = [value]
    seen = {value}
    for at in todo:  # grows while it is read
        found = behind(at)
        if found is None:
            return False
        new = [x for x in found if x not in seen]
        seen.update(new)
        todo += new
    return True


def constant_of(node: NodeProto) -> float | None:
    """The one number that a Constant node holds; None if it holds none or more."""
    for attr in node.attribute:
        if attr.name == "value":
            return _number(attr.t)
        if attr.name == "value_float":
            return attr.f
        if attr.name == "value_int":
            return float(attr.i)
    return None


def _number(tensor: TensorProto) -> float | None:
    if any(d != 1 for d in tensor.dims) or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        return float(numpy_helper.to_array(tensor).reshape(()))
    except (TypeError, ValueError):
        return None
