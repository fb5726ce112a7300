"""Gradients found and picked, and what becomes of questions about those to be clipped."""

from __future__ import annotations

from dataclasses import replace
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
    """The gradients found, those picked of them, and what became of questions.

    `settings` are those asked for; gradients that a search by a run has found are named in them.
    """

    settings: Settings
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
        return Finds(settings, seen, _select(seen, clips, settings), {}, (), [])
    first = survey(index, settings.optimizer_ops)
    told = {} if before is None else before.answers
    seen = first.answered(told)
    is_empty = not (seen.found or seen.questions or seen.of_data)
    if is_empty and decide is not None and not seen.carried:  # else it updates something unknown
        verdict = decide(index.model, {}, seen.loss)
        if verdict.gradients:
            named: dict[str, str | None] = {g: name for name, g in verdict.gradients.items()}
            found = find(index, clips, replace(settings, named=named), before, None)
            return found._replace(notes=_notes_on_search(verdict, settings))
        if verdict.reasons:
            raise OnnxClipError(
                f"{nothing_found(seen, can_name=True)}; the run found none:",
                [f"{name}: {reason}" for name, reason in verdict.reasons.items()],
            )
    if is_empty and before is not None and before.named:
        raise OnnxClipError(
            f"{nothing_found(seen, can_name=True)}; the clip that the model has was put behind "
            f"values that were named, or found by --probe, and what is put there now must be told "
            f"again: {listed([repr(name) for name in before.named])}"
        )
    picked = _select(seen, clips, settings)
    verdict, notes = _decided(index, seen, picked, settings, decide), []
    if verdict.gradients:
        seen = seen.answered(verdict.gradients)
        picked = _select(seen, clips, settings)
        names = listed([f"{name!r} ({g})" for name, g in verdict.gradients.items()])
        notes = [f"the model was run: the slopes of the loss decided for {names}"]
    answers = {**told, **verdict.gradients}
    still = {question.name for question in seen.questions}
    kept = [q.name for q in first.questions if q.name not in still and answers.get(q.name)]
    uncovered = _left_open(picked, verdict, settings)
    kept_answers = {name: answers[name] for name in kept}
    return Finds(settings, seen, picked, kept_answers, uncovered, notes)


def _notes_on_search(verdict: Verdict, settings: Settings) -> list[str]:
    """The outcome of a search in a few words; refused if it leaves out what may have a gradient."""
    left = [f"{name!r}: {reason}" for name, reason in verdict.reasons.items()]
    if left and not (settings.options["partial"] or settings.metrics.measures_only):
        names = listed([repr(name) for name in verdict.gradients])
        raise OnnxClipError(
            f"the slopes of the loss tell the gradients of {names}, but not of all that may have "
            f"one; name all gradients (--gradient or --map; gradients=…), or accept that these are "
            f"not clipped (--partial; partial=True):",
            left,
        )
    note = f"the model was run: the slopes of the loss tell {len(verdict.gradients)} gradients"
    return [note, *(f"no gradient is known for {each}" for each in left)]


def _decided(
    index: Index, seen: Survey, picked: Selected, settings: Settings, decide: Decide | None
) -> Verdict:
    """The verdict of a run on the questions, as far as one may be run and can decide them."""
    if not picked.asked or decide is None or settings.metrics.measures_only:
        return Verdict({}, {})
    found = {found_gradient.gradient.parameter.name for found_gradient in seen.found}
    questions = askable(picked.asked, found, index.main)
    verdict = Verdict({}, {})
    if len(questions) == len(picked.asked) or (questions and settings.options["partial"]):
        verdict = decide(index.model, questions, seen.loss)
    closed = [each.name for each in picked.asked if each.name not in questions]
    reasons = {**verdict.reasons, **dict.fromkeys(closed, NOT_ASKABLE)}
    return Verdict(verdict.gradients, reasons)


def _left_open(picked: Selected, verdict: Verdict, settings: Settings) -> tuple[Uncovered, ...]:
    """The parameters whose gradients are not known, if that is accepted and others are."""
    uncovered = uncovered_of(picked.asked)
    is_nothing_left = not any(choice for _, choice in picked.assignments)
    is_accepted = settings.options["partial"] or settings.metrics.measures_only
    if uncovered and (is_nothing_left or not is_accepted):
        raise refuse(uncovered, verdict.reasons, is_all=is_nothing_left)
    return uncovered


def _select(seen: Survey, clips: Clip | Rules, settings: Settings) -> Selected:
    return selected(seen, clips, settings.options["skip"], settings.options["threshold_input"])
