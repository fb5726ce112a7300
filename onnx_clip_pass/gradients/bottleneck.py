"""Gradients known by an update in the graph: what the whole update cannot do without.

1. A *step* takes a parameter to its new value. A parameter is a state that the forward pass reads,
   or that optimizers alone touch if nothing else is in the graph; its new value is a sum of itself
   and of something that depends on data, not in shares that add up to 1 (an average, a copy).
   Where the forward pass reads what becomes of it on the way, each part is a step of its own.
2. The lowest common ancestor, in the dominator tree (see `chains`), of the parameter's new value
   and those of the states that hang on its own chain is where the optimizer begins.
3. From there the chain is walked up as long as its links are an optimizer's arithmetic: numbers,
   terms that do not depend on data, masks, bends. It ends at a contraction, where uses meet, at a
   factor of the forward pass, or at what the backward pass of another parameter reads.
4. Of the numbers behind that end, those belong to the gradient that the loss leaves in its
   derivative (see `factors`); all others are the update's.
5. Where this leaves several values, which differ by something that the graph alone cannot tell,
   they are candidates of a question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from onnx_clip_pass.gradients.chains import MANY, NOBODY
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.linear import FACTOR
from onnx_clip_pass.gradients.naming import parameter_names
from onnx_clip_pass.gradients.ops import SCATTERS
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.steps import StateUpdate
from onnx_clip_pass.gradients.walks import Walks
from onnx_clip_pass.graph import Flow, Shape, Value
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Bottlenecks", "Question"]

_WHOLE = 0.5
_MOST_SEEN = 128
_MOST_ORIGINS = 16
_FOLDED = (
    "the forward pass does not read this constant, so that it must read a copy which constant "
    "folding has made: export with the parameters as inputs (in PyTorch as arguments of what is "
    "exported, with their names as input_names), or without folding (optimize=False, or "
    "do_constant_folding=False)"
)


class Question(NamedTuple):
    """A trained parameter whose gradient the graph alone does not tell.

    `candidates` are values of which one may be it, `why` says what stands in the way, `new` is the
    parameter's new value.
    """

    parameter: Value
    name: str
    new: Value
    candidates: tuple[Value, ...]
    why: str


class Bottlenecks(Walks):
    """The gradients that the updates of one run show, and the questions they leave."""

    def __init__(self, flow: Flow, run: Run) -> None:
        super().__init__(flow, run)
        self.found: list[Found] = []
        self.questions: list[Question] = []
        self._look()

    def _look(self) -> None:
        self.tell_reach()
        self.find_penalties()
        lowest = self.lowest = self._lowest()
        for number, update in enumerate(self.state_updates, 1):
            self._ask(number, update, lowest[number])
        self._ask_of_the_run_before()
        self._ask_of_the_folded()
        self._ask_of_the_rest()

    def _ask_of_the_folded(self) -> None:
        """Constants that are updated as weights are, but not read by the forward pass.

        What it reads is another constant: a copy, such as a transposed one, made by the export.
        """
        states, values = self.states, self.values
        if self.is_optimizer or not states.is_loss_sure:
            return
        copies = {
            _sorted_sizes(values.shape(vertex))
            for vertex in states.forward
            if values.is_constant(vertex) and vertex not in states.roots
        }
        for state, between in zip(states.states, states.ways, strict=True):
            update = StateUpdate(state.root, state.root, state.new)
            if (
                state in self.carried
                and values.is_constant(state.root)
                and not values.is_scalar_like(state.root)
                and _sorted_sizes(values.shape(state.root)) in copies
                and state.root not in states.forward
                and states.contracted[state.new]
                and state.way is not None
                and state.way.roughness < FACTOR
                and self.new_values.holds_state(update)
                and self.new_values.is_last(update)
                # A gradient that is scattered into zeros, or added to them, is no weight.
                and not any(
                    values.op[each] in SCATTERS for each in (*between, values.behind(state.new))
                )
                and not parameter_names(values.name(state.new))
            ):
                self._ask_for(state.root, state.new, why=_FOLDED)

    def _ask_of_the_rest(self) -> None:
        """States that the forward pass reads and data change, in a way that nothing explains.

        Averages, copies of other weights, and what the forward pass itself goes on with, such as
        the state of a recurrent layer, are none.
        """
        states, values = self.states, self.values
        if self.is_optimizer:
            return
        for update in self.untold:
            self._ask_for(update.root, update.new)
        if self.run.bound is not None and not states.is_loss_sure:
            return  # a loop of the forward or of the backward pass
        if states.is_loss_sure:
            read = [vertex in states.forward for vertex in range(len(values))]
        else:
            read = states.read
        for state in self.carried:
            update = StateUpdate(state.root, state.root, state.new)
            if (
                read[state.root]
                and state.way is not None
                and not (values.is_constant(state.root) and values.is_scalar_like(state.root))
                and self.chains.depends[state.new]
                and not (states.is_loss_sure and values.behind(state.new) in states.forward)
                and not states.is_average(state.new, state.root)
                and not self.new_values.is_mixed(update)
                and not self.new_values.is_rounded(update)
                and (state.root in states.report_ancestors or self._is_own(update))
            ):
                self._ask_for(state.root, state.new)
        made: dict[object, list[int]] = defaultdict(list)
        for each in states.reports:
            if self.new_values.is_made_of_moments(StateUpdate(0, 0, each)):
                made[values.shape(each)].append(each)
        for root in range(1, len(values)) if made else ():
            from_inputs_only = not values.op[root] and root not in states.roots
            if from_inputs_only and read[root] and not values.is_scalar_like(root):
                for new in made.get(values.shape(root), ())[:1]:
                    self._ask_for(root, new)

    def _ask_for(
        self,
        root: int,
        new: int,
        candidates: Iterable[int] = (),
        why: str = "nothing tells what makes its new value",
    ) -> None:
        value = self.values.value
        name = self.flow.root_name(value[root])
        named = tuple(value[each] for each in candidates)
        self.questions.append(Question(value[root], name, value[new], named, why))

    def _ask_of_the_run_before(self) -> None:
        """Parameters that are moved by what the run before has stored: a question, see rule 5."""
        states, values, chains = self.states, self.values, self.chains
        stored = {s.root: s.new for s in self.carried if chains.depends[s.new]}
        origins: list[tuple[int, ...]] = []
        for state in self.carried:
            way = state.way
            if (
                way is None
                or way.share is None
                or not states.read[state.root]
                or (chains.depends[state.new] or not np.all(way.share > _WHOLE))
            ):
                continue
            origins = origins or self._computed_from(stored)
            moved = [
                stored[other]
                for other in origins[state.new]
                if other != state.root and values.is_like(other, state.root)
            ]
            if moved:
                why = "it is moved by what the run before has stored"
                self._ask_for(state.root, state.new, map(values.behind, moved), why)

    def _computed_from(self, roots: Collection[int]) -> list[tuple[int, ...]]:
        """The first few of these roots from which each value is computed, its own ones first."""
        found: list[tuple[int, ...]] = [()] * len(self.values)
        for vertex in range(1, len(self.values)):
            if vertex in roots:
                found[vertex] = (vertex,)
                continue
            parts = sorted((found[each] for each in self.values.takes[vertex]), key=len)
            found[vertex] = tuple(dict.fromkeys(chain(*parts)))[:_MOST_ORIGINS]
        return found

    def _lowest(self) -> dict[int, int]:
        """The beginning of the optimizer of each step, see rule 2."""
        chains, states, values = self.chains, self.states, self.values
        lowest = {number: update.new for number, update in enumerate(self.state_updates, 1)}
        nearest = list(range(len(values)))
        for vertex in range(1, len(values)):
            if self.reach[vertex] == NOBODY:
                nearest[vertex] = nearest[chains.tree.above[vertex]]
        trained = {update.root for update in self.state_updates}
        for state in states.states:
            if state.root in trained or not chains.depends[state.new]:
                continue
            owner = self.reach[nearest[state.new]]
            if owner in (NOBODY, MANY):
                continue
            found = chains.tree.common(lowest[owner], state.new)
            if (
                found != ROOT
                and self.reach[found] == owner
                and found not in states.forward
                and (values.op[found] or self.is_optimizer)
            ):
                lowest[owner] = found
        for owner, found in lowest.items():
            root = self.state_updates[owner - 1].root
            while (
                not values.is_like(found, root)
                and self.reach[found] == owner
                and (found not in states.forward)
            ):
                found = chains.tree.above[found]
            is_computed = bool(values.op[found]) or self.is_optimizer
            if values.is_like(found, root) and found not in states.forward and is_computed:
                lowest[owner] = found
        return lowest

    def _ask(self, number: int, update: StateUpdate, start: int) -> None:
        values = self.values
        picked, others, why = self._walk(number, update, start)
        if fault := self.fault(update, picked):
            why = fault
            others += self._behind(number, picked, update.root)
        if (self.is_optimizer or not self.states.loss) and self.is_ascent(update):
            return
        if why:
            candidates = [
                each
                for each in dict.fromkeys((*others, picked))
                if each and (each not in self.states.forward or self.is_optimizer)
            ]
            self._ask_for(update.root, update.new, candidates, why)
            return
        name = self.flow.root_name(values.value[update.root])
        evidence = f"updates {name} to {values.name(update.new)}"
        self.found.append(
            Found(
                values.value[picked], values.value[update.root], name, evidence, self._sink(update)
            )
        )

    def _behind(self, number: int, picked: int, root: int) -> list[int]:
        """The operands of a value that lead to one step alone and may be its gradient."""
        seen, found = {picked}, [picked]
        for at in found:  # grows while it is read
            for each in self.chains.sources[at]:
                if each not in seen and self.reach[each] == number and len(seen) < _MOST_SEEN:
                    seen.add(each)
                    found.append(each)
        return [each for each in found if self.values.op[each] and self.values.is_like(each, root)]

    def _sink(self, update: StateUpdate) -> Sink | None:
        frame, name = self.values.value[self.values.behind(update.new)]
        made = frame.scope.producers.get(name)
        if made is None:
            return None
        path = self.new_values.bases(update)
        takes = self.values.operands(self.values.behind(update.new))
        slots = (at for at in reversed(range(len(takes))) if takes[at] and takes[at] not in path)
        node = frame.scope.nodes[made[0]]
        slot = min(next(slots, 0), max(len(node.input) - 1, 0))
        return Sink(frame, made[0], slot)


def _sorted_sizes(shape: Shape | None) -> tuple[str, ...] | None:
    """The sizes of a tensor in order, which are those of its transposed copies."""
    return None if shape is None else tuple(sorted(map(str, shape)))
