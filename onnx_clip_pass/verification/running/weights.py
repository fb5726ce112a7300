"""Weights out of memory: in one temporary file that both models share and ONNX Runtime maps.

Each session of a model that holds its weights itself takes several times their memory: for the
copy, its bytes, and what the runtime makes of them.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph.spec import FLOATING
from onnx_clip_pass.storage import tensors_of

__all__ = ["Weights"]

_LARGE = 1 << 16
_PAGE = 1 << 16  # of the largest pages: what is mapped starts at one


class Weights:
    """The large initializers of models, in a file in `folder`; equal ones are there once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[bytes, int] = {}
        self._end = 0

    def taken_out(self, model: ModelProto) -> ModelProto:
        """The model with its large weights as external data; itself if there are none to take.

        A model that has external data of its own stays as it is: it can have only one folder. So
        do whole numbers, which shape inference reads.

        Args:
            model: to be used no more where another is returned.

        Raises:
            OnnxClipError: there is not enough space for them.
        """
        if any(uses_external_data(t) for t in tensors_of(model)):
            return model
        large = [
            tensor
            for tensor in model.graph.initializer
            if tensor.data_type in FLOATING and len(tensor.raw_data) >= _LARGE
        ]
        if not large:
            return model
        path = self.folder / "weights"
        try:
            with path.open("ab") as file:
                for tensor in large:
                    self._move(tensor, file)
        except OSError as error:
            raise OnnxClipError(
                f"cannot write the model's weights to {str(path)!r}, from where ONNX Runtime is to "
                f"map them: {error.strerror}; free space there, or set TMPDIR to another folder"
            ) from error
        # a message gives its memory back as a whole only
        return ModelProto.FromString(model.SerializeToString())

    def _move(self, tensor: TensorProto, file: BinaryIO) -> None:
        data = tensor.raw_data
        digest = blake2b(data).digest()
        if digest not in self._places:
            self._end += file.write(bytes(-self._end % _PAGE))
            self._places[digest] = self._end
            self._end += file.write(data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", Path(file.name).name),
            ("offset", str(self._places[digest])),
            ("length", str(len(data))),
        ):
            tensor.external_data.add(key=key, value=value)
