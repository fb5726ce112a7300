"""Optimizer models cut off before their optimizer, which the stock runtime has not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from graphs import MODELS, open_session
from numpy.typing import NDArray

Array = NDArray[Any]
ARTIFACTS = MODELS / "ort_artifacts"
FOLDERS = sorted(path.name for path in ARTIFACTS.iterdir() if path.is_dir())
SGD, ADAMW = "mlp_mse_sgd", "transformer_block_mse_adamw"


def optimizer_model(folder: str = SGD) -> onnx.ModelProto:
    return onnx.load(ARTIFACTS / folder / "optimizer_model.onnx")


def folder_files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_before_optimizer(model: onnx.ModelProto, gradients: Sequence[Array]) -> list[Array]:
    """The sequence that the optimizer node would take."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    (optimizer,) = [node for node in cut.graph.node if node.op_type.endswith(("V2", "Optimizer"))]
    taken = optimizer.input[2 if optimizer.op_type == "SGDOptimizerV2" else 3]
    cut.graph.node.remove(optimizer)
    if taken == "gradients":
        return [np.array(gradient) for gradient in gradients]
    for value in [value for value in cut.graph.input if value.name != "gradients"]:
        cut.graph.input.remove(value)
    dtype = cut.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type
    del cut.graph.output[:]
    cut.graph.output.append(onnx.helper.make_tensor_sequence_value_info(taken, dtype, None))
    cut.ir_version = min(cut.ir_version, 10)
    session = open_session(cut, optimize=False)
    return list(session.run([taken], {"gradients": list(gradients)})[0])
