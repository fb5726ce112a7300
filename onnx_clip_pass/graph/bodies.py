"""The bodies of nodes in a model, as protobuf has them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

__all__ = ["bodies_of", "graphs_in"]


def bodies_of(
    model: ModelProto, *, but_in: Collection[str] = ()
) -> Iterator[GraphProto | FunctionProto]:
    """Every body of nodes in a model, an outer one before those in its nodes.

    Those in the nodes named in `but_in` are left out.
    """
    todo: list[GraphProto | FunctionProto] = [model.graph]
    for info in model.training_info:
        todo += [info.initialization, info.algorithm]
    todo += model.functions
    for body in todo:  # grows while it is read
        yield body
        for node in body.node:
            if node.name not in but_in:
                todo += [graph for _, graph in graphs_in(node)]


def graphs_in(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """The graphs that a node holds, each with what it is called there: `body`, or `bodies[0]`."""
    graphs = []
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:  # others grow an empty graph if they are asked
            graphs.append((attr.name, attr.g))
        elif attr.type == AttributeProto.GRAPHS:
            graphs += [(f"{attr.name}[{at}]", graph) for at, graph in enumerate(attr.graphs)]
    return graphs
