"""Gradients known by an update in the graph: a parameter minus something times the gradient.

A *step* is a root (an input, an initializer, what a loop carries) with something added to it or
taken from it: `W - lr * g`, but also a moment `mu * m + g`, a running average, the residual of a
prediction. Structure tells which of them update parameters and which value is the gradient; the
rules are those of `Steps.find`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from onnx_clip_pass.gradients.arithmetic import ELEMENTWISE, Arithmetic
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.naming import is_named_after, parameter_names
from onnx_clip_pass.graph import Flow, TensorType, Value

__all__ = ["Step", "Steps"]

_MAX_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Step:
    """`value` is `base`, scaled or not, plus or minus `terms`; `root` is where `base` began."""

    value: Value
    root: Value
    base: Value
    terms: tuple[Value, ...]
    is_difference: bool
    is_base_scaled: bool


class Steps:
    """All steps of a model, and the gradients that they show."""

    def __init__(self, flow: Flow, arithmetic: Arithmetic) -> None:
        self.flow = flow
        self.arithmetic = arithmetic
        self.steps: dict[Value, Step] = {}
        self._root: dict[Value, Value | None] = {}
        self._outputs = [
            self.flow.canonical(value)
            for frame in flow.frames()
            for name in frame.scope.outputs
            if name and (value := flow.resolve(frame, name)) is not None
        ]
        for value in self._outputs:
            self._root_of(value)
        self._reported = self._ancestors_of_reports()
        self.parameters, self._only_lessened = self._find_parameters()

    def find(self) -> list[Found]:
        """The gradient of each step that updates a parameter.

        1. A root is a parameter if an output that is no step is computed from it, or an op other
           than optimizer arithmetic reads it, or it is lessened: `W - …` with factor 1. Moments
           and averages are none of this.
        2. Where steps of other roots (moments) go into the terms, the gradient is what those
           take up. Else it is what remains of the term when one factor, the learning rate, is
           taken off; a term without a factor is no update.
        3. A gradient is not computed by elementwise ops alone, unless it is itself an input or
           initializer named after the parameter, or the only one in a term without moments; nor,
           if only a difference shows the parameter, its distance from something (an average).
        4. What a reported value, such as the loss, is computed from is no gradient, unless it is
           an input or initializer.
        5. The gradient is the value before decay and clipping, see `Arithmetic.raw_gradient`.
        """
        found = []
        for step in list(self.steps.values()):
            if step.root in self.parameters:
                gradient = self._gradient_of(step)
                if gradient is not None:
                    name = self.flow.root_name(step.root)
                    evidence = f"updates {name} to {step.value.name}"
                    found.append(Found(gradient, step.root, name, evidence, self._sink(step)))
        return found

    def updates(self) -> set[Value]:
        """The new values of parameters: where the backward pass of a step ends."""
        return {step.value for step in self.steps.values() if step.root in self.parameters}

    # -- steps ---------------------------------------------------------------------------------

    def _root_of(self, value: Value, depth: int = 0) -> Value | None:
        """The root that additions and scalings lead back to; notes the steps on the way."""
        if value not in self._root:
            self._root[value] = None
            if depth < _MAX_DEPTH:
                self._root[value] = self._find_root(value, depth + 1)
        return self._root[value]

    def _find_root(self, value: Value, depth: int) -> Value | None:
        node = value.node
        if node is None:
            known = value.type
            return value if known is not None and known.is_floating else None
        if node.op_type in ("Add", "Sub", "Sum"):
            return self._root_of_sum(value, node.op_type == "Sub", depth)
        parts = self.arithmetic.scaled(value)
        if parts is not None:
            return self._root_of(parts[0], depth)
        inner = self.arithmetic.aliased(value)
        if inner is not None:
            return self._root_of(inner, depth)
        if node.op_type in ("Where", "If"):  # an update that is skipped when something overflows
            choices = self.flow.inside(value) or self.flow.operands(value)[1:]
            roots = {self._root_of(choice, depth) for choice in choices}
            return roots.pop() if len(roots) == 1 else None
        return None

    def _root_of_sum(self, value: Value, is_difference: bool, depth: int) -> Value | None:
        operands = self.flow.operands(value)
        if len(operands) < 2:
            return None
        carried = [x for x in operands[: 1 if is_difference else None] if self._root_of(x, depth)]
        for narrower in (
            lambda x: not self._is_gradient_name(x),
            self.arithmetic.is_free,
            lambda x: not self._is_scaled(x),
        ):
            if len(carried) > 1:
                carried = [x for x in carried if narrower(x)] or carried
        if len(carried) != 1:
            return None
        base = carried[0]
        root = self._root_of(base, depth)
        if root is None or not _same_shape(value.type, root.type):
            return None
        terms = list(operands)
        terms.remove(base)
        self.steps[value] = Step(
            value, root, base, tuple(terms), is_difference, self._is_scaled(base)
        )
        return root

    def _is_scaled(self, value: Value) -> bool:
        """Whether a factor lies between `value` and the root or step behind it."""
        return self.arithmetic.scaled(self.arithmetic.behind_aliases(value)) is not None

    def _is_gradient_name(self, value: Value) -> bool:
        """Whether an input or initializer behind `value` is named after another one."""
        root = value
        while (parts := self.arithmetic.scaled(self.arithmetic.behind_aliases(root))) is not None:
            root = parts[0]
        root = self.arithmetic.behind_aliases(root)
        scope = root.frame.scope
        return root.node is None and any(
            name in scope.names and name not in scope.producers
            for name in parameter_names(root.name)
        )

    # -- parameters ----------------------------------------------------------------------------

    def _ancestors_of_reports(self) -> set[Value]:
        reports = [
            value
            for value in self._outputs
            if value.frame.caller is None
            and self.arithmetic.behind_aliases(value) not in self.steps
            and value not in self.steps
        ]
        seen, _ = self.flow.ancestors(
            (value for value in reports if not self._root.get(value)), self.steps.__contains__
        )
        return seen

    def _find_parameters(self) -> tuple[set[Value], set[Value]]:
        """The roots that are parameters, and those of them that only a difference shows."""
        roots = {step.root for step in self.steps.values()}
        region = self._region()
        readers: dict[Value, list[Value]] = defaultdict(list)
        for frame in self.flow.frames() if roots else ():
            for node in frame.scope.nodes:
                made = next((name for name in node.output if name), None)
                if made is None or self.flow.index.function_of(node) is not None:
                    continue
                for name in node.input:
                    source = self.flow.resolve(frame, name) if name else None
                    if source is not None:
                        readers[self.flow.canonical(source)].append(Value(frame, made))
        used = {
            root
            for root in roots
            if root in self._reported or any(reader not in region for reader in readers[root])
        }
        lessened = {
            step.root
            for step in self.steps.values()
            if step.is_difference and not step.is_base_scaled
        }
        return used | lessened, lessened - used

    def _region(self) -> set[Value]:
        """What elementwise ops compute on the way to the steps: the optimizer's arithmetic."""
        todo = list(self.steps)
        seen = set(todo)
        while todo:
            at = todo.pop()
            node = at.node
            insides = self.flow.inside(at)
            if node is None or not (insides or node.op_type in ELEMENTWISE):
                seen.discard(at)
                continue
            for operand in insides or self.flow.operands(at):
                if operand not in seen:
                    seen.add(operand)
                    todo.append(operand)
        return seen

    # -- the gradient of a step ----------------------------------------------------------------

    def _gradient_of(self, step: Step) -> Value | None:
        term = self._carrier(step.terms)
        if term is None:
            return None
        moments = self._moments_in(term, step)
        if moments:
            candidates = [
                x for moment in moments if (x := self._taken_up(moment, step)) is not None
            ]
            gradient = candidates[0] if candidates else None
        else:
            gradient = self._without_rate(term, step)
            if gradient is not None:
                gradient = self.arithmetic.raw_gradient(gradient, step.base)
        if gradient is None or not _same_shape(gradient.type, step.root.type):
            return None
        if gradient.node is None:
            return gradient if self._is_input_gradient(gradient, step, bool(moments)) else None
        if step.root in self._only_lessened and self._root_of(gradient) == step.root:
            return None
        if gradient in self._reported:
            return None
        return None if self.arithmetic.is_free(gradient) else gradient

    def _sink(self, step: Step) -> Sink:
        frame = step.value.frame
        number, _ = frame.scope.producers[step.value.name]
        base = self.flow.operands(step.value).index(step.base)
        return Sink(frame, number, 1 - base if base < 2 else 0)

    def _carrier(self, terms: tuple[Value, ...]) -> Value | None:
        """The one term that is more than decay; if all are elementwise, the one that there is."""
        carriers = [term for term in terms if not self.arithmetic.is_free(term)] or list(terms)
        return carriers[0] if len(carriers) == 1 else None

    def _moments_in(self, term: Value, step: Step) -> list[Step]:
        """Steps of other roots that elementwise ops lead to from `term`, nearest first."""
        todo = [term]
        seen = set(todo)
        found = []
        for at in todo:  # grows while it is read
            inner = self.steps.get(at)
            if inner is not None and inner.root != step.root:
                if inner.root not in self.parameters:
                    found.append(inner)
                continue
            node = at.node
            insides = self.flow.inside(at)
            if node is None or at == step.base or not (insides or node.op_type in ELEMENTWISE):
                continue
            for operand in insides or self.flow.operands(at):
                if operand not in seen:
                    seen.add(operand)
                    todo.append(operand)
        return found

    def _taken_up(self, moment: Step, step: Step) -> Value | None:
        """The gradient that a moment takes up: what is added, without its coefficient."""
        term = self._carrier(moment.terms)
        if term is None:
            return None
        inner = self.steps.get(term)
        if inner is not None and inner.root not in (moment.root, step.root):
            return self._taken_up(inner, step)
        scaled = self.arithmetic.scaled(term)
        if scaled is not None and (
            moment.is_difference or self._is_complement(scaled[1], moment) or scaled[1] is None
        ):
            term = scaled[0]
        return self.arithmetic.raw_gradient(self._unsquared(term), step.base)

    def _is_complement(self, coefficient: Value | None, moment: Step) -> bool:
        """Whether a coefficient is one minus that of the moment, as in b * m + (1 - b) * g."""
        base = self.arithmetic.scaled(self.arithmetic.behind_aliases(moment.base))
        if coefficient is None or base is None or base[1] is None:
            return False
        ours, theirs = self.arithmetic.number(coefficient), self.arithmetic.number(base[1])
        if ours is not None and theirs is not None:
            return abs(ours + theirs - 1) < 1e-5  # both are rounded to the model's dtype
        node = coefficient.node
        if node is None or node.op_type != "Sub":
            return False
        one, other = self.flow.operand(coefficient, 0), self.flow.operand(coefficient, 1)
        return self.arithmetic.number(one) == 1 and other == base[1]

    def _unsquared(self, term: Value) -> Value:
        """x behind x * x, x ** 2, (c * x) * x: what a second moment averages."""
        node = term.node
        operands = self.flow.operands(term)
        if node is None or len(operands) != 2:
            return term
        if node.op_type == "Pow" and self.arithmetic.number(operands[1]) == 2:
            return operands[0]
        if node.op_type == "Mul":
            a, b = operands
            if a == b:
                return a
            for one, other in ((a, b), (b, a)):
                scaled = self.arithmetic.scaled(one)
                if scaled is not None and scaled[0] == other:
                    return other
        return term

    def _without_rate(self, term: Value, step: Step) -> Value | None:
        """The term without the learning rate: one factor, and a sign if there is one."""
        name = self.flow.root_name(step.root)
        for _ in range(_MAX_DEPTH):
            if is_named_after(term.name, name):
                return term
            scaled = self.arithmetic.scaled(term)
            if scaled is not None and scaled[1] is not None:
                return self._unsigned(scaled[0])
            inner = scaled[0] if scaled is not None else self.arithmetic.aliased(term)
            if inner is None:
                return None
            term = inner
        return None

    def _unsigned(self, term: Value) -> Value:
        node = term.node
        if node is not None and node.op_type in ("Sign", "Neg"):
            return self.flow.operand(term, 0) or term
        return term

    def _is_input_gradient(self, gradient: Value, step: Step, has_moments: bool) -> bool:
        if is_named_after(gradient.name, self.flow.root_name(step.root)):
            return True
        return not has_moments and not any(
            gradient in (other.root, step.base) for other in self.steps.values()
        )


def _same_shape(a: TensorType | None, b: TensorType | None) -> bool:
    return a is not None and b is not None and a.agrees_with(b)
