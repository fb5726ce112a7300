"""Several clips, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from onnx_clip_pass.clips.base import Case, Clip, Formula
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.found import Gradient

__all__ = ["Chain"]


class Chain(Clip):
    """Apply clips in order: the second clips what the first has made.

    Each acts on the gradients that its own `need_clip` picks.

    Args:
        clips: one or more.

    Raises:
        OnnxClipError: there is none, one is no clip, or two keep a history of norms.

    Example:
        >>> import numpy as np
        >>> from onnx_clip_pass import GradientClipByNorm, GradientClipByValue
        >>> chain = Chain(GradientClipByValue(4.0), GradientClipByNorm(1.0))
        >>> chain.apply({"w": np.array([3.0, 40.0])})
        {'w': array([0.6, 0.8])}

    References:
        optax, `chain`.
    """

    def __init__(self, *clips: Clip) -> None:
        for clip in clips:
            if not isinstance(clip, Clip):
                raise OnnxClipError(
                    f"Chain takes clips such as GradientClipByNorm, not {shown(clip)}"
                )
        if not clips:
            raise OnnxClipError("Chain needs at least one clip")
        self._formulas = tuple(formula for clip in clips for formula in clip.formulas)
        if sum(formula.history_size > 0 for formula in self._formulas) > 1:
            raise OnnxClipError("a chain can have one clip by a percentile of the norms so far")
        self.need_clip = None
        self.threshold = self._formulas[0].threshold if len(self._formulas) == 1 else None
        self.reads_parameter = any(formula.reads_parameter for formula in self._formulas)

    @property
    def formulas(self) -> tuple[Formula, ...]:
        return self._formulas

    @property
    def label(self) -> str:
        return "; then ".join(formula.label for formula in self._formulas)

    @property
    def bounds(self) -> str:
        return ", then ".join(formula.bounds for formula in self._formulas)

    @property
    def is_identity(self) -> bool:
        return all(formula.is_identity for formula in self._formulas)

    def scaled(self, factor: float) -> Chain:
        return Chain(*(formula.scaled(factor) for formula in self._formulas))

    def with_threshold(self, value: float) -> Chain:
        (formula,) = self._formulas
        return Chain(formula.with_threshold(value))

    def settings(self) -> dict[str, Any]:
        return {"clips": [formula.to_dict() for formula in self._formulas]}

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        faults = (formula.fault(gradient, opset, numerics) for formula in self._formulas)
        return next((fault for fault in faults if fault is not None), None)

    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        for formula in self._formulas:
            arrays = formula.reference(cases, nonfinite)
            cases = [
                replace(case, gradient=array) for case, array in zip(cases, arrays, strict=True)
            ]
        return [case.gradient for case in cases]

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self._formulas))})"
