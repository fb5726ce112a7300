"""The flow of data through a run as a dominator tree, and what each link of it does.

Whatever the backward pass tells an update, it tells it through the gradient: of all values on
which a parameter's new value depends, the gradient is one that it cannot do without, a dominator.
The chain of dominators above a new value holds the update's arithmetic first, then the gradient.

Which inputs of an operator count as its sources, in this order, each only if there is one:

1. tensors, before what says where, how far or whether (`SIDE_SLOTS`);
2. of elementwise operators: tensors, before numbers that scale or shift them;
3. what a contraction has gone into, before masks, noise and anchors that only the update reads;
4. what is no view (an alias, rows) of a state, and nothing that only a number ties to the data.

States carry nothing from the run before, and so nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag, auto

from onnx_clip_pass.gradients.cones import Cone, Cones
from onnx_clip_pass.gradients.ops import (
    ALIASES,
    ELEMENTWISE,
    JOINTS,
    PHI,
    RANDOM,
    SHAPES,
    SIDE_SLOTS,
)
from onnx_clip_pass.gradients.states import States
from onnx_clip_pass.graph.dominators import ROOT, Dominators

__all__ = ["MANY", "NOBODY", "Chains", "Link", "either"]

NOBODY, MANY = 0, -1
"""The parameter that a value leads to, where it is none or more than one."""


class Link(Flag):
    """The operators between a value and its immediate dominator; no flag for an alias."""

    NUMBER = auto()
    """A number scales it."""
    TERM = auto()
    """Something that does not depend on data is added: decay, a moment's share, noise."""
    MASK = auto()
    """A tensor that only the update reads scales it: a mask, a state, a preconditioner."""
    FACTOR = auto()
    """A tensor of the forward pass, or made of the parameter, scales it."""
    MIX = auto()
    """Several multiples of it are added up, as in Nesterov's step."""
    BENT = auto()
    """It is no linear function: a sign, a square root, a clip."""
    REDUCED = auto()
    """A reduction of it is added to it, as in centering."""
    END = auto()
    """A contraction, or where several values meet of which none is made of another."""


