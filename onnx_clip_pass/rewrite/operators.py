"""The operators of a model, before a rewrite and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from onnx import NodeProto

from onnx_clip_pass.graph import Index, is_of_default_set
from onnx_clip_pass.graph.subgraphs import graphs_in
from onnx_clip_pass.tables import Table

__all__ = ["Counts", "OperatorCount", "compared", "operator_table", "operators_in", "operators_of"]

Counts = Counter[tuple[str, int]]
"""The number of nodes by operator, "domain::name" of another domain than the default, and opset."""


class OperatorCount(NamedTuple):
    """The number of nodes of one operator, in nested graphs and functions, too."""

    operator: str
    before: int
    after: int


def operators_of(index: Index) -> Counts:
    """The operators of a model; the opset is 0 for those of other domains."""
    found: Counts = Counter()
    for scope in index.scopes:
        found.update(_keys(scope.nodes, scope.opset or 0))
    return found


def operators_in(nodes: Iterable[NodeProto]) -> Counts:
    """The operators of nodes and of the graphs in them, whatever their opsets."""
    found: Counts = Counter()
    todo = list(nodes)
    found.update(_keys(todo, 0))
    for node in todo:  # grows while it is read
        for _, graph in graphs_in(node):
            todo += graph.node
            found.update(_keys(graph.node, 0))
    return found


def _keys(nodes: Iterable[NodeProto], opset: int) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if is_of_default_set(node):
            yield node.op_type, opset
        else:
            yield f"{node.domain}::{node.op_type}", 0


def compared(before: Counts, after: Counts) -> tuple[OperatorCount, ...]:
    """Every operator by name with its numbers before and after."""
    one, other = _by_name(before), _by_name(after)
    return tuple(OperatorCount(name, one[name], other[name]) for name in sorted(one | other))


def _by_name(counts: Counts) -> Counter[str]:
    found: Counter[str] = Counter()
    for (name, _), count in counts.items():
        found[name] += count
    return found


def operator_table(counts: Iterable[OperatorCount]) -> Table:
    """The table of operators, and of all together in the last row."""
    rows = list(counts)
    rows.append(OperatorCount("all", sum(r.before for r in rows), sum(r.after for r in rows)))
    return Table(
        ("operator", "before", "after", "change"),
        tuple(
            (name, str(before), str(after), f"{after - before:+d}" if after != before else "")
            for name, before, after in rows
        ),
    )
