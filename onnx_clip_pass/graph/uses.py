"""The uses of a value, and all that it is computed from: a walk forward and one backward.

`Flow` follows values backward through control flow and calls, one at a time; here one graph is
walked as a whole, in which a node with subgraphs is one node that takes what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from typing import NamedTuple

from onnx import NodeProto

from onnx_clip_pass.graph.flow import Flow, Frame, Value
from onnx_clip_pass.graph.ordering import names_read
from onnx_clip_pass.graph.scopes import BY_NAME, OUTPUT

__all__ = ["Use", "ancestors_in", "descendants_in", "uses"]


class Use(NamedTuple):
    """A node that takes a value, and the slot at which."""

    frame: Frame
    node: NodeProto
    slot: int


def uses(
    flow: Flow, value: Value, through: Collection[str], *, by_any_slot: bool = False
) -> Iterator[Use]:
    """The nodes that compute with a value, in subgraphs and called functions too.

    Args:
        flow: of the model.
        value: where to start.
        through: op types that pass the value on as their first output, so that what uses that is
            asked for. Their first input is what they pass on; the others say how.
        by_any_slot: they pass on any of their inputs.
    """
    todo, seen = [value], {value}
    for at in todo:  # grows while it is read
        for read in flow.index.readers_of(at.frame.scope, at.name):
            frame = flow.frame_in(at.frame, read.scope)
            if frame is None or read.node == OUTPUT or read.slot == BY_NAME:
                continue
            node = frame.scope.nodes[read.node]
            further: list[Value] = []
            if node.op_type in through:
                if by_any_slot or read.slot == 0:
                    further = [Value(frame, name) for name in node.output[:1]]
            elif flow.index.function_of(node) is not None:
                (_, inner_frame), *_ = flow.inner_frames(frame, read.node, node)
                further = [
                    Value(inner_frame, name) for name in inner_frame.scope.inputs[read.slot :][:1]
                ]
            else:
                yield Use(frame, node, read.slot)
            todo += [each for each in further if each not in seen]
            seen.update(further)


def ancestors_in(
    nodes: Iterable[NodeProto], follows: Callable[[NodeProto], bool] = lambda node: True
) -> Callable[[str], frozenset[str]]:
    """A function that tells all values that one is computed from, itself included.

    Only what `follows` says of is walked through.
    """
    takes = {
        name: tuple(names_read(node)) for node in nodes if follows(node) for name in node.output
    }

    @cache
    def ancestors(name: str) -> frozenset[str]:
        seen, todo = {name}, [name]
        while todo:
            new = [source for source in takes.get(todo.pop(), ()) if source not in seen]
            seen.update(new)
            todo += new
        return frozenset(seen)

    return ancestors


def descendants_in(nodes: Iterable[NodeProto], names: Iterable[str]) -> set[str]:
    """These values and all that are computed from them by nodes in topological order."""
    found = set(names)
    for node in nodes:
        if not found.isdisjoint(names_read(node)):
            found.update(filter(None, node.output))
    return found
