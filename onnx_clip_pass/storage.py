"""Models in files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError

__all__ = ["read_model", "write_model"]

_TEXT_SUFFIXES = {".onnxtxt", ".onnxtext", ".textproto", ".prototxt", ".pbtxt", ".json", ".onnxjson"}


def read_model(path: Path) -> ModelProto:
    """Read a model; its external data stays where it is.

    Raises:
        OnnxClipError: the file is missing, unreadable, empty, or holds no ONNX model.
    """
    if path.is_dir():
        raise OnnxClipError(
            f"expected an .onnx file, but {str(path)!r} is a folder; pass the model in it "
            f"(of ONNX Runtime training artifacts: training_model.onnx)"
        )
    if path.suffix in _TEXT_SUFFIXES:
        raise OnnxClipError(
            f"{str(path)!r} is a text format, which drops parts of a model; convert it to binary "
            f"first: onnx.save(onnx.load({path.name!r}), 'model.onnx')"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OnnxClipError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if not data:
        raise OnnxClipError(f"{str(path)!r} is empty: expected an ONNX model")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise OnnxClipError(
            f"{str(path)!r} is no ONNX model, or it is truncated: it cannot be parsed as a "
            f"ModelProto"
        ) from error
    if not model.HasField("graph"):
        raise OnnxClipError(f"{str(path)!r} is no ONNX model: it has no graph")
    return model


def write_model(model: ModelProto, path: Path, *, mode_of: Path | None = None) -> None:
    """Write a model so that `path` holds the old file or the new one, whole, at any moment.

    Args:
        model: what to write.
        path: where; the folder must exist.
        mode_of: a file whose permissions the new one gets.

    Raises:
        OnnxClipError: the folder cannot be written, or the model is beyond 2 GB.
    """
    try:
        data = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise OnnxClipError(
            f"cannot write {str(path)!r}: a model above 2 GB must keep its weights as external data"
        ) from error
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode_of is not None:
            os.chmod(temporary, mode_of.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OnnxClipError(f"cannot write {str(path)!r}: {error.strerror}") from error
