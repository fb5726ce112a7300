"""Clipping the gradients of a model in memory."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.clips import NonFinite, NormPrecision
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Decide,
    EmitAs,
    GradientNames,
    LossScale,
    clip_in_place,
)
from onnx_clip_pass.rewrite.watching import Emit
from onnx_clip_pass.validity import blaming

__all__ = ["clip_gradients"]


def clip_gradients(
    model: ModelProto,
    clip: ClipOrRules,
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
    probe: bool | Decide = False,
    partial: bool = False,
    optimizer_ops: OptimizerOps = NO_OPS,
) -> ModelProto:
    """Insert a clip behind the gradients of a training graph.

    Args:
        model: a training graph; it stays as it is.
        clip: what to do, and by its `need_clip` to which parameters' gradients; or a list of
            `Rule`, of which the first that matches a gradient is taken.
        gradients: the gradients' names, if they are not to be searched for; a mapping also says
            their parameters.
        skip: patterns of parameters or gradients to leave out.
        norm_precision: "plain", one ReduceL2 in float32 (float64 for float64); "wide", everything
            in float64, for any size and magnitude; "auto", plain where its error stays below
            1e-5, else the cheapest form that keeps it.
        nonfinite: what becomes of a gradient with nan or inf in it: "propagate", what the formula
            gives, as in Paddle and PyTorch; "zero", zeros, all of it; "keep", it stays as it is.
        threshold_input: make the threshold an input of this name, of rank 0, with the given number
            as its default; float64 if one of its gradients is computed in float64, else float32.
        loss_scale: what the loss, and so every gradient, was multiplied by: a number, or the name
            of a value of the main graph. Thresholds, and norms that are handed out, are then in
            the unit of the unscaled gradient; the gradients stay scaled.
        emit: what to hand out of each gradient: "norm", the norm that its clip limits, before
            clipping; "scale", what it is multiplied by; "clipped", whether that is below 1. Where
            a clip has several norms, the largest, and the smallest factor. A global norm is handed
            out once more for the group.
        emit_as: "each", a scalar for each gradient, or "vector", one for all of them; it needs
            something to emit.
        measure_only: hand out, and clip nothing.
        probe: where the graph leaves several candidates for a gradient, run the model and let the
            slopes of the loss decide between them; the record keeps what they decide, so that
            reruns do not depend on it. Weights must be in the model.
        partial: accept that trained parameters whose gradients are not known stay unclipped: the
            record names them.
        optimizer_ops: optimizers that onnx-clip does not know, such as `{"vendor::SGD": (0, 1)}`:
            operator to the numbers of its inputs that are the parameter and its gradient.

    Returns:
        A new model. Its inputs and outputs are those of `model`, and behind them the threshold
        inputs and what is handed out; clipping a model that is clipped
        already gives what clipping the original would.

    Raises:
        OnnxClipError: no gradient is found, or none that is sure for a parameter that the graph
            trains and the selection picks; a selection matches nothing, or a gradient has a
            dtype, an opset or a place at which it cannot be clipped. All faults are named at once.
    """
    check_model(model, "clip_gradients_file")
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    with blaming(lambda: model, "this"):
        clip_in_place(
            rewritten,
            clip,
            gradients=gradients,
            skip=skip,
            norm_precision=norm_precision,
            nonfinite=nonfinite,
            threshold_input=threshold_input,
            loss_scale=loss_scale,
            emit=emit,
            emit_as=emit_as,
            measure_only=measure_only,
            partial=partial,
            optimizer_ops=optimizer_ops,
            decide=decider(probe),
        )
    return rewritten
