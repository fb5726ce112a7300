"""Putting planned clips into a graph: a second formula acts on what the first has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from onnx_clip_pass.clips import Clip, Emitter, Formula, Measured, Tape, Tensor
from onnx_clip_pass.clips.emitter import Workers
from onnx_clip_pass.clips.tape import Used
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Added, Editor
from onnx_clip_pass.rewrite.edits import Edit
from onnx_clip_pass.rewrite.metrics import Emitted, GroupMetricSource, MetricSource
from onnx_clip_pass.rewrite.planning import PlannedEdits
from onnx_clip_pass.rewrite.settings import Settings
from onnx_clip_pass.rewrite.thresholds import ThresholdNodes

__all__ = ["CarriedState", "Made", "WorkersOf", "emit"]

WorkersOf = Callable[[Edit, Formula], Workers]
"""The workers that have parts of the gradient that is clipped there, by that formula."""


class CarriedState(NamedTuple):
    """A state that was added: an input, the output that is its new value, and whose it is."""

    input: str
    output: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """The result: what was added, the values renamed, new name to old, the operators used.

    `states` are those that clips have.
    """

    added: Added
    renamed: dict[str, str]
    used: set[Used]
    emitted: tuple[Emitted, ...]
    states: tuple[CarriedState, ...] = ()


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
    formulas: dict[Clip, tuple[Formula, ...]] = {}
    streams = []
    for edit in edits:
        clip = edit.choice.clip
        if clip not in formulas:
            formulas[clip] = (clip if scale == 1 else _scaled(clip, scale)).formulas
        streams.append(_Stream(edit, formulas[clip], edit.name))
    emitting = _Emitting(editor, limits, settings, workers)
    groups: list[GroupMetricSource] = []
    for together in plan.schedule:
        whole = emitting.put_in([(streams[number], stage) for number, stage in together])
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
    used = emitting.used | limits.used
    return Made(editor.added, renamed, used, emitted, tuple(emitting.states))


class _Emitting:
    """The editor and what the emitters of one rewrite have in common."""

    def __init__(
        self,
        editor: Editor,
        limits: ThresholdNodes,
        settings: Settings,
        workers: WorkersOf | None,
    ) -> None:
        self.used: set[Used] = set()
        self.states: list[CarriedState] = []
        self._editor = editor
        self._limits = limits
        self._settings = settings
        self._workers = workers
        self._known: dict[tuple[object, ...], Emitter] = {}

    def put_in(self, members: Sequence[tuple[_Stream, int]]) -> GroupMetricSource | None:
        """Put in a formula of one gradient, or the one that several have in common."""
        editor, metrics = self._editor, self._settings.metrics
        for stream, stage in members:
            if stage == 0 and not metrics.measures_only:
                stream.source, stream.target = source, target = stream.edit.open(editor)
                stream.renamed = source if target == stream.edit.name else target
        first, stage = members[0]
        formula = first.formulas[stage]
        is_alone = formula.group is None and not formula.history_size
        if is_alone and not metrics and self._workers is None:
            self._put_in_alone(first, stage)
            return None
        emitters = [self._emitter(stream, stage) for stream, stage in members]
        whole = formula.emit(emitters)
        edits = tuple(stream.edit for stream, _ in members)
        self.states += [CarriedState(*pair, edits) for pair in emitters[0].carried.items()]
        if len(members) > 1:
            editor.unsettle(first.edit.scope)
        for (stream, _), emitter in zip(members, emitters, strict=True):
            stream.emitter = emitter
            if emitter.measured is not None:
                stream.measured.append(emitter.measured)
        if whole is None or formula.group is None or not metrics:
            return None
        names = tuple(edit.name for edit in edits)
        return GroupMetricSource(formula.group, emitters[0].relabelled(formula.group), whole, names)

    def _put_in_alone(self, stream: _Stream, stage: int) -> None:
        """Put in a formula of one gradient: as for the first of its kind, if there was one.

        Of one kind are all for which the emitter of a formula differs in names and place alone.
        """
        edit, formula = stream.edit, stream.formulas[stage]
        gradient, type = edit.gradient, edit.found_gradients[0].type
        kind = (formula, edit.scope.at, edit.choice.threshold_input, type.dtype, gradient.dtype,
                gradient.shape, gradient.has_seeds, edit.site, edit.count)  # fmt: skip
        known = self._known.get(kind)
        if known is None:
            emitter = self._known[kind] = self._emitter(stream, stage)
            formula.emit([emitter])
            return
        source, stream.source = stream.source, self._target(stream, stage)
        tape = Tape(self._editor, edit.scope, edit.position, edit.gradient.name, stream.source)
        tape.repeat(known.steps, known.source.name, source)

    def _target(self, stream: _Stream, stage: int) -> str:
        """The name of the result of a formula: the clipped gradient's if it is the last."""
        if stage == len(stream.formulas) - 1:
            return stream.target
        edit = stream.edit
        target = self._editor.fresh(f"clip/{edit.name}/stage {stage + 1}")
        self._editor.declare(edit.scope, target, edit.found_gradients[0].type)
        return target

    def _emitter(self, stream: _Stream, stage: int) -> Emitter:
        """An emitter for a formula of a gradient, whose target the next one takes."""
        settings, edit, found_gradient = self._settings, stream.edit, stream.edit.found_gradients[0]
        name, is_last = edit.choice.threshold_input, stage == len(stream.formulas) - 1
        formula = stream.formulas[stage]
        is_steered = name is not None or settings.thresholds.is_value or bool(formula.history_size)
        target = self._target(stream, stage)
        emitter = Emitter(
            self._editor,
            edit.scope,
            edit.position,
            found_gradient.gradient,
            Tensor(stream.source, found_gradient.type.dtype, found_gradient.gradient.shape),
            target,
            settings.numerics,
            limits=self._limits if is_steered else None,
            threshold_input=name,
            parameter=edit.site,
            workers=self._workers and self._workers(edit, formula),
            count=edit.count,
            is_measured=bool(settings.metrics),
            measures_only=settings.metrics.measures_only and is_last,
        )
        emitter.used = self.used
        stream.source = target
        return emitter
