"""Models in files of any size: structure read without the weights, weights moved by the kernel."""

from onnx_clip_pass.storage.external import (
    DataFile,
    ExternalDataMode,
    data_files,
    locations,
    tensors_of,
)
from onnx_clip_pass.storage.journal import files_in
from onnx_clip_pass.storage.leftovers import recover, unfinished
from onnx_clip_pass.storage.loading import load_model, whole
from onnx_clip_pass.storage.sets import errors_name
from onnx_clip_pass.storage.source import Source
from onnx_clip_pass.storage.structure import Structure, open_model
from onnx_clip_pass.storage.targets import check_replaceable, file_at, holds
from onnx_clip_pass.storage.writing import write_bytes, write_folder, write_structures

__all__ = [
    "DataFile",
    "ExternalDataMode",
    "Source",
    "Structure",
    "check_replaceable",
    "data_files",
    "errors_name",
    "file_at",
    "files_in",
    "holds",
    "load_model",
    "locations",
    "open_model",
    "recover",
    "tensors_of",
    "unfinished",
    "whole",
    "write_bytes",
    "write_folder",
    "write_structures",
]
