"""Training: which states a run trains, in which steps.

A parameter is a state that the forward pass reads, or that the optimizer alone touches if nothing
else is in the graph; its new value is a sum of itself and of something that depends on data, not in
shares that add up to 1 (an average, a copy). All other states are carried.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from onnx_clip_pass.gradients.chains import Chains
from onnx_clip_pass.gradients.linear import FACTOR, REDUCED, UNKNOWN
from onnx_clip_pass.gradients.naming import parameter_names
from onnx_clip_pass.gradients.new_values import NewValues
from onnx_clip_pass.gradients.numbers import is_share
from onnx_clip_pass.gradients.ops import PHI, SHAPES
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.states import State, States
from onnx_clip_pass.gradients.steps import StateUpdate, steps_of
from onnx_clip_pass.graph import Flow

__all__ = ["Training"]

_MOST_NUMBERS = 64


class Training:
    """The steps of a run, and the flow of its data cut between them.

    `untold` are steps of trained parameters of which nothing tells that they train.
    """

    is_optimizer = False
    """True if the run holds no backward pass, so that its gradients are inputs."""

    def __init__(self, flow: Flow, run: Run) -> None:
        self.flow = flow
        self.run = run
        self.states = states = States(flow, run)
        self.values = states.values
        self.new_values = NewValues(states)
        self.carried: list[State] = []
        self.state_updates: list[StateUpdate] = []
        self.untold: list[StateUpdate] = []
        self._reached: dict[int, bytearray] = {}
        self._tell_apart()

    def _tell_apart(self) -> None:
        states = self.states
        steps, cuts = steps_of(states)
        self.chains = Chains(states, cuts, self._starts(states.reported))
        if any(
            states.read[state.root]
            and states.nonfree[state.new]
            and not self.chains.depends[state.new]
            for state in states.states
        ):
            self.chains = Chains(states, cuts, self._starts())
        from_inputs_only = not any(
            (states.nonfree if self.values.is_scalar_like(state.root) else states.contracted)[
                state.new
            ]
            for state in states.states
        ) and not any(states.read[state.root] for state in states.states)
        if (from_inputs_only and states.states) or not any(self.chains.depends):
            self._take_inputs_for_gradients(cuts)
        self.state_updates = [update for update in steps if self._is_trained(update)]
        trained = {update.root for update in self.state_updates}
        told = set(self.state_updates)
        self.untold = [
            update
            for update in steps
            if update.root in trained and update not in told and self.chains.depends[update.new]
        ]
        self.carried = [state for state in self.states.states if state.root not in trained]

    def _starts(self, among: set[int] | None = None) -> set[int]:
        """The roots from which data flows: those that the backward pass reads and are no states."""
        states, values = self.states, self.values
        return {
            vertex
            for vertex in range(1, len(values))
            if not values.op[vertex]
            and vertex not in states.roots
            and states.read[vertex]
            and (not among or vertex in among)
            and not (values.is_constant(vertex) and values.is_scalar_like(vertex))
        }

    def _take_inputs_for_gradients(self, cuts: set[tuple[int, int]]) -> None:
        """Take inputs for gradients if nothing depends on data: the graph is an optimizer alone."""
        states, values = self.states, self.values
        free = [
            vertex
            for vertex in range(1, len(values))
            if not values.op[vertex] and vertex not in states.roots and values.name(vertex)
        ]
        known = {values.name(state.root) for state in states.states}
        named = {
            vertex for vertex in free if not known.isdisjoint(parameter_names(values.name(vertex)))
        }
        kinds = {values.shape(state.root) for state in states.states}
        starts = named or {
            vertex
            for vertex in free
            if (values.shape(vertex) in kinds if kinds else not values.is_scalar_like(vertex))
        }
        self.chains = Chains(states, cuts, starts)
        self.is_optimizer = True

    def _is_trained(self, update: StateUpdate) -> bool:
        """Return whether a step trains a parameter, see the head of this module."""
        states, chains = self.states, self.chains
        if not chains.depends[update.new]:
            return False
        way = states.forms.ways[update.new].get(update.root)
        if way is not None and way.roughness == UNKNOWN:
            return states.read[update.root] or self.new_values.is_alone(update)
        if not self.new_values.holds_state(update):
            is_skipped = way is not None and way.roughness != REDUCED and not is_share(way.share)
            return (is_skipped or states.read[update.root]) and (
                not self.new_values.is_rounded(update)
                and self.new_values.is_made_of_moments(update)
            )
        assert way is not None
        if self.is_optimizer:
            return way.share is not None and self.new_values.is_last(update)
        if not states.read[update.root] and not self.new_values.is_master(update):
            return False
        if self.new_values.is_mixed(update):
            return False
        if (
            states.reported
            and update.root not in states.report_ancestors
            and not self._is_own(update)
        ):
            return False
        if way.passed:
            return way.roughness < REDUCED
        return way.roughness < FACTOR and not self._is_gated(update)

    def lives_on(self, state: State) -> bool:
        """True if what the forward pass reads is a part of what is returned for it."""
        is_read = self.states.read[state.root] and self.states.nonfree[state.new]
        return is_read and self.new_values.holds_state(
            StateUpdate(state.root, state.root, state.new)
        )

    def _is_own(self, update: StateUpdate) -> bool:
        """True if what is added to a state depends on it, as a gradient does on its parameter."""
        if self.new_values.is_master(update):
            return True
        path = self.new_values.bases(update)
        return any(
            self.flows(update.base, source)
            for vertex in path
            for source in self.chains.sources[vertex]
            if source not in path
        )

    def _is_gated(self, update: StateUpdate) -> bool:
        """True if a tensor that depends on data scales the state, as the gates of an LSTM do."""
        values, chains = self.values, self.chains
        ways = self.states.forms.ways
        path = self.new_values.bases(update)
        for vertex in path:
            via = ways[vertex][update.root].via if update.root in ways[vertex] else 0
            if values.op[vertex] not in ("Mul", "Div", "Tanh", "Sigmoid", "Exp"):
                continue
            for other in values.takes[vertex]:
                if other == via or not other or values.is_scalar_like(other):
                    continue
                if chains.depends[other] and not (
                    chains.depends[via] and chains.tree.common(via, other) in path
                ):
                    return True
        return False

    def parameter_of(self, vertex: int) -> int:
        """Return the parameter that a value is, or is a new value of; 0 for none."""
        return self._parameters.get(self.values.behind(vertex), 0)

    @cached_property
    def _parameters(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for state, between in zip(self.states.states, self.states.ways, strict=True):
            for each in (state.root, *between, self.values.behind(state.new)):
                found.setdefault(each, state.root)
        return found

    @cached_property
    def moved(self) -> dict[int, set[int]]:
        """The values that users may call parameters: roots read elsewhere, too, or decremented.

        Each with the values in which something is added to it: if it is one, a step ends there.
        """
        values, found = self.values, {}
        for state, between in zip(self.states.states, self.states.ways, strict=True):
            if state.way is None or state.way.share is None:
                continue
            ends = {
                vertex
                for vertex in (*between, values.behind(state.new))
                if values.op[vertex] in ("Add", "Sub", "Sum", "Where", PHI)
            }
            around = {*between, state.new, values.behind(state.new)}
            ways = self.states.forms.ways
            is_read = any(
                state.root not in ways[reader] or ways[reader][state.root].share is None
                for reader in values.readers[state.root]
                if reader not in around and values.op[reader] not in SHAPES
            )
            if is_read or any(values.op[vertex] == "Sub" for vertex in ends):
                found[state.root] = {*ends, state.new}
        return found

    def accumulated(self) -> set[int]:
        """Return what is added, as it is or scaled, to sums that are carried from run to run."""
        found: set[int] = set()
        forms, values = self.states.forms, self.values
        for state in self.carried:
            way = state.way
            at = values.behind(state.new)
            if way is None or way.share is None or values.op[at] not in ("Add", "Sum"):
                continue
            if not np.all(np.abs(way.share - 1) < 1e-6):
                continue
            for each in values.takes[at]:
                if state.root not in forms.ways[each]:
                    each = values.behind(each)
                    found.add(each)
                    parts = forms.parts(each)
                    if parts is not None and len(parts) == 1:
                        found.add(values.behind(parts[0][0]))
        return found

    def flows(self, number: int, end: int, *, unknown: bool = True) -> bool:
        """True if a value is used in computing another, as the scale of a loss in a gradient."""
        values = self.values
        if number not in self._reached:
            if len(self._reached) >= _MOST_NUMBERS:
                return unknown
            reached = bytearray(len(values))
            reached[number] = 1
            for vertex in range(number + 1, len(values)):
                if any(reached[each] for each in values.takes[vertex]):
                    reached[vertex] = 1
            self._reached[number] = reached
        return bool(self._reached[number][end])
