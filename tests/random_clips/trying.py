"""One random run: rewrite, undo, run, and compare with long double."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from single import BFLOAT16

from onnx_clip_pass import OnnxClipError, OnnxClipWarning, clip_gradients, strip
from random_clips.drawing import Drawn, drawn
from random_clips.exact import Exact, clipped
from random_clips.nesting import nested_model

__all__ = ["newest_opset", "tried"]

Array = NDArray[Any]
_DTYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_REFUSED = re.compile(
    r"needs? opset (8|9) or later|seed dimension needs opset 8|needs its rank|"
    r"gradient of known rank|its parameter .* is not visible|shapes of it and of its parameter|"
    r"is a value of the main graph|its shape is unknown"
)
"""What may be refused: what docs/numerics.md and docs/thresholds.md say needs more."""


def newest_opset() -> int:
    """The newest operator set that this ONNX Runtime runs and this onnx knows."""
    for opset in range(onnx.defs.onnx_opset_version(), 6, -1):
        model = nested_model([("x", 1, [])], [("g", 1, [])], (), opset=opset, ir_version=8)
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return opset
    raise AssertionError("no operator set runs")


def tried(seed: int, newest: int) -> tuple[str, list[str]]:
    """What a run is, in words, and its faults; the first is "refused" where it was, and may be."""
    run = drawn(seed, newest)
    model = _model(run)
    named: Any = [f"g{at}" for at in range(len(run.gradients))]
    if _has_parameters(run):
        named = {name: name.replace("g", "w") for name in named}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OnnxClipWarning)  # of kernels that CUDA lacks
            rewritten = clip_gradients(model, run.clip, gradients=named, **run.options)
    except OnnxClipError as error:
        reasons = error.faults or (str(error),)
        odd = [reason for reason in reasons if not _REFUSED.search(reason)]
        return str(run), odd or ["refused"]
    faults = [] if strip(rewritten) == model else ["strip does not give the model back"]
    try:
        if None not in run.declared:  # the checker wants shapes of inputs and outputs
            onnx.checker.check_model(rewritten)
        outputs = _outputs(rewritten, run)
    except Exception as error:  # the runtime's and the checker's are of several kinds
        return str(run), [*faults, f"{type(error).__name__}: {error}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for at, exact in enumerate(clipped(run.gradients, run.stages)):
            faults += [f"gradient {at}: {fault}" for fault in _judged(outputs[at], exact)]
            faults += [f"gradient {at}: {fault}" for fault in _measured(outputs, run, at, exact)]
    return str(run), faults


def _has_parameters(run: Drawn) -> bool:
    """Whether the model has parameters: a number is a gradient only if one is named."""
    return any(g.parameter is not None or g.has_seeds or g.array.ndim == 0 for g in run.gradients)


def _model(run: Drawn) -> onnx.ModelProto:
    inputs, gradients = [], []
    for at, (g, shape) in enumerate(zip(run.gradients, run.declared, strict=True)):
        dtype = _DTYPES[str(g.array.dtype)]
        inputs.append((f"x{at}", dtype, shape))
        gradients.append((f"g{at}", dtype, shape))
    for at, (g, shape) in enumerate(zip(run.gradients, run.declared, strict=True)):
        if _has_parameters(run):
            declared = shape[:-1] if g.has_seeds else shape
            inputs.append((f"w{at}", _DTYPES[str(g.array.dtype)], declared))
    if "scale" in run.fed:
        inputs.append(("scale", TensorProto.FLOAT, []))
    return nested_model(inputs, gradients, run.nests, opset=run.opset, ir_version=run.ir_version)


def _outputs(model: onnx.ModelProto, run: Drawn) -> list[Array]:
    """All outputs in order, bfloat16 by way of float32, which holds it exactly."""
    feeds: dict[str, Array] = {"yes": np.array(True)}
    for at, g in enumerate(run.gradients):
        feeds[f"x{at}"] = g.array
        if _has_parameters(run):
            like = g.array[..., 0] if g.has_seeds else g.array
            feeds[f"w{at}"] = np.zeros_like(like) if g.parameter is None else g.parameter
    dtypes = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for name, number in run.fed.items():
        feeds[name] = np.array(number, helper.tensor_dtype_to_np_dtype(dtypes[name]))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    halves = [v.name for v in copy.graph.output
              if v.type.tensor_type.elem_type == TensorProto.BFLOAT16]  # fmt: skip
    for name in halves:
        node = helper.make_node("Cast", [name], [f"{name}/read"], to=TensorProto.FLOAT)
        copy.graph.node.append(node)
        copy.graph.output.append(onnx.ValueInfoProto(name=f"{name}/read"))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = _LEVELS[run.optimization]
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.array(array, order="C").view(np.uint16), TensorProto.BFLOAT16
        )
        if array.dtype == BFLOAT16
        else ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"))
        for name, array in feeds.items()
    }
    names = [value.name for value in model.graph.output]
    wanted = [f"{name}/read" if name in halves else name for name in names]
    found = session.run_with_ort_values(wanted, values)
    arrays = [np.array(value.numpy()) for value in found]
    return [a.astype(BFLOAT16) if n in halves else a for n, a in zip(names, arrays, strict=True)]


def _judged(out: Array, exact: Exact) -> list[str]:
    """What is wrong with one clipped gradient, in every trip."""
    kept, wanted = exact.is_kept, exact.array
    if out.dtype != wanted.dtype:
        return [f"dtype {out.dtype}, expected {wanted.dtype}"]
    trips = out.shape[: out.ndim - wanted.ndim]
    if out.shape != (*trips, *wanted.shape):
        return [f"shape {list(out.shape)}, expected {list(wanted.shape)}"]
    for each in out.reshape(math.prod(trips), *wanted.shape):
        if fault := _difference(each, wanted, kept, exact):
            return [fault]
    return []


def _difference(out: Array, wanted: Array, kept: NDArray[np.bool_], exact: Exact) -> str:
    left, right = out.astype(np.longdouble), exact.long
    right = np.where(np.isinf(wanted.astype(np.longdouble)), wanted, right)  # beyond the dtype
    is_nan = np.isnan(right)
    if not np.array_equal(np.isnan(left), is_nan):
        return f"nan at {np.argwhere(np.isnan(left) != is_nan)[0]}: {out.ravel()[:4]}"
    same = (left == right) & (np.signbit(left) == np.signbit(right))
    odd = kept & ~is_nan & ~same
    if odd.any():
        at = tuple(np.argwhere(odd)[0])
        return f"{out[at]!r} at {at}, expected {wanted[at]!r} unchanged"
    off = np.abs(left - right)
    allowed = exact.relative * np.abs(right) + exact.absolute
    infinite = np.isinf(right)
    odd = np.where(infinite, left != right, ~(off <= allowed)) & ~is_nan & ~kept
    if odd.any():
        at = tuple(np.argwhere(odd)[0])
        return f"{out[at]!r} at {at}, expected {right[at]!r} within {exact.relative:.3g}"
    return ""


def _measured(outputs: list[Array], run: Drawn, at: int, exact: Exact) -> list[str]:
    """What is wrong with the norm and the verdict that are outputs."""
    emit, count = run.options.get("emit", ()), len(run.gradients)
    faults = []
    for place, word in enumerate(emit):
        value = outputs[count + place * count + at]
        if value.shape != ():
            faults.append(f"{word} of shape {list(value.shape)}")
        elif word == "clipped":
            whole = exact.norm if exact.whole is None else exact.whole
            if np.isfinite(whole) and exact.clips is not None and bool(value) != exact.clips:
                faults.append(f"clipped is {value}")
        elif word == "norm":
            faults += _norm_fault(float(value), exact.norm, exact, run)
    if "norm" in emit and exact.whole is not None:  # behind all others
        faults += _norm_fault(float(outputs[-1]), exact.whole, exact, run)
    return faults


def _norm_fault(norm: float, wanted: float, exact: Exact, run: Drawn) -> list[str]:
    wanted /= run.loss_scale
    if not np.isfinite(wanted):
        return [] if not np.isfinite(norm) else [f"norm {norm}, expected {wanted}"]
    allowed = (exact.norm_error + 2.0**-22) * wanted + 1e-18  # below, squares vanish
    return [] if abs(norm - wanted) <= allowed else [f"norm {norm!r}, expected {wanted!r}"]
