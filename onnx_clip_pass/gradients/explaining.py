"""The explanation why a value is a parameter's gradient, by the chain above its new value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto

from onnx_clip_pass.arguments import is_text, model_or_path
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients import Survey, survey
from onnx_clip_pass.gradients.bottleneck import Bottlenecks, Question
from onnx_clip_pass.gradients.chains import NOBODY, Link
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps, checked_ops
from onnx_clip_pass.gradients.steps import StateUpdate
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import Flow, Index, Value
from onnx_clip_pass.graph.dominators import ROOT
from onnx_clip_pass.record import read_record, strip_if_clipped
from onnx_clip_pass.storage import open_model
from onnx_clip_pass.tables import Table
from onnx_clip_pass.validity import blaming
from onnx_clip_pass.views import View, Viewed

__all__ = ["ExplainedStep", "ExplainedValue", "Explanation", "explain_gradient", "formula_of"]

_SHOWN = 4
_BY_UPDATE, _BY_SLOPES = "updates ", "decided by the slopes"
"""Evidence that an update has a part in, as it begins."""
_MOST_ABOVE = 2
_ALIAS = "the same in another shape or dtype"
_WORDS = {
    Link.NUMBER: "a number scales it",
    Link.TERM: "something that does not depend on data is added, or chosen instead",
    Link.MASK: "a tensor that only the update reads scales it",
    Link.FACTOR: "a tensor of the forward pass, or of the parameter, scales it",
    Link.MIX: "multiples of it are added up",
    Link.BENT: "a function of it that is not linear",
    Link.REDUCED: "a reduction of it is added",
    Link.END: "a contraction, or a sum of several values",
}
"""The operators between a value and the next one above it."""


@dataclass(frozen=True, slots=True)
class ExplainedValue:
    """A value without which the new value cannot be computed.

    `formula` is how it is computed, `link` what lies between it and the next one above, `states`
    are those whose new values hang on it; `is_shared` says that other parameters depend on it,
    `mark` what is known of it: "gradient", "candidate" or "".
    """

    name: str
    graph: str
    formula: str
    link: str
    states: tuple[str, ...]
    is_shared: bool
    mark: str


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """The way in which one step makes a parameter's new value, up to a little above the gradient.

    `starts` is the value from which the new values of the parameter and of its states all come.
    """

    new: str
    starts: str
    chain: tuple[ExplainedValue, ...]
    candidates: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Viewed):
    """The facts about one parameter.

    `parameter` is its name, `gradients` are its gradients with the evidence for each, `steps` the
    updates in the graph; `note` says what there is to say where there are none.
    """

    parameter: str
    gradients: tuple[tuple[str, str], ...]
    steps: tuple[ExplainedStep, ...]
    note: str = ""

    def view(self) -> View:
        summary, *lines = self.lines()
        return View(summary, Table((), ()), further=tuple(lines))

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        lines = [
            f"{self.parameter}: the gradient is {name} ({why})" for name, why in self.gradients
        ]
        if not lines:
            lines.append(f"{self.parameter}: {self.note or 'no gradient is known for sure'}")
        elif self.note:
            lines.append(self.note)
        for update in self.steps:
            lines.append("")
            lines.append(
                f"what the new value {update.new} is made of; each line is all through which data "
                f"get to the line before it:"
            )
            width = max(len(each.formula) for each in update.chain)
            for each in update.chain:
                mark = {"gradient": "=>", "candidate": "? "}.get(each.mark, "  ")
                said = [each.link]
                if each.name == update.starts != update.new:
                    said.append("the optimizer begins here")
                if each.states:
                    said.append(f"states: {listed(each.states)}")
                if each.is_shared:
                    said.append("other parameters depend on it")
                lines.append(f"  {mark} {each.formula:{width}}  {'; '.join(filter(None, said))}")
            if update.candidates:
                lines.append(f"the gradient may be {' or '.join(update.candidates)}")
            lines.append(f"why: {update.why}")
        return lines


def explain_gradient(
    model: ModelProto | str | os.PathLike[str],
    name: str,
    optimizer_ops: OptimizerOps = NO_OPS,
) -> Explanation:
    """Explain what is taken for the gradient of a parameter, and why.

    Printed, it is what `onnx-clip inspect --explain` shows.

    Args:
        model: a training graph, or its path; weights are not read. One that is clipped already is
            searched as it was before.
        name: of a parameter, or of its gradient.
        optimizer_ops: optimizers that the caller knows, beside those that the record names.

    Raises:
        OnnxClipError: the model has no parameter, state or gradient of this name, or cannot be
            read.
    """
    source, ops = model_or_path("model", model), checked_ops(optimizer_ops)
    if isinstance(source, ModelProto):
        with blaming(lambda: source, "this"):
            return _explained(source, name, ops)
    with open_model(source) as structure:
        return _explained(structure.model, name, ops)


def _explained(model: ModelProto, name: str, optimizer_ops: OptimizerOps) -> Explanation:
    if not is_text(name):
        raise OnnxClipError(f"name must be that of a parameter or gradient, not {shown(name)}")
    record = read_record(model)
    index = Index(strip_if_clipped(model))
    ops = {**({} if record is None else record.optimizer_ops), **optimizer_ops}
    seen = survey(index, ops)
    asked = {question.name for question in seen.questions}
    seen = seen if record is None else seen.answered(record.answers)
    of_gradient = {s.gradient.name: s.gradient.parameter.name for s in seen.found}
    updates = Updates(Flow(index))
    names = {each.name for each in updates.found} | {each.name for each in updates.questions}
    known = {*of_gradient.values(), *asked, *names}
    parameter = name if name in known else of_gradient.get(name, name)
    steps = [
        _Reader(run, update, seen, parameter).explained()
        for run in updates.runs
        for update in run.state_updates
        if run.flow.root_name(run.values.value[update.root]) == parameter
    ]
    gradients = dict.fromkeys(
        (found_gradient.gradient.name, found_gradient.gradient.evidence)
        for found_gradient in seen.found
        if found_gradient.gradient.parameter.name == parameter
    )
    note = "" if steps else _note(updates, seen, parameter, known)
    return Explanation(parameter, tuple(gradients), tuple(steps), note)


def formula_of(value: Value) -> str:
    """Return how a value is computed, as `W_new = Sub(W, step)`; its name alone for an input."""
    node = value.node
    if node is None:
        return value.name
    operands = ", ".join(node.input[:_SHOWN]) + (", …" if node.input[_SHOWN:] else "")
    return f"{value.name} = {node.op_type}({operands})"


def _note(updates: Updates, seen: Survey, name: str, known: set[str]) -> str:
    """Return what is known of a name that no update trains."""
    for run in updates.runs:
        for state in run.carried:
            value = run.values.value[state.root]
            if name in (value.name, run.flow.root_name(value)):
                new = formula_of(run.values.value[state.new])
                return f"it is carried from step to step and not trained; its new value is {new}"
    if name in known:
        return "no update in the graph trains it"
    scope = seen.flow.main.scope
    if name in scope.input_slots or name in scope.initializers:
        return "no update in the graph trains it, and no value is known as its gradient"
    raise OnnxClipError(
        f"{name!r} is no parameter, state or gradient of this model; parameters are: "
        f"{listed([repr(each) for each in sorted(known)])}"
    )


class _Reader:
    """Reads one step off the bottlenecks of its run."""

    def __init__(self, run: Bottlenecks, update: StateUpdate, seen: Survey, parameter: str) -> None:
        self._run, self._step = run, update
        self._number = run.state_updates.index(update) + 1
        self._values = run.values
        found = [s for s in seen.found if s.gradient.parameter.name == parameter]
        self._gradients = {(s.gradient.graph, s.gradient.name) for s in found}
        new = run.values.value[update.new]
        self._question: Question | None = next(
            (
                each
                for each in run.questions
                if (each.parameter, each.new) == (run.values.value[update.root], new)
            ),
            None,
        )
        self._candidates = () if self._question is None else self._question.candidates
        evidence = [s.gradient.evidence for s in found]
        self._is_told = any(not words.startswith((_BY_UPDATE, _BY_SLOPES)) for words in evidence)

    def explained(self) -> ExplainedStep:
        """Return the step in words."""
        run, update = self._run, self._step
        vertices = list(self._vertices())
        states = self._states(vertices)
        why, candidates = self._why(vertices), self._candidates
        if self._question is not None:
            why = self._question.why
            if self._is_told or any(map(self._is_gradient, vertices)):
                told = (
                    "other evidence tells it" if self._is_told else "the slopes of the loss decided"
                )
                why, candidates = f"{told}; the update alone leaves it open: {why}", ()
        return ExplainedStep(
            self._values.name(update.new),
            self._values.name(run.lowest[self._number]),
            tuple(self._explained(vertex, states.get(vertex, ())) for vertex in vertices),
            tuple(each.name for each in candidates),
            why,
        )

    def _vertices(self) -> Iterator[int]:
        """The chain of dominators, as far as it tells something."""
        above = self._run.chains.tree.above
        chain = []
        at = self._step.new
        while at != ROOT:
            chain.append(at)
            at = above[at]
        marked = [n for n, vertex in enumerate(chain) if self._mark(vertex)]
        yield from chain[: marked[-1] + 1 + _MOST_ABOVE] if marked else chain

    def _states(self, vertices: list[int]) -> Mapping[int, tuple[str, ...]]:
        """The states whose new values hang on the parameter's own values of the chain."""
        run, above = self._run, self._run.chains.tree.above
        own = {vertex for vertex in vertices if run.reach[vertex] == self._number}
        found: dict[int, tuple[str, ...]] = {}
        for state in run.carried:
            if not run.chains.depends[state.new]:
                continue
            at = state.new
            while at != ROOT and at not in own and run.reach[at] in (NOBODY, self._number):
                at = above[at]
            if at in own:
                found[at] = (*found.get(at, ()), self._values.name(state.root))
        return found

    def _explained(self, vertex: int, states: tuple[str, ...]) -> ExplainedValue:
        value = self._values.value[vertex]
        link = self._run.chains.link[vertex]
        words = [text for flag, text in _WORDS.items() if flag in link]
        is_source = not self._run.chains.sources[vertex]
        return ExplainedValue(
            value.name,
            value.frame.scope.path,
            formula_of(value),
            "data come in here" if is_source else "; ".join(words) or _ALIAS,
            states,
            self._is_shared(vertex),
            self._mark(vertex),
        )

    def _mark(self, vertex: int) -> str:
        if self._is_gradient(vertex):
            return "gradient"
        return "candidate" if self._values.value[vertex] in self._candidates else ""

    def _is_gradient(self, vertex: int) -> bool:
        value = self._values.value[vertex]
        return (value.frame.scope.path, value.name) in self._gradients

    def _is_shared(self, vertex: int) -> bool:
        """Return whether other parameters' new values depend on it, too."""
        return self._run.reach[vertex] not in (NOBODY, self._number)

    def _why(self, vertices: list[int]) -> str:
        """The reason why it is this value."""
        chains = self._run.chains
        at = next((n for n, vertex in enumerate(vertices) if self._is_gradient(vertex)), None)
        if at is None:
            return "what is known as its gradient is not on this chain: other evidence tells it"
        rest = vertices[at:]
        numbers = 0
        for vertex in rest:
            link = chains.link[vertex]
            if Link.END in link:
                end = "a contraction, or a sum of several values, computes it"
            elif Link.FACTOR in link:
                end = "a tensor of the forward pass, or of the parameter, is a factor of it"
            elif self._run.backward[vertex] not in (NOBODY, self._number):
                end = "the backward pass of other parameters reads it"
            elif not chains.sources[vertex]:
                end = "it is an input"
            elif link & ~Link.NUMBER:
                end = "what lies above it belongs to the backward pass"
            else:
                numbers += Link.NUMBER in link
                continue
            if numbers:
                return (
                    f"the update's arithmetic ends at {self._values.name(vertex)} ({end}); the "
                    f"numbers behind that average it or undo a scale, and so belong to the gradient"
                )
            return f"between it and the new value there is arithmetic of the update alone; {end}"
        return "between it and the new value there is arithmetic of the update alone"
