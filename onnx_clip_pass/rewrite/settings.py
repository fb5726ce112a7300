"""Options of a rewrite besides the clip itself: as a caller says them, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, Unpack, get_args

from onnx_clip_pass.arguments import check_input_name
from onnx_clip_pass.clips import ClipLayout, NonFinite, NormPrecision, Numerics
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps, checked_ops
from onnx_clip_pass.options import Option, checked, described
from onnx_clip_pass.rewrite.metrics import Emit, EmitAs, MetricOutputs
from onnx_clip_pass.rewrite.selecting import GradientNames, as_mapping
from onnx_clip_pass.rewrite.thresholds import LossScale, Thresholds
from onnx_clip_pass.selection import as_patterns

__all__ = ["Options", "Settings"]


class Options(TypedDict, total=False):
    """Options of `clip_gradients` besides the model and the clip."""

    gradients: Annotated[
        GradientNames,
        Option(
            None,
            "the gradients' names, if they are not to be searched for; a mapping also says their "
            "parameters.",
        ),
    ]
    skip: Annotated[
        str | Sequence[str],
        Option(
            (),
            "patterns of parameters or gradients to leave out.",
            "Leave these out. Repeatable.",
            "PATTERN",
        ),
    ]
    norm_precision: Annotated[
        NormPrecision,
        Option(
            "auto",
            '"plain", one ReduceL2 in float32 (float64 for float64); "wide", everything in '
            'float64, for any size and magnitude; "auto", plain where its error stays below 1e-5, '
            "else the cheapest form that keeps it.",
            "plain: one reduction. wide: all in float64. auto: plain where its error is below "
            "1e-5.",
        ),
    ]
    layout: Annotated[
        ClipLayout,
        Option(
            "cpu",
            'the machine that the nodes are chosen for: "cpu", any processor; "x86-64", faster '
            'there, where ONNX Runtime optimizes graphs, as it does by default; "cuda", fewest '
            "nodes. Elsewhere the result is right too, but slower, and norms laid out for CUDA are "
            "as exact as plain ones on a CPU.",
            "Choose nodes for any processor, for x86-64 with graph optimizations, or for CUDA.",
        ),
    ]
    nonfinite: Annotated[
        NonFinite,
        Option(
            "propagate",
            'what becomes of a gradient with nan or inf in it: "propagate", what the formula '
            'gives, as in Paddle and PyTorch; "zero", zeros, all of it; "keep", it stays as it is.',
            "A gradient with nan or inf: as the formula has it, all zeros, or as it is.",
        ),
    ]
    threshold_input: Annotated[
        str | None,
        Option(
            None,
            "make the threshold an input of this name, of rank 0, with the given number as its "
            "default; float64 if one of its gradients is computed in float64, else float32.",
            "Make the threshold an input of this name, with the number as its default.",
            "NAME",
        ),
    ]
    loss_scale: Annotated[
        LossScale,
        Option(
            1.0,
            "what the loss, and so every gradient, was multiplied by: a number, or the name of a "
            "value of the main graph. Thresholds, and norms that are added as outputs, are then in "
            "the unit of the unscaled gradient; the gradients stay scaled.",
            "What the gradients are multiplied by: a number, or the name of a value. Thresholds "
            "are for the unscaled ones.",
            "VALUE",
        ),
    ]
    emit: Annotated[
        Sequence[Emit],
        Option(
            (),
            'outputs to add for each gradient: "norm", the norm that its clip limits, before '
            'clipping; "scale", what it is multiplied by; "clipped", whether that is below 1. '
            "Where a clip has several norms, the largest, and the smallest factor. A global norm "
            "has one more output, for the group.",
            "Add outputs: norm (before clipping), scale, clipped, or several: norm,scale",
            "WHAT",
        ),
    ]
    emit_as: Annotated[
        EmitAs,
        Option(
            "each",
            '"each", a scalar for each gradient, or "vector", one for all of them; it needs '
            "something to emit.",
            "A scalar for each gradient, or one vector for all.",
        ),
    ]
    measure_only: Annotated[
        bool, Option(False, "add these outputs, and clip nothing.", "Emit and clip nothing.")
    ]
    partial: Annotated[
        bool,
        Option(
            False,
            "accept that trained parameters whose gradients are not known stay unclipped: the "
            "record names them.",
            "Accept that trained parameters whose gradients are not known stay unclipped.",
        ),
    ]
    optimizer_ops: Annotated[
        OptimizerOps,
        Option(
            NO_OPS,
            'optimizers that onnx-clip does not know, such as `{"vendor::SGD": (0, 1)}`: operator '
            "to the numbers of its inputs that are the parameter and its gradient.",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, checked, for one rewrite.

    `options` are all of them, those with defaults too; the rest is what is made of some: `named`
    maps the gradients that are named to their parameters, as far as those are given.
    """

    options: Options
    named: dict[str, str | None] | None
    numerics: Numerics
    thresholds: Thresholds
    metrics: MetricOutputs
    optimizer_ops: OptimizerOps

    @classmethod
    def of(cls, **options: Unpack[Options]) -> Settings:
        """Check `Options`.

        Raises:
            TypeError: there is no such option.
            OnnxClipError: one of them cannot be meant.
        """
        values: Any = checked(Options, options)
        values["skip"] = as_patterns(values["skip"], "skip")
        given: Options = values
        check_input_name(given["threshold_input"])
        gradients = given["gradients"]
        return cls(
            given,
            None if gradients is None else as_mapping(gradients),
            Numerics(given["norm_precision"], given["nonfinite"], given["layout"]),
            Thresholds(given["loss_scale"]),
            MetricOutputs(_words(given["emit"]), given["emit_as"], given["measure_only"]),
            checked_ops(given["optimizer_ops"]),
        )

    @property
    def said(self) -> tuple[str, ...]:
        """The names of the options that are not at their defaults."""
        values: Any = self.options
        return tuple(n for n, (_, o) in described(Options).items() if o.is_said_by(values[n]))


def _words(emit: object) -> tuple[Any, ...]:
    """The measures to be emitted, one word or several; `MetricOutputs` says which there are."""
    if isinstance(emit, str):
        return (emit,)
    if not isinstance(emit, Iterable) or getattr(emit, "shape", None) == ():
        raise OnnxClipError(
            f"emit takes a list of {', '.join(get_args(Emit))}, and () for nothing, not "
            f"{shown(emit)}"
        )
    return tuple(emit)
