"""Putting the nodes of clips into a graph: one `Emitter` for one gradient at one step."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from onnx import TensorProto

from onnx_clip_pass.clips.numerics import Numerics
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.graph import Editor, Scope, Shape, TensorType
from onnx_clip_pass.kernels import Need

__all__ = ["FIRST_BROADCASTING_MIN", "Emitter", "Limits", "Measured", "ParameterSite", "Quantity"]

_DOUBLE, _BOOL = int(TensorProto.DOUBLE), int(TensorProto.BOOL)
_FIRST_REDUCED_AXES_AS_INPUT = 18
_FIRST_OTHER_AXES_AS_INPUT = 13
FIRST_BROADCASTING_MIN = 8
_FIRST_WITHOUT_UNSQUEEZE_ON_CUDA = 24


class Limits(Protocol):
    """Thresholds as values of the graph."""

    def product(self, threshold: float, factor: float, dtype: int) -> str:
        """The name of the threshold times the factor times the loss scale."""

    def is_infinite(self, limit: str, dtype: int) -> str | None:
        """The name of a bool, whether such a product is inf; None if `limit` is none."""


class ParameterSite(NamedTuple):
    """A parameter as a clip reads it: its name where the gradient is, and its dtype.

    `axes` are those over which one unit of it reaches, None if all of it is one unit.
    """

    name: str
    dtype: int
    axes: tuple[int, ...] | None


class Quantity(NamedTuple):
    """A value of the graph."""

    name: str
    dtype: int
    shape: Shape | None


class Measured(NamedTuple):
    """What a clip measured of a gradient: its norm before clipping and what it is multiplied by.

    One of each, or of each sample, unit or seed. The norm is still times the loss scale.
    """

    norm: Quantity
    scale: Quantity


class Emitter:
    """Adds the nodes of one clip, named `clip/<gradient>/<op>`, at one place of a scope.

    The clip reads `source`, of dtype `dtype`; its last node's output is `target`, the clipped
    gradient. `is_steered` says that the threshold is an input of the graph. With `measures_only` it
    computes its measures and leaves the gradient alone. `measured` is set by the clip, for an
    emitter that `watches`; `needs` collects what kernels the nodes need.
    """

    def __init__(
        self,
        editor: Editor,
        scope: Scope,
        position: int,
        gradient: Gradient,
        source: str,
        target: str,
        dtype: int,
        numerics: Numerics,
        *,
        label: str = "",
        limits: Limits | None = None,
        is_steered: bool = False,
        parameter: ParameterSite | None = None,
        count: int = 1,
        watches: bool = False,
        measures_only: bool = False,
    ) -> None:
        self.gradient = gradient
        self.source = source
        self.dtype = dtype
        self.opset = scope.opset or 0
        self.numerics = numerics
        self.parameter = parameter
        self.count = count
        self.watches = watches
        self.measures_only = measures_only
        self.measured: Measured | None = None
        self.needs: set[Need] = set()
        self.position = position
        self.is_steered = is_steered
        self._limits = limits
        self._target = target
        self._editor = editor
        self._scope = scope
        self._label = label or gradient.name

    def relabelled(self, label: str) -> Emitter:
        """An emitter at the same place for nodes that belong to no gradient alone."""
        other = Emitter(
            self._editor,
            self._scope,
            self.position,
            self.gradient,
            self.source,
            self._target,
            self.dtype,
            self.numerics,
            label=label,
            limits=self._limits,
            is_steered=self.is_steered,
        )
        other.needs = self.needs
        return other

    @property
    def keeps_rank(self) -> bool:
        """Whether what the gradient is combined with should have the gradient's rank.

        ONNX Runtime's CPU provider goes through a tensor with axes of size 1, such as the kernels
        of a 1 x 1 convolution, element by element if the other operand has rank 0, which takes
        tens of times as long (`benchmarks/norms.py`). From opset 24 on CUDA has no Unsqueeze, which
        makes that of a number.
        """
        shape = self.gradient.shape
        is_possible = FIRST_BROADCASTING_MIN <= self.opset < _FIRST_WITHOUT_UNSQUEEZE_ON_CUDA
        return is_possible and shape is not None and 1 in shape[1:]

    def spread(self, value: str, dtype: int) -> str:
        """A rank-0 value, of the gradient's rank if that should be kept."""
        if not self.keeps_rank:
            return value
        rank = len(self.gradient.shape or ())
        return self.unsqueeze(value, list(range(rank)), dtype=dtype, shape=(1,) * rank)

    def constant(self, value: float, dtype: int) -> str:
        """A rank-0 constant."""
        return self._editor.constant(self._scope, value, dtype)

    def limit(self, threshold: float, dtype: int, factor: float = 1.0) -> str:
        """The threshold times the factor, of rank 0: a constant, or what its input makes it."""
        if self._limits is not None:
            return self._limits.product(threshold, factor, dtype)
        if factor == 1:
            return self.constant(threshold, dtype)
        kind = np.float64 if dtype == TensorProto.DOUBLE else np.float32
        with np.errstate(over="ignore"):
            # multiplied in `dtype`, as where the threshold is an input
            return self.constant(float(kind(threshold) * kind(factor)), dtype)

    def is_infinite(self, limit: str, dtype: int) -> str | None:
        """A bool of the graph, whether a limit is inf; None if it is a constant that is not."""
        constant = self._editor.value_of(limit)
        if constant is not None and constant != math.inf:
            return None
        shared = None if self._limits is None else self._limits.is_infinite(limit, dtype)
        if shared is not None:
            return shared
        largest = np.finfo(np.float64 if dtype == _DOUBLE else np.float32).max
        sides = [self.constant(float(largest), dtype), limit]
        return self.node("Less", sides, result="unlimited", dtype=_BOOL, shape=None, takes=dtype)

    def node(
        self,
        op_type: str,
        inputs: list[str],
        *,
        result: str,
        dtype: int,
        shape: Shape | None = (),
        takes: int | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node and declare its result.

        Args:
            op_type: an operator of the default domain.
            inputs: what it reads.
            result: its output is called `clip/<gradient>/<result>`; "" makes it the clip's last
                node, whose output is the clipped gradient.
            dtype: of the result.
            shape: of the result.
            takes: the dtype of what it reads, if that is another.
            attributes: of the node.
        """
        output = self._editor.fresh(f"clip/{self._label}/{result}") if result else self._target
        name = f"clip/{self._label}/{op_type}"
        self._editor.insert(self._scope, self.position, op_type, inputs, output, name, **attributes)
        if result:
            self._editor.declare(self._scope, output, TensorType(dtype, shape))
        dtypes = (takes or dtype,) if takes in (None, dtype) else (takes or dtype, dtype)
        self.needs.add(_need(op_type, self.opset, dtypes))
        return output

    def name_output(self, value: str, name: str, dtype: int) -> None:
        """Give a value the name of an output."""
        self._editor.insert(
            self._scope, self.position, "Identity", [value], name, f"clip/{name}/Identity"
        )
        self.needs.add(_need("Identity", self.opset, (dtype,)))

    def cast(self, value: str, takes: int, dtype: int, *, result: str, shape: Shape | None) -> str:
        """The value as another dtype; itself if it has that already."""
        if takes == dtype:
            return value
        return self.node(
            "Cast", [value], result=result, dtype=dtype, shape=shape, takes=takes, to=dtype
        )

    def reduce(
        self,
        op_type: str,
        value: str,
        axes: list[int] | None,
        *,
        result: str,
        dtype: int,
        shape: Shape | None,
        keepdims: int,
    ) -> str:
        """A reduction over `axes`, or all of them; axes were an attribute before opset 18 (13).

        In float64 a ReduceL2 is the root of a ReduceSumSquare, and a ReduceL1 the sum of Abs: ONNX
        Runtime up to 1.19, the last with training, has them, and not all versions of the others.
        """
        if dtype == _DOUBLE and op_type == "ReduceL2":
            squares = self.reduce(
                "ReduceSumSquare",
                value,
                axes,
                result="sum of squares",
                dtype=dtype,
                shape=shape,
                keepdims=keepdims,
            )
            return self.node("Sqrt", [squares], result=result, dtype=dtype, shape=shape)
        if dtype == _DOUBLE and op_type == "ReduceL1":
            op_type = "ReduceSum"
            value = self.node("Abs", [value], result="sizes", dtype=dtype, shape=None)
        inputs = [value]
        attributes: dict[str, Any] = {"keepdims": keepdims}
        is_sum = op_type == "ReduceSum"
        first = _FIRST_OTHER_AXES_AS_INPUT if is_sum else _FIRST_REDUCED_AXES_AS_INPUT
        if axes is not None and self.opset < first:
            attributes["axes"] = axes
        elif axes is not None:
            inputs.append(self._editor.integers(self._scope, "axes", axes))
        return self.node(op_type, inputs, result=result, dtype=dtype, shape=shape, **attributes)

    def rows(self, value: str, length: int, *, dtype: int) -> str:
        """The elements of a tensor as a matrix of rows of this length."""
        shape = self._editor.integers(self._scope, "shape", [-1, length])
        return self.node(
            "Reshape", [value, shape], result="rows", dtype=dtype, shape=(None, length)
        )

    def unsqueeze(self, value: str, axes: list[int], *, dtype: int, shape: Shape | None) -> str:
        """The value with axes of size 1 put in; axes were an attribute before opset 13."""
        inputs: list[str] = [value]
        attributes: dict[str, Any] = {}
        if self.opset < _FIRST_OTHER_AXES_AS_INPUT:
            attributes["axes"] = axes
        else:
            inputs.append(self._editor.integers(self._scope, "axes", axes))
        return self.node(
            "Unsqueeze", inputs, result="in place", dtype=dtype, shape=shape, **attributes
        )


@cache
def _need(op_type: str, opset: int, dtypes: tuple[int, ...]) -> Need:
    return Need(op_type, opset, tuple(TensorType(dtype).dtype_name for dtype in dtypes))
