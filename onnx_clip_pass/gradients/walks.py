"""Walks up the chain of dominators, from where an optimizer begins to what is its gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onnx_clip_pass.gradients.chains import NOBODY, Link
from onnx_clip_pass.gradients.doubts import Doubts
from onnx_clip_pass.gradients.naming import is_named_after
from onnx_clip_pass.gradients.ops import (
    ALIASES,
    CALL,
    ELEMENTWISE,
    KNOWN_DOMAINS,
    PHI,
)
from onnx_clip_pass.gradients.runs import Run
from onnx_clip_pass.gradients.steps import StateUpdate
from onnx_clip_pass.graph import Flow, Value
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["Walks"]

_CLIPS = {"Clip", "Max", "Min", "Where", PHI}
_MOST_SEEN = 128
_MOST_ORIGINS = 16


class Walks(Doubts):
    """The walks of one run; see `bottleneck`, rules 3 and 4."""

    def __init__(self, flow: Flow, run: Run) -> None:
        super().__init__(flow, run)
        self._given: dict[tuple[int, object], list[int]] = {}
        self._asked: Counter[tuple[int, object]] = Counter()
        self._segments_of: dict[int, dict[float, int]] = {}

    def _walk(self, number: int, update: StateUpdate, start: int) -> tuple[int, list[int], str]:
        """The gradient, other candidates, and why there are some."""
        chains, values, states = self.chains, self.values, self.states
        if self._is_unknown(start):
            operands = self._operands(start, update)
            if len(operands) != 1:
                why = f"{values.op[start]}, which nobody knows, takes several values"
                return 0, operands, f"{why}; --optimizer-op says which is the gradient"
            start = operands[0]
        at = start
        trail = [at]
        others: list[int] = []
        why = ""
        base = self.new_values.bases(update)
        while True:
            link, above = chains.link[at], chains.tree.above[at]
            segment = self._joined(at)
            if segment:
                whole = values.behind(segment)
                at = whole if values.is_like(whole, update.root) else segment
                trail = [at]
                continue
            if Link.END in link or (Link.FACTOR in link and at not in base):
                break
            if values.op[at] in ("Where", PHI) and chains.sources[at] == values.takes[at][:1]:
                return 0, [above], "it only decides by a test what is added"
            if self.backward[at] not in (NOBODY, number) and at != update.new:
                break
            if self.is_optimizer and not values.op[at]:
                break
            if self.is_optimizer and Link.BENT in link and not self._is_clip(at):
                break
            if (
                above != ROOT
                and not values.op[above]
                and is_named_after(
                    values.name(above), self.flow.root_name(values.value[update.root])
                )
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
                links = [chains.link[each] for each in trail]
                is_plain = set(links) <= {Link(0), Link.NUMBER, Link.TERM}
                if is_plain and links.count(Link.NUMBER) < 2 and start == update.new:
                    trail.append(above)  # nothing but a rate is in between
                break
            if Link.REDUCED in link and update.root in self.averaged:
                break
            is_sum = values.op[at] in ("Add", "Sub", "Sum")
            if (
                is_sum
                and at not in base
                and update.root in self.penalized
                and any(
                    update.root in states.forms.ways[x] or update.root in self.free_of_data(x)
                    for x in values.takes[at]
                    if x and x not in chains.sources[at]
                )
            ):
                others.append(at)
                why = "a term in it alone is decay, or the slope of a penalty in the loss"
            at = above
            trail.append(at)
        rival = self.rival(number, update, trail[-1])
        if rival and not why:
            others.append(rival)
            why = "matrix products of a value of its shape make it, as an optimizer's may do"
        others = [
            self._picked(update, trail[: trail.index(each) + 1]) if each in trail else each
            for each in others
        ]
        return self._picked(update, trail), others, why

    def _operands(self, vertex: int, update: StateUpdate) -> list[int]:
        """The operands of an unknown operator that are of the backward pass and like a parameter.

        Of many those whose turn it is: most likely they are in the order of the parameters.
        """
        values, sources = self.values, self.chains.sources
        hub = values.hub(vertex)
        if not hub:
            return [each for each in sources[vertex] if values.is_like(each, update.root)]
        kind = hub, values.types[update.root]
        if kind not in self._given:
            self._given[kind] = [x for x in sources[hub] if values.is_like(x, update.root)]
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

    def _picked(self, update: StateUpdate, trail: list[int]) -> int:
        """The end of the walk with the numbers that belong to the gradient, see rule 4.

        Then of a chain of aliases the last that has the parameter's dtype and shape, and what a
        branch or a function computes where that gives it.
        """
        values, chains = self.values, self.chains
        base = self.new_values.bases(update)
        name = self.flow.root_name(values.value[update.root])
        at = len(trail) - 1
        for index in range(at, -1, -1):
            if is_named_after(values.name(trail[index]), name):
                at = index
                break
        is_named = is_named_after(values.name(trail[at]), name)
        if not is_named:
            at = self.with_numbers(update, trail)
        best = trail[at]
        turns = self._turns(base)
        for index in range(at - 1, -1, -1):
            vertex = trail[index]
            is_out = values.op[vertex] in (PHI, CALL) and (
                values.value[vertex].frame.depth < values.value[best].frame.depth
            )
            if (chains.link[vertex] or values.op[vertex] not in ALIASES) and not is_out:
                break
            if values.op[vertex] == "Cast" and self._has_type_of(best, update.root):
                break  # it is rounded on its way
            if values.op[vertex] == "Transpose" and values.is_like(best, update.root):
                # in a square both layouts look alike: that of the parameter is as often turned
                if self._turns(self.down(vertex, update.new)) != turns:
                    break
                best = vertex
            if (
                self._has_type_of(vertex, update.root)
                or (is_out and values.is_like(vertex, update.root))
                or not values.is_like(best, update.root)
                or values.shape(best) is None
            ):
                best = vertex
        return best

    def _turns(self, path: Iterable[int]) -> bool:
        """Return whether transposes on a path leave a matrix transposed."""
        return bool(sum(self.values.op[each] == "Transpose" for each in path) % 2)

    def _has_type_of(self, vertex: int, root: int) -> bool:
        """True if a value has the shape of a parameter and, as far as it is known, its dtype."""
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
            if at == parameter or (
                values.is_scalar_like(at) and not values.is_scalar_like(parameter)
            ):
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
