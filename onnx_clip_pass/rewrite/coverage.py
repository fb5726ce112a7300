"""Trained parameters whose gradient is not known: they are decided about, accepted, or refused.

A question is a parameter that an update in the graph trains and whose gradient structure alone does
not tell. If the selection would clip it, leaving it out in silence is no way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients import Question
from onnx_clip_pass.gradients.explaining import formula_of
from onnx_clip_pass.graph import Scope, Value
from onnx_clip_pass.record import Uncovered

__all__ = [
    "NOT_ASKABLE",
    "Decide",
    "Uncovered",
    "Verdict",
    "accepted",
    "askable",
    "refuse",
    "uncovered_of",
]


class Verdict(NamedTuple):
    """The answers of a run: gradients by parameter, and why the others have none."""

    gradients: Mapping[str, str]
    reasons: Mapping[str, str]


Decide = Callable[[ModelProto, Mapping[str, Sequence[str]], str | None], Verdict]
"""Takes a model, whose large weights may be missing, candidates in graph order by parameter, and
the output that is the loss, if structure tells it. No questions: the graph tells of no gradient at
all, and may be searched for them."""


def uncovered_of(questions: Iterable[Question]) -> tuple[Uncovered, ...]:
    """Return what is to be told of questions."""
    return tuple(
        Uncovered(
            question.name,
            question.new.name,
            formula_of(question.new),
            tuple(dict.fromkeys(each.name for each in question.candidates)),
            question.why,
        )
        for question in questions
    )


def askable(
    questions: Sequence[Question], found: Collection[str], main: Scope
) -> dict[str, list[str]]:
    """Return the questions that a run can decide: candidates in graph order by parameter.

    These are those of one step, of which everything is in the main graph.

    Args:
        questions: those that are open.
        found: the parameters of which a gradient is known, that of another step.
        main: the main graph.
    """
    steps = Counter([*(question.name for question in questions), *found])
    return {
        question.name: [value.name for value in sorted(question.candidates, key=_sort_key)]
        for question in questions
        if steps[question.name] == 1
        and question.candidates
        and question.parameter.frame.scope is main
        and all(
            value.frame.scope is main and value.name in main.producers
            for value in question.candidates
        )
    }


def _sort_key(value: Value) -> tuple[int, int]:
    return value.frame.scope.producers.get(value.name, (-1, 0))


NOT_ASKABLE = (
    "they can tell gradients of one step in the main graph, but not of several steps of one "
    "parameter, nor in nested graphs, nor without candidates"
)
"""The reason why nothing is run."""


def refuse(
    uncovered: Sequence[Uncovered], reasons: Mapping[str, str], *, is_all: bool = False
) -> OnnxClipError:
    """Return the error that names every parameter, and the ways out.

    Args:
        uncovered: what cannot be clipped and is to be.
        reasons: why a run did not decide, by parameter; empty where nothing was run.
        is_all: whether nothing else is left to clip.
    """
    one = len(uncovered) == 1
    subject = "1 trained parameter" if one else f"{len(uncovered)} trained parameters"
    common = set(reasons.values())
    tried = ""
    if len(common) == 1 and len(reasons) == len(uncovered):
        tried = f"the slopes of the loss did not decide: {common.pop()}"
        reasons = {}
    ways = {"--probe --inner (in Python probe=True)": "let the slopes of the loss decide"}
    if tried or reasons:
        ways = {"--probe --inner (probe_gradients)": "look for the gradients among all values"}
    ways["--gradient, --map (in Python gradients=…)"] = "name all gradients"
    if not is_all:
        them = "it" if one else "them"
        ways |= {
            "--skip (skip=…)": f"leave {them} out by name",
            "--partial (partial=True)": f"accept that {'it is' if one else 'they are'} not clipped",
        }
    width = max(map(len, ways))
    lines = [
        f"the {'gradient' if one else 'gradients'} of {subject} {'is' if one else 'are'} not known "
        f"for sure, and none is left out in silence. Ways to go on:",
        *(f"  {way:{width}}  {what}" for way, what in ways.items()),
        *filter(None, [tried]),
        "what is open:",
    ]
    faults = []
    for each in uncovered:
        reason = reasons.get(each.parameter)
        faults.append(each.in_words() + (f"; slopes: {reason}" if reason else ""))
    return OnnxClipError("\n".join(lines), faults)


def accepted(uncovered: Sequence[Uncovered]) -> list[str]:
    """Return the warnings about what is left out with the user's consent."""
    if not uncovered:
        return []
    names = listed([repr(name) for name in dict.fromkeys(each.parameter for each in uncovered)])
    return [
        f"not clipped, since the gradients are not known: {names}",
        *(each.in_words() for each in uncovered[:3]),
    ]
