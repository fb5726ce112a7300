"""Steps of a graph that holds several: which gradients cannot have a norm in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onnx_clip_pass.graph import OUTPUT, Index, Read, Scope

if TYPE_CHECKING:
    from onnx_clip_pass.rewrite.planning import Edit

__all__ = ["assign_levels"]


def assign_levels(index: Index, edits: Sequence[Edit]) -> None:
    """Give each gradient of a group its level: the number of its step, from 0.

    1. One that is computed from a clipped gradient, as in the second step of an unrolled loop, is a
       level above it: a norm that holds both would wait for itself.
    2. The second gradient of a parameter belongs to the second step, even if nothing clipped leads
       to it, as where the loss is linear in the parameter.
    """
    grouped = [edit for edit in edits if any(f.group for f in edit.choice.clip.formulas)]
    scopes = {id(edit.scope): edit.scope for edit in grouped}
    for scope in scopes.values():
        own = [edit for edit in grouped if edit.scope is scope]
        if len(own) > 1:
            _assign(index, scope, own)


def _assign(index: Index, scope: Scope, edits: Sequence[Edit]) -> None:
    clipped = {read for edit in edits for read in _clipped_reads(index, edit)}
    gradients = {edit.name for edit in edits}
    least = _numbers_of_steps(edits)
    level = {name: least.get(name, 0) for name in scope.names}
    captured = _captured_reads(index, scope)
    for number, node in enumerate(scope.nodes):
        reads = [(name, Read(scope, number, slot)) for slot, name in enumerate(node.input)]
        reads += captured.get(number, [])
        highest = max(
            (
                level.get(name, 0) + int(name in gradients and read in clipped)
                for name, read in reads
            ),
            default=0,
        )  # rule 1
        for name in node.output:
            if name:
                level[name] = max(highest, level[name])
    for edit in edits:
        edit.level = level[edit.name]


def _numbers_of_steps(edits: Sequence[Edit]) -> dict[str, int]:
    """How many gradients of the same parameter come before each, by rule 2."""
    earlier: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    for edit in sorted(edits, key=lambda edit: edit.position):
        own = {sighting.gradient.parameter.name for sighting in edit.sightings}
        numbers[edit.name] = max(numbers.get(edit.name, 0), *(earlier[name] for name in own))
        earlier.update(own)
    return numbers


def _clipped_reads(index: Index, edit: Edit) -> Iterator[Read]:
    if edit.redirected is not None:
        yield from edit.redirected
        return
    raw = set(edit.raw_reads)
    for read in index.readers_of(edit.scope, edit.name):
        if read not in raw:
            yield read


def _captured_reads(index: Index, scope: Scope) -> dict[int, list[tuple[str, Read]]]:
    """What the nodes of a scope read by the bodies in them, by number of the node."""
    found: dict[int, list[tuple[str, Read]]] = {}
    if not scope.bodies:
        return found
    for name in scope.names:
        for read in index.readers_of(scope, name):
            if read.scope is not scope and (number := read.scope.number_in(scope)) != OUTPUT:
                found.setdefault(number, []).append((name, read))
    return found
