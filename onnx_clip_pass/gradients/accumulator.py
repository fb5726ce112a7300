"""Gradients known by ONNX Runtime training's accumulators.

`com.microsoft.InPlaceAccumulatorV2(buffer, gradient, overwrite_flag)` is what
`onnxruntime.training.artifacts.generate_artifacts` puts behind every gradient;
`InPlaceAccumulator(old_sum, gradient, update_signal)` is its predecessor. The buffer is called
`<parameter>_grad.accumulation.buffer`, whatever graph optimization has renamed the gradient to.
"""

from __future__ import annotations

from onnx_clip_pass.gradients.arithmetic import Arithmetic
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.graph import OUTPUT, Flow, Value

__all__ = ["OPS", "find", "is_buffer"]

OPS = {"InPlaceAccumulatorV2", "InPlaceAccumulator"}
_BUFFER_SUFFIXES = ("_grad.accumulation.buffer", ".accumulation.buffer", "_grad_accumulate_buffer")


def find(flow: Flow, arithmetic: Arithmetic) -> list[Found]:
    """One gradient for each accumulator."""
    found = []
    for frame in flow.frames():
        for number in frame.scope.numbers_of(*OPS):
            node = frame.scope.nodes[number]
            if len(node.input) < 2:
                continue
            buffer, gradient = (flow.resolve(frame, name) for name in node.input[:2])
            if gradient is None:
                continue
            gradient = flow.canonical(gradient)
            parameter = None if buffer is None else _parameter_of(flow, buffer)
            name = gradient.name if parameter is None else parameter.name
            found.append(
                Found(
                    arithmetic.raw_gradient(gradient, parameter),
                    parameter,
                    name,
                    f"accumulated by {node.op_type} into {node.input[0]}",
                    Sink(frame, number, 1),
                )
            )
    return found


def is_buffer(flow: Flow, value: Value) -> bool:
    """Whether an accumulator adds to the value."""
    scope = value.frame.scope
    return any(
        read.node != OUTPUT and read.slot == 0 and read.scope.nodes[read.node].op_type in OPS
        for read in flow.index.readers_of(scope, value.name)
    )


def _parameter_of(flow: Flow, buffer: Value) -> Value | None:
    """The input or initializer that the buffer is named after."""
    for suffix in _BUFFER_SUFFIXES:
        if buffer.name.endswith(suffix):
            found = flow.resolve(buffer.frame, buffer.name.removesuffix(suffix))
            if found is not None and found.node is None:
                return found
    return None
