"""Loops over a sequence of tensors: the same for each, or one norm over all of them.

    count   = SequenceLength(sequence)
    clipped = Loop(count, so_far = SequenceEmpty()):
                  each   = SequenceAt(sequence, number)
                  so_far = SequenceInsert(so_far, f(each))

A norm over all is a loop before, which carries the sum of the powers of the tensors' norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnx import NodeProto, TypeProto, ValueInfoProto, helper

from onnx_clip_pass.clips import Numerics
from onnx_clip_pass.graph import Editor
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FLOAT, INT64

__all__ = ["insert_clip_by_global_norm", "insert_clip_of_each"]


def insert_clip_of_each(editor: Editor, sequence: str, clipped: str, dtype: int) -> str:
    """A loop that hands on each tensor as it is, for a clip to be put into.

    Args:
        editor: of the model whose main graph has the sequence.
        sequence: an input of the main graph.
        clipped: the name of the new sequence.
        dtype: of the tensors.

    Returns:
        The name of the value, in the loop's body, that is each tensor in turn.
    """
    loops = _Loops(editor, sequence, dtype)
    each = editor.fresh(f"{sequence}/each")
    loops.over_all(each, [], each, clipped)
    return each


def insert_clip_by_global_norm(
    editor: Editor,
    sequence: str,
    clipped: str,
    dtype: int,
    *,
    clip_norm: float,
    order: float = 2.0,
    numerics: Numerics,
) -> None:
    r"""Scale all tensors of a sequence by min(clip_norm / norm, 1), norm being that of them all.

    .. math:: norm = \left(\sum_i \lVert x_i \rVert_p^p\right)^{1/p}

    with p = `order`, or the largest magnitude for p = inf. The norm is computed in float64 whatever
    the dtype; nothing is added to it. No ReduceL2 or ReduceL1: the training runtime has none for
    float64 before opset 18.

    Args:
        editor: of the model whose main graph has the sequence.
        sequence: an input of the main graph.
        clipped: the name of the new sequence.
        dtype: of the tensors.
        clip_norm: the largest norm of all tensors together.
        order: p, a positive number or inf.
        numerics: its `nonfinite` says what becomes of the tensors if one has nan or inf in it:
            "propagate", what the formula gives; "zero", zeros, all of them; "keep", all as they
            are.
    """
    loops = _Loops(editor, sequence, dtype)
    norm = loops.norm(order)
    scale, finite = loops.scale(norm, clip_norm, numerics)
    loops.scale_all(scale, finite, clipped)


class _Loops:
    """Puts loops over a sequence at the beginning of a main graph."""

    def __init__(self, editor: Editor, sequence: str, dtype: int) -> None:
        self._editor = editor
        self._main = editor.index.main
        self._sequence = sequence
        self._dtype = dtype
        self._count = self.add("SequenceLength", [sequence], "count")

    def fresh(self, word: str) -> str:
        return self._editor.fresh(f"clip/{self._sequence}/{word}")

    def add(self, op_type: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        """A node of the main graph; its output."""
        output = self.fresh(result)
        self._insert(op_type, inputs, output, **attributes)
        return output

    def node(
        self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any
    ) -> NodeProto:
        """A node for a loop's body."""
        name = self.fresh(op_type)
        return helper.make_node(op_type, inputs, [output], name, **attributes)

    def constant(self, value: float, dtype: int) -> str:
        return self._editor.constant(self._main, value, dtype)

    def over_all(self, raw: str, nodes: list[NodeProto], result: str, clipped: str) -> None:
        """A loop that makes a new sequence: `nodes` make `result` from each tensor `raw`."""
        empty = self.add("SequenceEmpty", [], "empty", dtype=self._dtype)
        so_far, more = self.fresh("so far"), self.fresh("more")
        nodes = [*nodes, self.node("SequenceInsert", [so_far, result], more)]
        known = [_tensor(name, self._dtype) for name in dict.fromkeys((raw, result))]
        carried = helper.make_sequence_type_proto(_tensor("", self._dtype).type)
        self._loop(raw, nodes, known, empty, (so_far, more), carried, clipped)

    def norm(self, order: float) -> str:
        """The norm of all tensors, in float64."""
        so_far, total = self.fresh("total so far"), self.fresh("total")
        raw, wide, sizes = self.fresh("raw"), self.fresh("in float64"), self.fresh("sizes")
        powers, length = self.fresh("powers"), self.fresh("length")
        zero = self.constant(0.0, DOUBLE)
        nodes = [
            self.node("Cast", [raw], wide, to=DOUBLE),
            self.node("Abs", [wide], sizes),
        ]
        if math.isinf(order):  # ReduceMax passes over nan, and gives -inf for nothing
            largest, guard = self.fresh("largest"), self.fresh("zero or nan")
            nodes += [
                self.node("ReduceMax", [sizes], largest, keepdims=0),
                self.node("ReduceSum", [sizes], length, keepdims=0),
                self.node("Min", [length, zero], guard),
                self.node("Max", [so_far, largest, guard], total),
            ]
        else:
            if order == 2:
                nodes.append(self.node("Mul", [sizes, sizes], powers))
            elif order != 1:
                exponent = self.constant(order, DOUBLE)
                nodes.append(self.node("Pow", [sizes, exponent], powers))
            summed = sizes if order == 1 else powers
            nodes.append(self.node("ReduceSum", [summed], length, keepdims=0))
            nodes.append(self.node("Add", [so_far, length], total))
        result = self.fresh("total of all")
        carried = helper.make_tensor_type_proto(DOUBLE, [])
        known = [_tensor(raw, self._dtype)]
        self._loop(raw, nodes, known, zero, (so_far, total), carried, result)
        if order in (1, math.inf):
            return result
        if order == 2:
            return self.add("Sqrt", [result], "norm")
        return self.add("Pow", [result, self.constant(1.0 / order, DOUBLE)], "norm")

    def scale(self, norm: str, clip_norm: float, numerics: Numerics) -> tuple[str, str]:
        """What all tensors are multiplied by, and whether all of them are finite.

        The latter is "" if it makes no difference to the product.
        """
        one = self.constant(1.0, DOUBLE)
        if math.isinf(clip_norm):
            scale = one
        else:
            ratio = self.add("Div", [self.constant(clip_norm, DOUBLE), norm], "ratio")
            scale = self.add("Min", [ratio, one], "scale")
        finite = ""
        if numerics.nonfinite != "propagate":
            finite = self.add("Less", [norm, self.constant(math.inf, DOUBLE)], "finite")
        if numerics.nonfinite == "keep":
            scale, finite = self.add("Where", [finite, scale, one], "kept"), ""
        return self.add("Cast", [scale], "factor", to=self._work), finite

    def scale_all(self, scale: str, finite: str, clipped: str) -> None:
        raw, last = self.fresh("raw"), self.fresh("each")
        nodes: list[NodeProto] = []
        x = raw
        if self._work != self._dtype:
            x = self.fresh("in float32")
            nodes.append(self.node("Cast", [raw], x, to=self._work))
        product = self.fresh("product")
        nodes.append(self.node("Mul", [x, scale], product))
        if finite:
            chosen = self.fresh("chosen")
            zero = self.constant(0.0, self._work)
            nodes.append(self.node("Where", [finite, product, zero], chosen))
            product = chosen
        nodes.append(self.node("Cast", [product], last, to=self._dtype))
        self.over_all(raw, nodes, last, clipped)

    @property
    def _work(self) -> int:
        return DOUBLE if self._dtype == DOUBLE else FLOAT

    def _loop(
        self,
        raw: str,
        nodes: list[NodeProto],
        known: list[ValueInfoProto],
        start: str,
        names: tuple[str, str],
        carried: TypeProto,
        output: str,
    ) -> None:
        """A loop that carries one value, by `names` into its body and out of it, to `output`."""
        number, going, goes_on = (self.fresh(w) for w in ("number", "going", "goes on"))
        before, after = (helper.make_value_info(name, carried) for name in names)
        body = helper.make_graph(
            [
                self.node("SequenceAt", [self._sequence, number], raw),
                *nodes,
                self.node("Identity", [going], goes_on),
            ],
            self.fresh("body"),
            [
                helper.make_tensor_value_info(number, INT64, []),
                helper.make_tensor_value_info(going, BOOL, []),
                before,
            ],
            [helper.make_tensor_value_info(goes_on, BOOL, []), after],
            value_info=known,
        )
        self._insert("Loop", [self._count, "", start], output, body=body)

    def _insert(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        name = f"clip/{self._sequence}/{op_type}"
        self._editor.insert(self._main, 0, op_type, inputs, output, name, **attributes)


def _tensor(name: str, dtype: int) -> ValueInfoProto:
    """A tensor of which only the dtype is known."""
    return helper.make_tensor_value_info(name, dtype, None)
