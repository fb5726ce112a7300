"""Counters: whole numbers that are handed on from step to step, a constant more or less each time.

They are no states to `pairs`, which tells the new values of floating ones by what data do to them.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx_clip_pass.graph import Scope
from onnx_clip_pass.graph.spec import ALIASES, FLOATING

__all__ = ["counters"]


def counters(main: Scope) -> Iterator[tuple[str, str]]:
    """Each input of a graph that counts, with the output that is its new value."""
    for output in dict.fromkeys(main.outputs):
        start = _counted(main, output)
        if start is None or start not in main.input_slots:
            continue
        before, after = main.type_of(start), main.type_of(output)
        if before is not None and before == after and before.dtype not in FLOATING | {0}:
            yield start, output


def _counted(main: Scope, name: str) -> str | None:
    """The value to which constants are added; None if something else becomes of it."""
    is_counted = False
    for _ in range(len(main.nodes) + 1):
        producer = main.producers.get(name)
        if producer is None:
            return name if is_counted else None
        node = main.nodes[producer[0]]
        if node.op_type in ALIASES:
            name = node.input[0]
            continue
        free = [each for each in node.input if not _is_constant(main, each)]
        is_right = node.op_type == "Add" or (node.op_type == "Sub" and free == node.input[:1])
        if not is_right or len(free) != 1:
            return None
        is_counted, name = True, free[0]
    return None


def _is_constant(main: Scope, name: str) -> bool:
    producer = main.producers.get(name)
    if producer is not None:
        return main.nodes[producer[0]].op_type == "Constant"
    return name in main.initializers and name not in main.input_slots
