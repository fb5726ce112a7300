"""Thresholds as values of the graph: inputs that can be fed, and the loss scale.

A threshold input is an input of rank 0 behind the others, with the threshold as its default: an
initializer of the same name. A loss scale S makes gradients S times what they are; limiting
their norm to c * S is then what limiting the unscaled norm to c would be, and the gradients need
not be touched a second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_clip_pass.arguments import as_number
from onnx_clip_pass.clips import Numerics, Tape, Tensor
from onnx_clip_pass.clips.tape import ALL, Used
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients import FoundGradient
from onnx_clip_pass.graph import Editor, Index, Scope, TensorType
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FREE_INITIALIZERS
from onnx_clip_pass.rules import ClipChoice

__all__ = ["LossScale", "ThresholdNodes", "Thresholds"]

LossScale = float | str
"""A number, or the name of a value of the main graph with one element."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The loss scale that thresholds are multiplied by, which may be a value of the graph."""

    loss_scale: LossScale = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.loss_scale, str):
            object.__setattr__(self, "loss_scale", _scale(self.loss_scale))

    @property
    def factor(self) -> float:
        """The loss scale as a number; 1 where it is a value of the graph."""
        return 1.0 if isinstance(self.loss_scale, str) else self.loss_scale

    @property
    def is_value(self) -> bool:
        """True if the loss scale is a value of the graph."""
        return isinstance(self.loss_scale, str)

    def faults(self, index: Index, choices: Sequence[ClipChoice]) -> list[str]:
        """The reasons that these thresholds and this loss scale cannot be had in this model."""
        faults = []
        defaults: dict[str, float] = {}
        for choice in choices:
            name, threshold = choice.threshold_input, choice.clip.threshold
            if name is None:
                continue
            if threshold is None:
                faults.append(
                    f"threshold input {name!r}: {choice.clip!r} has no single threshold; only a "
                    f"clip with one number can take it from an input"
                )
            elif defaults.setdefault(name, threshold) != threshold:
                faults.append(
                    f"threshold input {name!r} would have two defaults, {defaults[name]:g} and "
                    f"{threshold:g}; give each rule an input of its own"
                )
        taken = index.all_names() if defaults else set()
        faults += [
            f"threshold input {name!r}: the model has a value of that name; choose another"
            for name in defaults
            if name in taken
        ]
        if defaults and index.model.ir_version < FREE_INITIALIZERS:
            faults.append(
                f"a threshold input needs IR version {FREE_INITIALIZERS} or later, where an "
                f"input can have a default, and this model has {index.model.ir_version}"
            )
        if isinstance(self.loss_scale, str):
            faults += _faults_of_scale(index, self.loss_scale)
        return faults

    def fault(self, scope: Scope, choice: ClipChoice) -> str | None:
        """The reason that a gradient of this scope cannot have such a threshold, or None."""
        what = "a threshold input" if choice.threshold_input is not None else "a loss scale by name"
        if choice.threshold_input is None and not self.is_value:
            return None
        around: Scope | None = scope
        while around is not None:
            if around.is_function or around.path.startswith("training_info"):
                return f"{what} is a value of the main graph, which {around.path} does not see"
            around = around.outer
        return None


