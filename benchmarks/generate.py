"""Make the models that the benchmarks rewrite; the same arguments make the same bytes.

Per gradient three nodes: with d given, ``layer{i}.weight_grad = xt @ (d * (x @ layer{i}.weight))``.

As a program: ``python generate.py inside|outside|wide|wide-sgd PATH NUMBER``, where NUMBER is the
size in bytes or how many gradients. The benchmarks run it so, to stay small themselves: a process
never reports a lower peak memory than the process that started it had.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from contestants import DATA
from onnx import ModelProto, TensorProto, helper

__all__ = ["large_model", "wide_model"]

_FLOAT = TensorProto.FLOAT
_TENSORS = 24
_PAGE = 4096


def wide_model(gradients: int, *, sgd: bool = False) -> ModelProto:
    """Many gradients of four elements each, parameters as inputs.

    The gradients are outputs, or with `sgd` each is consumed by ``weight - rate * gradient``.
    """
    model = _model(gradients, [4])
    graph = model.graph
    for i in range(gradients):
        graph.input.append(helper.make_tensor_value_info(f"layer{i}.weight", _FLOAT, [4]))
    if sgd:
        graph.input.append(helper.make_tensor_value_info("rate", _FLOAT, []))
        del graph.output[:]
        for i in range(gradients):
            weight, step, new = f"layer{i}.weight", f"layer{i}.step", f"layer{i}.weight_new"
            graph.node.append(helper.make_node("Mul", ["rate", f"{weight}_grad"], [step]))
            graph.node.append(helper.make_node("Sub", [weight, step], [new]))
            graph.output.append(helper.make_tensor_value_info(new, _FLOAT, [4]))
    return model


def large_model(size: int, folder: Path | None = None) -> ModelProto:
    """24 square weights of `size` bytes together.

    Uniform random numbers inside the model; or, if there is a `folder`, outside, in a file of it.
    """
    side = math.isqrt(size // (4 * _TENSORS))
    model = _model(_TENSORS, [side, side])
    rng = np.random.default_rng(0)
    stride = -(-4 * side * side // _PAGE) * _PAGE
    for i in range(_TENSORS):
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type = f"layer{i}.weight", _FLOAT
        tensor.dims.extend([side, side])
        weight = rng.random((side, side), np.float32)
        if folder is None:
            tensor.raw_data = weight.tobytes()
            continue
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": DATA, "offset": i * stride, "length": 4 * side * side}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        with (folder / DATA).open("ab") as file:
            file.truncate(i * stride)
            file.write(weight)
    return model


def _model(gradients: int, shape: list[int]) -> ModelProto:
    square = [shape[0], shape[0]]
    nodes, outputs = [], []
    for i in range(gradients):
        weight = f"layer{i}.weight"
        nodes += [
            helper.make_node("MatMul", ["x", weight], [f"layer{i}.y"]),
            helper.make_node("Mul", [f"layer{i}.y", "d"], [f"layer{i}.y_d"]),
            helper.make_node("MatMul", ["xt", f"layer{i}.y_d"], [f"{weight}_grad"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"{weight}_grad", _FLOAT, shape))
    inputs = [
        helper.make_tensor_value_info("x", _FLOAT, square),
        helper.make_tensor_value_info("xt", _FLOAT, square),
        helper.make_tensor_value_info("d", _FLOAT, shape),
    ]
    graph = helper.make_graph(nodes, "benchmark", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main(kind: str, path: str, number: str) -> None:
    """Make one model and save it as it is."""
    if kind in ("inside", "outside"):
        folder = Path(path).parent if kind == "outside" else None
        model = large_model(int(number), folder)
    else:
        model = wide_model(int(number), sgd=kind == "wide-sgd")
    Path(path).write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main(*sys.argv[1:])
