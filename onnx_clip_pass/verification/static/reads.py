"""The reads of an original as they are in the model that was made of it."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_clip_pass.graph import OUTPUT, Index, Read
from onnx_clip_pass.record import Record

__all__ = ["Readers"]


class Readers:
    """Looks up in a rewritten model what the nodes and outputs of its original read there.

    A node is known by the values that it computes, wherever it stands now. One that another tool
    has replaced is not found; whether its successor does the same, only running tells.
    """

    def __init__(self, after: Index, record: Record) -> None:
        added = set(record.nodes)
        self._scopes = after.scopes
        self._producers = [
            {
                record.renamed.get(name, name): node
                for node in scope.nodes
                if node.name not in added
                for name in node.output
                if name
            }
            for scope in after.scopes
        ]

    def name_at(self, read: Read) -> str | None:
        """The name that is read there now; None if not found."""
        if read.node == OUTPUT:
            names = list(self._scopes[read.scope.at].outputs)
        else:
            producers = self._producers[read.scope.at]
            made = read.scope.nodes[read.node].output
            names = next((list(producers[name].input) for name in made if name in producers), [])
        return names[read.slot] if read.slot < len(names) else None

    def misread(
        self,
        reads: Iterable[Read],
        clipped: dict[Read, set[str]],
        raw: str,
    ) -> list[str]:
        """The reads of a gradient that do not see the clipped or the raw value as they must.

        Args:
            reads: all of them.
            clipped: those that must see a clipped value, with its names.
            raw: the name of the value before clipping.
        """
        faults = []
        for read in reads:
            name, wanted = self.name_at(read), clipped.get(read, {raw})
            if name is not None and name not in wanted:
                what = "clipped" if read in clipped else "raw"
                faults.append(
                    f"{_called(read)} reads {name!r}, where the {what} gradient "
                    f"{min(wanted)!r} is right"
                )
        return faults


def _called(read: Read) -> str:
    where = f" of {read.scope.path}" if read.scope.path else ""
    if read.node == OUTPUT:
        return f"output {read.scope.outputs[read.slot]!r}{where}"
    node = read.scope.nodes[read.node]
    made = next((name for name in node.output if name), node.name)
    return f"the {node.op_type} that makes {made!r}{where}"
