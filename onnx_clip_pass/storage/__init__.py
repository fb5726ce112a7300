"""Models in files of any size: structure read without the weights, weights moved by the kernel."""

from onnx_clip_pass.storage.external import (
    DataFile,
    HowToBring,
    bring,
    data_files,
    locations,
    tensors_of,
)
from onnx_clip_pass.storage.journal import files_in
from onnx_clip_pass.storage.leftovers import recover, unfinished
from onnx_clip_pass.storage.moving import Progress
from onnx_clip_pass.storage.sets import errors_name, replacing
from onnx_clip_pass.storage.source import Source
from onnx_clip_pass.storage.structure import Structure, open_model
from onnx_clip_pass.storage.writing import make_file, write_bytes, write_structures

__all__ = [
    "DataFile",
    "HowToBring",
    "Progress",
    "Source",
    "Structure",
    "bring",
    "data_files",
    "errors_name",
    "files_in",
    "locations",
    "make_file",
    "open_model",
    "recover",
    "replacing",
    "tensors_of",
    "unfinished",
    "write_bytes",
    "write_structures",
]
