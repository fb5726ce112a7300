"""The arithmetic around a gradient: what is only scaling, decay or clipping of it.

One parameter has one gradient: after the sums over its uses and micro-batches, averaging and
unscaling; before weight decay, moments and any clipping that the graph has already. `raw_gradient`
walks from what an optimizer is given back to that value.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx_clip_pass.gradients.expressions import (
    ALIASES,
    ELEMENTWISE,
    MAX_STEPS,
    NORM_OPS,
    REDUCTIONS,
    RESHAPERS,
    Expressions,
    every_way_ends_well,
)
from onnx_clip_pass.graph import BY_NAME, OUTPUT, Flow, Frame, Value

__all__ = ["Arithmetic"]


class Arithmetic(Expressions):
    """Questions about gradients, answered from a `Flow` and remembered."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        self._measured: dict[Value, set[Value]] = {}

    def raw_gradient(self, value: Value, parameter: Value | None) -> Value:
        """The gradient behind weight decay and clipping; `value` itself if there is neither.

        Stripped, one after the other, as long as one of them is found:

        1. a term computed by elementwise ops from the parameter alone, or noise: weight decay;
        2. Clip, or Min and Max with constants: clipping by value;
        3. a factor or divisor that is itself computed from the gradient, and has one element or is
           all norms along axes: clipping by a norm, of this gradient, of its rows or of all; with
           it whatever other factors stand between the two, as in g * limit / max(norm(g), limit);
        4. a choice (Where, If) between the gradient and something computed from it, or zeros, by
           one flag or a test of the gradient (a ReLU chooses by another mask); but a gradient that
           a branch of an If computes is what the If hands out;
        5. Split or Slice of a Concat, with the above between them or not: the gradients clipped as
           one vector. What was joined where the segment begins is what counts, before flattening;
        6. a power of one: a moment of order one;
        7. the mean along axes that is taken off it, unless the net takes means of the parameter:
           centring.

        Aliases are looked through on the way, but the last value of a chain is what counts.
        """
        for _ in range(MAX_STEPS):
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
        if node.op_type in ("Add", "Sum", "Sub") and parameter is not None:  # 1, 7
            centred = self._centred(value, parameter)
            return self.behind_decay(value, parameter) if centred is None else centred
        if node.op_type == "Clip":  # 2
            return operands[0] if operands else None
        if node.op_type in ("Min", "Max"):
            carriers = [x for x in operands if not self.is_single(x)]
            if len(carriers) == 1 and len(operands) > 1:
                return carriers[0]
        if node.op_type in ("Mul", "Div"):  # 3
            return self.behind_norm(value)
        if node.op_type == "Where" and len(operands) == 3:  # 4
            chosen = self.chosen(operands[1:])
            return chosen if self._is_test_of(operands[0], chosen) else None
        if node.op_type == "If":
            chosen = self.chosen(self.flow.inside(value))
            return None if chosen is None or self._is_within(chosen, value) else chosen
        if node.op_type in ("Split", "Slice"):  # 5
            return self._joined(value)
        if node.op_type == "Pow" and self.number(operands[-1]) == 1:  # 6
            return operands[0]
        return None

    def behind_decay(self, value: Value, parameter: Value) -> Value | None:
        """The one term of a sum that is not made of the parameter or noise alone."""
        node, operands = value.node, self.flow.operands(value)
        if node is None or node.op_type not in ("Add", "Sum", "Sub") or len(operands) < 2:
            return None
        carriers = [x for x in operands if not self.is_made_of(x, parameter)]
        if len(carriers) != 1 or (node.op_type == "Sub" and carriers[0] != operands[0]):
            return None
        return carriers[0]

    def _centred(self, value: Value, parameter: Value) -> Value | None:
        """The g of g - mean(g), see `raw_gradient`, rule 7."""
        node, operands = value.node, self.flow.operands(value)
        if node is None or node.op_type != "Sub" or len(operands) != 2:
            return None
        mean = self._behind_expansion(operands[1])
        parts = self.scaled(mean)
        mean = mean if parts is None else self._behind_expansion(parts[0])
        if mean.node is None or mean.node.op_type != ("ReduceSum" if parts else "ReduceMean"):
            return None
        of = self.flow.operand(mean, 0)
        is_same = of is not None and self.behind_aliases(of) == self.behind_aliases(operands[0])
        return operands[0] if is_same and not self._is_averaged(parameter) else None

    def _behind_expansion(self, value: Value) -> Value:
        value = self.behind_aliases(value)
        while value.node is not None and value.node.op_type == "Expand":
            inner = self.flow.operand(value, 0)
            if inner is None:
                break
            value = self.behind_aliases(inner)
        return value

    def _is_averaged(self, parameter: Value) -> bool:
        """Whether elementwise ops lead from a parameter to a mean along axes, as far as known."""
        todo = [parameter]
        seen = set(todo)
        for at in todo:  # grows while it is read
            for read in self.flow.index.readers_of(at.frame.scope, at.name):
                frame = self.flow.frame_in(at.frame, read.scope)
                if frame is None or read.node == OUTPUT or read.slot == BY_NAME:
                    continue
                node = frame.scope.nodes[read.node]
                made = {Value(frame, name) for name in node.output if name} - seen
                if node.op_type in ELEMENTWISE:
                    seen |= made
                    todo += made
                elif node.op_type in ("ReduceMean", "ReduceSum"):
                    if not all(self.is_single(x) for x in made):
                        return True
                elif self.flow.index.function_of(node) is not None:
                    return True
        return False

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

    def _is_reduced(self, value: Value) -> bool:
        """Whether reductions stand between `value` and all that has more than one element."""

        def behind(at: Value) -> list[Value] | None:
            node = at.node
            if self.is_single(at) or (node is not None and node.op_type in REDUCTIONS):
                return []
            if node is None or node.op_type not in NORM_OPS - RESHAPERS | {"Expand"}:
                return None
            passes_on = node.op_type in ALIASES | {"Expand"}
            return self.flow.operands(at)[: 1 if passes_on else None] or None

        return every_way_ends_well(value, behind)

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

    def chosen(self, choices: list[Value]) -> Value | None:
        """Of two values the one that the other is computed from, or beside zeros."""
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
                if node is None or not (insides or node.op_type in NORM_OPS):
                    continue
                for operand in insides or self.flow.operands(at):
                    if operand not in seen:
                        seen.add(operand)
                        todo.append(operand)
            self._measured[value] = seen
        is_measured = source.node is not None or not self.is_single(source)
        return is_measured and source in self._measured[value]
