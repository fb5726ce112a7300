"""Writing the nodes of a body: what `random_graphs.py` is built from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DOUBLE = TensorProto.DOUBLE


class GraphOrFunction:
    """Nodes in the order in which they are added; `style` is how new names are made."""

    def __init__(self, style: str = "{}") -> None:
        self.style = style
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0

    def fresh(self) -> str:
        self._count += 1
        return self.style.format(f"v{self._count}")

    def put(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node and give the name of its output."""
        out = out or self.fresh()
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def constant(self, value: NDArray[Any], out: str = "") -> str:
        return self.put("Constant", out=out, value=numpy_helper.from_array(value))

    def branch(self, op: str, *inputs: str, **attributes: Any) -> onnx.GraphProto:
        """A graph of one node that captures its inputs."""
        name = self.fresh()
        node = helper.make_node(op, inputs, [name], **attributes)
        return helper.make_graph([node], "branch", [], [onnx.ValueInfoProto(name=name)])

    def branch_of_dense(self, x: str, d: str, weight: str) -> onnx.GraphProto:
        across, gradient, turned, below = (self.fresh() for _ in range(4))
        nodes = [
            helper.make_node("Transpose", [x], [across]),
            helper.make_node("MatMul", [across, d], [gradient]),
            helper.make_node("Transpose", [weight], [turned]),
            helper.make_node("MatMul", [d, turned], [below]),
        ]
        outputs = [helper.make_tensor_value_info(n, DOUBLE, [2, 2]) for n in (gradient, below)]
        return helper.make_graph(nodes, "branch", [], outputs)

    def choose(self, branches: list[onnx.GraphProto], outputs: tuple[str, ...]) -> None:
        for branch in branches:
            for value in branch.output:
                value.type.tensor_type.elem_type = DOUBLE
        then_branch, else_branch = branches
        node = helper.make_node(
            "If", ["flag"], outputs, then_branch=then_branch, else_branch=else_branch
        )
        self.nodes.append(node)

    def doubled_by_loop(self, start: str) -> str:
        """A Loop that runs once and adds what it carries to itself."""
        number, going, still, carried, twice = (self.fresh() for _ in range(5))
        nodes = [
            helper.make_node("Identity", [going], [still]),
            helper.make_node("Add", [carried, carried], [twice]),
        ]
        inputs = [typed(number, [], TensorProto.INT64), typed(going, [], TensorProto.BOOL)]
        outputs = [typed(still, [], TensorProto.BOOL), typed(twice, [2, 2])]
        body = helper.make_graph(nodes, "twice", [*inputs, typed(carried, [2, 2])], outputs)
        once = self.constant(np.array(1))
        return self.put("Loop", once, "flag", start, body=body)


def typed(name: str, shape: list[int], dtype: int = DOUBLE) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def function(
    name: str,
    inputs: list[str],
    outputs: list[str],
    opsets: list[onnx.OperatorSetIdProto],
    *nodes: tuple[str, str, str],
) -> onnx.FunctionProto:
    made = [helper.make_node(op, taken.split(), [given]) for op, taken, given in nodes]
    return helper.make_function("local", name, inputs, outputs, made, opsets)


def entitle(nodes: Iterable[onnx.NodeProto], name: str) -> None:
    """Name the nodes by number, those in nested graphs by the same numbers again; "" for no names.

    ONNX Runtime refuses two nodes of one name in one graph.
    """
    for number, node in enumerate(nodes, 1):
        node.name = name and f"{name}{number}"
        for attribute in node.attribute:
            entitle(attribute.g.node, name)


def name_outputs_left_out(nodes: Iterable[onnx.NodeProto]) -> None:
    """Name outputs that nobody wants: onnx's evaluator hands them to inputs that are left out."""
    for node in nodes:
        for slot, name in enumerate(node.output):
            node.output[slot] = name or f"unused output {slot} of {node.output[1 - slot]}"
        for attribute in node.attribute:
            name_outputs_left_out(attribute.g.node)


def rename_inputs(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Rename what a node reads, in the graphs nested in it too."""
    for slot, name in enumerate(node.input):
        node.input[slot] = names.get(name, name)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            rename_inputs(inner, names)
