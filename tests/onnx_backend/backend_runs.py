"""Running a backend case, whatever its inputs and outputs are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

__all__ = ["Outputs", "Runner", "in_runtime", "in_runtime_optimized", "with_reference"]

Outputs = dict[str, Any]
Runner = Callable[[ModelProto, Mapping[str, Any]], Outputs]
ort.set_default_logger_severity(4)  # what it cannot run it also raises


def in_runtime(model: ModelProto, feeds: Mapping[str, Any]) -> Outputs:
    """The outputs by ONNX Runtime on the CPU, with nothing fused: see `graphs.run`."""
    return _in_runtime(model, feeds, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)


def in_runtime_optimized(model: ModelProto, feeds: Mapping[str, Any]) -> Outputs:
    """The outputs by ONNX Runtime on the CPU as it is by default, all optimizations on."""
    return _in_runtime(model, feeds, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def with_reference(model: ModelProto, feeds: Mapping[str, Any]) -> Outputs:
    """The outputs by onnx's ReferenceEvaluator."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the cases overflow and divide by zero on purpose
        results = ReferenceEvaluator(model).run(None, dict(feeds))
    return dict(zip((output.name for output in model.graph.output), results, strict=True))


def _in_runtime(
    model: ModelProto, feeds: Mapping[str, Any], level: ort.GraphOptimizationLevel
) -> Outputs:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    readable, reading = _readable(model)
    session = ort.InferenceSession(
        readable.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {name: _value(feed) for name, feed in feeds.items()}
    if any(isinstance(value, ort.OrtValue) for value in given.values()):
        values = {name: _as_ort_value(value) for name, value in given.items()}
        results = [value.numpy() for value in session.run_with_ort_values(reading, values)]
    else:
        results = session.run(reading, given)
    return dict(zip((output.name for output in model.graph.output), results, strict=True))


def _readable(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """A model whose outputs Python can read, and their names.

    ONNX Runtime gives bfloat16 to no array; it is read as float32, which holds it exactly.
    """
    kinds = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    if TensorProto.BFLOAT16 not in kinds.values():
        return model, list(kinds)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = []
    for name, kind in kinds.items():
        if kind != TensorProto.BFLOAT16:
            names.append(name)
            continue
        names.append(f"{name} in float32")
        copy.graph.node.append(helper.make_node("Cast", [name], names[-1:], to=TensorProto.FLOAT))
        copy.graph.output.append(onnx.ValueInfoProto(name=names[-1]))
    return copy, names


def _value(feed: Any) -> Any:
    """A feed as ONNX Runtime takes it: dtypes that NumPy lacks go in as their bits.

    It is a copy, for ONNX Runtime writes to the running mean that a BatchNormalization is fed.
    """
    if feed is None or isinstance(feed, list):
        return feed
    array = np.array(feed, order="C")
    if array.dtype.isbuiltin == 1 or array.dtype.kind in "OSU":
        return array
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    bits = array.view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _as_ort_value(value: Any) -> ort.OrtValue:
    return value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
