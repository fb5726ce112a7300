"""The precision of norms, and the policies for gradients that are not finite.

A sum of numbers that are not negative is off by at most the unit roundoff times the longest chain
of additions that one of them goes through, whatever they are: that bounds every norm here, and the
sizes below are chosen by it. ONNX Runtime's CPU provider keeps 32 bytes of partial sums, 8 float32
or 4 float64 numbers, where it reduces a whole tensor, or by ReduceSum its last axes; over other
axes, and by other operators, it adds element by element (`tests/test_norm_bounds.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.graph import Shape
from onnx_clip_pass.graph.spec import DOUBLE, FLOAT

__all__ = ["ClipLayout", "NonFinite", "NormPrecision", "Numerics", "Reach", "Reduction"]

NormPrecision = Literal["auto", "plain", "wide"]
"""plain: one ReduceL2 in float32 (float64 for float64). wide: everything in float64, error below
1e-12. auto: plain where its error stays below 1e-5, else sums of squares by rows, which are added
up in float64 where they are many; all in float64 where there is no cutting into rows."""

ClipLayout = Literal["cpu", "x86-64", "cuda"]
"""The machine that a clip is laid out for; it runs on the others too, as right, but slower or, laid
out for CUDA, less exact. cpu: any processor, at any level of graph optimization. x86-64: large L2
norms by MatMul, which reads a gradient once, where ONNX Runtime optimizes graphs (the default
there). cuda: one reduction for every norm, since CUDA's are trees."""

NonFinite = Literal["propagate", "zero", "keep"]
"""The policy for a gradient with nan or inf in it. propagate: what the formula gives, as Paddle
and PyTorch do. zero: zeros, all of it. keep: it stays as it is."""

Reach = Literal["all", "last", "one", "some"]
"""The axes that a norm reaches over: all of them, the last of them, one with elements enough behind
it that they are added up side by side, or any others."""

_ADDED: dict[int, dict[float, int]] = {
    FLOAT: {1: 1024, 2: 2048},  # below 1e-5
    DOUBLE: {1: 4096, 2: 8192},
}
"""By dtype and order, how many powers are added up in one go, or in two together.

An L1 sum has twice the relative error of the root of a sum of squares."""
_FEW: dict[float, int] = {1: 128, 2: 256}
"""By order, how many float32 elements may be added one by one: below 1e-5."""
_ONE_BY_ONE = 64  # float32 elements, above which Mul and ReduceSum over axes beat a ReduceL2
_LANES = {FLOAT: 8, DOUBLE: 4}
_JOINED = 10  # additions that join the lanes, and what is left of a number that they do not divide
_UNIT = {FLOAT: 2.0**-24, DOUBLE: 2.0**-53}
_SHORTEST_ROW = 16
_SMALL_PRODUCTS = 65536
_LEAST_IN_FLOAT32, _MOST_IN_FLOAT32 = 2.0**-40, 2.0**40  # thresholds: about 1e-12 and 1e12


@dataclass(frozen=True, slots=True)
class Reduction:
    """A way from a tensor to its norm.

    `widens` says that the elements are taken to float64 first. `rows` is None for one reduction
    over everything; else the powers of the elements are added up by rows, and then the rows' sums,
    in float64 if `joins_in_float64`. Rows are axes of the tensor, or none of them, or have a length
    to which the tensor is cut; where they are `multiplied`, each is a product of a row with itself.
    """

    widens: bool = False
    rows: int | tuple[int, ...] | None = None
    joins_in_float64: bool = False
    multiplied: bool = False


