"""The arithmetic around a gradient: what is only scaling, decay or clipping of it.

One parameter has one gradient: after the sums over its uses and micro-batches, averaging and
unscaling; before weight decay, moments and any clipping that the graph has already. `raw_gradient`
walks from what an optimizer is given back to that value.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto, numpy_helper

from onnx_clip_pass.graph import Flow, Frame, Value, attribute

__all__ = ["ELEMENTWISE", "Arithmetic"]

ALIASES = {"Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze"}
"""Ops whose result is their first input, but for its type or the way its dimensions are cut."""

ELEMENTWISE = ALIASES | {
    "Abs", "Add", "Clip", "Div", "Max", "Mean", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sign",
    "Sqrt", "Square", "Sub", "Sum", "Where",
}  # fmt: skip
"""Ops that optimizers are written with: one element of the result needs one of each operand."""

_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare",
}  # fmt: skip
_SCHEDULES = {"Ceil", "Cos", "Exp", "Floor", "Log", "Mod", "Sin"}
"""Ops that learning rates and coefficients are computed with."""

_NORM_OPS = ELEMENTWISE | _REDUCTIONS | {
    "And", "Concat", "Equal", "Exp", "Flatten", "Greater", "GreaterOrEqual", "IsInf", "IsNaN",
    "Less", "LessOrEqual", "Log", "Not", "Or",
}  # fmt: skip
"""Ops that a norm, a coefficient of clipping or a test for overflow is written with."""

_MAX_STEPS = 1000
_MAX_DEPTH = 200  # of an expression; a backward pass can be a far longer chain of additions


class Arithmetic:
    """Questions about values, answered from a `Flow` and remembered."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._single: dict[Value, bool] = {}
        self._free: dict[Value, bool] = {}
        self._measured: dict[Value, set[Value]] = {}

    # -- what kind of value --------------------------------------------------------------------

    def is_single(self, value: Value, depth: int = 0) -> bool:
        """Whether the value surely has one element: a learning rate, a norm, a coefficient."""
        if value not in self._single:
            self._single[value] = False  # while it is being worked out, and in cycles
            self._single[value] = depth < _MAX_DEPTH and self._is_single(value, depth + 1)
        return self._single[value]

    def _is_single(self, value: Value, depth: int) -> bool:
        known = value.type
        if known is not None and known.shape is not None:
            return known.is_single
        node = value.node
        if node is None:
            return False
        if node.op_type == "Constant":
            return constant_of(node) is not None
        if node.op_type in _REDUCTIONS:
            return attribute(node, "axes") is None and len(node.input) < 2
        if node.op_type == "Gather":  # a learning rate from a table
            table, at = self.flow.operand(value, 0), self.flow.operand(value, 1)
            shape = None if table is None or table.type is None else table.type.shape
            return shape is not None and len(shape) == 1 and at is not None and self.is_single(at)
        insides = self.flow.inside(value)
        if not insides and node.op_type not in (_NORM_OPS | _SCHEDULES) - {"Concat", "Flatten"}:
            return False
        operands = insides or self.flow.operands(value)
        if node.op_type in ALIASES:
            operands = operands[:1]
        return bool(operands) and all(self.is_single(x, depth) for x in operands)

    def is_free(self, value: Value, depth: int = 0) -> bool:
        """Whether elementwise ops alone compute it from inputs and initializers.

        Parameters, moments and decay terms are free; what a backward pass computes is not, since
        it has matrix products and reductions in it.
        """
        if value not in self._free:
            self._free[value] = False
            self._free[value] = depth < _MAX_DEPTH and self._is_free(value, depth + 1)
        return self._free[value]

    def _is_free(self, value: Value, depth: int) -> bool:
        node = value.node
        if node is None or node.op_type in ("Constant", "ConstantOfShape"):
            return True
        insides = self.flow.inside(value)
        if not insides and node.op_type not in ELEMENTWISE | _SCHEDULES:
            return False
        operands = insides or self.flow.operands(value)
        if node.op_type in ALIASES:
            operands = operands[:1]
        return all(self.is_free(x, depth) for x in operands)

    def is_made_of(self, value: Value, only: Value, depth: int = 0) -> bool:
        """Whether elementwise ops compute `value` from `only` and free numbers, as decay is."""
        if value == only:
            return True
        node = value.node
        if node is None or depth > _MAX_DEPTH or node.op_type not in ELEMENTWISE:
            return False
        operands = [
            x
            for x in self.flow.operands(value)
            if x == only or not (self.is_single(x) and self.is_free(x))
        ]
        if node.op_type in ALIASES:
            operands = operands[:1]
        return bool(operands) and all(self.is_made_of(x, only, depth + 1) for x in operands)

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
        for _ in range(_MAX_STEPS):
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

    def raw_gradient(self, value: Value, parameter: Value | None) -> Value:
        """The gradient behind weight decay and clipping; `value` itself if there is neither.

        Stripped, one after the other, as long as one of them is found:

        1. a term computed by elementwise ops from the parameter alone: weight decay;
        2. Clip, or Min and Max with constants: clipping by value;
        3. a factor or divisor that is itself computed from the gradient, and has one element or is
           all norms along axes: clipping by a norm, of this gradient, of its rows or of all; with
           it whatever other factors stand between the two, as in g * limit / max(norm(g), limit);
        4. a choice (Where, If) between the gradient and something computed from it, or zeros, by
           one flag or a test of the gradient (a ReLU chooses by another mask); but a gradient that
           a branch of an If computes is what the If hands out;
        5. Split or Slice of a Concat, with the above between them or not: the gradients clipped as
           one vector. What was joined where the segment begins is what counts, before flattening.

        Aliases are looked through on the way, but the last value of a chain is what counts.
        """
        for _ in range(_MAX_STEPS):
            inner = self._behind_modifier(self.behind_aliases(value), parameter)
            if inner is None:
                break
            value = inner
        return value

    def _behind_modifier(self, value: Value, parameter: Value | None) -> Value | None:
        node = value.node
        if node is None:
            return None
        operands = self.flow.operands(value)
        if node.op_type in ("Add", "Sum", "Sub") and parameter is not None:  # 1
            return self.behind_decay(value, parameter)
        if node.op_type == "Clip":  # 2
            return operands[0] if operands else None
        if node.op_type in ("Min", "Max"):
            carriers = [x for x in operands if not self.is_single(x)]
            if len(carriers) == 1 and len(operands) > 1:
                return carriers[0]
        if node.op_type in ("Mul", "Div"):  # 3
            return self.behind_norm(value)
        if node.op_type == "Where" and len(operands) == 3:  # 4
            chosen = self._chosen(operands[1:])
            return chosen if self._is_test_of(operands[0], chosen) else None
        if node.op_type == "If":
            chosen = self._chosen(self.flow.inside(value))
            return None if chosen is None or self._is_within(chosen, value) else chosen
        if node.op_type in ("Split", "Slice"):  # 5
            return self._joined(value)
        return None

    def behind_decay(self, value: Value, parameter: Value) -> Value | None:
        """The one term of a sum that is not made of the parameter alone."""
        node, operands = value.node, self.flow.operands(value)
        if node is None or node.op_type not in ("Add", "Sum", "Sub") or len(operands) < 2:
            return None
        carriers = [x for x in operands if not self.is_made_of(x, parameter)]
        if len(carriers) != 1 or (node.op_type == "Sub" and carriers[0] != operands[0]):
            return None
        return carriers[0]

    def behind_norm(self, value: Value) -> Value | None:
        """The value behind a factor that measures it, see `raw_gradient`, rule 3."""
        parts = self.scaled(value) or self._scaled_by_rows(value)
        if parts is None or parts[1] is None:
            return None
        inner: Value | None = parts[0]
        while inner is not None:
            if self._depends_on(parts[1], self.behind_aliases(inner)):
                return inner
            further = self.scaled(self.behind_aliases(inner))
            inner = None if further is None else further[0]
        return None

    def _scaled_by_rows(self, value: Value) -> tuple[Value, Value] | None:
        """For x * s, s * x, x / s with an s that is made of norms along axes: (x, s)."""
        node, operands = value.node, self.flow.operands(value)
        if node is None or len(operands) != 2:
            return None
        a, b = operands
        if self._is_reduced(b):
            return a, b
        return (b, a) if node.op_type == "Mul" and self._is_reduced(a) else None

    def _is_reduced(self, value: Value, depth: int = 0) -> bool:
        """Whether reductions stand between `value` and all that has more than one element."""
        node = value.node
        if self.is_single(value):
            return True
        if node is None or depth > _MAX_DEPTH:
            return False
        if node.op_type in _REDUCTIONS:
            return True
        operands = self.flow.operands(value)
        if node.op_type in ALIASES:
            operands = operands[:1]
        return (
            node.op_type in _NORM_OPS - {"Concat", "Flatten"}
            and bool(operands)
            and all(self._is_reduced(x, depth + 1) for x in operands)
        )

    def _joined(self, value: Value) -> Value | None:
        """The operand of the Concat behind a Split or Slice that is the same segment of it."""
        node, whole = value.node, self.flow.operand(value, 0)
        concat = None if whole is None else self.behind_aliases(self.raw_gradient(whole, None))
        if node is None or concat is None or concat.node is None or concat.node.op_type != "Concat":
            return None
        segments = self.flow.operands(concat)
        if node.op_type == "Split":
            number = value.frame.scope.producers[value.name][1]
            found = segments[number] if len(segments) == len(node.output) else None
        else:
            start = self.number(self.flow.operand(value, 1))
            found = next((x for x, at in self._offsets(segments) if at == start), None)
        if found is None:
            return None
        ours, theirs = (self.flow.index.inferred(x.frame.scope, x.name) for x in (value, found))
        if not ours.agrees_with(theirs):
            return None
        is_flattened = found.node is not None and found.node.op_type in ("Reshape", "Flatten")
        return self.flow.operand(found, 0) if is_flattened else found

    def _offsets(self, segments: list[Value]) -> Iterator[tuple[Value, int]]:
        """Where each of the vectors begins when they are joined, as long as sizes are known."""
        at = 0
        for segment in segments:
            yield segment, at
            shape = self.flow.index.inferred(segment.frame.scope, segment.name).shape
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
                return
            at += shape[0]

    def _chosen(self, choices: list[Value]) -> Value | None:
        if len(choices) != 2:
            return None
        a, b = (self.behind_aliases(choice) for choice in choices)
        if self.is_zero(a) or self._depends_on(a, b):
            return choices[1]
        if self.is_zero(b) or self._depends_on(b, a):
            return choices[0]
        return None

    def _is_test_of(self, condition: Value, chosen: Value | None) -> bool:
        if chosen is None or self.is_single(condition):
            return chosen is not None
        return self._depends_on(condition, self.behind_aliases(chosen))

    def _is_within(self, choice: Value, made: Value) -> bool:
        """Whether a branch of the If that makes `made` computes the choice itself."""
        own = self.behind_aliases(choice).frame
        at: Frame | None = made.frame
        while at is not None and at is not own:
            at = at.caller
        return at is None

    def is_zero(self, value: Value) -> bool:
        """Whether the value is surely nothing but zeros."""
        node = value.node
        if node is not None and node.op_type == "ConstantOfShape":
            fill = attribute(node, "value")
            return fill is None or _number(fill.t) == 0
        if node is not None and node.op_type == "Mul":
            return any(self.number(x) == 0 for x in self.flow.operands(value))
        return self.number(value) == 0

    def _depends_on(self, value: Value, source: Value) -> bool:
        """Whether `value` measures `source`: norms, tests, elementwise ops lead from it there.

        A number that is handed in, such as a learning rate, is nothing to be measured.
        """
        if value not in self._measured:
            seen = {value}
            todo = [value]
            while todo:
                at = todo.pop()
                node = at.node
                insides = self.flow.inside(at)
                if node is None or not (insides or node.op_type in _NORM_OPS):
                    continue
                for operand in insides or self.flow.operands(at):
                    if operand not in seen:
                        seen.add(operand)
                        todo.append(operand)
            self._measured[value] = seen
        is_measured = source.node is not None or not self.is_single(source)
        return is_measured and source in self._measured[value]


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
