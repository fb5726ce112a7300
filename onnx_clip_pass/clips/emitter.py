"""Putting the nodes of clips into a graph: one clip of one gradient at one step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from onnx_clip_pass.clips.numerics import Numerics
from onnx_clip_pass.clips.tape import Over, Tape, Tensor
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.graph import Editor, Scope, TensorType
from onnx_clip_pass.graph.spec import BOOL, DOUBLE

__all__ = [
    "FIRST_BROADCASTING_MIN",
    "Emitter",
    "Limits",
    "Measured",
    "ParameterSite",
    "SequenceLoops",
    "Workers",
]

FIRST_BROADCASTING_MIN = 8
_FIRST_WITHOUT_UNSQUEEZE_ON_CUDA = 24


class Limits(Protocol):
    """Thresholds as values of the graph."""

    def product(self, name: str | None, threshold: float, factor: float, dtype: int) -> Tensor:
        """The threshold, of an input if that has a name, times the factor times the loss scale."""

    def is_infinite(self, limit: Tensor) -> Tensor | None:
        """A bool, whether such a product is inf; None if `limit` is none."""

    def divisor(self, dtype: int) -> Tensor | None:
        """The loss scale in this dtype; None if it is 1."""


class SequenceLoops(Protocol):
    """Loops over sequences of gradients, where these have no names."""

    def of_each(
        self, sequence: str, clipped: str, emits: Sequence[Callable[[Emitter], object]]
    ) -> None:
        """A loop that makes the sequence `clipped` of what clips make of each tensor."""

    def of_all(self, sequence: str, emit: Callable[[Emitter, Tensor], Tensor]) -> Tensor:
        """A loop that makes one float64 number of all tensors, from 0."""

    def of_main(self, label: str) -> Emitter:
        """An emitter of nodes of this label, behind the loops that are there."""


class Workers(Protocol):
    """The workers that each have a part of one gradient."""

    @property
    def dtype(self) -> int:
        """The dtype of what they add up."""

    def share(self, over: Over) -> bool:
        """Return whether what one norm over these axes reaches over lies on several of them."""

    def replicas(self, to: Tape) -> Tensor | None:
        """The number of workers that have the same part, in `dtype`; None if it is 1."""

    def total(self, to: Tape, value: Tensor, what: str) -> Tensor:
        """The sum over all workers of a value, which is so called where they compare."""

    def largest(self, to: Tape, value: Tensor, what: str) -> Tensor:
        """The largest of a value over all workers; nan is lost, or not."""


class ParameterSite(NamedTuple):
    """A parameter as a clip reads it: its name where the gradient is, and its dtype.

    `axes` are those over which one unit of it reaches, None if all of it is one unit.
    """

    name: str
    dtype: int
    axes: tuple[int, ...] | None


class Measured(NamedTuple):
    """The measures of a gradient: its norm before clipping, and what it is multiplied by.

    One of each, or of each sample, unit or seed; of those of this worker alone if they are `spread`
    over several. The norm is still times the loss scale.
    """

    norm: Tensor
    scale: Tensor
    spread: bool = False


class Emitter(Tape):
    """Adds the nodes of one clip of one gradient at one step.

    The clip reads `source`; its last node's output is `target`, the clipped gradient.
    The clip sets `measured` where it `is_measured`; with `measures_only` it leaves the gradient
    alone. `carried` has the inputs that are states of the clip, each with the output that is its
    new value.
    """

    def __init__(
        self,
        editor: Editor,
        scope: Scope,
        position: int,
        gradient: Gradient,
        source: Tensor,
        target: str,
        numerics: Numerics,
        *,
        limits: Limits | None = None,
        threshold_input: str | None = None,
        parameter: ParameterSite | None = None,
        workers: Workers | None = None,
        count: int = 1,
        is_measured: bool = False,
        measures_only: bool = False,
    ) -> None:
        super().__init__(editor, scope, position, gradient.name, target)
        self.gradient = gradient
        self.source = source
        self.numerics = numerics
        self.parameter = parameter
        self.workers = workers
        self.count = count
        self.is_measured = is_measured
        self.measures_only = measures_only
        self.measured: Measured | None = None
        self.has_runtime_threshold = threshold_input is not None
        self._threshold_input = threshold_input
        self._limits = limits
        self.carried: dict[str, str] = {}

    def relabelled(self, label: str) -> Emitter:
        """An emitter at the same position for nodes that belong to no gradient alone."""
        other = copy.copy(self)
        other.label = label
        return other

    def alone(self) -> Emitter:
        """An emitter of the same nodes for one worker, that is for the part of the gradient."""
        other = copy.copy(self)
        other.workers = None
        return other

    @property
    def keeps_rank(self) -> bool:
        """True if what the gradient is combined with should have the gradient's rank.

        ONNX Runtime's CPU provider goes through a tensor with axes of size 1, such as the kernels
        of a 1 x 1 convolution, element by element if the other operand has rank 0, which takes
        tens of times as long (`benchmarks/norms.py`). From opset 24 on CUDA has no Unsqueeze, which
        makes that of a number.
        """
        shape = self.gradient.shape
        is_possible = FIRST_BROADCASTING_MIN <= self.opset < _FIRST_WITHOUT_UNSQUEEZE_ON_CUDA
        return is_possible and shape is not None and 1 in shape[1:]

    def spread(self, value: Tensor) -> Tensor:
        """A rank-0 value, of the gradient's rank if that should be kept."""
        if not self.keeps_rank:
            return value
        return self.unsqueeze(value, tuple(range(len(self.gradient.shape or ()))))

    def limit(self, threshold: float, dtype: int, factor: float = 1.0) -> Tensor:
        """The threshold times the factor, of rank 0: a constant, or what its input makes it."""
        if self._limits is not None:
            return self._limits.product(self._threshold_input, threshold, factor, dtype)
        if factor == 1:
            return self.constant(threshold, dtype)
        kind = np.float64 if dtype == DOUBLE else np.float32
        with np.errstate(over="ignore"):
            # multiplied in `dtype`, as where the threshold is an input
            return self.constant(float(kind(threshold) * kind(factor)), dtype)

    def unscaled(self, norm: Tensor) -> Tensor:
        """A norm in the unit of the gradient without the loss scale."""
        scale = None if self._limits is None else self._limits.divisor(norm.dtype)
        return norm if scale is None else self.op("Div", norm, scale, result="unscaled")

    def state(self, what: str, dtype: int, size: int) -> Tensor:
        """A vector that is carried from step to step: an input of the model, without a default."""
        name, new = self._editor.fresh_with(f"clip/{self.label}/{what}", "_new")
        self._editor.add_state(name, TensorType(dtype, (size,)))
        self.carried[name] = new
        return Tensor(name, dtype, (size,))

    def carry(self, state: Tensor, new: Tensor) -> None:
        """Make the new value of a state an output of the model."""
        self.output(new, self.carried[state.name])

    def is_infinite(self, limit: Tensor) -> Tensor | None:
        """A bool of the graph, whether a limit is inf; None if it is a constant that is not."""
        constant = self._editor.value_of(limit.name)
        if constant is not None and constant != math.inf:
            return None
        shared = None if self._limits is None else self._limits.is_infinite(limit)
        if shared is not None:
            return shared
        largest = np.finfo(np.float64 if limit.dtype == DOUBLE else np.float32).max
        return self.op("Less", float(largest), limit, result="unlimited", dtype=BOOL)
