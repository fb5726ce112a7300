"""A model of gradients given to it, in graphs nested in graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

__all__ = ["NESTS", "TRIPS", "Value", "nested_model"]

TRIPS = 2
NESTS = ("if", "loop", "scan", "function")
Value = tuple[str, int, Any]
"""A name, a dtype, and a shape as far as it is declared: None, or numbers, symbols and None."""


def nested_model(
    inputs: Sequence[Value],
    gradients: Sequence[Value],
    nests: Sequence[str],
    *,
    opset: int,
    ir_version: int,
) -> onnx.ModelProto:
    """Each gradient is a copy of the input of its number, made in graphs nested as `nests` says.

    What comes first in `nests` is the innermost. The outputs are the gradients, in their order; of
    a Loop or a Scan they are those of all trips, along a new first axis.
    """
    nodes = [
        helper.make_node("Identity", [inputs[number][0]], [name])
        for number, (name, _, _) in enumerate(gradients)
    ]
    given = [_typed(*value) for value in inputs]
    seen = [*given, helper.make_tensor_value_info("yes", TensorProto.BOOL, [])]
    functions: list[onnx.FunctionProto] = []
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    outputs, trips = list(gradients), 0
    for depth, nest in enumerate(nests):
        named = [_typed(*value) for value in outputs]
        names = [f"{name}/{nest}{depth}" for name, _, _ in outputs]
        if nest == "if":
            others = [_in_all_trips(inputs[at][0], f"{name}/else", trips, opset)
                      for at, name in enumerate(names)]  # fmt: skip
            others = [node for own in others for node in own]
            away = [_typed(f"{name}/else", dtype, None)
                    for name, (_, dtype, _) in zip(names, outputs, strict=True)]  # fmt: skip
            branches = {"then_branch": (nodes, named), "else_branch": (others, away)}
            graphs = {key: helper.make_graph(*each[:1], key, [], each[1])
                      for key, each in branches.items()}  # fmt: skip
            nodes = [helper.make_node("If", ["yes"], names, **graphs)]
        elif nest == "function":
            taken = [value.name for value in seen]
            function = helper.make_function(
                "local", f"f{depth}", taken, [value.name for value in named], nodes, imports
            )
            functions.append(function)
            nodes = [helper.make_node(f"f{depth}", taken, names, domain="local")]
        else:
            trips += 1
            nodes = [*_repeated(nest, depth, nodes, named, names)]
            outputs = [(n, dtype, shape if shape is None else (None, *shape))
                       for n, dtype, shape in outputs]  # fmt: skip
        outputs = [(name, *rest) for name, (_, *rest) in zip(names, outputs, strict=True)]
    graph = helper.make_graph(nodes, "gradients", seen, [_typed(*value) for value in outputs])
    return helper.make_model(
        graph, opset_imports=imports if functions else imports[:1], functions=functions,
        ir_version=ir_version,
    )  # fmt: skip


def _in_all_trips(name: str, result: str, loops: int, opset: int) -> list[NodeProto]:
    """A copy for each trip of so many loops: both branches of an If must have one shape."""
    if not loops:
        return [helper.make_node("Identity", [name], [result])]
    axes = helper.make_tensor("axes", TensorProto.INT64, [loops], range(loops))
    nodes = [helper.make_node("Constant", [], [f"{result}/axes"], value=axes)]
    if opset < 13:
        attributes, inputs = {"axes": list(range(loops))}, [name]
    else:
        attributes, inputs = {}, [name, f"{result}/axes"]
    nodes.append(helper.make_node("Unsqueeze", inputs, [f"{result}/0"], **attributes))
    for axis in range(loops):
        made = result if axis == loops - 1 else f"{result}/{axis + 1}"
        nodes.append(helper.make_node("Concat", [f"{result}/{axis}"] * TRIPS, [made], axis=axis))
    return nodes


def _repeated(
    nest: str, depth: int, nodes: list[NodeProto], made: list[ValueInfoProto], names: list[str]
) -> list[NodeProto]:
    """A Loop or Scan that makes the same in each trip, and what it takes."""
    trips = f"trips{depth}"
    if nest == "scan":
        value = helper.make_tensor(trips, TensorProto.FLOAT, [TRIPS], [0.0] * TRIPS)
        element = helper.make_tensor_value_info(f"element{depth}", TensorProto.FLOAT, [])
        body = helper.make_graph(nodes, "body", [element], made)
        node = helper.make_node("Scan", [trips], names, body=body, num_scan_inputs=1)
    else:
        value = helper.make_tensor(trips, TensorProto.INT64, [], [TRIPS])
        number = helper.make_tensor_value_info(f"number{depth}", TensorProto.INT64, [])
        going, still = (
            helper.make_tensor_value_info(f"{word}{depth}", TensorProto.BOOL, [])
            for word in ("going", "still")
        )
        nodes = [*nodes, helper.make_node("Identity", [going.name], [still.name])]
        carried, last = (
            helper.make_tensor_value_info(f"{word}{depth}", TensorProto.INT64, [])
            for word in ("carried", "last")
        )  # something is, before opset 11
        nodes.append(helper.make_node("Identity", [carried.name], [last.name]))
        body = helper.make_graph(nodes, "body", [number, going, carried], [still, last, *made])
        names = [f"end{depth}", *names]
        node = helper.make_node("Loop", [trips, "yes", trips], names, body=body)
    return [helper.make_node("Constant", [], [trips], value=value), node]


def _typed(name: str, dtype: int, shape: Any) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
