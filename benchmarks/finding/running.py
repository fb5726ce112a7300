"""A run of a case on ONNX Runtime's CPU provider. Needs onnx, onnxruntime and NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cases
import numpy as np
import onnx
import onnxruntime


def run(
    model: onnx.ModelProto,
    truth: cases.Truth,
    arrays: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    optimize: bool = True,
) -> list[np.ndarray | None]:
    """Return the named outputs of a case's model, or of one that was made of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    asked = {value.name for value in session.get_inputs()}
    feeds = {
        described["name"]: arrays[f"input_{place}"]
        for place, described in enumerate(truth.inputs)
        if described["name"] in asked
    }
    return session.run(names, feeds)
