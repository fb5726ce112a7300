"""Element type and shape of a value, as far as a model tells."""

from __future__ import annotations

from typing import NamedTuple

from onnx import TensorProto, TypeProto

from onnx_clip_pass.graph.spec import DOUBLE, FLOAT, FLOATING

__all__ = ["Shape", "TensorType"]

Shape = tuple[int | str | None, ...]
"""Dimensions: a number, a symbol, or None where nothing is said."""

_NAMES: dict[int, str] = {
    TensorProto.UNDEFINED: "unknown",
    FLOAT: "float32",
    DOUBLE: "float64",
}


class TensorType(NamedTuple):
    """Element type (a `TensorProto.DataType`, 0 if unknown) and shape (None if unknown)."""

    dtype: int = TensorProto.UNDEFINED
    shape: Shape | None = None

    @classmethod
    def of(cls, proto: TypeProto) -> TensorType | None:
        """Read a TypeProto; None for a sequence, a map or an optional."""
        if proto.WhichOneof("value") not in ("tensor_type", None):
            return None
        tensor = proto.tensor_type
        if not tensor.HasField("shape"):
            return cls(tensor.elem_type)
        return cls(
            tensor.elem_type,
            tuple(
                (d.dim_value if d.dim_value >= 0 else None)  # exporters write -1 for any size
                if d.HasField("dim_value")
                else d.dim_param or None
                for d in tensor.shape.dim
            ),
        )

    @property
    def dtype_name(self) -> str:
        """The dtype as NumPy and ml_dtypes spell it, such as float32 or bfloat16."""
        if self.dtype in _NAMES:
            return _NAMES[self.dtype]
        try:
            return TensorProto.DataType.Name(self.dtype).lower()
        except ValueError:  # a number that this version of onnx does not define
            return f"dtype {self.dtype}"

    @property
    def is_floating(self) -> bool:
        """True if a gradient can have this dtype, as far as it is known."""
        return self.dtype in FLOATING or self.dtype == TensorProto.UNDEFINED

    @property
    def is_scalar_like(self) -> bool:
        """True if the shape is known and holds exactly one element."""
        return self.shape is not None and all(d == 1 for d in self.shape)

    def agrees_with(self, other: TensorType) -> bool:
        """True if nothing known of the two shapes contradicts."""
        return self.shape is None or other.shape is None or _agree(self.shape, other.shape)

    def adds_seeds_to(self, parameter: TensorType) -> bool:
        """True if this is the parameter's shape and one more, last dimension (onnx-ad's seeds)."""
        return (
            self.shape is not None
            and parameter.shape is not None
            and len(self.shape) > 0
            and _agree(self.shape[:-1], parameter.shape)
        )


def _agree(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(
        x == y or not isinstance(x, int) or not isinstance(y, int)
        for x, y in zip(a, b, strict=True)
    )
