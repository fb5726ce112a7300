"""Operators of clips: what they infer of the tensors that they give."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from graphs import parse
from onnx import TensorProto

from onnx_clip_pass.clips import Tape, Tensor
from onnx_clip_pass.clips.tape import ALL, Over
from onnx_clip_pass.graph import Editor, Index, Shape

FLOAT, DOUBLE, BOOL = (int(k) for k in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL))


def tape(opset: int = 17) -> Tape:
    model = parse("s (float[2,3] x) => (float[2,3] y) { y = Neg(x) }", opset=opset)
    editor = Editor(Index(model))
    return Tape(editor, editor.index.main, 1, "g")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ((2, 3), (), (2, 3)),
        ((2, 3), (1, 3), (2, 3)),
        ((2, 3), (3,), (2, 3)),
        (("N", 3), (1, 1), ("N", 3)),
        (("N",), (4,), (4,)),
        ((0, 3), (1, 3), (0, 3)),
        ((1,), (None,), (None,)),
        ((2, 3), None, None),
        ((), (), ()),
    ],
    ids=str,
)
def test_the_shape_of_two_that_broadcast_does_not_depend_on_their_order(
    one: Shape, other: Shape | None, both: Shape | None
):
    to, kinds = tape(), [Tensor("x", FLOAT, one), Tensor("x", FLOAT, other)]
    assert to.op("Add", *kinds, result="sum").shape == both
    assert to.op("Add", *reversed(kinds), result="sum").shape == both


def test_a_number_is_a_constant_in_the_dtype_of_the_tensor_beside_it():
    to = tape()
    choice = Tensor("c", BOOL, (2, 3))
    wide = to.op("Where", choice, 0.0, Tensor("w", DOUBLE, (3,)), result="chosen")
    assert (wide.name, wide.dtype, wide.shape) == ("clip/g/chosen", DOUBLE, (2, 3))
    root = to.op("Pow", Tensor("x", FLOAT, (2, 3)), 0.5, result="root")
    assert (root.dtype, root.shape) == (FLOAT, (2, 3))
    less = to.op("Less", root, 1.0, result="less", dtype=BOOL)
    assert (less.dtype, less.shape) == (BOOL, (2, 3))
    assert ("Less", 17, FLOAT, BOOL) in to.used


@pytest.mark.parametrize(
    ("over", "shape"),
    [
        (ALL, ()),
        (Over(keepdims=True), (1, 1)),
        (Over((0,)), (3,)),
        (Over((0,), keepdims=True), (1, 3)),
    ],
)
@pytest.mark.parametrize("op_type", ["ReduceL2", "ReduceL1", "ReduceSum"])
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE])
def test_a_reduction_leaves_the_shape_that_onnx_infers(
    op_type: str, dtype: int, over: Over, shape: Shape
):
    model = parse("s (float[2,3] x) => (float[2,3] y) { y = Neg(x) }", opset=18)
    editor = Editor(Index(model))
    to = Tape(editor, editor.index.main, 1, "g")
    wide = to.cast(Tensor("x", FLOAT, (2, 3)), dtype, result="wide")
    result = to.reduce(op_type, wide, over, result="reduced")
    to.output(result, "out")
    editor.finish()
    assert (result.dtype, result.shape) == (dtype, shape)
    onnx.checker.check_model(model, full_check=True)  # what is declared is what it infers


def test_a_tensor_of_the_dtype_asked_for_is_not_cast():
    to, x = tape(), Tensor("x", FLOAT, None)
    assert to.cast(x, FLOAT, result="wide") is x
    assert to.used == set()


@pytest.mark.parametrize(("opset", "inputs"), [(12, 1), (13, 2)])
def test_axes_become_an_input_of_unsqueeze_at_opset_13(opset: int, inputs: int):
    model: Any = parse("s (float[2,3] x) => (float[2,3] y) { y = Neg(x) }", opset=opset)
    editor = Editor(Index(model))
    to = Tape(editor, editor.index.main, 1, "g")
    assert to.unsqueeze(Tensor("x", FLOAT, (2, 3)), (0, 3)).shape == (1, 2, 3, 1)
    editor.finish()
    assert len(model.graph.node[1].input) == inputs
