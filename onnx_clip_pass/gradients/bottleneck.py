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

import heapq
from functools import cached_property
from typing import NamedTuple

import numpy as np
from onnx import numpy_helper

from onnx_clip_pass.gradients.chains import MANY, NOBODY, Chains, Link
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.linear import FACTOR, REDUCED, UNKNOWN
from onnx_clip_pass.gradients.naming import is_named_after
from onnx_clip_pass.gradients.numbers import POINTS
from onnx_clip_pass.gradients.ops import (
    ALIASES,
    CALL,
    ELEMENTWISE,
    KNOWN_DOMAINS,
    PHI,
    PRODUCTS,
    SCATTERS,
    SHAPES,
    VIEWS,
)
from onnx_clip_pass.gradients.states import Run, State, States
from onnx_clip_pass.graph import Flow, Value, attribute
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Bottlenecks", "Question"]

_LEAST_SCALE = 8
_WHOLE = 0.5
_CLIPS = {"Clip", "Max", "Min", "Where", PHI}
_MOST_NUMBERS = 64
_MOST_OPERANDS = 16
_MOST_ROWS = 4096


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


class Step(NamedTuple):
    """From `base` to `new`; `root` is the parameter, `base` that or what a step before made."""

    root: int
    base: int
    new: int


class Bottlenecks:
    """What the updates of one run show."""

    def __init__(self, flow: Flow, run: Run) -> None:
        self.flow = flow
        self.run = run
        self.states = states = States(flow, run)
        self.values = states.values
        self.found: list[Found] = []
        self.questions: list[Question] = []
        self.carried: list[State] = []
        self.steps: list[Step] = []
        self.averaged: set[int] = set()
        self.penalized: set[int] = set()
        self._reached: dict[int, bytearray] = {}
        self._look()

    def _look(self) -> None:
        states = self.states
        steps, cuts = self._unrolled()
        self.chains = Chains(states, cuts, self._starts(states.reported))
        if any(
            states.read[state.root]
            and states.nonfree[state.new]
            and not self.chains.depends[state.new]
            for state in states.states
        ):
            self.chains = Chains(states, cuts, self._starts())
        is_free = not any(
            (states.nonfree if self.values.is_single(state.root) else states.contracted)[state.new]
            for state in states.states
        ) and not any(states.read[state.root] for state in states.states)
        if (is_free and states.states) or not any(self.chains.depends):
            self._take_inputs_for_gradients(cuts)
        self.steps = [step for step in steps if self._is_trained(step)]
        trained = {step.root for step in self.steps}
        self.carried = [state for state in self.states.states if state.root not in trained]
        targets = {step.new: number for number, step in enumerate(self.steps, 1)}
        self.reach = self.chains.lead_to(targets, past_contraction=False)
        self.backward = self.chains.lead_to(targets, past_contraction=True)
        self.stateful = self.chains.made_of({state.root for state in self.carried})
        self._find_penalties()
        lowest = self.lowest = self._lowest()
        for number, step in enumerate(self.steps, 1):
            self._ask(number, step, lowest[number])
        self._ask_of_the_run_before()

    def _ask_of_the_run_before(self) -> None:
        """Parameters that are moved by what the run before has stored: a question, see rule 5."""
        states, values, chains = self.states, self.values, self.chains
        stored = {s.root: s.new for s in self.carried if chains.depends[s.new]}
        for state in self.carried:
            way = state.way
            if (
                way is None
                or way.share is None
                or not states.read[state.root]
                or (chains.depends[state.new] or not np.all(way.share > _WHOLE))
            ):
                continue
            moved = [
                stored[other]
                for other in stored
                if other != state.root
                and self._flows(other, state.new)
                and values.is_like(other, state.root)
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

    # -- steps -----------------------------------------------------------------------------------

    def _unrolled(self) -> tuple[list[Step], set[tuple[int, int]]]:
        """The steps from states to new values, cut where the forward pass reads what is between.

        A moment is cut with the parameters: what it was in one step carries nothing to the next.
        """
        states, values = self.states, self.values
        steps: list[Step] = []
        ends: set[int] = set()
        for state, between in zip(states.states, states.ways, strict=True):
            at = state.root
            for vertex in sorted(between):
                way = states.forms.ways[vertex].get(state.root)
                if (
                    states.read[vertex]
                    and states.nonfree[vertex]
                    and values.op[vertex] not in ALIASES
                    and values.behind(state.new) != vertex
                    and way is not None
                    and way.share is not None
                ):
                    steps.append(Step(state.root, at, vertex))
                    ends.add(vertex)
                    at = vertex
            steps.append(Step(state.root, at, state.new))
        if not ends:
            return steps, set()
        stage = [0] * len(values)
        for vertex in range(1, len(values)):
            stage[vertex] = max(
                (stage[each] + (each in ends) for each in values.takes[vertex]), default=0
            )
        cut = ends.union(*states.ways)
        return steps, {
            (vertex, reader)
            for vertex in cut
            for reader in values.readers[vertex]
            if stage[reader] > stage[vertex]
        }

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
            and not (values.is_constant(vertex) and values.is_single(vertex))
        }

    def _take_inputs_for_gradients(self, cuts: set[tuple[int, int]]) -> None:
        """Where nothing depends on data, gradients are inputs: the graph is an optimizer alone."""
        states, values = self.states, self.values
        free = [
            vertex
            for vertex in range(1, len(values))
            if not values.op[vertex] and vertex not in states.roots and values.name(vertex)
        ]
        named = {
            vertex
            for vertex in free
            for state in states.states
            if is_named_after(values.name(vertex), values.name(state.root))
        }
        kinds = {values.shape(state.root) for state in states.states}
        starts = named or {
            vertex
            for vertex in free
            if (values.shape(vertex) in kinds if kinds else not values.is_single(vertex))
        }
        self.chains = Chains(states, cuts, starts)
        self.is_optimizer = True

    is_optimizer = False

    def _is_trained(self, step: Step) -> bool:
        """Whether a step trains a parameter, see rule 1."""
        states, chains = self.states, self.chains
        way = states.forms.ways[step.new].get(step.root)
        if not chains.depends[step.new]:
            return False
        if way is None and any(
            self.values.behind(state.new) == self.values.behind(step.new)
            for state in states.states
            if state.root != step.root
        ):
            return False  # half precision, of which the master weights are the parameter
        if way is None:
            return states.read[step.root] and self._is_made_of_moments(step.new)
        if states.is_average(step.new, step.root):
            return False
        if way.share is not None and not (np.all(way.share >= 0) and np.any(way.share > _WHOLE)):
            return False
        if self.is_optimizer:
            return way.share is not None and self._is_last(step)
        if not states.read[step.root] and not self._is_master(step):
            return False
        if states.reported and step.root not in states.handed_out and not self._is_own(step):
            return False
        if way.roughness == UNKNOWN:
            return True
        if way.passed:
            return way.roughness < REDUCED and not self._is_copy(step)
        return way.roughness < FACTOR and not self._is_gated(step)

    def parameter_of(self, vertex: int) -> int:
        """Return the parameter that a value is, or is a new value of; 0 for none."""
        at = self.values.behind(vertex)
        for state, between in zip(self.states.states, self.states.ways, strict=True):
            if at == state.root or at in between or at == self.values.behind(state.new):
                return state.root
        return 0

    @cached_property
    def moved(self) -> dict[int, set[int]]:
        """What a user may call parameters: roots that more reads than their updates, or lessened.

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

    def summed(self) -> set[int]:
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

    def _is_clip(self, vertex: int) -> bool:
        """Whether a bend is such as clips make, by bounds or by norms of rows."""
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
        while todo and len(seen) < _MOST_OPERANDS * 8:
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
                    chains.core[above] in chains.cone(each).ends | chains.cone(each).inputs
                    for each in self.values.takes[at]
                    if each and each not in chains.sources[at]
                )
            at = above
            if is_clip:
                best = at
        return self.values.value[best] if best != start else value

    def _is_own(self, step: Step) -> bool:
        """Whether what is added to a state depends on it, as a gradient does on its parameter."""
        if self._is_master(step):
            return True
        path = self._bases(step)
        return any(
            self._flows(step.base, source)
            for vertex in path
            for source in self.chains.sources[vertex]
            if source not in path
        )

    def _is_master(self, step: Step) -> bool:
        """Whether the forward pass reads a copy of the new value in another dtype."""
        values, states = self.values, self.states
        for other in self.states.outputs:
            if other != step.new and values.behind(other) == values.behind(step.new):
                return True
        del states
        return False

    def _is_last(self, step: Step) -> bool:
        """In an optimizer alone: a parameter's new value goes into no other state's but copies."""
        values, states = self.values, self.states
        new = values.behind(step.new)
        return not any(
            state.root != step.root
            and self._flows(new, state.new)
            and not states.is_average(state.new, state.root)
            for state in states.states
        )

    def _is_made_of_moments(self, new: int) -> bool:
        """Whether new values of states, none of which the forward pass reads, make a value."""
        values, states = self.values, self.states
        made_of = {values.behind(state.new): state for state in states.states if state.new != new}
        seen, todo, found = {new}, [new], False
        while todo:
            at = todo.pop()
            state = made_of.get(values.behind(at))
            if state is not None:
                if states.read[state.root]:
                    return False
                found = True
                continue
            if values.op[at] not in ELEMENTWISE:
                if states.nonfree[at] and not values.is_single(at):
                    return False
                continue
            todo += [each for each in values.takes[at] if each and each not in seen]
            seen.update(values.takes[at])
        return found

    def _is_copy(self, step: Step) -> bool:
        """Whether a new value is made of other parameters' new values alone."""
        return self.values.behind(step.new) in self.states.new_values - {
            self.values.behind(step.new)
        }

    def _is_gated(self, step: Step) -> bool:
        """Whether a tensor that depends on data scales the state, as the gates of an LSTM do."""
        values, chains = self.values, self.chains
        ways = self.states.forms.ways
        path = self._bases(step)
        for vertex in path:
            via = ways[vertex][step.root].via if step.root in ways[vertex] else 0
            if values.op[vertex] not in ("Mul", "Div", "Tanh", "Sigmoid", "Exp"):
                continue
            for other in values.takes[vertex]:
                if other == via or not other or values.is_single(other):
                    continue
                if chains.depends[other] and not (
                    chains.depends[via] and chains.tree.common(via, other) in path
                ):
                    return True
        return False

    # -- where the optimizer begins ----------------------------------------------------------------

    def _lowest(self) -> dict[int, int]:
        """The lowest common ancestor of each new value and of its states' new values, see rule 2."""
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

    # -- the walk --------------------------------------------------------------------------------

    def _ask(self, number: int, step: Step, start: int) -> None:
        values = self.values
        name = self.flow.root_name(values.value[step.root])
        picked, others, why = self._walk(number, step, start)
        why = self._fault(step, picked) or why
        if not self.states.loss and self._is_ascent(step, picked):
            return
        if why:
            candidates = [each for each in dict.fromkeys((*others, picked)) if each]
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
            operands = [x for x in chains.sources[start] if values.is_like(x, step.root)]
            if len(operands) != 1:
                return 0, operands, f"{values.op[start]}, which nobody knows, takes several values"
            start = operands[0]
        at = start
        trail = [at]
        others: list[int] = []
        why = ""
        base = self._bases(step)
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
                break
            if Link.REDUCED in link and step.root in self.averaged:
                break
            is_sum = values.op[at] in ("Add", "Sub", "Sum")
            if (
                is_sum
                and at not in base
                and step.root in self.penalized
                and any(
                    step.root in states.forms.ways[x] and x not in chains.sources[at]
                    for x in values.takes[at]
                )
            ):
                others.append(at)
                why = "a term in it alone is decay, or comes of a penalty in the loss"
            at = above
            trail.append(at)
        rival = self._rival(number, step, trail[-1])
        if rival and not why:
            others.append(rival)
            why = "matrix products of a value of its shape make it, as an optimizer's may do"
        return self._picked(step, trail), others, why

    def _rival(self, number: int, step: Step, end: int) -> int:
        """A value above the end of the walk that may be the gradient as well; 0 for none.

        Orthogonalised gradients are made of gradients by contractions, and look like gradients.
        """
        chains, values = self.chains, self.values
        found = 0
        at = chains.tree.above[end] if values.op[end] in PRODUCTS else ROOT
        while at != ROOT and values.op[at] and self.reach[at] == number:
            if (
                values.op[at] in PRODUCTS
                and values.is_like(at, step.root)
                and values.shape(at) is not None
                and at not in self.states.forward
                and self.backward[at] in (NOBODY, number)
            ):
                found = at
            at = chains.tree.above[at]
        return found

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
        sizes = [values.size(each) for each in values.takes[at]]
        if values.op[vertex] == "Split":
            node = values.value[vertex].node
            found = values.takes[at][slot] if node and len(node.output) == len(sizes) else 0
        else:
            start = self.states.numbers[values.takes[vertex][1]]
            found, begin = 0, 0
            for each, size in zip(values.takes[at], sizes, strict=True):
                if start is not None and start[0] == begin:
                    found = each
                if size is None:
                    break
                begin += size
        return found if found and values.size(found) == values.size(vertex) else 0

    def _is_unknown(self, vertex: int) -> bool:
        node = self.values.value[vertex].node
        return (
            node is not None
            and self.values.op[vertex] not in ELEMENTWISE
            and (node.domain not in KNOWN_DOMAINS)
        )

    def _bases(self, step: Step) -> set[int]:
        """The values from the base to the new value, in which the parameter itself is."""
        ways = self.states.forms.ways
        path = {step.new}
        at = step.new
        while at != step.base and step.root in ways[at] and ways[at][step.root].via != at:
            at = ways[at][step.root].via
            path.add(at)
        return path

    def _picked(self, step: Step, trail: list[int]) -> int:
        """The end of the walk with the numbers that belong to the gradient, see rule 4.

        Then of a chain of aliases the last that has the parameter's dtype and shape, and what a
        branch or a function computes where that gives it.
        """
        values, chains = self.values, self.chains
        name = self.flow.root_name(values.value[step.root])
        at = len(trail) - 1
        for index in range(at, -1, -1):
            if is_named_after(values.name(trail[index]), name):
                at = index
                break
        is_named = is_named_after(values.name(trail[at]), name)
        for index in range(at - 1, -1, -1):
            vertex, inner = trail[index], trail[index + 1]
            if is_named:
                break
            if chains.link[vertex] == Link.NUMBER:
                is_last = not any(
                    Link.BENT in chains.link[each]
                    or (Link.NUMBER in chains.link[each] and values.op[each] != "Neg")
                    for each in trail[:index]
                )
                is_taken_up = trail[0] != step.new
                if not self._is_of_gradient(vertex, inner, trail[-1], is_last, is_taken_up):
                    break
                at = index
            elif chains.link[vertex]:
                break
        best = trail[at]
        is_turned = any(values.op[each] == "Transpose" for each in self._bases(step))
        for index in range(at - 1, -1, -1):
            vertex = trail[index]
            is_out = values.op[vertex] in (PHI, CALL) and (
                values.value[vertex].frame.depth < values.value[best].frame.depth
            )
            if (chains.link[vertex] or values.op[vertex] not in ALIASES) and not is_out:
                break
            if values.op[vertex] == "Transpose" and is_turned and values.is_like(best, step.root):
                break
            if (
                values.types[vertex] == values.types[step.root]
                or not values.is_like(best, step.root)
                or values.shape(best) is None
            ):
                best = vertex
        return best

    def _is_of_gradient(
        self, vertex: int, inner: int, end: int, is_last: bool, is_taken_up: bool
    ) -> bool:
        """Whether a number by which `vertex` is `inner` scaled belongs to the gradient."""
        states, values = self.states, self.values
        takes = values.takes[vertex]
        factors = [each for each in takes if each not in (inner, 0)]
        if len(factors) != 1 or values.op[vertex] not in ("Mul", "Div"):
            return False
        (factor,) = factors
        cone = self.chains.cone(factor)
        if cone.ends:
            return self.chains.core[end] not in cone.ends and not self._flows(end, factor)
        if cone.has_shape or (
            len(cone.inputs) <= _MOST_OPERANDS
            and any(self._flows(each, end, unknown=False) for each in cone.inputs)
        ):
            return True
        if cone.inputs & states.roots:
            return False
        if cone.inputs and inner == end:
            return self._terms(end) > 1 and (values.op[vertex] == "Div" or is_taken_up)
        number = states.numbers[factor]
        if number is None or cone.inputs:
            return False
        times = float(number[0]) if values.op[vertex] == "Div" else 1 / float(number[0] or np.inf)
        if times <= 0:
            return False
        terms = self._terms(end) / times
        if terms >= 1 and times > 1 and abs(terms - round(terms)) < 1e-3:
            return True
        if any(abs(times - scale) < 1e-3 * scale for scale in self._scales):
            return True
        if is_taken_up and values.op[vertex] == "Div" and times > 1:
            return True
        if is_last:
            return False
        return (values.op[vertex] == "Div" and times > 1) or any(
            abs(times * k - size) < 1e-3 * size and times > 2
            for size in self._sizes(end)
            for k in (1, 2)
        )

    def _terms(self, end: int) -> int:
        """How many terms are added up at the end of a walk; 1 if it is no sum."""
        count, todo = 0, [end]
        while todo and count < 1000:
            at = todo.pop()
            if self.values.op[at] in ("Add", "Sum", *ALIASES):
                todo += self.chains.sources[at]
            else:
                count += 1
        node = self.values.value[end].node
        if self.values.op[end] in ("Scan", "Loop") and node is not None:
            sizes = [
                shape[0]
                for each in self.values.takes[end][-len(node.input) :]
                if (shape := self.values.shape(each)) and isinstance(shape[0], int)
            ]
            number = self.states.numbers[self.values.takes[end][0]]
            if self.values.op[end] == "Loop" and number is not None:
                return int(number[0])
            del sizes
        return max(count, 1)

    def _sizes(self, end: int) -> set[int]:
        """How many terms a contraction adds up: rows of a batch, or all elements of its operand."""
        values = self.values
        sizes: set[int] = set()
        todo = [end]
        for at in todo:  # grows while it is read
            takes, made = values.takes[at], values.size(at)
            if values.op[at] in ALIASES or values.op[at] in ("Add", "Sum"):
                todo += [each for each in takes if each and len(todo) < _MOST_OPERANDS]
                continue
            for each in self.chains.sources[at]:
                size, shape = values.size(each), values.shape(each) or ()
                if size is None:
                    continue
                sizes.add(size)
                if made and values.op[at].startswith("Reduce") and size % made == 0:
                    sizes.add(size // made)
                elif values.op[at] == "MatMul" and isinstance(shape[-1], int) and each == takes[0]:
                    sizes.add(shape[-1])
        return sizes - {0, 1}

    def _flows(self, number: int, end: int, *, unknown: bool = True) -> bool:
        """Whether a value is used in computing another, as the scale of a loss in a gradient."""
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

    @cached_property
    def _scales(self) -> set[float]:
        """Large constants that the backward pass reads: what a loss may be scaled by."""
        values, states = self.values, self.states
        return {
            float(number[0])
            for vertex in range(1, len(values))
            if states.read[vertex]
            and values.is_constant(vertex)
            and (number := states.numbers[vertex]) is not None
            and number[0] >= _LEAST_SCALE
        }

    def _is_ascent(self, step: Step, picked: int) -> bool:
        """Whether a multiple of a value is added to a state, as a force moves a body."""
        values, forms = self.values, self.states.forms
        start = values.behind(step.new)
        shares = {start: np.ones(POINTS)}
        todo = [-start]
        while todo and len(shares) < _MOST_ROWS:
            at = -heapq.heappop(todo)
            if at == values.behind(picked):
                return bool(np.all(shares[at] > 0))
            for each, part in forms.parts(at) or ():
                if each not in shares:
                    heapq.heappush(todo, -each)
                    shares[each] = np.zeros(POINTS)
                shares[each] = shares[each] + shares[at] * part
        return False

    def _fault(self, step: Step, picked: int) -> str:
        values, chains = self.values, self.chains
        if not picked:
            return ""
        if not values.is_like(picked, step.root) and (
            values.size(picked) is None or values.size(picked) != values.size(step.root)
        ):
            return self._fault_of_rows(step, picked)
        if self.stateful[picked] or self._after_state[picked]:
            return "its update joins states that depend on data in ways of their own"
        sources = chains.sources[picked]
        if (
            sources
            and not values.is_single(picked)
            and all(map(values.is_single, sources))
            and (values.op[picked] in ELEMENTWISE)
        ):
            return "its update depends on the data only through a number"
        return ""

    def _fault_of_rows(self, step: Step, picked: int) -> str:
        """Gradients by rows are clipped if no row occurs twice or the update adds them up."""
        values = self.values
        for vertex in self._bases(step):
            if values.op[vertex] in SCATTERS:
                node = values.value[vertex].node
                how = None if node is None else attribute(node, "reduction")
                if how is not None and how.s == b"add":
                    return ""
                if self._is_distinct(values.takes[vertex][1]):
                    return ""
                return "its rows are replaced, and nothing says that none occurs twice"
        return "no value of its shape is all that its update takes from the backward pass"

    def _is_distinct(self, indices: int) -> bool:
        values = self.values
        at = values.behind(indices)
        if values.op[at] in ("Range", "Unique", "TopK", "NonZero"):
            return True
        tensor = values.value[at].frame.scope.initializers.get(values.name(at))
        if tensor is None or not values.is_constant(at) or tensor.external_data:
            return False
        rows = numpy_helper.to_array(tensor).reshape(-1)
        return rows.size <= _MOST_ROWS and np.unique(rows).size == rows.size

    @cached_property
    def _after_state(self) -> list[bool]:
        """Whether a value is computed from the new value of a state that is no parameter."""
        values, states = self.values, self.states
        carried = {
            values.behind(state.new)
            for state in self.carried
            if state.new not in states.forward
            and not values.is_single(state.new)
            and self.chains.depends[state.new]
        }
        found = [False] * len(values)
        for vertex in range(1, len(values)):
            found[vertex] = any(
                found[each] or each in carried
                for each in values.takes[vertex]
                if not values.is_single(each)
            )
        return found

    def _find_penalties(self) -> None:
        """The parameters that the forward pass sums up by themselves: all of it, or along axes."""
        values, ways = self.values, self.states.forms.ways
        for vertex in range(1, len(values)):
            op = values.op[vertex]
            if (
                op in ("Add", "Sub", "Sum")
                and values.is_single(vertex)
                and (vertex in self.states.forward)
            ):
                for each in values.takes[vertex]:
                    if not self.states.nonfree[each]:
                        self.penalized.update(
                            root for root, way in ways[each].items() if way.share is None
                        )
            if op in ELEMENTWISE or not op or op in VIEWS or op in SHAPES:
                continue
            for each in values.takes[vertex]:
                if (
                    each
                    and ways[each]
                    and not self.states.nonfree[each]
                    and (op.startswith("Reduce") or "Norm" in op)
                ):
                    kind = self.averaged
                    if values.is_single(vertex):
                        if vertex not in self.states.forward:
                            continue
                        kind = self.penalized
                    kind.update(ways[each])

    def _sink(self, step: Step) -> Sink | None:
        frame, name = self.values.value[self.values.behind(step.new)]
        made = frame.scope.producers.get(name)
        if made is None:
            return None
        path = self._bases(step)
        takes = self.values.takes[self.values.behind(step.new)]
        slots = [slot for slot, each in enumerate(takes) if each and each not in path]
        node = frame.scope.nodes[made[0]]
        slot = min(slots[-1] if slots else 0, max(len(node.input) - 1, 0))
        return Sink(frame, made[0], slot)
