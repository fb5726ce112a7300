"""Models from files held in memory, with all their weights."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto
from onnx.checker import ValidationError
from onnx.external_data_helper import load_external_data_for_model

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.storage.external import data_files
from onnx_clip_pass.storage.structure import Structure, open_model

__all__ = ["load_model", "whole"]


def load_model(path: Path, *, external_data: bool = True) -> ModelProto:
    """Read a model with its weights; those in files of their own only with `external_data`.

    Raises:
        OnnxClipError: it cannot be read, or is more than a model in memory holds.
    """
    with open_model(path) as structure:
        return whole(structure, external_data=external_data)


def whole(structure: Structure, *, external_data: bool = True) -> ModelProto:
    """Return a model as it now is with its weights; the source of the structure is open.

    Args:
        structure: the model without them.
        external_data: whether those in files of their own are read, too.

    Raises:
        OnnxClipError: its weights cannot be read, or are more than a model in memory holds.
    """
    path = structure.source.path
    if external_data and structure.may_have_external_data:
        data_files(structure.model, path.parent)
    try:
        model = ModelProto.FromString(structure.to_bytes())
        if external_data:
            load_external_data_for_model(model, str(path.parent))
    except (DecodeError, EncodeError, MemoryError, OSError, ValidationError, ValueError) as error:
        raise OnnxClipError(
            f"{str(path)!r} cannot be held in memory with its weights: {error}"
        ) from error
    return model
