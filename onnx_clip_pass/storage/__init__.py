"""Models in files of any size: structure read without the weights, weights moved by the kernel."""

from onnx_clip_pass.storage.external import DataFile, HowToBring, data_files, locations
from onnx_clip_pass.storage.moving import Progress
from onnx_clip_pass.storage.source import Source
from onnx_clip_pass.storage.structure import Structure, open_model
from onnx_clip_pass.storage.writing import write_bytes, write_structure

__all__ = [
    "DataFile",
    "HowToBring",
    "Progress",
    "Source",
    "Structure",
    "data_files",
    "locations",
    "open_model",
    "write_bytes",
    "write_structure",
]
