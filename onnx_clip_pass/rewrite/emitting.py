"""Putting planned clips into a graph: a second formula acts on what the first has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnx_clip_pass.clips import Clip, Emitter, Formula, Measured, Tensor
from onnx_clip_pass.clips.emitter import Workers
from onnx_clip_pass.clips.tape import Used
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Added, Editor
from onnx_clip_pass.rewrite.edits import Edit
from onnx_clip_pass.rewrite.metrics import Emitted, GroupMetricSource, MetricSource
from onnx_clip_pass.rewrite.planning import PlannedEdits
from onnx_clip_pass.rewrite.settings import Settings
from onnx_clip_pass.rewrite.thresholds import ThresholdNodes

__all__ = ["Made", "WorkersOf", "emit"]

WorkersOf = Callable[[Edit, Formula], Workers]
"""The workers that have parts of the gradient that is clipped there, by that formula."""


@dataclass(frozen=True, slots=True)
class Made:
    """The result: what was added, the values renamed, new name to old, the operators used."""

    added: Added
    renamed: dict[str, str]
    used: set[Used]
    emitted: tuple[Emitted, ...]


@dataclass(slots=True)
class _Stream:
    """A gradient on its way through its clips: `source` is what the next one takes."""

    edit: Edit
    formulas: tuple[Formula, ...]
    source: str
    target: str = ""
    renamed: str = ""
    measured: list[Measured] = field(default_factory=list)
    emitter: Emitter | None = None


def _scaled(clip: Clip, factor: float) -> Clip:
    """A clip of gradients that are this many times larger."""
    try:
        return clip.scaled(factor)
    except OnnxClipError as error:  # it was a number before, and is 0 now
        raise OnnxClipError(
            f"a threshold times the loss scale {factor:g} is less than a float holds: {error}"
        ) from error


def emit(editor: Editor, plan: PlannedEdits, workers: WorkersOf | None = None) -> Made:
    """Put the planned clips in, and what is to be watched; the editor is used up.

    Args:
        editor: of the model.
        plan: what to do.
        workers: says who has the rest of a gradient, where the model has but parts of them.
    """
    settings, edits = plan.settings, plan.edits
    metrics, scale = settings.metrics, settings.thresholds.factor
    assignments = [
        (found_gradient, edit.choice) for edit in edits for found_gradient in edit.found_gradients
    ]
    limits = ThresholdNodes(editor, settings.thresholds, assignments, settings.numerics)
    streams = []
    for edit in edits:
        clip = edit.choice.clip
        scaled = clip if scale == 1 else _scaled(clip, scale)
        streams.append(_Stream(edit, scaled.formulas, edit.name))
    used: set[Used] = set()
    groups: list[GroupMetricSource] = []
    for together in plan.schedule:
        members = [(streams[number], stage) for number, stage in together]
        whole = _emit_together(editor, limits, members, settings, used, workers)
        if whole is not None:
            groups.append(whole)
    emitted: tuple[Emitted, ...] = ()
    if metrics:
        end = len(editor.index.main.nodes)
        sources = []
        for stream in streams:
            assert stream.emitter is not None
            stream.emitter.position = end
            sources.append(MetricSource(stream.edit.gradient, stream.emitter, stream.measured))
        for group in groups:
            group.emitter.position = end
        emitted = metrics.add_outputs(editor, limits, sources, groups)
    editor.finish("a gradient of the group is computed from a clipped one; use another group")
    renamed = {stream.renamed: stream.edit.name for stream in streams if stream.renamed}
    return Made(editor.added, renamed, used, emitted)


def _emit_together(
    editor: Editor,
    limits: ThresholdNodes,
    members: Sequence[tuple[_Stream, int]],
    settings: Settings,
    used: set[Used],
    workers: WorkersOf | None,
) -> GroupMetricSource | None:
    emitters, metrics = [], settings.metrics
    for stream, stage in members:
        if stage == 0 and not metrics.measures_only:
            stream.source, stream.target = source, target = stream.edit.open(editor)
            stream.renamed = source if target == stream.edit.name else target
    for stream, stage in members:
        edit, found_gradient = stream.edit, stream.edit.found_gradients[0]
        name, is_last = edit.choice.threshold_input, stage == len(stream.formulas) - 1
        target = stream.target
        if not is_last:
            target = editor.fresh(f"clip/{edit.name}/stage {stage + 1}")
            editor.declare(edit.scope, target, found_gradient.type)
        emitter = Emitter(
            editor,
            edit.scope,
            edit.position,
            found_gradient.gradient,
            Tensor(stream.source, found_gradient.type.dtype, found_gradient.gradient.shape),
            target,
            settings.numerics,
            limits=limits if name is not None or settings.thresholds.is_value else None,
            threshold_input=name,
            parameter=edit.site,
            workers=workers and workers(edit, stream.formulas[stage]),
            count=edit.count,
            is_measured=bool(metrics),
            measures_only=metrics.measures_only and is_last,
        )
        emitter.used = used
        emitters.append(emitter)
        stream.source, stream.emitter = target, emitter
    first, stage = members[0]
    formula = first.formulas[stage]
    whole = formula.emit(emitters)
    if len(members) > 1:
        editor.unsettle(first.edit.scope)
    for (stream, _), emitter in zip(members, emitters, strict=True):
        if emitter.measured is not None:
            stream.measured.append(emitter.measured)
    if whole is None or formula.group is None or not metrics:
        return None
    names = tuple(stream.edit.name for stream, _ in members)
    return GroupMetricSource(formula.group, emitters[0].relabelled(formula.group), whole, names)
