"""What the tests of faults replace: each case makes an old set in a folder, and a new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from bytewise import COUNT, large, make_step
from graphs import MODELS

from onnx_clip_pass import (
    GradientClipByNorm,
    clip_artifacts,
    clip_gradients_file,
    extract_clip_file,
)
from onnx_clip_pass.artifacts import inspect_artifacts
from onnx_clip_pass.files import strip_file
from onnx_clip_pass.inspection import inspect_model

__all__ = ["CASES", "Case"]

ARTIFACTS = MODELS / "ort_artifacts" / "mlp_mse_sgd"
NAMED = {"W_grad": "W"}


def save(path: Path, seed: int, *, apart: bool) -> None:
    """A model; its two large tensors in files of their own, or in it."""
    model = make_step()
    tensors = [large("W", seed), large("V", seed + 1)]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.add(op_type="Add", input=["x", "V"], output=["y"])
    model.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [COUNT]))
    path.parent.mkdir(parents=True, exist_ok=True)
    if apart:
        (path.parent / "sub").mkdir(exist_ok=True)
        for tensor, location in zip(model.graph.initializer, ("sub/w.bin", "v.bin"), strict=True):
            (path.parent / location).write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())


def clip(source: Path, target: Path, norm: float = 1.0, **options: object) -> None:
    clip_gradients_file(source, target, GradientClipByNorm(norm), gradients=NAMED, **options)


def load_file(path: Path) -> bytes:
    """What ONNX Runtime gives for a model file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ones = {each.name: np.ones(COUNT, np.float32) for each in session.get_inputs()}
    return b"".join(array.tobytes() for array in session.run(None, ones))


@dataclass(frozen=True)
class Case:
    """A replacement.

    `output` is what is replaced, by its path in the folder: a file or a folder. `prepare` makes the
    old set and the sources, `run` does the replacement.
    """

    output: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    exchanges: bool = True

    def inspect(self, folder: Path) -> None:
        path = folder / self.output
        inspect_artifacts(path) if path.is_dir() else inspect_model(path)

    def load(self, folder: Path) -> bytes:
        """What is used of the output: of a folder all files, for which there is no runtime here."""
        path = folder / self.output
        if path.suffix == ".onnx":
            return load_file(path)
        return b"".join(each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file())


def _sources(folder: Path, *, apart: bool) -> None:
    save(folder / "from" / "model.onnx", 0, apart=apart)
    (folder / "out").mkdir()


def _older(folder: Path, *, apart: bool) -> None:
    _sources(folder, apart=apart)
    save(folder / "older" / "model.onnx", 7, apart=apart)
    clip(folder / "older" / "model.onnx", folder / "out" / "model.onnx", 3.0)


def _clip(folder: Path) -> None:
    clip(folder / "from" / "model.onnx", folder / "out" / "model.onnx", force=True)


def _in_place(folder: Path) -> None:
    clip(folder / "out" / "model.onnx", folder / "out" / "model.onnx", replace=True)


def _clipped_source(folder: Path) -> None:
    _older(folder, apart=True)
    clip(folder / "from" / "model.onnx", folder / "from" / "clipped.onnx")


def _strip(folder: Path) -> None:
    strip_file(folder / "from" / "clipped.onnx", folder / "out" / "model.onnx", force=True)


def _extract(folder: Path) -> None:
    _extract_from(folder, 1.0)


def _extract_from(folder: Path, norm: float) -> None:
    extract_clip_file(
        folder / "from" / "model.onnx",
        folder / "out" / "model.onnx",
        GradientClipByNorm(norm),
        gradients=NAMED,
    )


def _extracted(folder: Path) -> None:
    _sources(folder, apart=False)
    _extract_from(folder, 2.0)


def _artifacts(folder: Path) -> None:
    shutil.copytree(ARTIFACTS, folder / "artifacts")


def _older_folder(folder: Path) -> None:
    _artifacts(folder)
    _clip_folder(folder, norm=3.0)


def _clip_folder(folder: Path, norm: float = 1.0) -> None:
    clip_artifacts(folder / "artifacts", folder / "out", GradientClipByNorm(norm))


def _clip_folder_in_place(folder: Path) -> None:
    out = folder / "out"
    clip_artifacts(out, out, GradientClipByNorm(1.0), at="micro-batch", replace=True)


MODEL = "out/model.onnx"
CASES = {
    "a new file": Case(MODEL, lambda folder: _sources(folder, apart=False), _clip),
    "file": Case(MODEL, lambda folder: _older(folder, apart=False), _clip),
    "file in place": Case(MODEL, lambda folder: _older(folder, apart=False), _in_place),
    "new external data": Case(MODEL, lambda folder: _sources(folder, apart=True), _clip),
    "external data": Case(MODEL, lambda folder: _older(folder, apart=True), _clip),
    "strip": Case(MODEL, _clipped_source, _strip),
    "extract": Case(MODEL, _extracted, _extract),
    "a new folder": Case("out", _artifacts, _clip_folder),
    "folder": Case("out", _older_folder, _clip_folder),
    "folder without exchange": Case("out", _older_folder, _clip_folder, exchanges=False),
    "folder in place": Case("out", _older_folder, _clip_folder_in_place),
}
"""By name. Without exchange: on a system that has no RENAME_EXCHANGE."""
