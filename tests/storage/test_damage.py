"""Tensors that hold what they cannot hold are named, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bytewise import COUNT, large, make_step, rewrite, sub, varint
from onnx import TensorProto, helper, numpy_helper

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.cli import main
from onnx_clip_pass.storage import open_model

SMALL = 10
DIMS = b"\x08" + varint(COUNT)
FLOAT, INT64 = b"\x10\x01", b"\x10\x07"
DTYPES = [number for number in TensorProto.DataType.values() if number]


def record(*parts: bytes) -> bytes:
    """A model with a further tensor V of these parts, of dims [1000] as long as none are among."""
    dims = b"" if any(part.startswith(b"\x08") for part in parts) else DIMS
    return make_step().SerializeToString() + sub(7, sub(5, dims + sub(8, b"V") + b"".join(parts)))


DAMAGED = {
    "too few bytes": (record(FLOAT, sub(9, bytes(3996))), "4,000 bytes in raw_data .* 3,996 in"),
    "too many bytes": (record(FLOAT, sub(9, bytes(4001))), "has 4,001 in raw_data"),
    "too few floats": (record(FLOAT, sub(4, bytes(3996))), "1,000 numbers in .*has 999 in float"),
    "floats that are cut off": (record(FLOAT, sub(4, bytes(3999))), "end within a number"),
    "doubles that are cut off": (record(b"\x10\x0b", sub(10, bytes(7999))), "end within a number"),
    "too few numbers": (record(INT64, sub(7, 999 * b"\x80\x01")), "has 999 in int64_data"),
    "numbers that are cut off": (record(INT64, sub(7, 999 * b"\1" + b"\x80")), "within a number"),
    "a number without end": (record(INT64, sub(7, 999 * b"\x80" + b"\1")), "within a number"),
    "bytes and floats": (
        record(FLOAT, sub(4, bytes(4000)), sub(9, bytes(4000))),
        "has 1,000 in float_data and 4,000 in raw_data",
    ),
    "the field of another dtype": (record(FLOAT, sub(7, 1000 * b"\1")), "has 1,000 in int64_data"),
    "a negative size": (record(b"\x08" + varint(2**64 - 1), FLOAT, sub(9, bytes(600))), r"\[-1\]"),
    "bytes of a number for texts": (record(b"\x10\x08", sub(9, bytes(8000))), "dtype string"),
    "few bytes, too few": (
        record(b"\x08\x0a", FLOAT, sub(9, bytes(39))),
        r"tensor 'V' has dims \[10\] and dtype float, which take 40 bytes .* has 39 in raw_data",
    ),
    "few floats, too many": (record(b"\x08\x0a", FLOAT, sub(4, bytes(44))), "has 11 in float_data"),
}


@pytest.mark.parametrize(("data", "said"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named_and_nothing_is_written(data, said, saved: Path, capsys):
    saved.write_bytes(data)
    with pytest.raises(OnnxClipError, match=f"is damaged: .*{said}"):
        rewrite(saved, saved.with_name("out.onnx"))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert main(["inspect", str(saved)]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("count", [SMALL, COUNT], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "field"])
def test_what_onnx_writes_is_no_damage(dtype: int, is_raw: bool, count: int, saved: Path):
    values = [b"text"] * count if dtype == TensorProto.STRING else [1] * count
    tensor = helper.make_tensor("V", dtype, [count], values)
    if is_raw and dtype != TensorProto.STRING:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "V")
    model = make_step()
    model.graph.initializer.append(tensor)
    saved.write_bytes(model.SerializeToString())
    rewrite(saved, saved.with_name("out.onnx"))
    written = onnx.load(saved.with_name("out.onnx")).graph.initializer[1]
    np.testing.assert_array_equal(numpy_helper.to_array(written), numpy_helper.to_array(tensor))


def in_an_attribute(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def in_a_sparse_attribute(tensor: TensorProto) -> onnx.NodeProto:
    indices = numpy_helper.from_array(np.arange(COUNT), "at")
    sparse = helper.make_sparse_tensor(tensor, indices, [2 * COUNT])
    return helper.make_node("Constant", [], ["c"], sparse_value=sparse)


def in_a_branch(tensor: TensorProto) -> onnx.NodeProto:
    out = helper.make_tensor_value_info("inner", 1, [COUNT])
    branch = helper.make_graph([], "branch", [], [out], [tensor])
    return helper.make_node("If", ["x"], ["c"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("place", [in_an_attribute, in_a_sparse_attribute, in_a_branch])
def test_damage_is_named_wherever_a_tensor_is(
    place: Callable[[TensorProto], onnx.NodeProto], saved: Path
):
    tensor = large("inner")
    model = make_step()
    model.graph.node.append(place(tensor))
    saved.write_bytes(model.SerializeToString())
    with open_model(saved) as structure:
        assert structure.model.graph.node[1].output == ["c"]
    tensor.raw_data = tensor.raw_data[:-4]
    model.graph.node[1].CopyFrom(place(tensor))
    saved.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxClipError, match=r"tensor 'inner' has .*has 3,996 in raw_data"):
        rewrite(saved, saved.with_name("out.onnx"))


def test_weights_that_are_not_there_are_no_damage(saved: Path):
    """A model may come without them, to be filled in later."""
    model = make_step()
    model.graph.initializer.append(TensorProto(name="V", data_type=1, dims=[COUNT]))
    saved.write_bytes(model.SerializeToString())
    rewrite(saved, saved.with_name("out.onnx"))
    assert onnx.load(saved.with_name("out.onnx")).graph.initializer[1].dims == [COUNT]


def test_indices_that_are_not_read_leave_a_question(saved: Path, capsys):
    """The rows of E that are replaced are a constant, which is too large to be read along."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 18]>
        step (float[2000,4] E, float[{COUNT},4] t) => (float loss, float[2000,4] E_new) <
          int64[{COUNT}] at = {{{",".join(map(str, range(COUNT)))}}}, int64[1] one = {{1}},
          float lr = {{0.1}}> {{
          rows = Gather (E, at)
          error = Sub (rows, t)
          square = Mul (error, error)
          loss = ReduceSum <keepdims = 0> (square)
          d = Add (error, error)
          places = Unsqueeze (at, one)
          step = Mul (lr, d)
          new = Sub (rows, step)
          E_new = ScatterND (E, places, new)
        }}"""
    model = onnx.parser.parse_model(text)
    numbers = model.graph.initializer[0]
    numbers.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(numbers), "at"))
    saved.write_bytes(model.SerializeToString())
    assert main(["inspect", str(saved)]) == 0
    assert "nothing says that none occurs twice" in capsys.readouterr().out