class ThresholdNodes:
    """The nodes of one rewrite that compute thresholds, each once, in the main graph.

    Adds the threshold inputs: float64 if a gradient that they limit is computed so.
    """

    def __init__(
        self,
        editor: Editor,
        thresholds: Thresholds,
        assignments: Sequence[tuple[FoundGradient, ClipChoice]],
        numerics: Numerics,
    ) -> None:
        self.used: set[Used] = set()
        self._editor = editor
        self._main = editor.index.main
        scale = thresholds.loss_scale
        self._loss_scale = scale if isinstance(scale, str) else ""  # of a value of the graph
        self._factor = thresholds.factor
        self._dtypes: dict[str, int] = {}
        self._made: dict[tuple[object, ...], Tensor] = {}
        self._products: set[Tensor] = set()
        defaults: dict[str, float] = {}
        for found_gradient, choice in assignments:
            name, threshold = choice.threshold_input, choice.clip.threshold
            if name is None or threshold is None:
                continue
            defaults[name] = threshold
            dtype = choice.clip.formulas[0].work_dtype(found_gradient.gradient.dtype, numerics)
            if self._dtypes.setdefault(name, dtype) != dtype:
                self._dtypes[name] = DOUBLE
        for name, threshold in defaults.items():
            editor.add_input(name, threshold, self._dtypes[name])
        if self._loss_scale in self._main.producers:
            editor.unsettle(self._main)

    def is_infinite(self, limit: Tensor) -> Tensor | None:
        """A bool of the main graph, whether a product is inf; None if it is no product of ours."""
        if limit not in self._products:
            return None
        key = ("is infinite", limit)
        if key not in self._made:
            largest = np.finfo(np.float64 if limit.dtype == DOUBLE else np.float32).max
            to = self._tape(limit.name)
            self._made[key] = to.op("Less", float(largest), limit, result="less", dtype=BOOL)
        return self._made[key]

    def divisor(self, dtype: int) -> Tensor | None:
        """The divisor that takes the loss scale out of a norm; None if the loss scale is 1."""
        if self._loss_scale:
            return self._scale_as(dtype)
        return None if self._factor == 1.0 else self._tape("").constant(self._factor, dtype)

    def product(self, name: str | None, threshold: float, factor: float, dtype: int) -> Tensor:
        """Threshold, of the input of that name if there is one, times factor times loss scale."""
        key = (name or threshold, factor, dtype)
        if key in self._made:
            return self._made[key]
        to = self._tape(name or "limit")
        if name is None:
            result = to.constant(threshold * factor, dtype)
        else:
            result = to.cast(Tensor(name, self._dtypes[name], ()), dtype, result="cast")
            if factor * self._factor != 1.0:
                result = to.op("Mul", result, factor * self._factor, result="mul")
        if self._loss_scale:
            result = to.op("Mul", result, self._scale_as(dtype), result="mul")
        self._made[key] = result
        self._products.add(result)
        return result

    def _scale_as(self, dtype: int) -> Tensor:
        """The loss scale of the graph in this dtype, and of rank 0."""
        name, key = self._loss_scale, (self._loss_scale, dtype)
        if key not in self._made:
            declared = self._main.type_of(name) or TensorType()
            if not declared.dtype:
                declared = self._editor.index.inferred(self._main, name)
            to = self._tape(name)
            scale = to.cast(Tensor(name, declared.dtype, declared.shape), dtype, result="cast")
            if scale.shape != ():
                scale = to.reduce("ReduceMax", scale, ALL, result="reducemax")
            self._made[key] = scale
        return self._made[key]

    def _tape(self, label: str) -> Tape:
        """A tape at the beginning of the main graph, or behind the loss scale."""
        made = self._main.producers.get(self._loss_scale)
        tape = Tape(self._editor, self._main, 0 if made is None else made[0] + 1, label)
        tape.used = self.used
        return tape


def _faults_of_scale(index: Index, name: str) -> list[str]:
    main = index.main
    if name not in main.names:
        return [f"loss scale {name!r} is no value of the main graph; give its name, or a number"]
    declared = main.type_of(name)
    if declared is not None and not declared.dtype:
        declared = index.inferred(main, name)
    if declared is None or not declared.is_floating or not declared.dtype:
        what = "no tensor" if declared is None else declared.dtype_name
        return [f"loss scale {name!r}: expected a floating number, but it is {what}"]
    if declared.shape is not None and any(size not in (1, None) for size in declared.shape):
        return [f"loss scale {name!r}: expected one number, but its shape is {declared.shape}"]
    return []


def _scale(value: object) -> float:
    number = as_number(value)
    if not 0 < number < math.inf:
        raise OnnxClipError(
            f"loss_scale must be a positive number, or the name of a value, not {shown(value)}"
        )
    return number
