"""Gradients known by an update in the graph: a parameter minus something times the gradient.

Which steps update parameters is told by `steps`; which value in them is the gradient, by `find`.
"""

from __future__ import annotations

from math import prod

from onnx_clip_pass.gradients.arithmetic import Arithmetic
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.naming import is_named_after
from onnx_clip_pass.gradients.roles import is_surely_data
from onnx_clip_pass.gradients.steps import Step, Steps, same_shape
from onnx_clip_pass.graph import Flow, Value

__all__ = ["find"]

_MAX_FACTORS = 200


def find(flow: Flow, arithmetic: Arithmetic, steps: Steps) -> list[Found]:
    """The gradient of every step that updates a parameter.

    1. Where steps of other roots (moments) go into the terms, the gradient is what those
       take up that have the parameter's size. Else it is what remains of the term when one
       factor, the learning rate, is taken off, and what smaller or old moments scale it by; a
       term without a factor is no update. Of sign(g) * steps, a step for each element, it is g.
    2. A gradient that is an input or initializer is named after the parameter, or is no state
       and either in a term without moments or an input that moments take up in a descent (what
       x + dt * v moves is a state). Any other is not computed by elementwise ops alone, nor
       chosen from what is, and its parameter is not surely data (see `roles`); if a difference
       alone shows it, as with master weights, a loss is reported too.
    3. What a reported value other than a gradient is computed from is no computed gradient,
       unless a reported number, the loss, is computed from the parameter without it.
    4. A term that is added to the parameter, not taken from it, is negative or has moments, or a
       loss is reported: x + dt * f(x) is no descent.
    5. The gradient is the value before decay and clipping, see `Arithmetic.raw_gradient`.
    6. Of a chain of aliases it is the last that has the parameter's dtype and shape: an optimizer
       may compute in float64 or on flat tensors.
    7. What is computed from the new value of a moment that no report reads is no gradient, but
       the step of an optimizer with matrix products, such as Muon: the gradient is what the
       moment takes up, if there is one of the parameter's shape.
    """
    return _Finder(flow, arithmetic, steps).find() if steps.handed_out else []


