"""New values of states, and what they are made of: themselves, moments, other parameters."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

import numpy as np

from onnx_clip_pass.gradients.chains import NOBODY, either
from onnx_clip_pass.gradients.linear import FACTOR, REDUCED
from onnx_clip_pass.gradients.numbers import is_one
from onnx_clip_pass.gradients.ops import ELEMENTWISE
from onnx_clip_pass.gradients.states import State, States
from onnx_clip_pass.gradients.steps import StateUpdate

__all__ = ["NewValues"]

_WHOLE = 0.5


class NewValues:
    """The new values of the states of one run."""

    def __init__(self, states: States) -> None:
        self.states = states
        self.values = states.values
        self._held: dict[tuple[int, int], bool] = {}

    def holds_state(self, update: StateUpdate) -> bool:
        """True if a new value is in part its state; else it replaces that."""
        key = update.root, update.new
        if key not in self._held:
            self._held[key] = self._holds_state(update)
        return self._held[key]

    def _holds_state(self, update: StateUpdate) -> bool:
        """The answer of `holds_state`, which is asked several times for each."""
        states = self.states
        way = states.forms.ways[update.new].get(update.root)
        if way is None or way.roughness == REDUCED or states.is_average(update.new, update.root):
            return False
        is_lean = way.lean is None or not np.all(way.lean > _WHOLE)
        if way.share is None and way.passed and (way.roughness >= FACTOR or is_lean):
            return False
        if way.share is None or (np.all(way.share >= 0) and np.any(way.share > _WHOLE)):
            return True
        total = states.forms.total[update.new]
        return (  # a number that is given lessens it, as a mask of one element may
            not way.passed
            and states.is_loss_sure
            and states.read[update.root]
            and self.values.behind(update.new) not in states.forward
            and bool(np.all(way.share > 0))
            and total is not None
            and not is_one(total - way.share)  # a gradient with decay
        )

    def is_rounded(self, update: StateUpdate) -> bool:
        """True if a new value is that of other weights in another dtype, which are trained."""
        return bool(self._becomes[self.values.behind(update.new)] - {update.root})

    def is_alone(self, update: StateUpdate) -> bool:
        """Return whether the operator that nobody knows returns the new value of no other state."""
        takes = map(self.values.behind, self.values.operands(self.values.behind(update.new)))
        return not any(each in self.states.roots and each != update.root for each in takes)

    @cached_property
    def _becomes(self) -> dict[int, set[int]]:
        """The states of which a value is the new one, behind aliases."""
        found: dict[int, set[int]] = defaultdict(set)
        for state in self.states.states:
            found[self.values.behind(state.new)].add(state.root)
        return found

    def is_master(self, update: StateUpdate) -> bool:
        """Return whether the forward pass reads a copy of the new value, as in another dtype."""
        value, own = self.values.behind(update.new), self._dtype(update.new)
        if any(self.states.read[root] for root in self._becomes[value] - {update.root}):
            return True
        outputs = self._outputs[value]  # a mere second name is no copy for anyone
        return any(each != update.new and self._dtype(each) != own for each in outputs)

    def _dtype(self, vertex: int) -> int:
        """The dtype of a value; 0 if nobody knows."""
        known = self.values.types[vertex]
        return 0 if known is None else known.dtype

    @cached_property
    def _outputs(self) -> dict[int, list[int]]:
        """The outputs that a value is, behind aliases."""
        found: dict[int, list[int]] = defaultdict(list)
        for each in self.states.outputs:
            found[self.values.behind(each)].append(each)
        return found

    def is_last(self, update: StateUpdate) -> bool:
        """In an optimizer alone: a parameter's new value goes into no other state's but copies."""
        return self._goes_into[self.values.behind(update.new)] in (NOBODY, update.root)

    @cached_property
    def _goes_into(self) -> list[int]:
        """The state whose new value, no average, a value goes into; `MANY` if several."""
        values, states = self.values, self.states
        found = [NOBODY] * len(values)
        for state in states.states:
            if not states.is_average(state.new, state.root):
                found[state.new] = either(found[state.new], state.root)
        for vertex in range(len(values) - 1, 0, -1):
            for each in values.takes[vertex]:
                found[each] = either(found[each], found[vertex])
        return found

    def is_made_of_moments(self, update: StateUpdate) -> bool:
        """True if new values of states, none of which the forward pass reads, make a value."""
        made_of = self._made_of(update)
        return bool(made_of) and not any(self.states.read[root] for root in made_of)

    def is_mixed(self, update: StateUpdate) -> bool:
        """True if new values of other parameters are all that depends on data in a value."""
        return any(self.states.read[root] for root in self._made_of(update))

    def _made_of(self, update: StateUpdate) -> set[int]:
        """The states of whose new values elementwise operators make a value; none for others."""
        values, states = self.values, self.states
        seen, todo, found = {update.new}, [update.new], set[int]()
        while todo:
            at = todo.pop()
            made = [
                state
                for state in self.on_the_way.get(values.behind(at), ())
                if state.root != update.root
                and values.behind(state.new) != values.behind(update.new)
            ]
            if made:
                found.add(made[-1].root)
            elif values.op[at] not in ELEMENTWISE:
                if states.nonfree[at] and not values.is_scalar_like(at):
                    return set()
            else:
                new = {each for each in values.takes[at] if each} - seen
                seen |= new
                todo += [
                    x
                    for x in new
                    if not values.is_scalar_like(x) or values.is_scalar_like(update.new)
                ]
        return found

    @cached_property
    def on_the_way(self) -> dict[int, list[State]]:
        """The values on the way of states to their new values."""
        found: dict[int, list[State]] = defaultdict(list)
        for state, between in zip(self.states.states, self.states.ways, strict=True):
            for each in (*between, self.values.behind(state.new)):
                if self.states.nonfree[each]:
                    found[each].append(state)
        return dict(found)

    def bases(self, update: StateUpdate) -> set[int]:
        """The values from the base to the new value, in which the parameter itself is."""
        path = {update.new}
        if not self.holds_state(update):
            return path
        ways = self.states.forms.ways
        at = update.new
        while at != update.base and update.root in ways[at] and ways[at][update.root].via != at:
            at = ways[at][update.root].via
            path.add(at)
        return path
