"""How exactly a norm is computed, and what becomes of gradients that are not finite.

Errors of the norm of a whole tensor against exact arithmetic, for tensors with all elements equal
(ONNX Runtime's CPU provider, which adds up in the dtype it is given; `benchmarks/norms.py`). In
float32: 8e-6 at 8192 elements in one go, or in two (sums of n, then the sum of 8192 - n sums); 4e-4
at half a million, always too low for large tensors, so that the clipped gradient would be too long.
In float64: 6e-11 at 2e7 elements in one go; below 1e-12 for sums of 4096 and then of those. Data
made to be worse, and norms over axes, are in docs/numerics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnx import TensorProto

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.graph import Shape

__all__ = ["NonFinite", "NormPrecision", "Numerics", "Reduction"]

NormPrecision = Literal["auto", "plain", "wide"]
"""plain: one ReduceL2 in float32 (float64 for float64). wide: everything in float64, error below
1e-12. auto: plain where its error stays below 1e-5, else sums of squares by rows, which are added
up in float64 where they are many; all in float64 where there is no cutting into rows."""

NonFinite = Literal["propagate", "zero", "keep"]
"""What becomes of a gradient with nan or inf in it. propagate: what the formula gives, as Paddle
and PyTorch do. zero: zeros, all of it. keep: it stays as it is."""

_ADDED_LIMIT = 8192  # in one go, or in two together
_LONGEST_ROW, _SHORTEST_ROW = 4096, 16
_LEAST_IN_FLOAT32, _MOST_IN_FLOAT32 = 2.0**-40, 2.0**40  # thresholds: about 1e-12 and 1e12


@dataclass(frozen=True, slots=True)
class Reduction:
    """How to get from a tensor to its norm.

    `widens` says that the elements are taken to float64 first. `rows` is None for one reduction
    over everything; else the powers of the elements are added up by rows, and then the rows' sums,
    in float64 if `joins_in_float64`. Rows are axes of the tensor, or have a length to which the
    tensor is cut.
    """

    widens: bool = False
    rows: int | tuple[int, ...] | None = None
    joins_in_float64: bool = False


@dataclass(frozen=True, slots=True)
class Numerics:
    """The caller's choice of precision and policy."""

    norm_precision: NormPrecision = "auto"
    nonfinite: NonFinite = "propagate"

    def __post_init__(self) -> None:
        check_choice("norm_precision", self.norm_precision, NormPrecision)
        check_choice("nonfinite", self.nonfinite, NonFinite)

    def work_dtype(self, dtype: str, threshold: float | None) -> int:
        """The dtype in which a clipped gradient is formed: float32 wherever it is enough.

        Not for float64 gradients, for "wide", and for a threshold near which float32 fails. Within
        the bounds, the squares of up to 2 ** 40 elements whose norm, or root mean square, is the
        threshold are normal numbers and add up to one.
        """
        if dtype == "float64" or self.norm_precision == "wide":
            return int(TensorProto.DOUBLE)
        if threshold is None or threshold == math.inf:
            return int(TensorProto.FLOAT)
        is_held = _LEAST_IN_FLOAT32 <= threshold <= _MOST_IN_FLOAT32
        return int(TensorProto.FLOAT if is_held else TensorProto.DOUBLE)

    def reduction(
        self,
        shape: Shape | None,
        *,
        in_float64: bool,
        must_widen: bool,
        ord: float = 2.0,
    ) -> Reduction:
        """The cheapest reduction over a whole tensor that keeps the stated precision.

        Args:
            shape: of the tensor, as far as it is known.
            in_float64: whether its elements are float64 already; else they are float32.
            must_widen: whether the norm must not overflow for finite float32 elements.
            ord: of the norm. L-infinity rounds nothing. An L1 sum has twice the relative error of
                the root of a sum of squares, so half of everything. Other powers leave the range of
                float32 early.
        """
        if ord == math.inf:
            return Reduction()
        is_wide = self.norm_precision == "wide"
        if ord not in (1, 2):
            is_needed = self.norm_precision != "plain" or must_widen
            return Reduction(widens=not in_float64 and is_needed)
        share = 2 if ord == 1 else 1
        dims = [d for d in shape or () if isinstance(d, int)]
        size = math.prod(dims) if shape is not None and len(dims) == len(shape) else None
        is_short = size is not None and size <= _ADDED_LIMIT // share
        if self.norm_precision == "plain" or is_short or (in_float64 and not is_wide):
            return Reduction(widens=not in_float64 and (must_widen or is_wide))
        widens = not in_float64 and (must_widen or is_wide)
        limit = _ADDED_LIMIT // share
        rows = None if size is None else _own_axes(dims, limit)
        if rows is not None:
            return Reduction(widens, rows)
        known = math.prod(dims)  # divides the size, whatever the other dimensions are
        longest = _LONGEST_ROW // share
        cut = next((d for d in range(longest, _SHORTEST_ROW - 1, -1) if known % d == 0), None)
        if known == 0 or cut is None:
            return Reduction(widens=not in_float64)
        are_few = size is not None and cut + size // cut <= limit
        return Reduction(widens, cut, joins_in_float64=not are_few)


def _own_axes(dims: list[int], limit: int) -> tuple[int, ...] | None:
    """Last axes that can serve as rows: adding up over them and then the rest is short enough."""
    size = math.prod(dims)
    for at in range(1, len(dims)):
        length = math.prod(dims[at:])
        if length >= _SHORTEST_ROW and length + size // length <= limit:
            return tuple(range(at, len(dims)))
    return None
