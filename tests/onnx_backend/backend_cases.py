"""The official ONNX backend cases: models and inputs, as the onnx package ships them.

Node cases are made by `onnx.backend.test.case.node`, the others lie under `onnx/backend/test/data`.
The real networks there ("light") have no stored inputs; they get a ramp, as in onnx's own runner.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

__all__ = ["FLOATS", "Case", "every_case", "float_outputs"]

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
KINDS_ON_DISK = ("pytorch-converted", "pytorch-operator", "simple", "light")
FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Case:
    """A model and its inputs, in the order of the graph's inputs, once for each data set."""

    name: str
    model: ModelProto
    feeds: tuple[dict[str, Any], ...]


def float_outputs(model: ModelProto) -> list[str]:
    """The outputs that could be gradients by their type."""
    return [
        output.name for output in model.graph.output if output.type.tensor_type.elem_type in FLOATS
    ]


def every_case() -> Iterator[Case]:
    """All cases, those with no float output too; names are unique."""
    with warnings.catch_warnings():  # onnx computes expected values that overflow, on purpose
        warnings.simplefilter("ignore")
        made = collect_testcases(None)
    for case in made:
        sets = (inputs for inputs, _ in case.data_sets)
        feeds = tuple(_feeds(case.model, inputs) for inputs in sets)
        yield Case(f"node/{case.name}", case.model, feeds)
    for kind in KINDS_ON_DISK:
        for path in sorted((DATA / kind).glob("*.onnx" if kind == "light" else "*/model.onnx")):
            model = onnx.load(path)
            name = path.stem if kind == "light" else path.parent.name
            sets = sorted(path.parent.glob("test_data_set_*"))
            feeds = tuple(_stored(model, folder) for folder in sets)
            yield Case(f"{kind}/{name}", model, feeds if sets else (_ramps(model),))


def _feeds(model: ModelProto, inputs: list[Any]) -> dict[str, Any]:
    arrays = [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in inputs]
    return dict(zip((port.name for port in _fed(model)), arrays, strict=False))


def _stored(model: ModelProto, folder: Path) -> dict[str, Any]:
    paths = [folder / f"input_{at}.pb" for at in range(len(list(folder.glob("input_*.pb"))))]
    ports = model.graph.input[: len(paths)]
    return {port.name: _load(port, path) for port, path in zip(ports, paths, strict=True)}


def _load(port: ValueInfoProto, path: Path) -> Any:
    data = path.read_bytes()
    if port.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if port.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(TensorProto.FromString(data))


def _ramps(model: ModelProto) -> dict[str, Any]:
    feeds = {}
    for port in _fed(model):
        shape = tuple(dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim)
        size = int(np.prod(shape))
        feeds[port.name] = (np.arange(size).reshape(shape) / size).astype(np.float32)
    return feeds


def _fed(model: ModelProto) -> list[ValueInfoProto]:
    held = {tensor.name for tensor in model.graph.initializer}
    return [port for port in model.graph.input if port.name not in held]
