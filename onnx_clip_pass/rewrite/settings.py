"""How a model is to be clipped, besides the clip itself: as a caller says it, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

from onnx_clip_pass.arguments import check_flags, check_input_name
from onnx_clip_pass.clips import NonFinite, NormPrecision, Numerics
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps, checked_ops
from onnx_clip_pass.rewrite.selecting import GradientNames, as_mapping
from onnx_clip_pass.rewrite.steering import LossScale, Steering
from onnx_clip_pass.rewrite.watching import Emit, EmitAs, Watch

__all__ = ["Options", "Settings"]


class Options(TypedDict, total=False):
    """What `clip_gradients` takes besides the model and the clip; it says what each means."""

    gradients: GradientNames
    skip: str | Sequence[str]
    norm_precision: NormPrecision
    nonfinite: NonFinite
    threshold_input: str | None
    loss_scale: LossScale
    emit: Sequence[Emit]
    emit_as: EmitAs
    measure_only: bool
    partial: bool
    optimizer_ops: OptimizerOps


@dataclass(frozen=True, slots=True)
class Settings:
    """The same, checked, for one rewrite.

    `named` maps the gradients that are named to their parameters, as far as those are given;
    `partial` accepts that trained parameters whose gradients are not known are left alone.
    """

    named: dict[str, str | None] | None
    skip: str | Sequence[str]
    numerics: Numerics
    threshold_input: str | None
    steering: Steering
    watch: Watch
    partial: bool
    optimizer_ops: OptimizerOps

    @classmethod
    def of(
        cls,
        *,
        gradients: GradientNames = None,
        skip: str | Sequence[str] = (),
        norm_precision: NormPrecision = "auto",
        nonfinite: NonFinite = "propagate",
        threshold_input: str | None = None,
        loss_scale: LossScale = 1.0,
        emit: Sequence[Emit] = (),
        emit_as: EmitAs = "each",
        measure_only: bool = False,
        partial: bool = False,
        optimizer_ops: OptimizerOps = NO_OPS,
    ) -> Settings:
        """Check `Options`.

        Raises:
            OnnxClipError: one of them cannot be meant.
        """
        check_flags(measure_only=measure_only, partial=partial)
        check_input_name(threshold_input)
        return cls(
            None if gradients is None else as_mapping(gradients),
            skip,
            Numerics(norm_precision, nonfinite),
            threshold_input,
            Steering(loss_scale),
            Watch(_words(emit), emit_as, measure_only),
            partial,
            checked_ops(optimizer_ops),
        )


def _words(emit: object) -> tuple[Any, ...]:
    """What is to be emitted, one word or several; `Watch` says which there are."""
    if isinstance(emit, str):
        return (emit,)
    if not isinstance(emit, Iterable):
        raise OnnxClipError(
            f"emit takes a list of {', '.join(get_args(Emit))}, and () for nothing, not "
            f"{shown(emit)}"
        )
    return tuple(emit)
