"""All updates of a model: what the runs in it show together (see `bottleneck`)."""

from __future__ import annotations

from typing import NamedTuple

from onnx_clip_pass.gradients.bottleneck import Bottlenecks, Question
from onnx_clip_pass.gradients.found import Found
from onnx_clip_pass.gradients.linear import FACTOR
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.graph import Flow, Value

__all__ = ["Carried", "Question", "Updates"]


class Carried(NamedTuple):
    """A state of the main graph and the output that is its new value, by name.

    `is_sure` unless another output of the same kind might as well be its new value.
    """

    state: str
    new: str
    is_sure: bool


class Updates:
    """The gradients that updates show, the questions they leave, and what they make of values.

    `trained` are the parameters, `carried` the other states, `moved` those that a user may call
    parameters, with `moved_ends`, where something is added to them. `ends` are the new values of
    parameters, at which the backward pass of a step ends, `new_values` those whose gradients are
    found, `accumulated` is what is added to sums over runs, and `loss` the output of the main graph
    that is the loss; None where that is not clear.
    """

    def __init__(self, flow: Flow) -> None:
        self._main = Run((flow.main,))
        self.runs = [Bottlenecks(flow, run) for run in Run.all_of(flow)]
        self.found: list[Found] = []
        self.questions: list[Question] = []
        self.trained: set[Value] = set()
        self.carried: set[Value] = set()
        self.moved: set[Value] = set()
        self.moved_ends: set[Value] = set()
        self.new_values: set[Value] = set()
        self.ends: set[Value] = set()
        self.accumulated: set[Value] = set()
        for run in self.runs:
            value = run.values.value
            self.found += run.found
            self.questions += run.questions
            self.trained |= {found.parameter for found in run.found if found.parameter}
            self.trained |= {question.parameter for question in run.questions}
            if run.state_updates:
                self.carried |= {
                    value[state.root]
                    for state in run.carried
                    if not run.states.read[state.root]
                    or (state.way is not None and state.way.roughness < FACTOR)
                }
            elif run.run.bound is None:  # else a gradient may look like its weight's new value
                self.carried |= {value[state.root] for state in run.carried if run.lives_on(state)}
            self.ends |= {value[update.new] for update in run.state_updates}
            self.moved_ends |= {value[each] for ends in run.moved.values() for each in ends}
            self.moved |= {value[root] for root in run.moved}
            sure = {found.parameter for found in run.found}
            self.new_values |= {
                value[update.new]
                for update in run.state_updates
                if not run.is_optimizer and value[update.root] in sure
            }
            self.accumulated |= {value[each] for each in run.accumulated()}
        self.loss = self._loss(flow)

    def states(self) -> list[Carried]:
        """Return every floating state of the main graph, parameters too, in order of outputs.

        None of a graph that updates nothing, whose outputs only look like new values.
        """
        for run in self.runs:
            if run.run == self._main and (run.state_updates or self.carried):
                name, value, unsure = run.values.name, run.values.value, run.states.interchangeable
                return [
                    Carried(name(state.root), name(state.new), state.new not in unsure)
                    for state in run.states.states
                    if run.state_updates or value[state.root] in self.carried
                ]
        return []

    def _loss(self, flow: Flow) -> str | None:
        found = {
            run.values.value[run.states.loss]
            for run in self.runs
            if run.states.is_loss_sure and run.run.frames == (flow.main,)
        }
        names = [value.name for value in found if value.frame is flow.main]
        return names[0] if len(names) == 1 else None

    def raw(self, value: Value, parameter: Value | None) -> Value:
        """Return the gradient behind decay and clipping; the value itself if there is neither."""
        run = self._run_of(value)
        return value if run is None else run.raw(value, parameter)

    def behind_aliases(self, value: Value) -> Value:
        """Return the value at the end of a chain of aliases."""
        run = self._run_of(value)
        if run is None:
            return value
        return run.values.value[run.values.behind(run.values.find(value))]

    def is_scalar_like(self, value: Value) -> bool:
        """Return whether a value is known to hold one element."""
        run = self._run_of(value)
        return run is not None and run.values.is_scalar_like(run.values.find(value))

    def root_of(self, value: Value) -> Value | None:
        """Return the parameter of which a value is an alias, or what a step has made."""
        for run in self.runs:
            vertex = run.values.find(value)
            root = run.parameter_of(vertex) if vertex else 0
            if root:
                return run.values.value[root]
        return None

    def _run_of(self, value: Value) -> Bottlenecks | None:
        return next((run for run in reversed(self.runs) if run.values.find(value)), None)
