"""Steps from states to their new values, several where a graph holds unrolled ones.

Where the forward pass reads what becomes of a state on its way to what is returned for it, each
part of the way is a step of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx_clip_pass.gradients.linear import FACTOR
from onnx_clip_pass.gradients.ops import ALIASES
from onnx_clip_pass.gradients.states import States

__all__ = ["StateUpdate", "steps_of"]


class StateUpdate(NamedTuple):
    """From `base` to `new`; `root` is the parameter, `base` that or what a step before made."""

    root: int
    base: int
    new: int


def steps_of(states: States) -> tuple[list[StateUpdate], set[tuple[int, int]]]:
    """The steps from states to new values, cut where the forward pass reads what is between.

    A moment is cut with the parameters: what it was in one step carries nothing to the next.
    """
    values = states.values
    steps: list[StateUpdate] = []
    ends: set[int] = set()
    for state, between in zip(states.states, states.ways, strict=True):
        at = state.root
        for vertex in sorted(between) if states.read[at] else ():
            way = states.forms.ways[vertex].get(state.root)
            if (
                states.read[vertex]
                and states.nonfree[vertex]
                and values.op[vertex] not in ALIASES
                and values.behind(state.new) != vertex
                and way is not None
                and way.roughness < FACTOR
            ):
                steps.append(StateUpdate(state.root, at, vertex))
                ends.add(vertex)
                at = vertex
        steps.append(StateUpdate(state.root, at, state.new))
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
