"""Steps of a graph that holds several: which gradients cannot have a norm in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from onnx_clip_pass.graph import OUTPUT, Index, Read, Scope
from onnx_clip_pass.rewrite.edits import Edit

__all__ = ["unrolled_steps"]


def unrolled_steps(index: Index, edits: Sequence[Edit]) -> list[int]:
    """The number of its unrolled step, from 0, for each gradient of a group; 0 for any other.

    1. One that is computed from a clipped gradient, as in the second step of an unrolled loop, is a
       step behind it: a norm that holds both would wait for itself.
    2. The second gradient of a parameter belongs to the second step, even if nothing clipped leads
       to it, as where the loss is linear in the parameter.
    """
    by_scope: dict[int, list[Edit]] = {}
    for edit in edits:
        if any(formula.group for formula in edit.choice.clip.formulas):
            by_scope.setdefault(id(edit.scope), []).append(edit)
    numbers: dict[int, int] = {}
    for own in by_scope.values():
        if len(own) > 1:
            steps = _steps_in(index, own[0].scope, own)
            numbers |= {id(edit): steps[edit.name] for edit in own}
    return [numbers.get(id(edit), 0) for edit in edits]


def _steps_in(index: Index, scope: Scope, edits: Sequence[Edit]) -> dict[str, int]:
    """The first step that each value of a scope can belong to, given the gradients of groups."""
    clipped = {read for edit in edits for read in _clipped_reads(index, edit)}
    gradients = {edit.name for edit in edits}
    least = _numbers_of_steps(edits)
    step = {name: least.get(name, 0) for name in scope.names}
    captured = _captured_reads(index, scope)
    for number, node in enumerate(scope.nodes):
        reads = [(name, Read(scope, number, slot)) for slot, name in enumerate(node.input)]
        reads += captured.get(number, [])
        highest = max(
            (
                step.get(name, 0) + int(name in gradients and read in clipped)
                for name, read in reads
            ),
            default=0,
        )  # rule 1
        for name in node.output:
            if name:
                step[name] = max(highest, step[name])
    return step


def _numbers_of_steps(edits: Sequence[Edit]) -> dict[str, int]:
    """The number of gradients of the same parameter before each, by rule 2."""
    earlier: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    for edit in sorted(edits, key=lambda edit: edit.position):
        own = {found_gradient.gradient.parameter.name for found_gradient in edit.found_gradients}
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
    """The reads of a scope's values in subgraphs of its nodes, by number of the node."""
    found: dict[int, list[tuple[str, Read]]] = {}
    if not scope.subgraphs:
        return found
    for name in scope.names:
        for read in index.readers_of(scope, name):
            if read.scope is not scope and (number := read.scope.number_in(scope)) != OUTPUT:
                found.setdefault(number, []).append((name, read))
    return found
