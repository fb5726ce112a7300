"""Outputs that measure every gradient of a graph: its norm, its largest element, its zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnx_clip_pass.clips import Emitter, Numerics, Tape, Tensor
from onnx_clip_pass.clips.extremes import emit_maximum
from onnx_clip_pass.clips.norms import emit_norm
from onnx_clip_pass.clips.tape import ALL
from onnx_clip_pass.gradients import FoundGradient
from onnx_clip_pass.graph import Editor, Index
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FLOAT, FLOATING
from onnx_clip_pass.record import OURS, Record

__all__ = ["MEASURES", "Watched", "add_measures", "watched_of"]

MEASURES = ("norm", "largest", "zeros", "clipped_norm")
"""The measures of a gradient, each one vector: its L2 norm, its largest element by magnitude, the
share of its elements that are 0, and its norm behind its clip."""
_HALF = FLOATING - {FLOAT, DOUBLE}


@dataclass(frozen=True, slots=True)
class Watched:
    """A gradient that is measured: `raw` is the value that its clip reads, `clipped` what it gives.

    Both are the gradient itself where it is not clipped.
    """

    found: FoundGradient
    raw: str
    clipped: str

    @property
    def gradient(self) -> str:
        """The name of the gradient."""
        return self.found.gradient.name

    @property
    def parameter(self) -> str:
        """The name of its parameter."""
        return self.found.gradient.parameter.name


def watched_of(
    found_gradients: Sequence[FoundGradient], record: Record | None, index: Index
) -> tuple[list[Watched], list[str]]:
    """The gradients of the main graph that can be measured, and why others cannot.

    Args:
        found_gradients: as they are found in the model before it was clipped.
        record: of the clips in `index`; None if there are none.
        index: the model as it is run.
    """
    found, left_out = [], []
    was = {} if record is None else {old: new for new, old in record.renamed.items()}
    for found_gradient in found_gradients:
        gradient = found_gradient.gradient
        if found_gradient.value.frame.scope.path:
            left_out.append(f"{gradient.name} is in {gradient.graph}, and is not measured")
            continue
        if found_gradient.type.dtype not in FLOATING:
            left_out.append(f"{gradient.name} is {gradient.dtype}, and is not measured")
            continue
        name, other = gradient.name, was.get(gradient.name, gradient.name)
        is_renamed_raw = other != name and _is_ours(index, name)
        raw, clipped = (other, name) if is_renamed_raw else (name, other)
        found.append(Watched(found_gradient, raw, clipped))
    return found, left_out


def _is_ours(index: Index, name: str) -> bool:
    """True if a node of a clip makes the value."""
    producer = index.main.producers.get(name)
    return producer is not None and index.main.nodes[producer[0]].name.startswith(OURS)


def add_measures(model: ModelProto, watched: Sequence[Watched]) -> dict[str, str]:
    """Add the outputs to the model; return their names by `MEASURES`.

    Each is a float64 vector with one number for each of `watched`. What the norm of a clipped
    gradient is, is measured only where there is a clip. Nan in a gradient is nan in its norm, and
    need not be in its largest element, which is -inf where there is none.
    """
    editor = Editor(Index(model))
    parts: dict[str, list[Tensor]] = {measure: [] for measure in MEASURES}
    for each in watched:
        raw = _emitter(editor, each.found, each.raw)
        x = _wide(raw)
        parts["norm"].append(_norm(raw, x))
        parts["largest"].append(_largest(raw, x))
        parts["zeros"].append(_zeros(raw, x))
        if each.clipped != each.raw:
            clipped = _emitter(editor, each.found, each.clipped)
            parts["clipped_norm"].append(_norm(clipped, _wide(clipped)))
        else:
            parts["clipped_norm"].append(parts["norm"][-1])
    if all(each.raw == each.clipped for each in watched):
        del parts["clipped_norm"]
    end = Tape(editor, editor.index.main, len(editor.index.main.nodes), "watched")
    outputs = {}
    for measure, values in parts.items():
        outputs[measure] = editor.fresh(f"{OURS}watched/{measure}")
        wide = [end.cast(value, DOUBLE, result="part") for value in values]
        joined = end.concat([end.unsqueeze(value, (0,)) for value in wide], result="joined")
        end.output(joined, outputs[measure])
    editor.finish()
    return outputs


def _emitter(editor: Editor, found: FoundGradient, name: str) -> Emitter:
    """An emitter right behind the node that makes a value, so that it is not held for long."""
    main = editor.index.main
    producer = main.producers.get(name)
    position = 0 if producer is None else producer[0] + 1
    tensor = Tensor(name, found.type.dtype, found.gradient.shape)
    return Emitter(editor, main, position, found.gradient, tensor, "", Numerics())


def _wide(to: Emitter) -> Tensor:
    return to.cast(to.source, FLOAT, result="wide") if to.source.dtype in _HALF else to.source


def _norm(to: Emitter, x: Tensor) -> Tensor:
    norm = emit_norm(to, x, 2.0).value
    return norm if norm.shape == () else to.reduce("ReduceSum", norm, ALL, result="flat")


def _largest(to: Emitter, x: Tensor) -> Tensor:
    """The largest magnitude, without a tensor of magnitudes."""
    highest = emit_maximum(to, x, ALL, result="highest")
    lowest = to.reduce("ReduceMin", x, ALL, result="lowest")
    return to.op("Max", highest, to.op("Neg", lowest, result="depth"), result="largest")


def _zeros(to: Emitter, x: Tensor) -> Tensor:
    is_other = to.op("Cast", x, result="is not 0", dtype=BOOL, to=BOOL)
    counts = to.cast(is_other, FLOAT, result="counts")
    return to.op("Sub", 1.0, to.reduce("ReduceMean", counts, ALL, result="share"), result="zeros")
