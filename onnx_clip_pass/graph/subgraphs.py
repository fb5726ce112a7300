"""Main graph, subgraphs and functions of a model, as protobuf has them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from onnx_clip_pass.graph.spec import TRAINING_DOMAIN

__all__ = [
    "GraphOrFunction",
    "attribute",
    "attributed",
    "graphs_and_functions",
    "graphs_in",
    "names_by_attribute",
    "outermost",
]

GraphOrFunction = GraphProto | FunctionProto


def graphs_and_functions(
    model: ModelProto, *, but_in: Collection[str] = ()
) -> Iterator[GraphOrFunction]:
    """Every graph and function of a model, an outer graph before those in its nodes.

    Those in the nodes named in `but_in` are left out.
    """
    todo = outermost(model)
    for graph in todo:  # grows while it is read
        yield graph
        for node in graph.node:
            if node.name not in but_in:
                todo += [graph for _, graph in graphs_in(node)]


def outermost(model: ModelProto) -> list[GraphOrFunction]:
    """The graphs that are in no node: main graph, training_info, functions."""
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


def attributed(graph: GraphOrFunction) -> set[int]:
    """The numbers of the nodes that have attributes.

    A node allocates memory for attributes when it is asked for them, and keeps it for as long as it
    is
    held: here none is.
    """
    return {number for number, node in enumerate(graph.node) if node.attribute}


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """The attribute of that name, if the node has it."""
    return next((attr for attr in node.attribute if attr.name == name), None)


def names_by_attribute(node: NodeProto) -> list[str]:
    """The tensors that a Gradient node names in its attributes `xs`, `zs` and `y`."""
    if node.op_type != "Gradient" or node.domain != TRAINING_DOMAIN:
        return []
    found = []
    for attr in node.attribute:
        if attr.name in ("xs", "zs"):
            found += [text.decode(errors="replace") for text in attr.strings]
        elif attr.name == "y":
            found.append(attr.s.decode(errors="replace"))
    return found
