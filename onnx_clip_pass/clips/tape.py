"""Operators that take tensors and give tensors, as nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from onnx_clip_pass.graph import Editor, Scope, Shape, TensorType
from onnx_clip_pass.graph.spec import DOUBLE, INT64

__all__ = ["ALL", "Over", "Step", "Tape", "Tensor", "Used"]

_FIRST_REDUCED_AXES_AS_INPUT = 18
_FIRST_OTHER_AXES_AS_INPUT = 13
_FIRST_SLICE_OF_INPUTS = 10


class Tensor(NamedTuple):
    """A value of the graph."""

    name: str
    dtype: int
    shape: Shape | None


class Over(NamedTuple):
    """The axes that a reduction reaches over, None for all; they stay, of size 1, if `keepdims`."""

    axes: tuple[int, ...] | None = None
    keepdims: bool = False

    def sizes(self, shape: Shape | None) -> Shape | None:
        """The sizes of what becomes one number."""
        if shape is None or self.axes is None:
            return shape
        return tuple(shape[axis] for axis in self.axes)

    def left(self, shape: Shape | None) -> Shape | None:
        """The shape of what the reduction gives."""
        if self.axes is None and not self.keepdims:
            return ()
        if shape is None:
            return None
        gone = range(len(shape)) if self.axes is None else self.axes
        if self.keepdims:
            return tuple(1 if axis in gone else d for axis, d in enumerate(shape))
        return tuple(d for axis, d in enumerate(shape) if axis not in gone)


ALL = Over()

Used = tuple[str, int, int, int]
"""An operator that is used, at which opset, and the dtypes that it takes and gives."""


class Step(NamedTuple):
    """A node that a tape has added: what it is called, reads and makes, and of which type."""

    op_type: str
    inputs: list[str]
    attributes: dict[str, Any]
    result: str
    output: str
    type: TensorType


class Tape:
    """Adds nodes, named `clip/<label>/<op>`, at one position of a scope.

    `used` collects what kernels they need, `steps` the nodes.
    """

    def __init__(
        self, editor: Editor, scope: Scope, position: int, label: str, target: str = ""
    ) -> None:
        self.opset = scope.opset or 0
        self.position = position
        self.used: set[Used] = set()
        self.steps: list[Step] = []
        self.label = label
        self._editor = editor
        self._scope = scope
        self._target = target

    def constant(self, value: float, dtype: int) -> Tensor:
        """A rank-0 constant."""
        return Tensor(self._editor.constant(self._scope, value, dtype), dtype, ())

    def op(
        self,
        op_type: str,
        *operands: Tensor | float,
        result: str,
        dtype: int = 0,
        **attributes: Any,
    ) -> Tensor:
        """Add a node that goes element by element through operands that broadcast.

        Args:
            op_type: an operator of the default domain.
            operands: what it reads; a number is a constant in the dtype of the last or first.
            result: its output is called `clip/<label>/<result>`; "" makes it the clip's last node,
                whose output is the clipped gradient.
            dtype: of the result, if that is not the last operand's.
            attributes: of the node.
        """
        like = operands[0] if isinstance(operands[-1], float) else operands[-1]
        assert isinstance(like, Tensor)
        names, takes = [], like.dtype
        shape: Shape | None = ()
        for each in operands:
            if isinstance(each, float):
                names.append(self._editor.constant(self._scope, each, takes))
                continue
            names.append(each.name)
            if each.shape != shape:
                shape = _broadcast(shape, each.shape) if shape != () else each.shape
        return self._node(op_type, names, takes, dtype or takes, shape, result, attributes)

    def cast(self, value: Tensor, dtype: int, *, result: str) -> Tensor:
        """The value as another dtype; itself if it has that already."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", value, result=result, dtype=dtype, to=dtype)

    def size(self, value: Tensor) -> Tensor:
        """The number of its elements."""
        return self._node("Size", [value.name], value.dtype, INT64, (), "size", {})

    def reduce(self, op_type: str, value: Tensor, over: Over, *, result: str) -> Tensor:
        """A reduction; its axes were an attribute before opset 18 (13).

        In float64 a ReduceL2 is the root of a ReduceSumSquare, and a ReduceL1 the sum of Abs: ONNX
        Runtime up to 1.19, the last with training, has them, and not all versions of the others.
        """
        if value.dtype == DOUBLE and op_type == "ReduceL2":
            squares = self.reduce("ReduceSumSquare", value, over, result="sum of squares")
            return self.op("Sqrt", squares, result=result)
        if value.dtype == DOUBLE and op_type == "ReduceL1":
            op_type, value = "ReduceSum", self.op("Abs", value, result="sizes")
        is_sum = op_type == "ReduceSum"
        first = _FIRST_OTHER_AXES_AS_INPUT if is_sum else _FIRST_REDUCED_AXES_AS_INPUT
        attributes = {"keepdims": int(over.keepdims)}
        shape = over.left(value.shape)
        return self._along(op_type, value, over.axes, first, attributes, shape, result)

    def rows(self, value: Tensor, length: int, over: Over) -> Tensor:
        """The elements of a tensor as a matrix of rows of this length.

        Over neighbouring axes they take the place of these, behind their number. The sum of each
        row has the rank of the tensor if that of several axes keeps its axis: of more than two, the
        first become 1. The sizes of these axes, and of those behind, are known.
        """
        dims: list[int] = [-1, length]
        shape: Shape = (None, length)
        if over.axes is not None and value.shape is not None:
            first = min(over.axes)
            sizes = [d for d in value.shape[first:] if isinstance(d, int)]
            own, behind = sizes[: len(over.axes)], sizes[len(over.axes) :]
            dims = [1] * (len(own) - 2) + [math.prod(own) // length, length, *behind]
            shape = (*value.shape[:first], *dims)
            dims = [0] * first + dims
        return self._reshape(value, dims, shape, "rows")

    def row_products(self, value: Tensor, length: int) -> Tensor:
        """The products of rows of this length with themselves: their sums of squares.

        As a MatMul with the rows' Transpose, which ONNX Runtime's CPU provider makes one node of,
        whose kernel on x86-64 is a dot product by vector instructions.
        """
        shape = (None, 1, length)
        rows = self._reshape(value, [-1, 1, length], shape, "rows")
        down = self._node(
            "Transpose",
            [rows.name],
            value.dtype,
            value.dtype,
            (None, length, 1),
            "rows on end",
            {"perm": [0, 2, 1]},
        )
        return self._node(
            "MatMul",
            [rows.name, down.name],
            value.dtype,
            value.dtype,
            (None, 1, 1),
            "sums",
            {},
        )

    def unsqueeze(self, value: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The value with axes of size 1 put in, counted in the result."""
        rest = iter(value.shape or ())
        rank = len(value.shape or ()) + len(axes)
        shape = tuple(1 if axis in axes else next(rest) for axis in range(rank))
        first = _FIRST_OTHER_AXES_AS_INPUT
        return self._along("Unsqueeze", value, axes, first, {}, shape, "in place")

    def concat(self, values: list[Tensor], *, result: str) -> Tensor:
        """Vectors of known sizes as one."""
        names, dtype = [value.name for value in values], values[0].dtype
        size = sum(d for value in values for d in value.shape or () if isinstance(d, int))
        return self._node("Concat", names, dtype, dtype, (size,), result, {"axis": 0})

    def flat(self, value: Tensor) -> Tensor:
        """The elements as a vector."""
        sizes = [d for d in value.shape or () if isinstance(d, int)]
        return self._reshape(value, [-1], (math.prod(sizes),), "flat")

    def part(self, vector: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """The elements of a vector from `start` on, as a tensor of this shape."""
        cut = self.cut(vector, start, start + math.prod(shape))
        return self._reshape(cut, list(shape), shape, "part in shape")

    def cut(self, vector: Tensor, start: int, end: int) -> Tensor:
        """The elements of a vector from `start` to before `end`."""
        bounds = {"starts": [start], "ends": [end], "axes": [0]}
        names, attributes = [vector.name], {}
        if self.opset < _FIRST_SLICE_OF_INPUTS:
            attributes = bounds
        else:
            names += [
                self._editor.integers(self._scope, word, list(each))
                for word, each in bounds.items()
            ]
        kind = vector.dtype
        return self._node("Slice", names, kind, kind, (end - start,), "part", attributes)

    def gather(self, vector: Tensor, index: Tensor) -> Tensor:
        """The element of a vector at an index of rank 0."""
        names, kind = [vector.name, index.name], vector.dtype
        return self._node("Gather", names, kind, kind, (), "element", {})

    def smallest(self, vector: Tensor, count: Tensor | int) -> Tensor:
        """The so many smallest elements of a vector in order; `count` is int64 of rank 0."""
        if isinstance(count, int):
            number, size = self._editor.integers(self._scope, "ranks", [count]), count
        else:
            number, size = self.unsqueeze(count, (0,)).name, None
        names, kind = [vector.name, number], vector.dtype
        return self._node("TopK", names, kind, kind, (size,), "smallest", {"largest": 0})

    def _reshape(self, value: Tensor, dims: list[int], shape: Shape, result: str) -> Tensor:
        names = [value.name, self._editor.integers(self._scope, "shape", dims)]
        return self._node("Reshape", names, value.dtype, value.dtype, shape, result, {})

    def output(self, value: Tensor, name: str) -> None:
        """Give a value the name of an output of the graph, which it becomes."""
        self._editor.insert(
            self._scope, self.position, "Identity", [value.name], name, f"clip/{name}/Identity"
        )
        self.used.add(("Identity", self.opset, value.dtype, value.dtype))
        self._editor.add_output(name, TensorType(value.dtype, value.shape))

    def _along(
        self,
        op_type: str,
        value: Tensor,
        axes: tuple[int, ...] | None,
        first: int,
        attributes: dict[str, Any],
        shape: Shape | None,
        result: str,
    ) -> Tensor:
        """An operator along axes, which from opset `first` on are an input."""
        names, dtype = [value.name], value.dtype
        if axes is not None and self.opset < first:
            attributes["axes"] = list(axes)
        elif axes is not None:
            names.append(self._editor.integers(self._scope, "axes", list(axes)))
        return self._node(op_type, names, dtype, dtype, shape, result, attributes)

    def _node(
        self,
        op_type: str,
        inputs: list[str],
        takes: int,
        dtype: int,
        shape: Shape | None,
        result: str,
        attributes: dict[str, Any],
    ) -> Tensor:
        """Add a node that takes one dtype and gives another, and declare what it gives."""
        type = TensorType(dtype, shape)
        output = self._add(op_type, inputs, attributes, result, type)
        self.steps.append(Step(op_type, inputs, attributes, result, output, type))
        self.used.add((op_type, self.opset, takes, dtype))
        return Tensor(output, dtype, shape)

    def repeat(self, steps: Sequence[Step], source: str, own: str) -> None:
        """Add what another tape has made of `source`, of `own`, with names and target of its own.

        For many gradients of one kind, whose nodes differ by their names alone.
        """
        names = {source: own}
        for op_type, inputs, attributes, result, output, type in steps:
            taken = [names.get(name, name) for name in inputs]
            names[output] = self._add(op_type, taken, attributes, result, type)

    def _add(
        self,
        op_type: str,
        inputs: list[str],
        attributes: dict[str, Any],
        result: str,
        type: TensorType,
    ) -> str:
        """Add a node and declare what it gives; the name of that."""
        editor, scope, prefix = self._editor, self._scope, f"clip/{self.label}/"
        output = editor.fresh(prefix + result) if result else self._target
        unread = [editor.fresh(f"{output} places")] if op_type == "TopK" else []
        label, at = prefix + op_type, self.position
        editor.insert(scope, at, op_type, inputs, output, label, attributes, unread=unread)
        if result:
            editor.declare(scope, output, type)
        return output


def _broadcast(one: Shape | None, other: Shape | None) -> Shape | None:
    """The shape of what an operator gives that broadcasts two."""
    if one is None or other is None:
        return None
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    if not shorter:
        return longer
    padded = (1,) * (len(longer) - len(shorter)) + shorter
    return tuple(map(_one_size, longer, padded))


def _one_size(one: int | str | None, other: int | str | None) -> int | str | None:
    """The size of an axis: of sizes that are not 1 both are equal, and a number is the surest."""
    if one == 1 or (isinstance(other, int) and other != 1):
        return other
    return one
