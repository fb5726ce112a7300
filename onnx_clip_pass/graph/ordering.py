"""Topological order, with as few moves as it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from onnx import GraphProto, NodeProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph.scopes import Scope
from onnx_clip_pass.graph.subgraphs import graphs_in, names_by_attribute

__all__ = ["in_order", "names_read"]


def in_order(scope: Scope, nodes: Sequence[NodeProto], *, advice: str) -> list[NodeProto]:
    """The nodes such that each comes after those whose values it takes.

    Of the nodes that can come next the first one does, so a node moves only to wait for what it
    reads, itself or through another.

    Args:
        scope: where the nodes are.
        nodes: in their old order.
        advice: for the error, why nodes may form a cycle and what to do then.

    Raises:
        OnnxClipError: some nodes form a cycle.
    """
    producer = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    waits: list[int] = []
    waited_for: dict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        needed = {producer[name] for name in names_read(node) if name in producer}
        waits.append(len(needed))
        for other in needed:
            waited_for[other].append(number)
    ready = [number for number, count in enumerate(waits) if count == 0]  # sorted, so a heap
    ordered: list[NodeProto] = []
    while ready:
        number = heappop(ready)
        ordered.append(nodes[number])
        for other in waited_for[number]:
            waits[other] -= 1
            if waits[other] == 0:
                heappush(ready, other)
    if len(ordered) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waits, strict=True) if count)
        raise OnnxClipError(
            f"{scope.path or 'the main graph'}: node {stuck.name or stuck.op_type!r} would have to "
            f"depend on itself: {advice}"
        )
    return ordered


def names_read(node: NodeProto) -> Iterator[str]:
    """The values that a node takes, those that its subgraphs take from around them included."""
    yield from filter(None, node.input)
    yield from names_by_attribute(node)
    for _, graph in graphs_in(node):
        yield from _captured(graph)


def _captured(graph: GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input}
    own.update(tensor.name for tensor in graph.initializer)
    own.update(sparse.values.name for sparse in graph.sparse_initializer)
    own.update(name for node in graph.node for name in node.output)
    for node in graph.node:
        yield from (name for name in names_read(node) if name not in own)
    yield from (value.name for value in graph.output if value.name not in own)
