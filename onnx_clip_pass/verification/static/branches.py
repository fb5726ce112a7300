"""Branches of an If that no run took: only reading them tells if they are what they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import AttributeProto, NodeProto

from onnx_clip_pass.graph import OUTPUT, Index, Scope
from onnx_clip_pass.record import Record

__all__ = ["not_run", "unlike_branches"]


def unlike_branches(before: Index, after: Index, record: Record) -> dict[int, str]:
    """The branches whose nodes are others than the original's and clips, by number, and how."""
    others = {_whose(scope, record): scope for scope in after.scopes}
    found = {}
    for number, scope in enumerate(before.scopes):
        if any(node.op_type == "If" for _, node, _ in _around(scope)):
            other = others.get(_whose(scope, record))
            how = "it is gone" if other is None else _difference(scope, other, record)
            if how:
                found[number] = how
    return found


def not_run(before: Index, number: int, conditions: dict[tuple[int, str], Any]) -> bool:
    """Return whether a branch, or one around it, was not taken.

    Args:
        before: the original.
        number: of the branch.
        conditions: what each If was given, by the number of its scope and the value's name.
    """
    for outer, node, key in _around(before.scopes[number]):
        if node.op_type == "If":
            taken = conditions.get((outer.at, node.input[0]))
            if taken is not None and not (taken == (key == "then_branch")).any():
                return True
    return False


def _around(scope: Scope) -> Iterator[tuple[Scope, NodeProto, str]]:
    """The nodes that hold a graph, the innermost first, each with its scope and the graph's key."""
    while scope.outer is not None and scope.number != OUTPUT:
        yield scope.outer, scope.outer.nodes[scope.number], scope.key
        scope = scope.outer


def _whose(scope: Scope, record: Record) -> tuple[Any, ...]:
    """The identity of a scope: by what the nodes around it make, which a clip may put later."""
    path: list[Any] = [scope.path]
    for outer, node, key in _around(scope):
        path[-1:] = [(_old(node.output, record), key), outer.path]
    return tuple(path)


def _difference(scope: Scope, other: Scope, record: Record) -> str:
    """The first change in a subgraph; who reads gradients clipped is checked elsewhere."""
    added = set(record.nodes)
    now = {
        _old(node.output, record): _key(node, record)
        for node in other.nodes
        if node.name not in added
    }
    for node in scope.nodes:
        made = tuple(node.output)
        if now.pop(made, None) != _key(node, record):
            return f"the {node.op_type} that makes {next(filter(None, made), '')!r}"
    if now:
        return f"a node more, which makes {next(iter(now))[0]!r}"
    return "" if _old(other.outputs, record) == tuple(scope.outputs) else "its outputs"


def _key(node: NodeProto, record: Record) -> tuple[Any, ...]:
    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)  # which are scopes of their own
    attributes = sorted(
        attr.SerializeToString(deterministic=True)
        for attr in node.attribute
        if attr.type not in graphs
    )
    return node.op_type, node.domain, _old(node.input, record), attributes


def _old(names: Iterable[str], record: Record) -> tuple[str, ...]:
    return tuple(record.renamed.get(name, name) for name in names)
