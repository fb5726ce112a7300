"""Over which axes of a parameter one unit of it reaches: what one output is computed from."""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto

from onnx_clip_pass.graph import OUTPUT, Index, Read, Scope, Value, attribute

__all__ = ["unit_axes"]

_PASSED_ON = {"Cast", "Identity", "Transpose"}


def unit_axes(index: Index, parameter: Value) -> tuple[int, ...] | str | None:
    """The axes that a unit reaches over, by the first node that computes with the parameter.

    The first, because the backward pass takes the parameter too, the other way round, and comes
    later.

    Returns:
        The axes; None if the parameter is one unit, having one axis longer than 1 or none; or, as
        text, why it cannot be told.
    """
    tensor = parameter.type
    if tensor is None or tensor.shape is None:
        return "the shape of its parameter is unknown"
    if sum(size != 1 for size in tensor.shape) <= 1:
        return None
    todo = _reads(index, parameter.frame.scope, parameter.name, tuple(range(len(tensor.shape))))
    ops = sorted({read.scope.nodes[read.node].op_type for read, _ in todo})
    while todo:
        read, order = todo.pop()
        node = read.scope.nodes[read.node]
        if node.op_type in _PASSED_ON and read.slot == 0:
            given = attribute(node, "perm")
            if node.op_type == "Transpose":
                order = order[::-1] if given is None else tuple(order[a] for a in given.ints)
            todo += _reads(index, read.scope, node.output[0], order)
            continue
        layout = _LAYOUTS.get((node.op_type, read.slot))
        if layout is not None:
            return tuple(sorted(order[axis] for axis in layout(node, len(order))))
    taken = f"it is taken by {', '.join(ops)}" if ops else "no node takes it"
    return f"its parameter's units cannot be told, since {taken}"


def _reads(
    index: Index, scope: Scope, name: str, order: tuple[int, ...]
) -> list[tuple[Read, tuple[int, ...]]]:
    """The nodes that read a value, the first one last, and which axis of the parameter is which."""
    reads = [read for read in index.readers_of(scope, name) if read.node != OUTPUT]
    reads.sort(key=lambda read: (read.node, read.slot), reverse=True)
    return [(read, order) for read in reads if read.slot >= 0]


def _flag(node: NodeProto, name: str) -> bool:
    found = attribute(node, name)
    return found is not None and bool(found.i)


def _left_factor(node: NodeProto, rank: int) -> list[int]:
    return [rank - 1]


def _right_factor(node: NodeProto, rank: int) -> list[int]:
    return [max(rank - 2, 0)]


def _gathered(node: NodeProto, rank: int) -> list[int]:
    found = attribute(node, "axis")
    axis = 0 if found is None else found.i
    return [a for a in range(rank) if a != axis % rank]


_LAYOUTS: dict[tuple[str, int], Callable[[NodeProto, int], list[int]]] = {
    ("MatMul", 0): _left_factor,
    ("MatMul", 1): _right_factor,
    ("Gemm", 0): lambda node, rank: [0 if _flag(node, "transA") else 1],
    ("Gemm", 1): lambda node, rank: [1 if _flag(node, "transB") else 0],
    ("FusedMatMul", 1): lambda node, rank: [rank - 1 if _flag(node, "transB") else rank - 2],
    ("Conv", 1): lambda node, rank: list(range(1, rank)),
    ("ConvTranspose", 1): lambda node, rank: [a for a in range(rank) if a != 1],
    ("Gather", 0): _gathered,
    ("RNN", 1): _left_factor,
    ("RNN", 2): _left_factor,
    ("GRU", 1): _left_factor,
    ("GRU", 2): _left_factor,
    ("LSTM", 1): _left_factor,
    ("LSTM", 2): _left_factor,
}