@dataclass(frozen=True, slots=True)
class Numerics:
    """The caller's choice of precision, policy and layout."""

    norm_precision: NormPrecision = "auto"
    nonfinite: NonFinite = "propagate"
    layout: ClipLayout = "cpu"

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, ClipLayout)
        check_choice("norm_precision", self.norm_precision, NormPrecision)
        check_choice("nonfinite", self.nonfinite, NonFinite)

    def work_dtype(self, dtype: str, threshold: float | None) -> int:
        """The dtype in which a clipped gradient is formed: float32 wherever it is enough.

        Not for float64 gradients, for "wide", and for a threshold near which float32 fails. Within
        the bounds, the squares of up to 2 ** 40 elements whose norm, or root mean square, is the
        threshold are normal numbers and add up to one.
        """
        if dtype == "float64" or self.norm_precision == "wide":
            return DOUBLE
        if threshold is None or threshold == math.inf:
            return FLOAT
        is_held = _LEAST_IN_FLOAT32 <= threshold <= _MOST_IN_FLOAT32
        return FLOAT if is_held else DOUBLE

    def reduction(
        self,
        shape: Shape | None,
        *,
        in_float64: bool,
        must_widen: bool,
        ord: float = 2.0,
        reach: Reach = "all",
    ) -> Reduction:
        """The cheapest reduction that keeps the stated precision.

        1. L-infinity rounds nothing. Powers other than 1 and 2 leave the range of float32 early.
        2. In one go where it is plain, short, float64 that need not be wide, or for CUDA.
        3. Over some of the axes, where there are no rows or float64 is needed anyway, in one go in
           float64.
        4. For x86-64, squares of float32 by products of rows with themselves: as long as they may
           be, for a product has its price, but for a tensor so small that to join them in float64
           has a higher one.
        5. By rows that are axes of the tensor: the sums of rows are few.
        6. By rows to which it is cut, whose length divides its size.
        7. Else in one go in float64.

        Args:
            shape: of what becomes one number, as far as it is known.
            in_float64: whether its elements are float64 already; else they are float32.
            must_widen: whether the norm must not overflow for finite float32 elements.
            ord: of the norm.
            reach: over which of a tensor's axes the norm reaches.
        """
        is_wide, is_plain = self.norm_precision == "wide", self.norm_precision == "plain"
        is_tree = self.layout == "cuda"
        if ord not in (1, 2):  # rule 1
            return Reduction(
                widens=not in_float64 and ord != math.inf and (must_widen or not is_plain)
            )
        widens = not in_float64 and (must_widen or is_wide)
        work = DOUBLE if in_float64 or widens else FLOAT
        limit = (_FEW if reach in ("one", "some") else _ADDED[work])[ord]
        dims = [d for d in shape or () if isinstance(d, int)]
        known = math.prod(dims)  # divides the size, whatever the other dimensions are
        size = known if shape is not None and len(dims) == len(shape) else None
        is_short = size is not None and size <= limit
        if is_plain or is_short or is_tree or (in_float64 and not is_wide):  # rule 2
            is_slow = reach in ("last", "one") and (size or 0) > _ONE_BY_ONE  # but for a ReduceSum
            is_summed = is_slow and work == FLOAT and not is_plain and not is_tree
            return Reduction(widens, () if is_summed else None)
        if reach == "some" or (reach != "all" and (work == DOUBLE or size is None)):  # rule 3
            return Reduction(widens=not in_float64)
        multiplied = (
            self.layout == "x86-64" and work == FLOAT and ord == 2 and reach == "all"
        )  # rule 4
        if not multiplied and size is not None and (rows := _own_axes(dims, limit)) is not None:
            return Reduction(widens, rows)  # rule 5
        is_small = size is not None and size <= _SMALL_PRODUCTS
        cut = _length_of_rows(known, limit if multiplied and not is_small else limit // 2)
        if cut is None:  # rule 7
            return Reduction(widens=not in_float64)
        are_few = size is not None and cut + size // cut <= limit
        return Reduction(widens, cut, not are_few, multiplied)  # rule 6

    def bound(self, dtype: str, size: int, ord: float, *, is_along: bool = False) -> float:
        """The relative error that a norm of elements of this dtype may have, whatever they are.

        That of `reduction` for a tensor of so many elements, however much of its shape is known. A
        power is rounded once and the root once; a p-th root has a p-th of the error of its sum.
        Powers other than 1 and 2 have exponents that are rounded too, by half a unit, which counts
        as often as the logarithm of what is raised to them: below 90 in float32; all but "plain"
        form them in float64. What is laid out for CUDA is bounded as it is on the CPU.
        """
        work = DOUBLE if dtype == "float64" or self.norm_precision == "wide" else FLOAT
        is_plain = self.norm_precision == "plain"
        if ord == math.inf:
            return 0.0
        if ord not in (1, 2):
            unit = _UNIT[work if is_plain else DOUBLE]
            return ((size + 180) / ord + 180) * unit
        chain = float(max(size - 1, 0))
        if not is_along:
            chain = min(chain, size / _LANES[work] + _JOINED)
        if work == FLOAT and not is_plain and self.layout != "cuda":
            chain = min(chain, _ADDED[work][ord] / _LANES[work] + 2 * _JOINED)
        return ((chain + ord - 1) / ord + 1) * _UNIT[work]


def _length_of_rows(size: int, longest: int) -> int | None:
    """The longest row to which so many elements can be cut; None if there is none."""
    lengths = range(longest, _SHORTEST_ROW - 1, -1) if size else ()
    return next((length for length in lengths if size % length == 0), None)


def _own_axes(dims: list[int], limit: int) -> tuple[int, ...] | None:
    """Last axes that can serve as rows: adding up over them and then the rest is short enough."""
    size = math.prod(dims)
    for at in range(1, len(dims)):
        length = math.prod(dims[at:])
        if length >= _SHORTEST_ROW and length + size // length <= limit:
            return tuple(range(at, len(dims)))
    return None
