"""Gradients found and picked, and what becomes of questions about those to be clipped."""

from __future__ import annotations

from typing import NamedTuple

from onnx_clip_pass.clips import Clip
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients import Survey, name_gradients, survey
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import Record
from onnx_clip_pass.rewrite.coverage import (
    NOT_ASKABLE,
    Decide,
    Uncovered,
    Verdict,
    askable,
    refuse,
    uncovered_of,
)
from onnx_clip_pass.rewrite.selecting import Selected, nothing_found, selected
from onnx_clip_pass.rewrite.settings import Settings
from onnx_clip_pass.rules import Rules

__all__ = ["Finds", "find"]


class Finds(NamedTuple):
    """What is found, what is picked of it, and what became of questions."""

    seen: Survey
    selected: Selected
    answers: dict[str, str]
    uncovered: tuple[Uncovered, ...]
    notes: list[str]


def find(
    index: Index,
    clips: Clip | Rules,
    settings: Settings,
    before: Record | None,
    decide: Decide | None,
) -> Finds:
    """Find gradients and pick those to be clipped; questions are decided, accepted or refused.

    Raises:
        OnnxClipError: a parameter that is to be clipped has no gradient that is known for sure.
    """
    if settings.named is not None:
        seen = name_gradients(index, settings.named, settings.optimizer_ops)
        return Finds(seen, _select(seen, clips, settings), {}, (), [])
    first = survey(index, settings.optimizer_ops)
    seen = first if before is None else first.answered(before.answers)
    if before is not None and before.named and not (seen.found or seen.questions or seen.of_data):
        raise OnnxClipError(
            f"{nothing_found(seen, can_name=True)}; the clip that the model has was put behind "
            f"values that were named, or found by --probe, and what is put there now must be told "
            f"again: {listed([repr(name) for name in before.named])}"
        )
    picked = _select(seen, clips, settings)
    notes: list[str] = []
    verdict = Verdict({}, {})
    if picked.asked and decide is not None and not settings.watch.measures_only:
        found = {sighting.gradient.parameter.name for sighting in seen.found}
        questions = askable(picked.asked, found, index.main)
        if len(questions) == len(picked.asked) or (questions and settings.options["partial"]):
            verdict = decide(index.model, questions, seen.loss)
        closed = [each.name for each in picked.asked if each.name not in questions]
        reasons = {**verdict.reasons, **dict.fromkeys(closed, NOT_ASKABLE)}
        verdict = Verdict(verdict.gradients, reasons)
    if verdict.gradients:
        seen = seen.answered(verdict.gradients)
        picked = _select(seen, clips, settings)
        names = listed([f"{name!r} ({g})" for name, g in verdict.gradients.items()])
        notes.append(f"the model was run: the slopes of the loss decided for {names}")
    uncovered = uncovered_of(picked.asked)
    is_nothing_left = not any(choice for _, choice in picked.chosen)
    if uncovered and (
        is_nothing_left or not (settings.options["partial"] or settings.watch.measures_only)
    ):
        raise refuse(uncovered, verdict.reasons, is_all=is_nothing_left)
    still = {question.name for question in seen.questions}
    answers = {} if before is None else before.answers
    answers = {
        question.name: answer
        for question in first.questions
        if question.name not in still
        and (answer := {**answers, **verdict.gradients}.get(question.name))
    }
    return Finds(seen, picked, answers, uncovered, notes)


def _select(seen: Survey, clips: Clip | Rules, settings: Settings) -> Selected:
    return selected(seen, clips, settings.options["skip"], settings.options["threshold_input"])
