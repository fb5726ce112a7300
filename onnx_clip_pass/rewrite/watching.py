"""Norms, scales and clipped-or-not as outputs of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from onnx import TensorProto

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.clips import Clip, Emitter, Measured, Quantity
from onnx_clip_pass.clips.extremes import emit_largest, emit_least
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.graph import Editor, Scope, TensorType
from onnx_clip_pass.rewrite.steering import Steering

__all__ = ["Emit", "EmitAs", "Emitted", "GroupSight", "Sight", "Watch"]

EmitAs = Literal["each", "vector"]
Emit = Literal["norm", "scale", "clipped"]

_FLOAT, _DOUBLE = int(TensorProto.FLOAT), int(TensorProto.DOUBLE)
_BOOL = int(TensorProto.BOOL)


@dataclass(frozen=True, slots=True)
class Emitted:
    """An output that was added: which quantity, of which gradients, in the order of a vector.

    `group` is the name of the group where it is the norm of all of them together.
    """

    output: str
    quantity: str
    gradients: tuple[str, ...]
    group: str = ""


class Sight(NamedTuple):
    """What the clips of one gradient measured, in the order in which they clip."""

    gradient: Gradient
    emitter: Emitter
    measured: list[Measured]


class GroupSight(NamedTuple):
    """What the clip of a group measured of all its gradients together."""

    name: str
    emitter: Emitter
    measured: Measured
    gradients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """What is to be handed out: nothing, if `emit` is empty."""

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
        """Why this gradient's measures cannot be handed out; None if they can, or need not."""
        if not self.emit:
            return None
        if set(self.emit) - {"norm"} and not all(formula.scales for formula in clip.formulas):
            return f"{clip.label} multiplies by no scale that could be emitted; emit norm alone"
        if scope.path == "":
            return None
        return (
            f"what is measured in {gradient.graph} cannot be handed out of the model; leave it "
            f"out, or emit nothing"
        )

    def hand_out(
        self,
        editor: Editor,
        steering: Steering,
        sights: Sequence[Sight],
        groups: Sequence[GroupSight],
    ) -> tuple[Emitted, ...]:
        """Add the outputs, behind those that are there."""
        found: list[Emitted] = []
        if not sights:
            return ()
        for quantity in dict.fromkeys(self.emit):
            made = [_quantity(quantity, editor, steering, sight) for sight in sights]
            names = tuple(sight.gradient.name for sight in sights)
            if self.emit_as == "vector":
                output = _vector(editor, sights[0].emitter, quantity, made)
                found.append(Emitted(output, quantity, names))
            else:
                for sight, value in zip(sights, made, strict=True):
                    output = _output(editor, sight.emitter, sight.gradient.name, quantity, value)
                    found.append(Emitted(output, quantity, (sight.gradient.name,)))
        if "norm" in self.emit:
            for group in groups:
                whole = group.measured.norm
                norm = _norm(editor, steering, group.emitter, whole, whole.dtype)
                output = _output(editor, group.emitter, group.name, "norm", norm)
                found.append(Emitted(output, "norm", group.gradients, group.name))
        return tuple(found)


def _quantity(quantity: str, editor: Editor, steering: Steering, sight: Sight) -> Quantity:
    to = sight.emitter
    if quantity == "norm":
        wide = _DOUBLE if sight.gradient.dtype == "float64" else _FLOAT
        return _norm(editor, steering, to, sight.measured[0].norm, wide)
    scale = _least(to, sight.measured[0].scale)
    for further in sight.measured[1:]:
        other = _least(to, further.scale)
        dtype = max(scale.dtype, other.dtype)  # DOUBLE is above FLOAT
        sides = [
            to.cast(side.name, side.dtype, dtype, result="factor", shape=())
            for side in (scale, other)
        ]
        scale = Quantity(to.node("Mul", sides, result="scales", dtype=dtype), dtype, ())
    if quantity == "clipped":
        sides = [scale.name, to.constant(1.0, scale.dtype)]
        less = to.node("Less", sides, result="is clipped", dtype=_BOOL, takes=scale.dtype)
        return Quantity(less, _BOOL, ())
    wide = _DOUBLE if sight.gradient.dtype == "float64" else _FLOAT
    name = to.cast(scale.name, scale.dtype, wide, result="scale", shape=())
    return Quantity(name, wide, ())


def _norm(editor: Editor, steering: Steering, to: Emitter, norm: Quantity, dtype: int) -> Quantity:
    """The largest of the norms, nan if one of them is, in the unit of the unscaled gradient."""
    if _is_one(norm):
        name = _flat(to, norm)
    else:
        name = emit_largest(
            to,
            norm.name,
            None,
            result="largest norm",
            dtype=norm.dtype,
            full=norm.shape,
            shape=(),
            keepdims=0,
        )
    divisor = steering.divisor(editor, norm.dtype)
    if divisor is not None:
        name = to.node("Div", [name, divisor], result="unscaled", dtype=norm.dtype)
    name = to.cast(name, norm.dtype, dtype, result="norm", shape=())
    return Quantity(name, dtype, ())


def _least(to: Emitter, scale: Quantity) -> Quantity:
    """The least of the scales, nan if one of them is."""
    if _is_one(scale):
        return Quantity(_flat(to, scale), scale.dtype, ())
    name = emit_least(to, scale.name, result="least scale", dtype=scale.dtype)
    return Quantity(name, scale.dtype, ())


def _is_one(value: Quantity) -> bool:
    return value.shape is not None and all(size == 1 for size in value.shape)


def _flat(to: Emitter, one: Quantity) -> str:
    """One number, of rank 0."""
    if one.shape == ():
        return one.name
    return to.reduce(
        "ReduceSum", one.name, None, result="one", dtype=one.dtype, shape=(), keepdims=0
    )


def _output(editor: Editor, to: Emitter, label: str, what: str, value: Quantity) -> str:
    """Hand a value out under a name of its own."""
    output = editor.fresh(f"{label}/{what}")
    to.name_output(value.name, output, value.dtype)
    editor.add_output(output, TensorType(value.dtype, ()))
    return output


def _vector(editor: Editor, to: Emitter, what: str, values: Sequence[Quantity]) -> str:
    dtype = max((value.dtype for value in values if value.dtype != _BOOL), default=_BOOL)
    parts = []
    for value in values:
        name = to.cast(value.name, value.dtype, dtype, result="part", shape=())
        parts.append(to.unsqueeze(name, [0], dtype=dtype, shape=(1,)))
    output = editor.fresh(f"clip/{what}")
    joined = to.node("Concat", parts, result="joined", dtype=dtype, shape=(len(parts),), axis=0)
    to.name_output(joined, output, dtype)
    editor.add_output(output, TensorType(dtype, (len(parts),)))
    return output
