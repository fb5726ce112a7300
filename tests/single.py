"""One gradient in a graph of its own, clipped there and eagerly, for every dtype.

NumPy knows bfloat16 through ml_dtypes, ONNX Runtime's Python takes and gives it only as bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from graphs import open_session, run
from numpy.typing import NDArray

from onnx_clip_pass import GradientClipByNorm, clip_gradients
from onnx_clip_pass.clips import NonFinite, NormPrecision

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
NEWEST_OPSET = onnx.defs.onnx_opset_version()


def single(dtype: str, shape: Sequence[Any] | None, opset: int = 17) -> onnx.ModelProto:
    """A graph whose gradient g is a copy of its input x; `shape` as far as it is declared."""
    kind = onnx.TensorProto.DataType.Value(_ONNX_NAMES[dtype])
    ports = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("x", "g")]
    node = onnx.helper.make_node("Identity", ["x"], ["g"])
    graph = onnx.helper.make_graph([node], "single", ports[:1], ports[1:])
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 20 else 10)


def by_graph(
    clip: GradientClipByNorm,
    x: Array,
    *,
    nonfinite: NonFinite = "propagate",
    norm_precision: NormPrecision = "auto",
    opset: int = 17,
    shape: Sequence[Any] | str | None = "",
) -> Array:
    """`x` clipped in a graph by ONNX Runtime; `shape` is what the graph says of it, else all."""
    declared = x.shape if isinstance(shape, str) else shape
    model = clip_gradients(
        single(str(x.dtype), declared, opset),
        clip,
        gradients=["g"],
        norm_precision=norm_precision,
        nonfinite=nonfinite,
    )
    if x.dtype != BFLOAT16:
        return run(model, {"x": x})["g"]
    return _run_bfloat16(model, x)


def by_apply(
    clip: GradientClipByNorm, x: Array, *, nonfinite: NonFinite = "propagate", **_: Any
) -> Array:
    """`x` clipped eagerly."""
    return clip.apply({"w": x}, nonfinite=nonfinite)["w"]


def norm_of(x: Array) -> float:
    """The L2 norm, as exact as it gets: elements scaled to 1 at most, summed in long double."""
    wide = x.astype(np.longdouble).ravel()
    largest = np.max(np.abs(wide), initial=np.longdouble(0))
    return float(largest * np.sqrt(np.sum((wide / largest) ** 2))) if largest else 0.0


_ONNX_NAMES = {
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "float32": "FLOAT",
    "float64": "DOUBLE",
}


def _run_bfloat16(model: onnx.ModelProto, x: Array) -> Array:
    """Run it with the bits of `x`, and read the result through float32, which holds it exactly."""
    cast = onnx.helper.make_node("Cast", ["g"], ["read"], to=onnx.TensorProto.FLOAT)
    model.graph.node.append(cast)
    model.graph.output.append(onnx.ValueInfoProto(name="read"))
    session = open_session(model, optimize=False)
    import onnxruntime as ort

    bits = np.array(x, order="C").view(np.uint16)  # of rank 0 too
    make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
    value = make(bits, onnx.TensorProto.BFLOAT16)
    (out,) = session.run_with_ort_values(["read"], {"x": value})
    return np.asarray(out.numpy()).astype(BFLOAT16)
