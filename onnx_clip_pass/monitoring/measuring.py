"""Outputs that measure every gradient of a graph: its norm, its largest element, its zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnx_clip_pass.clips import Emitter, Numerics, Tensor
from onnx_clip_pass.clips.extremes import emit_largest
from onnx_clip_pass.clips.norms import emit_norm
from onnx_clip_pass.clips.tape import ALL
from onnx_clip_pass.gradients import FoundGradient
from onnx_clip_pass.graph import Editor, Index
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, FLOAT, FLOATING
from onnx_clip_pass.record import OURS, Record

__all__ = ["MEASURES", "Watched", "add_measures"]

MEASURES = ("norm", "largest", "zeros", "clipped_norm")
"""The measures of a gradient, each one vector: its L2 norm, its largest element by magnitude, the
share of its elements that are 0, and its norm behind its clip."""
_HALF = FLOATING - {FLOAT, DOUBLE}


@dataclass(frozen=True, slots=True)
class Watched:
    """A gradient that is measured: `raw` is the value that its clip reads, `clipped` what it gives.

    Both are the gradient itself where it is not clipped.
    """

    gradient: str
    parameter: str
    shape: tuple[int | str | None, ...] | None
    dtype: str
    raw: str
    clipped: str


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
        found.append(
            Watched(name, gradient.parameter.name, gradient.shape, gradient.dtype, raw, clipped)
        )
    return found, left_out


def _is_ours(index: Index, name: str) -> bool:
    """True if a node of a clip makes the value."""
    producer = index.main.producers.get(name)
    return producer is not None and index.main.nodes[producer[0]].name.startswith(OURS)


def add_measures(
    model: ModelProto,
    watched: Sequence[Watched],
    found_gradients: Sequence[FoundGradient],
) -> dict[str, str]:
    """Add the outputs to the model; return their names by `MEASURES`.

    Each is a float64 vector with one number for each of `watched`. What the norm of a clipped
    gradient is, is measured only where there is a clip.
    """
    editor = Editor(Index(model))
    main = editor.index.main
    end = len(main.nodes)
    types = {each.gradient.name: each for each in found_gradients}
    parts: dict[str, list[Tensor]] = {measure: [] for measure in MEASURES}
    to = None
    for each in watched:
        found = types[each.gradient]
        sources = dict.fromkeys((each.raw, each.clipped))
        norms = []
        for name in sources:
            tensor = Tensor(name, found.type.dtype, found.gradient.shape)
            to = Emitter(editor, main, end, found.gradient, tensor, "", Numerics())
            x = to.cast(tensor, FLOAT, result="wide") if tensor.dtype in _HALF else tensor
            norm = emit_norm(to, x, 2.0).value
            is_flat = norm.shape == ()
            norms.append(norm if is_flat else to.reduce("ReduceSum", norm, ALL, result="flat"))
            if name == each.raw:
                sizes = to.op("Abs", x, result="sizes")
                parts["largest"].append(emit_largest(to, sizes, ALL, signed=x, result="largest"))
                is_there = to.op("Cast", x, result="is not 0", dtype=BOOL, to=BOOL)
                counted = to.cast(is_there, FLOAT, result="counts")
                share = to.reduce("ReduceMean", counted, ALL, result="share")
                parts["zeros"].append(to.op("Sub", 1.0, share, result="zeros"))
        parts["norm"].append(norms[0])
        parts["clipped_norm"].append(norms[-1])
    if to is None:
        return {}
    if all(each.raw == each.clipped for each in watched):
        del parts["clipped_norm"]
    outputs = {}
    for measure, values in parts.items():
        outputs[measure] = editor.fresh(f"{OURS}watched/{measure}")
        wide = [to.cast(value, DOUBLE, result="part") for value in values]
        joined = to.concat([to.unsqueeze(value, (0,)) for value in wide], result="joined")
        to.output(joined, outputs[measure])
    editor.finish()
    return outputs
