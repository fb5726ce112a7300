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
4. Of the numbers behind that end, those belong to the gradient that average (1/n of n terms), undo
   a scale of the loss, or that the forward pass computes; all others are the update's.
5. Where this leaves several values, which differ by something that the graph alone cannot tell,
   they are candidates of a question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from onnx_clip_pass.gradients.chains import MANY, NOBODY, Link
from onnx_clip_pass.gradients.doubts import Doubts
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.naming import is_named_after
from onnx_clip_pass.gradients.ops import (
    ALIASES,
    CALL,
    ELEMENTWISE,
    KNOWN_DOMAINS,
    PHI,
)
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.training import Step
from onnx_clip_pass.graph import Flow, Value
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Bottlenecks", "Question"]

_WHOLE = 0.5
_CLIPS = {"Clip", "Max", "Min", "Where", PHI}
_MOST_SEEN = 128
_MOST_ORIGINS = 16


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


class Bottlenecks(Doubts):
    """The gradients that the updates of one run show, and the questions they leave."""

    def __init__(self, flow: Flow, run: Run) -> None:
        super().__init__(flow, run)
        self.found: list[Found] = []
        self.questions: list[Question] = []
        self._given: dict[tuple[int, object], list[int]] = {}
        self._asked: Counter[tuple[int, object]] = Counter()
        self._segments_of: dict[int, dict[float, int]] = {}
        self._look()

    def _look(self) -> None:
        self.tell_reach()
        self.find_penalties()
        lowest = self.lowest = self._lowest()
        for number, step in enumerate(self.steps, 1):
            self._ask(number, step, lowest[number])
        self._ask_of_the_run_before()
        self._ask_of_the_rest()

    def _ask_of_the_rest(self) -> None:
        """States that the forward pass reads and data change, in a way that nothing explains.

        Averages, copies of other weights, and what the forward pass itself goes on with, such as
        the state of a recurrent layer, are none.
        """
        states, values = self.states, self.values
        if self.is_optimizer:
            return
        for step in self.untold:
            self._ask_for(step.root, step.new)
        if self.run.bound is not None and not states.is_loss_sure:
            return  # a loop of the forward or of the backward pass
        if states.is_loss_sure:
            read = [vertex in states.forward for vertex in range(len(values))]
        else:
            read = states.read
        for state in self.carried:
            step = Step(state.root, state.root, state.new)
            if (
                read[state.root]
                and state.way is not None
                and not (values.is_constant(state.root) and values.is_single(state.root))
                and self.chains.depends[state.new]
                and not (states.is_loss_sure and values.behind(state.new) in states.forward)
                and not states.is_average(state.new, state.root)
                and not self._is_mixed(step)
                and not self._is_rounded(step)
                and (state.root in states.handed_out or self._is_own(step))
            ):
                self._ask_for(state.root, state.new)
        made: dict[object, list[int]] = defaultdict(list)
        for each in states.reports:
            if self._is_made_of_moments(Step(0, 0, each)):
                made[values.shape(each)].append(each)
        for root in range(1, len(values)) if made else ():
            is_free = not values.op[root] and root not in states.roots
            if is_free and read[root] and not values.is_single(root):
                for new in made.get(values.shape(root), ())[:1]:
                    self._ask_for(root, new)

    def _ask_for(self, root: int, new: int) -> None:
        value = self.values.value
        why = "nothing tells what makes its new value"
        name = self.flow.root_name(value[root])
        self.questions.append(Question(value[root], name, value[new], (), why))

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
                self.questions.append(
                    Question(
                        values.value[state.root],
                        self.flow.root_name(values.value[state.root]),
                        values.value[state.new],
                        tuple(values.value[values.behind(each)] for each in moved),
                        "it is moved by what the run before has stored",
                    )
                )

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
        """Where the optimizer of each step begins, see rule 2."""
        chains, states, values = self.chains, self.states, self.values
        lowest = {number: step.new for number, step in enumerate(self.steps, 1)}
        nearest = list(range(len(values)))
        for vertex in range(1, len(values)):
            if self.reach[vertex] == NOBODY:
                nearest[vertex] = nearest[chains.tree.above[vertex]]
        trained = {step.root for step in self.steps}
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
            root = self.steps[owner - 1].root
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

    def _ask(self, number: int, step: Step, start: int) -> None:
        values = self.values
        name = self.flow.root_name(values.value[step.root])
        picked, others, why = self._walk(number, step, start)
        if fault := self.fault(step, picked):
            why = fault
            others += self._behind(number, picked, step.root)
        if (self.is_optimizer or not self.states.loss) and self.is_ascent(step):
            return
        if why:
            candidates = [
                each
                for each in dict.fromkeys((*others, picked))
                if each and (each not in self.states.forward or self.is_optimizer)
            ]
            self.questions.append(
                Question(
                    values.value[step.root],
                    name,
                    values.value[step.new],
                    tuple(values.value[each] for each in candidates),
                    why,
                )
            )
            return
        evidence = f"updates {name} to {values.name(step.new)}"
        self.found.append(
            Found(values.value[picked], values.value[step.root], name, evidence, self._sink(step))
        )

    def _walk(self, number: int, step: Step, start: int) -> tuple[int, list[int], str]:
        """The gradient, other candidates, and why there are some."""
        chains, values, states = self.chains, self.values, self.states
        if self._is_unknown(start):
            operands = self._operands(start, step)
            if len(operands) != 1:
                return 0, operands, f"{values.op[start]}, which nobody knows, takes several values"
            start = operands[0]
        at = start
        trail = [at]
        others: list[int] = []
        why = ""
        base = self.bases(step)
        while True:
            link, above = chains.link[at], chains.tree.above[at]
            segment = self._joined(at)
            if segment:
                whole = values.behind(segment)
                at = whole if values.is_like(whole, step.root) else segment
                trail = [at]
                continue
            if Link.END in link or (Link.FACTOR in link and at not in base):
                break
            if values.op[at] in ("Where", PHI) and chains.sources[at] == values.takes[at][:1]:
                return 0, [above], "it only decides by a test what is added"
            if self.backward[at] not in (NOBODY, number) and at != step.new:
                break
            if self.is_optimizer and not values.op[at]:
                break
            if self.is_optimizer and Link.BENT in link and not self._is_clip(at):
                break
            if (
                above != ROOT
                and not values.op[above]
                and is_named_after(values.name(above), self.flow.root_name(values.value[step.root]))
            ):
                trail.append(above)
                break
            if above == ROOT or (not values.op[above] and not self.is_optimizer):
                why = "its update is computed from inputs alone, without a contraction"
                break
            if (
                above in states.forward
                and not self.is_optimizer
                and (Link.BENT in link or states.is_loss_sure)
            ):
                if all(chains.link[each] in (Link(0), Link.NUMBER, Link.TERM) for each in trail):
                    trail.append(above)  # nothing but an update's arithmetic is in between
                break
            if Link.REDUCED in link and step.root in self.averaged:
                break
            is_sum = values.op[at] in ("Add", "Sub", "Sum")
            if (
                is_sum
                and at not in base
                and step.root in self.penalized
                and any(
                    step.root in states.forms.ways[x] or step.root in self.free_of_data(x)
                    for x in values.takes[at]
                    if x and x not in chains.sources[at]
                )
            ):
                others.append(at)
                why = "a term in it alone is decay, or comes of a penalty in the loss"
            at = above
            trail.append(at)
        rival = self.rival(number, step, trail[-1])
        if rival and not why:
            others.append(rival)
            why = "matrix products of a value of its shape make it, as an optimizer's may do"
        others = [
            self._picked(step, trail[: trail.index(each) + 1]) if each in trail else each
            for each in others
        ]
        return self._picked(step, trail), others, why

    def _behind(self, number: int, picked: int, root: int) -> list[int]:
        """What a value is made of that leads to one step alone and may be its gradient."""
        seen, found = {picked}, [picked]
        for at in found:  # grows while it is read
            for each in self.chains.sources[at]:
                if each not in seen and self.reach[each] == number and len(seen) < _MOST_SEEN:
                    seen.add(each)
                    found.append(each)
        return [each for each in found if self.values.op[each] and self.values.is_like(each, root)]

    def _operands(self, vertex: int, step: Step) -> list[int]:
        """What an operator that nobody knows is given of the backward pass, like a parameter.

        Of many those whose turn it is: most likely they are in the order of the parameters.
        """
        values, sources = self.values, self.chains.sources
        hub = values.hub(vertex)
        if not hub:
            return [each for each in sources[vertex] if values.is_like(each, step.root)]
        kind = hub, values.types[step.root]
        if kind not in self._given:
            self._given[kind] = [x for x in sources[hub] if values.is_like(x, step.root)]
        self._asked[kind] += 1
        return self._given[kind][max(self._asked[kind] - _MOST_ORIGINS, 0) :][: 2 * _MOST_ORIGINS]

    def _joined(self, vertex: int) -> int:
        """The operand of the Concat behind a Split or Slice that is the same segment of it."""
        values = self.values
        if values.op[vertex] not in ("Split", "Slice"):
            return 0
        at = values.takes[vertex][0]
        while values.op[at] != "Concat":
            if Link.END in self.chains.link[at] or self.chains.tree.above[at] == ROOT:
                return 0
            at = self.chains.tree.above[at]
        frame, name = values.value[vertex]
        slot = frame.scope.producers[name][1]
        takes = values.takes[at]
        if values.op[vertex] == "Split":
            node = values.value[vertex].node
            found = takes[slot] if node and len(node.output) == len(takes) else 0
        else:
            start = self.states.numbers[values.takes[vertex][1]]
            found = 0 if start is None else self._segments(at).get(start[0], 0)
        return found if found and values.size(found) == values.size(vertex) else 0

    def _segments(self, joint: int) -> dict[float, int]:
        """The operands of a Concat by where they begin in it, as far as that is known."""
        if joint not in self._segments_of:
            found: dict[float, int] = {}
            begin = 0
            for each in self.values.takes[joint]:
                found[begin] = each
                size = self.values.size(each)
                if size is None:
                    break
                begin += size
            self._segments_of[joint] = found
        return self._segments_of[joint]

    def _is_unknown(self, vertex: int) -> bool:
        node = self.values.value[vertex].node
        return (
            node is not None
            and self.values.op[vertex] not in ELEMENTWISE
            and (node.domain not in KNOWN_DOMAINS)
        )

    def _picked(self, step: Step, trail: list[int]) -> int:
        """The end of the walk with the numbers that belong to the gradient, see rule 4.

        Then of a chain of aliases the last that has the parameter's dtype and shape, and what a
        branch or a function computes where that gives it.
        """
        values, chains = self.values, self.chains
        base = self.bases(step)
        name = self.flow.root_name(values.value[step.root])
        at = len(trail) - 1
        for index in range(at, -1, -1):
            if is_named_after(values.name(trail[index]), name):
                at = index
                break
        is_named = is_named_after(values.name(trail[at]), name)
        if not is_named:
            at = self.with_numbers(step, trail)
        best = trail[at]
        turns = self._turns(base)
        for index in range(at - 1, -1, -1):
            vertex = trail[index]
            is_out = values.op[vertex] in (PHI, CALL) and (
                values.value[vertex].frame.depth < values.value[best].frame.depth
            )
            if (chains.link[vertex] or values.op[vertex] not in ALIASES) and not is_out:
                break
            if values.op[vertex] == "Cast" and self._has_type_of(best, step.root):
                break  # it is rounded on its way
            if values.op[vertex] == "Transpose" and values.is_like(best, step.root):
                # in a square both layouts look alike: that of the parameter is as often turned
                if self._turns(self.down(vertex, step.new)) != turns:
                    break
                best = vertex
            if (
                self._has_type_of(vertex, step.root)
                or (is_out and values.is_like(vertex, step.root))
                or not values.is_like(best, step.root)
                or values.shape(best) is None
            ):
                best = vertex
        return best

    def _turns(self, path: Iterable[int]) -> bool:
        """Return whether transposes on a path leave a matrix transposed."""
        return bool(sum(self.values.op[each] == "Transpose" for each in path) % 2)

    def _has_type_of(self, vertex: int, root: int) -> bool:
        """Whether a value has the shape of a parameter and, as far as it is known, its dtype."""
        ours, theirs = self.values.types[vertex], self.values.types[root]
        return (
            ours is not None
            and theirs is not None
            and (ours.shape == theirs.shape and ours.dtype in (0, theirs.dtype))
        )

    def _is_clip(self, vertex: int) -> bool:
        """Return whether a bend is such as clips make, by bounds or by norms of rows."""
        return self.values.op[vertex] in _CLIPS or self.chains.is_measured(vertex)

    def _without_decay(self, vertex: int, parameter: int) -> int:
        """The one term of a sum that is not made of a parameter and numbers alone; 0 for none."""
        values = self.values
        if values.op[vertex] not in ("Add", "Sum", "Sub") or not parameter:
            return 0
        terms = [each for each in values.takes[vertex] if not self._is_made_of(each, parameter)]
        return terms[0] if len(terms) == 1 < len(values.takes[vertex]) else 0

    def _is_made_of(self, vertex: int, parameter: int) -> bool:
        values = self.values
        seen, todo = {vertex}, [vertex]
        while todo and len(seen) < _MOST_SEEN:
            at = todo.pop()
            if at == parameter or (values.is_single(at) and not values.is_single(parameter)):
                continue
            if values.op[at] not in ELEMENTWISE:
                return False
            new = [each for each in values.takes[at] if each and each not in seen]
            seen.update(new)
            todo += new
        return not todo and parameter in seen

    def raw(self, value: Value, parameter: Value | None = None) -> Value:
        """The gradient behind clipping that the graph has already; the value itself without it."""
        chains, states = self.chains, self.states
        start = self.values.find(value)
        at = best = start
        while at and self.values.op[at]:
            link, above = chains.link[at], chains.tree.above[at]
            segment = self._joined(at)
            if segment:
                at = best = segment
                continue
            inner = 0 if parameter is None else self._without_decay(at, self.values.find(parameter))
            if inner:
                at = best = inner
                continue
            if Link.END in link or Link.FACTOR in link or above == ROOT:
                break
            if not self.values.op[above] and not self.is_optimizer:
                break
            if Link.BENT in link and above in states.forward:
                break
            op = self.values.op[at]
            is_clip = (Link.BENT in link and self._is_clip(at)) or (
                Link.TERM in link and op in ("Where", PHI)
            )
            if not is_clip and link not in (Link(0), Link.NUMBER):
                break
            if link == Link.NUMBER:
                is_clip = any(
                    chains.core[above] in chains.cone(each).ends
                    or chains.core[above] in chains.cone(each).inputs
                    for each in self.values.takes[at]
                    if each and each not in chains.sources[at]
                )
            at = above
            if is_clip:
                best = at
        return self.values.value[best] if best != start else value

    def _sink(self, step: Step) -> Sink | None:
        frame, name = self.values.value[self.values.behind(step.new)]
        made = frame.scope.producers.get(name)
        if made is None:
            return None
        path = self.bases(step)
        takes = self.values.operands(self.values.behind(step.new))
        slots = (at for at in reversed(range(len(takes))) if takes[at] and takes[at] not in path)
        node = frame.scope.nodes[made[0]]
        slot = min(next(slots, 0), max(len(node.input) - 1, 0))
        return Sink(frame, made[0], slot)
