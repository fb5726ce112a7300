"""The correspondence of inputs and outputs of a subgraph with those of the node that runs it.

As the specifications of Loop, Scan and If have it (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from onnx import NodeProto

__all__ = [
    "node_input_of_output",
    "node_inputs_of_subgraph_input",
    "subgraph_output",
    "subgraph_output_of_input",
]


def _scan_states(node: NodeProto) -> int:
    count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
    return max(len(node.input) - count, 0)


def subgraph_output(node: NodeProto, slot: int) -> int:
    """The output of the subgraph that output `slot` of the node comes from."""
    return (
        slot + 1 if node.op_type == "Loop" else slot
    )  # a Loop's first output inside is its condition


def node_input_of_output(node: NodeProto, slot: int) -> int | None:
    """The input that becomes output `slot` of the node if its subgraph never runs."""
    if node.op_type == "Loop" and slot + 2 < len(node.input):
        return slot + 2
    if node.op_type == "Scan" and slot < _scan_states(node):
        return slot
    return None


def node_inputs_of_subgraph_input(node: NodeProto, at: int) -> list[int]:
    """The inputs of the node that its subgraph may get as input `at`."""
    if node.op_type == "Loop":
        return [at] if at > 0 else []  # input 0 of the subgraph counts the iterations
    if node.op_type in ("Scan", "If"):
        return [at]
    return list(range(len(node.input)))  # an operator that this module does not know


def subgraph_output_of_input(node: NodeProto, at: int) -> int | None:
    """The output of the subgraph that becomes its input `at` in the next iteration."""
    if node.op_type == "Loop" and at >= 1:
        return at - 1
    if node.op_type == "Scan" and at < _scan_states(node):
        return at
    return None
