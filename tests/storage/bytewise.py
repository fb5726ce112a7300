"""A small training graph with large tensors, and a reader of protobuf that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_clip_pass import GradientClipByNorm, clip_gradients_file
from onnx_clip_pass.rewrite import Report

COUNT = 1000  # float32 elements: 4000 bytes, more than what is read along with the structure
SIZE = 4 * COUNT


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return number, at


def walk(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Field number, wire type and content of each field that is no group."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        start = at
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            length, start = _varint(data, at)
            at = start + length
        else:
            at += {1: 8, 5: 4}[tag & 7]
        yield tag >> 3, tag & 7, data[start:at]


def records(data: bytes, *path: int) -> list[bytes]:
    """The contents of the submessages at the end of a path of field numbers."""
    for number in path[:-1]:  # joining records is how protobuf merges them
        data = b"".join(content for at, _, content in walk(data) if at == number)
    return [content for at, _, content in walk(data) if at == path[-1]]


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded, number = encoded + bytes([number & 0x7F | 0x80]), number >> 7
    return encoded + bytes([number])


def sub(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def large(name: str, seed: int = 0, count: int = COUNT) -> TensorProto:
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    return numpy_helper.from_array(values, name)


def make_step(count: int = COUNT) -> onnx.ModelProto:
    """W_grad = x * W, with W as a large initializer."""
    values = [helper.make_tensor_value_info(name, 1, [count]) for name in ("x", "W_grad")]
    node = helper.make_node("Mul", ["x", "W"], ["W_grad"], name="backward")
    graph = helper.make_graph([node], "step", values[:1], values[1:], [large("W", count=count)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def point_to(tensor: TensorProto, **entries: object) -> None:
    """Let a tensor have its data elsewhere."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def save(path: Path, **entries: object) -> Path:
    """The same with W as external data."""
    model = make_step()
    point_to(model.graph.initializer[0], **entries)
    path.write_bytes(model.SerializeToString())
    return path


def rewrite(source: Path, target: Path, **options: object) -> Report:
    return clip_gradients_file(
        source, target, GradientClipByNorm(1.0), gradients={"W_grad": "W"}, **options
    )


def tensors(path: Path) -> dict[str, bytes]:
    """The elements as onnx reads them."""
    with_data = onnx.load(path).graph.initializer
    return {t.name: t.raw_data for t in with_data if t.name in ("W", "V")}


def references(path: Path) -> list[list[tuple[str, str]]]:
    """Where the first two tensors have their data."""
    model = onnx.load(path, load_external_data=False)
    return [[(e.key, e.value) for e in t.external_data] for t in model.graph.initializer[:2]]