class _Finder:
    def __init__(self, flow: Flow, arithmetic: Arithmetic, steps: Steps) -> None:
        self.flow = flow
        self.arithmetic = arithmetic
        self.steps = steps
        self._losses: dict[Value, set[Value]] = {}

    def find(self) -> list[Found]:
        candidates = {
            step: gradient
            for step in self.steps.handed_out
            if step.root in self.steps.parameters
            and (gradient := self._gradient_of(step, self._moments_of(step))) is not None
        }
        for step, moments in self._computed_from_moments(candidates).items():
            gradient = self._gradient_of(step, moments) if len(moments) == 1 else None
            if gradient is None:
                del candidates[step]
            else:
                candidates[step] = gradient
        hidden = self._reported_beside(set(candidates.values()))
        found = []
        for step, gradient in candidates.items():
            if gradient in hidden and not self._does_a_loss_without(gradient, step.base, step.root):
                continue
            name = self.flow.root_name(step.root)
            evidence = f"updates {name} to {step.value.name}"
            found.append(Found(gradient, step.root, name, evidence, self._sink(step)))
        return found

    def _reported_beside(self, candidates: set[Value]) -> set[Value]:
        """The computed candidates from which reports other than candidates come."""
        others = [report for report in self.steps.reports if report not in candidates]
        seen, _ = self.flow.ancestors(others, self.steps.ends.__contains__)
        return {x for x in candidates & (seen | set(others)) if x.node is not None}

    def _does_a_loss_without(self, gradient: Value, *of: Value) -> bool:
        """Whether a reported number is computed without `gradient`, from one of `of` if given."""
        for report in self.steps.reports:
            if self.arithmetic.is_single(report):
                if report not in self._losses:
                    self._losses[report], _ = self.flow.ancestors(
                        [report], self.steps.ends.__contains__
                    )
                made_of = self._losses[report]
                if gradient not in made_of and not (of and made_of.isdisjoint(of)):
                    return True
        return False

    def _moments_of(self, step: Step) -> list[Step]:
        term = self._carrier(step.terms)
        return [] if term is None else self.steps.moments_in(term, step)

    def _computed_from_moments(self, candidates: dict[Step, Value]) -> dict[Step, list[Step]]:
        """The steps to which rule 7 applies, with the moments of the parameter's shape.

        A sum that a loop within the run carries is no moment.
        """
        runs = self.flow.roots()
        moments = {
            step.value: step
            for step in self.steps.handed_out
            if step.root.frame in runs
            and step.root not in self.steps.parameters
            and step.value not in self.steps.reported
        }
        ends = self.steps.ends.__contains__
        seen, _ = self.flow.ancestors(candidates.values(), ends)
        if seen.isdisjoint(moments):
            return {}
        found = {}
        for step, gradient in candidates.items():
            made_of, _ = self.flow.ancestors([gradient], ends)
            behind = [moments[value] for value in made_of if value in moments]
            if behind:
                found[step] = [x for x in behind if same_shape(x.root.type, step.root.type)]
        return found

    def _gradient_of(self, step: Step, moments: list[Step]) -> Value | None:
        term = self._carrier(step.terms)
        if term is None or self.steps.is_average(term, step):
            return None
        takers = [each for each in moments if _has_size_of(each.root, step.root)]
        if takers:
            as_it_is = self.arithmetic.behind_aliases(term)
            taken_up = [self._taken_up(each, step, each.value == as_it_is) for each in takers]
            candidates = list(dict.fromkeys(x for x in taken_up if x is not None))
            gradient = self._earliest(candidates, step)
        else:
            gradient = self._without_rate(term, step)
            if gradient is not None:
                gradient = self.arithmetic.raw_gradient(gradient, step.base)
            if gradient is not None:
                gradient = self._without_moments(gradient, step)
                gradient = self.arithmetic.raw_gradient(gradient, step.base)
        gradient = None if gradient is None else self._of_its_type(gradient, step.root)
        if gradient is None or not same_shape(gradient.type, step.root.type):
            return None
        if gradient.node is None:
            return gradient if self._is_input_gradient(gradient, step, term, moments) else None
        if not (
            step.is_difference
            or moments
            or self._is_negative(term)
            or self._does_a_loss_without(gradient)
        ):
            return None
        if step.root in self.steps.only_lessened and (
            self.steps.root_of(gradient) == step.root or not self._does_a_loss_without(gradient)
        ):
            return None
        if is_surely_data(self.flow, step.root):
            return None
        return None if self._is_handed_in(gradient) else gradient

    def _is_handed_in(self, value: Value) -> bool:
        """Whether elementwise ops compute a value from inputs, or a test chooses it from such."""
        node, choices = value.node, [value]
        if node is not None and node.op_type == "Where":
            choices = self.flow.operands(value)[1:]
        return all(self.arithmetic.is_free(choice) for choice in choices)

    def _of_its_type(self, gradient: Value, parameter: Value) -> Value:
        """Rule 6; the gradient as it is where no alias has the parameter's type."""
        chain = [gradient]
        while (inner := self.arithmetic.aliased(chain[-1])) is not None:
            chain.append(inner)
        if len(chain) == 1:
            return gradient
        return next((x for x in chain if self._has_type_of(x, parameter)), gradient)

    def _has_type_of(self, value: Value, parameter: Value) -> bool:
        known = value.type
        if known is not None and known.shape is None:
            known = self.flow.index.inferred(value.frame.scope, value.name)
        dtypes = (0, self.flow.dtype(parameter))
        return same_shape(known, parameter.type) and self.flow.dtype(value) in dtypes

    def _is_negative(self, term: Value) -> bool:
        """Whether a factor of the term is surely negative: -x, -lr * x, x * -0.1."""
        for _ in range(_MAX_FACTORS):
            scaled = self.arithmetic.scaled(term)
            inner = self.arithmetic.aliased(term) if scaled is None else scaled[0]
            if scaled is not None and self._is_minus(scaled[1]):
                return True
            if inner is None:
                return False
            term = inner
        return False

    def _is_minus(self, factor: Value | None) -> bool:
        if factor is None:
            return True
        number, node = self.arithmetic.number(factor), factor.node
        operands = self.flow.operands(factor)
        if node is not None and node.op_type == "Mul":
            return any(self._is_minus(x) for x in operands)
        if node is not None and node.op_type == "Sub":
            return self.arithmetic.number(operands[0]) == 0
        return (number is not None and number < 0) or (node is not None and node.op_type == "Neg")

    def _sink(self, step: Step) -> Sink:
        frame = step.value.frame
        number, _ = frame.scope.producers[step.value.name]
        base = self.flow.operands(step.value).index(step.base)
        return Sink(frame, number, 1 - base if base < 2 else 0)

    def _carrier(self, terms: tuple[Value, ...]) -> Value | None:
        """The one term that is more than decay; if all are elementwise, the one that there is."""
        carriers = [term for term in terms if not self.arithmetic.is_free(term)] or list(terms)
        return carriers[0] if len(carriers) == 1 else None

    def _earliest(self, candidates: list[Value], step: Step) -> Value | None:
        """Of what moments take up, that from which the rest is computed.

        In a later step of several, a gradient is computed from what the earlier one has made.
        """
        ends = self.steps.ends.__contains__
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        made_of = {x: self.flow.ancestors([x], ends)[0] for x in candidates}
        before = self.steps.step_behind(step.base)
        if before is not None:
            candidates = [x for x in candidates if before.value in made_of[x]] or candidates
        earliest = candidates[0]
        for candidate in candidates[1:]:
            if candidate in made_of[earliest]:
                earliest = candidate
        return earliest

    def _taken_up(self, moment: Step, step: Step, holds_rate: bool = False) -> Value | None:
        """The gradient that a moment takes up.

        Of what is added to the moment,

        1. factors made of other moments are taken off, as in m + g / sqrt(v);
        2. then the coefficient: a share of an average, 1 - dampening, a minus, or, if the moment
           holds it because it is what the parameter is moved by, the learning rate;
        3. of a square or an absolute value the value counts, and of that what is raw;
        4. a sum accumulated over several runs, or its mean, leads to what that takes up.
        """
        term = self._carrier(moment.terms)
        if term is None:
            return None
        term = self._without_moments(term, step)
        scaled = self.arithmetic.scaled(term)
        aim = self.steps.aim(term if scaled is None else scaled[0], moment)
        if aim is not None:
            term = aim
        elif scaled is not None and (
            moment.is_difference
            or holds_rate
            or self.steps.is_complement(scaled[1], moment)
            or self._is_dampened(scaled[1])
        ):
            term = scaled[0]
        term = self._unsquared(self._without_moments(term, step))
        raw = self.arithmetic.raw_gradient(term, step.base)
        total = self.steps.step_behind(raw)
        if total is None or total.value not in self.steps.ends:
            return raw
        return raw if total.root in (moment.root, step.root) else self._taken_up(total, step)

    def _is_dampened(self, factor: Value | None) -> bool:
        """Whether a factor is -1 or 1 - something."""
        node = None if factor is None else factor.node
        if factor is None or node is None or node.op_type != "Sub":
            return factor is None
        return self.arithmetic.number(self.flow.operand(factor, 0)) == 1

    def _without_moments(self, term: Value, step: Step) -> Value:
        """The g of g / sqrt(v), of (lr * g) / (sqrt(v) + eps), of sqrt(u) / sqrt(v) * g."""
        for _ in range(_MAX_FACTORS):
            node, operands = term.node, self.flow.operands(term)
            if node is None or node.op_type not in ("Mul", "Div") or len(operands) != 2:
                break
            made = [self._is_of_moments(x, step) for x in operands]
            rest = operands[made.index(False)] if any(made) and not all(made) else None
            if rest is None or self._is_factor(rest, step):
                break
            if node.op_type == "Div" and made[0]:
                break
            term = rest
        return term

    def _is_factor(self, value: Value, step: Step) -> bool:
        """Whether a value is a number; the gradient of a parameter of one element is computed."""
        single = self.arithmetic.is_single
        return single(value) and (self.arithmetic.is_free(value) or not single(step.root))

    def _is_of_moments(self, value: Value, step: Step) -> bool:
        """Whether a factor holds moments: their new values, or nothing but the old ones."""
        if self.steps.moments_in(value, step):
            return True
        wide = [x for x in self.arithmetic.leaves(value) if not self.arithmetic.is_single(x)]
        old = self.steps.states - self.steps.parameters
        return self.arithmetic.is_free(value) and bool(wide) and old.issuperset(wide)

    def _unsquared(self, term: Value) -> Value:
        """The x of x * x, x ** 2, (c * x) * x or |x|, plus a number or not: of second moments."""
        node = term.node
        operands = self.flow.operands(term)
        if node is None or not operands:
            return term
        if node.op_type == "Abs":
            return operands[0]
        if len(operands) != 2:
            return term
        a, b = operands
        if node.op_type == "Add" and self.arithmetic.number(b) is not None:
            inner = self._unsquared(a)
            return term if inner == a else inner
        if node.op_type == "Pow" and self.arithmetic.number(b) == 2:
            return a
        if node.op_type == "Mul":
            if a == b:
                return a
            for one, other in ((a, b), (b, a)):
                scaled = self.arithmetic.scaled(one)
                if scaled is not None and scaled[0] == other:
                    return other
        return term

    def _without_rate(self, term: Value, step: Step) -> Value | None:
        """The term without the learning rate: one factor, and a sign if there is one.

        The rate may be multiplied before decay is added, lr * g + wd * W, or with 1 / norm(g).
        """
        name = self.flow.root_name(step.root)
        for _ in range(_MAX_FACTORS):
            if is_named_after(term.name, name):
                return term
            normalised = self.arithmetic.behind_norm(term)
            if normalised is not None:
                return normalised
            scaled = self.arithmetic.scaled(term)
            signed = self._behind_sign(term)
            if signed is not None:
                return signed
            if scaled is not None and scaled[1] is not None:
                is_turned = is_named_after(scaled[1].name, name)  # lr * g of a scalar parameter
                return self._unsigned(scaled[1] if is_turned else scaled[0], step)
            inner = self.arithmetic.aliased(term) if scaled is None else scaled[0]
            inner = inner or self.arithmetic.behind_decay(term, step.base)
            if inner is None:
                return None
            term = inner
        return None

    def _behind_sign(self, term: Value) -> Value | None:
        """The g of sign(g) * steps, where each element has a step of its own, as in Rprop."""
        node, operands = term.node, self.flow.operands(term)
        if node is None or node.op_type != "Mul" or len(operands) != 2:
            return None
        for signs, steps in (operands, operands[::-1]):
            made = self.arithmetic.behind_aliases(signs)
            if made.node is not None and made.node.op_type == "Sign":
                return None if self.arithmetic.is_single(steps) else self.flow.operand(made, 0)
        return None

    def _unsigned(self, term: Value, step: Step) -> Value:
        """The g of sign(g), and of W + lr * -g; that of W - lr * -g is the gradient -g."""
        signed = self._behind_sign(term)
        if signed is not None:
            return signed
        node = term.node
        if node is not None and node.op_type in ("Sign", "" if step.is_difference else "Neg"):
            return self.flow.operand(term, 0) or term
        return term

    def _is_input_gradient(
        self, gradient: Value, step: Step, term: Value, moments: list[Step]
    ) -> bool:
        """Rule 2."""
        if is_named_after(gradient.name, self.flow.root_name(step.root)):
            return True
        if gradient in self.steps.states:
            return False
        is_given = gradient.name not in gradient.frame.scope.initializers
        is_descent = (
            step.is_difference
            or any(moment.is_difference for moment in moments)
            or self._is_negative(term)
        )
        return not moments or (is_given and is_descent)


def _has_size_of(moment: Value, parameter: Value) -> bool:
    """Whether both hold equally many elements, as far as it is known."""
    sizes = []
    for value in (moment, parameter):
        shape = None if value.type is None else value.type.shape
        numbers = [size for size in shape or () if isinstance(size, int)]
        if shape is None or len(numbers) < len(shape):
            return True
        sizes.append(prod(numbers))
    return sizes[0] == sizes[1]
