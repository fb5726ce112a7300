"""The version of the default operator set of a graph: as imported, or as it is to be imported."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, helper

from onnx_clip_pass.graph.subgraphs import GraphOrFunction, graphs_in, outermost

__all__ = [
    "assume_versions",
    "importer_of",
    "is_of_default_set",
    "take_back_imports",
    "versions_of",
]

_ALIAS = "ai.onnx"
_OLDEST, _NEWEST = 7, 21  # that clips can be made of; that ONNX Runtime 1.20 knows


def versions_of(imports: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    """Return the version of each domain, the default one as "".

    ai.onnx is the default one too. Of several imports of a domain ONNX Runtime takes the last.
    """
    return {_name(entry.domain): entry.version for entry in imports}


def is_of_default_set(node: NodeProto) -> bool:
    """Return whether the node's operator is one of the default set."""
    return not _name(node.domain)


def assume_versions(
    graphs: Iterable[tuple[dict[str, int], Sequence[NodeProto]]], version: int | None, ir: int
) -> set[int]:
    """Give a version to graphs that import no default operator set, where no node is of it.

    Args:
        graphs: the imports of each, which several may share, and its nodes.
        version: that the main graph imports, None if it imports none.
        ir: the IR version; the newest version that came with it or before it will do.

    Returns:
        The ids of the imports that have one now.
    """
    missing: dict[int, list[tuple[dict[str, int], Sequence[NodeProto]]]] = {}
    for imports, nodes in graphs:
        if "" not in imports:
            missing.setdefault(id(imports), []).append((imports, nodes))
    known = [row[2] for row in helper.VERSION_TABLE if row[1] <= ir]
    found = set()
    for key, alike in missing.items():
        if not any(is_of_default_set(node) for _, nodes in alike for node in nodes):
            alike[0][0][""] = version or min(max([_OLDEST, *known]), _NEWEST)
            found.add(key)
    return found


def importer_of(owner: ModelProto | FunctionProto) -> tuple[str, ...]:
    """The identity of a function: domain, name and overload; () for the model."""
    if isinstance(owner, ModelProto):
        return ()
    return owner.domain, owner.name, getattr(owner, "overload", "")


def take_back_imports(model: ModelProto, importers: Collection[tuple[str, ...]]) -> None:
    """Take the last import of the default operator set from these, where no node needs it now."""
    owners: list[ModelProto | FunctionProto] = [model, *model.functions]
    for owner in owners:
        if importer_of(owner) not in importers:
            continue
        graphs: list[GraphOrFunction] = [owner] if isinstance(owner, FunctionProto) else []
        if isinstance(owner, ModelProto):  # functions without imports have those of the model
            graphs = [graph for graph in outermost(model) if not getattr(graph, "opset_import", ())]
        nodes = [node for graph in graphs for node in graph.node]
        for node in nodes:  # grows while it is read
            nodes += [inner for _, graph in graphs_in(node) for inner in graph.node]
        if any(is_of_default_set(node) for node in nodes):
            continue
        for at in range(len(owner.opset_import) - 1, -1, -1):
            if not owner.opset_import[at].domain:
                del owner.opset_import[at]
                break


def _name(domain: str) -> str:
    return "" if domain == _ALIAS else domain