class Chains:
    """The dominator tree of a run, with the link above each value."""

    def __init__(self, states: States, cuts: set[tuple[int, int]], starts: set[int]) -> None:
        """`cuts` are reads of earlier steps that carry nothing; `starts` the sources of data."""
        self.states = states
        self.values = values = states.values
        self._cuts = cuts
        self.tree = Dominators()
        count = len(values)
        self.depends = [False] * count
        self.sources: list[tuple[int, ...]] = [()] * count
        self.link: list[Link] = [Link(0)] * count
        self._by_number = [False] * count
        self._ends = [0] * count
        self._bends = [0] * count
        self._factors = [0] * count
        self.core = list(range(count))
        self._cones = Cones(values, states.roots)
        self._views = self._find_views()
        self._averages = {
            state.root
            for state in states.states
            if state.way is None or states.forms.is_average(state.new, state.root)
        }
        for vertex in range(1, count):
            self._add(vertex, vertex in starts)

    def lead_to(self, targets: dict[int, int], *, past_contraction: bool) -> list[int]:
        """Return for each value the one target that it leads to, `NOBODY` or `MANY`.

        Args:
            targets: new value to the parameter that stands for it.
            past_contraction: only by ways on which there is a contraction.
        """
        found = [NOBODY] * len(self.values)
        behind = [NOBODY] * len(self.values)
        for vertex in range(len(self.values) - 1, 0, -1):
            if vertex in targets:  # what is computed from it is of another step
                found[vertex], behind[vertex] = targets[vertex], NOBODY
            is_end = self.values.op[vertex] not in ELEMENTWISE | JOINTS
            for source in self.sources[vertex]:
                behind[source] = either(behind[source], found[vertex] if is_end else behind[vertex])
                found[source] = either(found[source], found[vertex])
        return behind if past_contraction else found

    def made_of(self, states: set[int]) -> list[bool]:
        """Return whether elementwise operators compute each value from tensors of these states."""
        values = self.values
        found = [False] * len(values)
        new_values = self.states.new_values
        for vertex in range(1, len(values)):
            if vertex in states:
                found[vertex] = not values.is_scalar_like(vertex)
            elif values.op[vertex] in ELEMENTWISE:
                side = SIDE_SLOTS.get(values.op[vertex], ())
                found[vertex] = any(
                    found[each] or values.behind(each) in new_values
                    for slot, each in enumerate(values.takes[vertex])
                    if each and slot not in side and not values.is_scalar_like(each)
                )
        return found

    def cone(self, factor: int) -> Cone:
        """Return what a number is computed from."""
        return self._cones.of(factor)

    # -- building ------------------------------------------------------------------------------

    def _find_views(self) -> list[int]:
        """The state of which each value is an alias or some rows, 0 for none."""
        values, roots = self.values, self.states.roots
        views = [0] * len(values)
        for vertex in range(1, len(values)):
            op, takes = values.op[vertex], values.takes[vertex]
            if vertex in roots:
                views[vertex] = vertex
            elif takes and (op in ALIASES or op in ("Gather", "GatherND", "Slice")):
                views[vertex] = views[takes[0]]
        return views

    def _add(self, vertex: int, is_start: bool) -> None:
        values = self.values
        op = values.op[vertex]
        if not op or op in RANDOM or op in SHAPES or vertex in self.states.roots:
            self.depends[vertex] = is_start
            self.tree.add(())
            return
        sources = self.sources[vertex] = self._sources(vertex)
        self.depends[vertex] = bool(sources)
        self._by_number[vertex] = (
            op in ELEMENTWISE
            and not values.is_scalar_like(vertex)
            and bool(sources)
            and all(values.is_scalar_like(each) or self._by_number[each] for each in sources)
            and not any(self._is_activation(each) for each in values.takes[vertex])
        )
        above = self.tree.add(sources)
        link = self.link[vertex] = self._link(vertex, above, sources)
        if Link.END in link:
            self._cones.ends.add(vertex)
        elif above != ROOT:
            self.core[vertex] = self.core[above]
        self._ends[vertex] = self._ends[above] + (Link.END in link or Link.REDUCED in link)
        self._bends[vertex] = self._bends[above] + (Link.BENT in link)
        self._factors[vertex] = self._factors[above] + (Link.FACTOR in link)

    def _is_activation(self, vertex: int) -> bool:
        """True for a tensor that the forward pass computes, which only a backward pass reads."""
        is_of_forward = vertex in self.states.forward and not self.values.is_scalar_like(vertex)
        return is_of_forward and bool(self.values.op[self.values.behind(vertex)])

    def _sources(self, vertex: int) -> tuple[int, ...]:
        values = self.values
        op, takes = values.op[vertex], values.takes[vertex]
        side = SIDE_SLOTS.get(op, (0,) if op == PHI else ())
        all_of = [
            (slot in side, each)
            for slot, each in enumerate(takes)
            if each and self.depends[each] and (each, vertex) not in self._cuts
        ]
        main = list(dict.fromkeys(each for is_side, each in all_of if not is_side))
        if not main:
            if op in ("Where", PHI) and values.is_scalar_like(vertex):
                return ()
            return tuple(dict.fromkeys(each for _, each in all_of))
        if op in ELEMENTWISE or op in ("ScatterND", "ScatterElements"):
            nonfree = self.states.nonfree
            tests: tuple[Callable[[int], bool], ...] = (
                lambda x: not values.is_scalar_like(x) or values.is_scalar_like(vertex),
                lambda x: nonfree[x],
                lambda x: not self._views[x],
                lambda x: not self._by_number[x],
            )
            for is_better in tests:
                if len(main) > 1:
                    main = [each for each in main if is_better(each)] or main
            if (
                len(main) == 2
                and values.is_scalar_like(vertex)
                and not self._rejoins(self.tree.common(*main), tuple(main))
            ):
                for a, b in (main, main[::-1]):
                    if self.core[a] in self.cone(b).ends:
                        return (a,)
        found = tuple(main)
        return takes if found == takes else found

    def _link(self, vertex: int, above: int, sources: tuple[int, ...]) -> Link:
        """The link between a value and its dominator."""
        values = self.values
        op, takes = values.op[vertex], values.takes[vertex]
        if not sources:
            return Link(0)
        if op in ALIASES:
            return Link(0)
        if op in ("ScatterND", "ScatterElements") and self._views[takes[0]]:
            return Link.TERM
        if op not in ELEMENTWISE:
            side = SIDE_SLOTS.get(op, ())
            if len(sources) == 1 and any(
                self._is_of_update(each)
                for slot, each in enumerate(takes)
                if each and slot not in side and each not in sources
            ):
                return Link.MASK
            return (
                Link.END
                if len(sources) == 1 or not self._rejoins(above, sources)
                else (Link.END | Link.BENT)
            )
        if len(sources) > 1:
            return self._rejoined(vertex, above, sources)
        others = [each for each in takes if each and each not in sources]
        if op in ("Add", "Sub", "Sum", "Mean"):
            return Link.TERM if len(takes) == len(others) + 1 else Link.MIX
        if op == "Neg":
            return Link.NUMBER
        if op in ("Mul", "Div"):
            if not others or (op == "Div" and takes[0] not in sources):
                return Link.BENT
            return self._factor(others[0])
        if op in ("Where", PHI):
            return self._chosen(above, takes)
        return Link.BENT

    def _factor(self, factor: int) -> Link:
        """The kind of link that a factor without flow makes."""
        if self.values.is_scalar_like(factor) or self.states.numbers[factor] is not None:
            return Link.NUMBER
        return Link.FACTOR if self._is_of_forward(factor) else Link.MASK

    def _is_of_update(self, operand: int) -> bool:
        """True if an operand of a contraction is the update's own: a projection, an inverse."""
        values, states = self.values, self.states
        if self.depends[operand] or values.is_scalar_like(operand):
            return False
        made_of = states.forms.ways[operand].keys() & self._averages
        if made_of and made_of.isdisjoint(states.reported):
            return True
        at = values.behind(operand)
        return (
            bool(states.reported)
            and not values.op[at]
            and at not in states.reported
            and at not in states.roots
            and not values.is_constant(at)
        )

    def _is_of_forward(self, factor: int) -> bool:
        """Return whether the forward pass reads the inputs and states that a factor is made of."""
        seen = {factor}
        todo = [factor]
        while todo:
            at = todo.pop()
            takes = self.values.takes[at]
            if (
                not takes
                and not self.values.is_scalar_like(at)
                and self.states.read[at]
                and (not self.states.reported or at in self.states.reported)
            ):
                return True
            if len(seen) > 64:
                return False
            for each in takes:
                if each and each not in seen:
                    seen.add(each)
                    todo.append(each)
        return False

    def _chosen(self, above: int, takes: tuple[int, ...]) -> Link:
        """A Where or an If of which one choice carries the flow, or both are one value."""
        condition = takes[0]
        if not condition or self.values.is_scalar_like(condition):
            return Link.TERM
        if self.depends[condition] and self.tree.dominates(above, condition):
            if self._path(above, condition) & Link.END:
                return Link.FACTOR
            return Link.BENT
        return self._factor(condition) if not self.depends[condition] else Link.FACTOR

    def _rejoins(self, above: int, sources: tuple[int, ...]) -> bool:
        return above != ROOT and all(not self._path(above, each) & Link.END for each in sources)

    def _rejoined(self, vertex: int, above: int, sources: tuple[int, ...]) -> Link:
        """Several sources: do they all come from one value by arithmetic?"""
        op = self.values.op[vertex]
        if above == ROOT:
            return Link.END
        paths = [self._path(above, each) for each in sources]
        whole = Link(0)
        for path in paths:
            whole |= path
        if op not in ("Add", "Sub", "Sum", "Mean", "Where", PHI):
            whole |= Link.BENT
        if Link.END in whole:
            if all(Link.END in path for path in paths):
                return Link.END
            if Link.BENT in whole:
                return Link.BENT
            return Link.FACTOR if Link.FACTOR in whole else Link.REDUCED
        if Link.BENT in whole:
            return Link.BENT | (whole & Link.FACTOR)
        return Link.FACTOR if Link.FACTOR in whole else Link.MIX

    def is_measured(self, vertex: int) -> bool:
        """Return whether a value is scaled by reductions of itself, such as norms of its rows."""
        above, sources = self.tree.above[vertex], self.sources[vertex]
        return (
            self.values.op[vertex] in ("Mul", "Div")
            and len(sources) > 1
            and any(Link.END in self._path(above, each) for each in sources)
        )

    def _path(self, above: int, vertex: int) -> Link:
        """The vertices on the way down the tree from a dominator to a value."""
        found = Link(0)
        if self._ends[vertex] > self._ends[above]:
            found |= Link.END
        if self._bends[vertex] > self._bends[above]:
            found |= Link.BENT
        if self._factors[vertex] > self._factors[above]:
            found |= Link.FACTOR
        return found


def either(a: int, b: int) -> int:
    """Return the one parameter of two values, `MANY` if they are of different ones."""
    if a in (NOBODY, b):
        return b
    return a if b == NOBODY else MANY
