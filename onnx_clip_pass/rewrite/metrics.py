"""Norms, scales and clipped-or-not as outputs of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.clips import Clip, Emitter, Measured, Tensor
from onnx_clip_pass.clips.extremes import emit_largest, emit_least
from onnx_clip_pass.clips.parts import emit_whole
from onnx_clip_pass.clips.tape import ALL
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.graph import Editor, Scope
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FLOAT
from onnx_clip_pass.rewrite.thresholds import ThresholdNodes

__all__ = ["Emit", "EmitAs", "Emitted", "GroupMetricSource", "MetricOutputs", "MetricSource"]

EmitAs = Literal["each", "vector"]
Emit = Literal["norm", "scale", "clipped"]


@dataclass(frozen=True, slots=True)
class Emitted:
    """An output that was added.

    `output` is its name, `quantity` is "norm", "scale" or "clipped", and `gradients` are those that
    it tells of, in the order of a vector. `group` is the name of the group where it is the norm of
    all of them together.
    """

    output: str
    quantity: str
    gradients: tuple[str, ...]
    group: str = ""


class MetricSource(NamedTuple):
    """The measures of one gradient by its clips, in the order in which they clip."""

    gradient: Gradient
    emitter: Emitter
    measured: list[Measured]


class GroupMetricSource(NamedTuple):
    """The measures of all gradients of a group together."""

    name: str
    emitter: Emitter
    measured: Measured
    gradients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricOutputs:
    """Measures as graph outputs: none, if `emit` is empty."""

    emit: tuple[str, ...] = ()
    emit_as: EmitAs = "each"
    measures_only: bool = False

    def __post_init__(self) -> None:
        known, given = get_args(Emit), list[object](self.emit)
        unknown = [word for word in given if not isinstance(word, str) or word not in known]
        if unknown:
            words = [word if isinstance(word, str) else shown(word) for word in unknown]
            raise OnnxClipError(f"emit takes a list of {', '.join(known)}, not {listed(words)}")
        check_choice("emit_as", self.emit_as, EmitAs)
        if self.emit_as == "vector" and not self.emit:
            raise OnnxClipError(
                "emit_as='vector' needs something to emit: say norm, scale or clipped"
            )
        if self.measures_only and not self.emit:
            raise OnnxClipError("measure_only needs something to emit: say norm, scale or clipped")

    def __bool__(self) -> bool:
        return bool(self.emit)

    def fault(self, scope: Scope, gradient: Gradient, clip: Clip) -> str | None:
        """The reason that this gradient's measures cannot be outputs; None if they can."""
        if not self.emit:
            return None
        if set(self.emit) - {"norm"} and not all(formula.scales for formula in clip.formulas):
            return f"{clip.label} multiplies by no scale that could be emitted; emit norm alone"
        if scope.path == "":
            return None
        return (
            f"what is measured in {gradient.graph} cannot be an output of the model; leave it "
            f"out, or emit nothing"
        )

    def add_outputs(
        self,
        editor: Editor,
        limits: ThresholdNodes,
        sources: Sequence[MetricSource],
        groups: Sequence[GroupMetricSource],
    ) -> tuple[Emitted, ...]:
        """Add the outputs, behind those that are there."""
        found: list[Emitted] = []
        if not sources:
            return ()
        for quantity in dict.fromkeys(self.emit):
            made = [_quantity(quantity, limits, source) for source in sources]
            names = tuple(source.gradient.name for source in sources)
            if self.emit_as == "vector":
                output = editor.fresh(f"clip/{quantity}")
                _vector(sources[0].emitter, output, made)
                found.append(Emitted(output, quantity, names))
            else:
                for source, value in zip(sources, made, strict=True):
                    output = editor.fresh(f"{source.gradient.name}/{quantity}")
                    source.emitter.output(value, output)
                    found.append(Emitted(output, quantity, (source.gradient.name,)))
        if "norm" in self.emit:
            for group in groups:
                whole = group.measured
                norm = _norm(limits, group.emitter, whole, whole.norm.dtype)
                output = editor.fresh(f"{group.name}/norm")
                group.emitter.output(norm, output)
                found.append(Emitted(output, "norm", group.gradients, group.name))
        return tuple(found)


def _quantity(quantity: str, limits: ThresholdNodes, source: MetricSource) -> Tensor:
    to = source.emitter
    wide = DOUBLE if source.gradient.dtype == "float64" else FLOAT
    if quantity == "norm":
        return _norm(limits, to, source.measured[0], wide)
    scale = _least(to, source.measured[0])
    for further in source.measured[1:]:
        other = _least(to, further)
        dtype = max(scale.dtype, other.dtype)  # DOUBLE is above FLOAT
        sides = [to.cast(side, dtype, result="factor") for side in (scale, other)]
        scale = to.op("Mul", *sides, result="scales")
    if quantity == "clipped":
        return to.op("Less", scale, 1.0, result="is clipped", dtype=BOOL)
    return to.cast(scale, wide, result="scale")


def _norm(limits: ThresholdNodes, to: Emitter, measured: Measured, dtype: int) -> Tensor:
    """The largest of the norms, nan if one of them is, in the unit of the unscaled gradient."""
    norms = measured.norm
    norm = _flat(to, norms) or emit_largest(to, norms, ALL, result="largest norm")
    if measured.spread:
        norm = emit_whole(to, norm, math.inf, ALL)
    divisor = limits.divisor(norms.dtype)
    if divisor is not None:
        norm = to.op("Div", norm, divisor, result="unscaled")
    return to.cast(norm, dtype, result="norm")


def _least(to: Emitter, measured: Measured) -> Tensor:
    """The least of the scales, nan if one of them is."""
    scales = measured.scale
    least = _flat(to, scales) or emit_least(to, scales, result="least scale")
    if not measured.spread:
        return least
    one = to.constant(1.0, DOUBLE)
    # 1 minus the largest of what is left to 1, which is not negative
    least = to.op("Neg", to.cast(least, DOUBLE, result="least here"), result="negative")
    left = emit_whole(to, to.op("Sum", one, least, result="left to 1"), math.inf, ALL)
    return to.op("Sum", one, to.op("Neg", left, result="negative"), result="least of all")


def _flat(to: Emitter, value: Tensor) -> Tensor | None:
    """One number, of rank 0; None if there may be several."""
    if value.shape is None or any(size != 1 for size in value.shape):
        return None
    return to.reduce("ReduceSum", value, ALL, result="one") if value.shape else value


def _vector(to: Emitter, output: str, values: Sequence[Tensor]) -> None:
    dtype = max((value.dtype for value in values if value.dtype != BOOL), default=BOOL)
    parts = [to.unsqueeze(to.cast(value, dtype, result="part"), (0,)) for value in values]
    to.output(to.concat(parts, result="joined"), output)
