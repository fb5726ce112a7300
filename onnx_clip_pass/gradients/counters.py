"""Counters: whole numbers that are handed on from step to step, a constant more or less each time.

They are no states to `pairs`, which tells the new values of floating ones by what data do to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from onnx_clip_pass.graph import Scope
from onnx_clip_pass.graph.spec import ALIASES, FLOATING

__all__ = ["counters"]


def counters(main: Scope) -> Iterator[tuple[str, str]]:
    """Each input of a graph that counts, with the output that is its new value."""
    known: dict[str, _Origin] = {}
    for output in dict.fromkeys(main.outputs):
        start, is_counted = _origin(main, output, known)
        if not is_counted or start not in main.input_slots:
            continue
        before, after = main.type_of(start), main.type_of(output)
        if before is not None and before == after and before.dtype not in FLOATING | {0}:
            yield start, output


class _Origin(NamedTuple):
    """The value that a value is an alias of but for constants, and whether there are any."""

    start: str
    is_counted: bool


def _origin(main: Scope, name: str, known: dict[str, _Origin]) -> _Origin:
    """The origin of a value; `known` are those of values on the way, so that each is seen once."""
    way: list[tuple[str, bool]] = []
    while name not in known:
        step = _before(main, name)
        if step is None or len(way) > len(main.nodes):  # a damaged graph may have a cycle
            known[name] = _Origin(name, is_counted=False)
            break
        way.append((name, step.is_counted))
        name = step.start
    for passed, is_counted in reversed(way):
        behind = known[name]
        known[passed] = _Origin(behind.start, behind.is_counted or is_counted)
        name = passed
    return known[name]


def _before(main: Scope, name: str) -> _Origin | None:
    """The value from which a node makes this one by a constant or none; None if there is none."""
    producer = main.producers.get(name)
    if producer is None:
        return None
    node = main.nodes[producer[0]]
    if node.op_type in ALIASES and node.input:
        return _Origin(node.input[0], is_counted=False)
    if node.op_type not in ("Add", "Sub"):
        return None
    free = [each for each in node.input if not _is_constant(main, each)]
    if len(free) != 1 or (node.op_type == "Sub" and free != node.input[:1]):
        return None
    return _Origin(free[0], is_counted=True)


def _is_constant(main: Scope, name: str) -> bool:
    producer = main.producers.get(name)
    if producer is not None:
        return main.nodes[producer[0]].op_type == "Constant"
    return name in main.initializers and name not in main.input_slots
