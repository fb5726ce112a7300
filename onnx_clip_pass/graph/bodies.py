"""The bodies of nodes in a model, as protobuf has them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

__all__ = ["Body", "attributed", "bodies_of", "graphs_in", "outermost"]

Body = GraphProto | FunctionProto


def bodies_of(model: ModelProto, *, but_in: Collection[str] = ()) -> Iterator[Body]:
    """Every body of nodes in a model, an outer one before those in its nodes.

    Those in the nodes named in `but_in` are left out.
    """
    todo = outermost(model)
    for body in todo:  # grows while it is read
        yield body
        for node in body.node:
            if node.name not in but_in:
                todo += [graph for _, graph in graphs_in(node)]


def outermost(model: ModelProto) -> list[Body]:
    """The bodies that are in no node: main graph, training_info, functions."""
    algorithms = [(info.initialization, info.algorithm) for info in model.training_info]
    return [model.graph, *chain.from_iterable(algorithms), *model.functions]


def graphs_in(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """The graphs that a node holds, each with what it is called there: `body`, or `bodies[0]`."""
    graphs = []
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:  # others grow an empty graph if they are asked
            graphs.append((attr.name, attr.g))
        elif attr.type == AttributeProto.GRAPHS:
            graphs += [(f"{attr.name}[{at}]", graph) for at, graph in enumerate(attr.graphs)]
    return graphs


def attributed(body: Body) -> set[int]:
    """The numbers of the nodes that have attributes.

    A node takes room for attributes when it is asked for them, and keeps it for as long as it is
    held: here none is.
    """
    return {number for number, node in enumerate(body.node) if node.attribute}
