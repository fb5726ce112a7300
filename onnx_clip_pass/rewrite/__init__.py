"""Plan which gradient gets which clip, then put the nodes in.

Nothing is changed before everything is planned.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from onnx import ModelProto

from onnx_clip_pass.clips import Clip, NonFinite, NormPrecision, Numerics
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import name_gradients, survey
from onnx_clip_pass.graph import Editor, Index
from onnx_clip_pass.kernels import Need
from onnx_clip_pass.record import undo, write_record
from onnx_clip_pass.rewrite.planning import plan
from onnx_clip_pass.rewrite.reporting import Clipped, Report, lacking_kernels, notes_on, record_of
from onnx_clip_pass.rewrite.selecting import GradientNames, as_mapping, nothing_found, selected

__all__ = [
    "Clipped",
    "GradientNames",
    "Report",
    "clip_gradients",
    "clip_in_place",
    "nothing_found",
]


def clip_gradients(
    model: ModelProto,
    clip: Clip,
    *,
    gradients: GradientNames = None,
    skip: str | Sequence[str] = (),
    norm_precision: NormPrecision = "auto",
    nonfinite: NonFinite = "propagate",
) -> ModelProto:
    """Insert a clip behind the gradients of a training graph.

    Args:
        model: a training graph; it stays as it is.
        clip: what to do, and by its `need_clip` to which parameters' gradients.
        gradients: the gradients' names, if they are not to be searched for; a mapping also says
            their parameters.
        skip: patterns of parameters or gradients to leave out.
        norm_precision: "plain", one ReduceL2 in float32 (float64 for float64); "wide", everything
            in float64, for any size and magnitude; "auto", plain where its error stays below
            1e-5, else the cheapest form that keeps it.
        nonfinite: what becomes of a gradient with nan or inf in it: "propagate", what the formula
            gives, as in Paddle and PyTorch; "zero", zeros, all of it; "keep", it stays as it is.

    Returns:
        A new model. Its inputs and outputs are those of `model`; clipping a model that is clipped
        already gives what clipping the original would.

    Raises:
        OnnxClipError: no gradient is found, a selection matches nothing, or a gradient has a
            dtype, an opset or a place at which it cannot be clipped. All faults are named at once.
    """
    if not isinstance(model, ModelProto):
        raise OnnxClipError(
            f"expected a ModelProto, not {type(model).__name__}; for a file there is "
            f"clip_gradients_file"
        )
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    clip_in_place(
        rewritten,
        clip,
        gradients=gradients,
        skip=skip,
        numerics=Numerics(norm_precision, nonfinite),
    )
    return rewritten


def clip_in_place(
    model: ModelProto,
    clip: Clip,
    *,
    gradients: GradientNames = None,
    skip: str | Sequence[str] = (),
    numerics: Numerics | None = None,
) -> Report:
    """`clip_gradients` on the model itself; if it raises, the model may be left undone."""
    if not isinstance(clip, Clip):
        raise OnnxClipError(f"expected a clip such as GradientClipByNorm(1.0), not {clip!r}")
    with _without_collecting():
        return _clip(model, clip, gradients, skip, numerics or Numerics())


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Keep the garbage collector from going over millions of new objects that all live on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _clip(
    model: ModelProto,
    clip: Clip,
    gradients: GradientNames,
    skip: str | Sequence[str],
    numerics: Numerics,
) -> Report:
    replaced = undo(model)
    index = Index(model)
    seen = survey(index) if gradients is None else name_gradients(index, as_mapping(gradients))
    sightings = selected(seen, clip, skip)
    edits = plan(index, seen, sightings, numerics)
    notes = notes_on(seen, sightings)  # the index is out of date when edits are made
    editor = Editor(index)
    needs: set[Need] = set()
    for edit in edits:
        needs |= edit.apply(editor, numerics)
    editor.finish()
    rows = tuple(Clipped(sighting.gradient, chosen) for sighting, chosen in sightings)
    if any(row.clip for row in rows):
        write_record(model, record_of(editor, edits, rows, numerics))
    return Report(rows, (*notes, *lacking_kernels(needs)), replaced)
