"""Write gradients.onnx, the gradients of a net as a graph, and gradients.json, their parameters.

Its gradients are made by PyTorch and are never in a graph, so this one has but their names, shapes
and dtypes. A training graph that is exported serves as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
from net import Net
from onnx import TensorProto, helper


def ports(shapes: dict[str, list[int]], ending: str = "") -> list[onnx.ValueInfoProto]:
    """Return the inputs or outputs of these shapes, by names."""
    return [
        helper.make_tensor_value_info(name + ending, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    shapes = {f"{name}.grad": list(p.shape) for name, p in Net().named_parameters()}
    nodes = [helper.make_node("Identity", [f"{name}.raw"], [name]) for name in shapes]
    graph = helper.make_graph(nodes, "gradients", ports(shapes, ".raw"), ports(shapes))
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, folder / "gradients.onnx")
    parameter_of = {name: name.removesuffix(".grad") for name in shapes}
    (folder / "gradients.json").write_text(json.dumps(parameter_of), encoding="utf-8")
