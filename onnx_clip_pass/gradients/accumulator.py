"""Gradients known by ONNX Runtime training's accumulators.

`com.microsoft.InPlaceAccumulatorV2(buffer, gradient, overwrite_flag)` is what
`onnxruntime.training.artifacts.generate_artifacts` puts behind every gradient;
`InPlaceAccumulator(old_sum, gradient, update_signal)` is its predecessor. The buffer is called
`<parameter>_grad.accumulation.buffer`, whatever graph optimization has renamed the gradient to.
"""

from __future__ import annotations

from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import OUTPUT, Flow, Value

__all__ = ["OPS", "find", "slots_of"]

OPS = {"InPlaceAccumulatorV2", "InPlaceAccumulator"}
_BUFFER_SUFFIXES = ("_grad.accumulation.buffer", ".accumulation.buffer", "_grad_accumulate_buffer")


def find(flow: Flow, updates: Updates) -> list[Found]:
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
                    updates.raw(gradient, parameter),
                    parameter,
                    name,
                    f"accumulated by {node.op_type} into {node.input[0]}",
                    Sink(frame, number, 1),
                )
            )
    return found


def slots_of(flow: Flow, value: Value) -> set[int]:
    """At which inputs accumulators take the value: at the first one they add to it."""
    return {
        read.slot
        for read in flow.index.readers_of(value.frame.scope, value.name)
        if read.node != OUTPUT and read.scope.nodes[read.node].op_type in OPS
    }


def _parameter_of(flow: Flow, buffer: Value) -> Value | None:
    """The input or initializer that the buffer is named after."""
    for suffix in _BUFFER_SUFFIXES:
        if buffer.name.endswith(suffix):
            found = flow.resolve(buffer.frame, buffer.name.removesuffix(suffix))
            if found is not None and found.node is None:
                return found
    return None
