"""Steps: what a graph hands on with something added to it, and which of them update parameters.

A *step* is a root (an input, an initializer, what a loop carries) with something added to it or
taken from it: `W - lr * g`, but also a moment `mu * m + g`, a running average, the residual of a
prediction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass

from onnx_clip_pass.gradients.arithmetic import Arithmetic
from onnx_clip_pass.gradients.expressions import ELEMENTWISE, worked_out
from onnx_clip_pass.gradients.naming import parameter_names
from onnx_clip_pass.graph import Flow, TensorType, Value

__all__ = ["Step", "Steps", "same_shape"]

_Search = Generator[Value, Value | None, Value | None]


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
    """All steps of a model.

    A root is one of the `parameters` if an output that is no step is computed from it, or an op
    other than optimizer arithmetic reads it, or it is lessened: `W - …` with factor 1. Moments and
    averages are none of this: what goes into the step of another root, is mixed with something in
    shares that add up to 1, or moved by its distance from something.
    """

    def __init__(self, flow: Flow, arithmetic: Arithmetic) -> None:
        self.flow = flow
        self.arithmetic = arithmetic
        self.steps: dict[Value, Step] = {}
        self._root: dict[Value, Value | None] = {}
        self._divisors: dict[Value, Value] = {}
        self._outputs = [
            self.flow.canonical(value)
            for frame in flow.frames()
            for name in frame.scope.outputs
            if name and (value := flow.resolve(frame, name)) is not None
        ]
        for value in self._outputs:
            self.root_of(value)
        self.ends: set[Value] = set()
        self.parameters: set[Value] = set()
        self.only_lessened: set[Value] = set()
        self.moments: set[Value] = set()
        self.states: set[Value] = set()
        self.handed_out: list[Step] = []
        self.reports: list[Value] = []
        self.reported: set[Value] = set()
        self._handed_on: set[Value] = set()
        if self.steps:
            self._tell_apart()

    def _tell_apart(self) -> None:
        """Which of the steps are handed out, and which of their roots are parameters."""
        self._handed_on = self._on_the_way()
        self.handed_out = [step for step in self.steps.values() if step.value in self._handed_on]
        self.ends |= {step.value for step in self.handed_out}
        self.states = {step.root for step in self.handed_out}
        self.reports = self._find_reports()
        self.reported, _ = self.flow.ancestors(self.reports, self.ends.__contains__)
        self.moments |= {
            moment.root
            for step in self.handed_out
            for term in step.terms
            if not self.is_average(term, step)
            for moment in self.moments_in(term, step)
            if moment.value in self.ends
        }
        self.parameters, self.only_lessened = self._find_parameters()

    def updates(self) -> set[Value]:
        """The new values of parameters: where the backward pass of a step ends."""
        return {step.value for step in self.handed_out if step.root in self.parameters}

    def summed(self) -> set[Value]:
        """What is added, as it is or scaled, to sums that are carried from run to run."""
        sums = [
            step
            for step in self.handed_out
            if step.root not in self.parameters and not (step.is_difference or step.is_base_scaled)
        ]
        terms = [self.arithmetic.behind_aliases(term) for step in sums for term in step.terms]
        scaled = [self.arithmetic.scaled(term) for term in terms]
        return {*terms, *(self.arithmetic.behind_aliases(parts[0]) for parts in scaled if parts)}

    def moments_in(self, term: Value, step: Step) -> list[Step]:
        """Steps of other roots that elementwise ops lead to from `term`, nearest first.

        Lion's, Nesterov's and Nadam's `b * m + g` counts even if it is not what m becomes, but
        after those that are, also those behind it.
        """
        todo = [term]
        seen = set(todo)
        found = []
        for at in todo:  # grows while it is read
            self.root_of(at)  # notes a step that is not handed out
            inner = self.steps.get(at)
            if (
                inner is not None
                and inner.root != step.root
                and (at in self.ends or (inner.root in self.states and inner.is_base_scaled))
            ):
                if inner.root not in self.parameters:
                    found.append(inner)
                if at in self.ends:
                    continue
            node = at.node
            insides = self.flow.inside(at)
            if node is None or at == step.base or not (insides or node.op_type in ELEMENTWISE):
                continue
            for operand in insides or self.flow.operands(at):
                if operand not in seen:
                    seen.add(operand)
                    todo.append(operand)
        return sorted(found, key=lambda moment: moment.value not in self.ends)

    def step_behind(self, value: Value) -> Step | None:
        """The step of which `value` is the new value or a multiple."""
        at: Value | None = value
        while at is not None and at not in self.steps:
            scaled = self.arithmetic.scaled(at)
            at = self.arithmetic.aliased(at) if scaled is None else scaled[0]
        return None if at is None else self.steps[at]

    def aim(self, distance: Value, moment: Step) -> Value | None:
        """The g of `m + a * (g - m)` and `m - a * (m - g)`."""
        node = distance.node
        if node is None or node.op_type != "Sub":
            return None
        at, other = (0, 1) if moment.is_difference else (1, 0)
        bases = (self.flow.operand(distance, at), moment.base)
        a, b = (None if x is None else self.arithmetic.behind_aliases(x) for x in bases)
        return self.flow.operand(distance, other) if a == b else None

    def is_average(self, term: Value, step: Step) -> bool:
        """Whether `step` is b * root + (1 - b) * something, or root + b * (something - root).

        So it is as a mean that is carried on: (n * root + something) / (n + 1).
        """
        scaled = self.arithmetic.scaled(term)
        if scaled is None:
            return self._is_mean(step)
        return self.aim(scaled[0], step) is not None or (
            not step.is_difference and self.is_complement(scaled[1], step)
        )

    def _is_mean(self, step: Step) -> bool:
        """Whether what comes of `step` is (n * root + something) / (n + 1)."""
        base = self.arithmetic.scaled(self.arithmetic.behind_aliases(step.base))
        divisor = self._divisors.get(step.value)
        if base is None or divisor is None or divisor.node is None:
            return False
        numbers = self.flow.operands(divisor)
        return (
            divisor.node.op_type == "Add"
            and base[1] in numbers
            and any(self.arithmetic.number(x) == 1 for x in numbers)
        )

    def is_complement(self, coefficient: Value | None, moment: Step) -> bool:
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

    # -- steps ---------------------------------------------------------------------------------

    def root_of(self, value: Value) -> Value | None:
        """The root that additions and scalings lead back to; notes the steps on the way."""
        return worked_out(value, self._root, self._find_root)

    def _find_root(self, value: Value) -> _Search:
        node = value.node
        if node is None:
            known = value.type
            return value if known is not None and known.is_floating else None
        if node.op_type not in ELEMENTWISE | {"Relu"} and not self.flow.inside(value):
            return None
        if node.op_type in ("Add", "Sub", "Sum"):
            return (yield from self._root_of_sum(value, node.op_type == "Sub"))
        parts = self.arithmetic.scaled(value)
        if parts is not None:
            if node.op_type == "Div" and parts[1] is not None:
                self._divisors[self.arithmetic.behind_aliases(parts[0])] = parts[1]
            return (yield parts[0])
        inner = (
            self.arithmetic.aliased(value)
            or self._bounded(value)
            or self.arithmetic.behind_norm(value)  # a bound of a norm
        )
        if inner is not None:
            return (yield inner)
        if node.op_type == "Max":  # the moments of Adamax and AMSGrad
            return (yield from self._root_of_sum(value, False))
        if node.op_type in ("Where", "If"):  # an update that is skipped, a sum that is reset
            choices = [
                choice
                for choice in self.arithmetic.choices(value)
                if not self.arithmetic.is_zero(self.arithmetic.behind_aliases(choice))
            ]
            roots = set()
            for choice in choices:
                roots.add((yield choice))
            chosen = self.arithmetic.chosen(choices) if len(roots) == 2 else None
            if chosen is not None and None not in roots:  # W, now and then drawn to slow weights
                return (yield chosen)
            return roots.pop() if len(roots) == 1 else None
        return None

    def _bounded(self, value: Value) -> Value | None:
        """The value behind Clip, Relu, or Max and Min with one number: bounds of a parameter."""
        node, operands = value.node, self.flow.operands(value)
        if node is None or not operands:
            return None
        if node.op_type in ("Clip", "Relu"):
            return operands[0]
        if node.op_type in ("Max", "Min") and len(operands) == 2:
            wide = [x for x in operands if self.arithmetic.number(x) is None]
            return wide[0] if len(wide) == 1 else None
        return None

    def _root_of_sum(self, value: Value, is_difference: bool) -> _Search:
        operands = self.flow.operands(value)
        if len(operands) < 2:
            return None
        candidates = operands[: 1 if is_difference else None]
        roots = {}
        for candidate in candidates:
            roots[candidate] = yield candidate
        carried = [x for x in candidates if roots[x]]
        for narrower in (
            lambda x: not self._is_gradient_name(x),
            self.arithmetic.is_free,
            lambda x: self.step_behind(x) is None,
            lambda x: not self._is_scaled(x),
        ):
            if len(carried) > 1:
                carried = [x for x in carried if narrower(x)] or carried
        if len(carried) != 1:
            return None
        base = carried[0]
        root = yield base
        if root is None or not same_shape(value.type, root.type):
            return None
        terms = list(operands)
        terms.remove(base)
        self.steps[value] = Step(
            value, root, base, tuple(terms), is_difference, self._is_scaled(base)
        )
        return root

    def _on_the_way(self) -> set[Value]:
        """What lies between roots and outputs: of a sum only the base, not what is added."""
        todo = [value for value in self._outputs if self._root[value] is not None]
        seen = set(todo)
        while todo:
            at = todo.pop()
            step = self.steps.get(at)
            behind = [step.base] if step else self.flow.inside(at) or self.flow.operands(at)
            for value in behind:
                if value not in seen and self._root.get(value) == self._root[at]:
                    seen.add(value)
                    todo.append(value)
        return seen

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

    def _find_reports(self) -> list[Value]:
        """What the model, or a loop in each iteration, hands out that is no new value of a root."""
        return [
            value
            for value in self._outputs
            if not self._root.get(value) and self.flow.is_run_or_iteration(value.frame)
        ]

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
                if node.op_type in ("Shape", "Size"):  # which read no element
                    continue
                for name in node.input:
                    source = self.flow.resolve(frame, name) if name else None
                    if source is not None:
                        readers[self.flow.canonical(source)].append(Value(frame, made))
        used = {
            root
            for root in roots
            if root in self.reported
            or any(
                reader not in region and reader not in self._handed_on for reader in readers[root]
            )
        }
        lessened = (
            {
                step.root
                for step in self.steps.values()
                if step.is_difference and not step.is_base_scaled
            }
            - used
            - self.moments
        )
        return used | lessened, lessened

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


def same_shape(a: TensorType | None, b: TensorType | None) -> bool:
    """Whether both are tensors, and nothing known of their shapes contradicts."""
    return a is not None and b is not None and a.agrees_with(b)
