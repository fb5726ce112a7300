"""Gradients, found or named, picked by `need_clip`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from onnx_clip_pass.clips import Chain, Clip, Formula
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients import FoundGradient, Gradient, Parameter, Question, Survey
from onnx_clip_pass.gradients.optimizer import SEQUENCE_SLOTS
from onnx_clip_pass.graph import TensorType, Value
from onnx_clip_pass.rules import ClipChoice, Rule, Rules, assign
from onnx_clip_pass.selection import PatternMatcher, by_id, select

__all__ = [
    "Assignments",
    "GradientNames",
    "Selected",
    "as_clips",
    "as_mapping",
    "nothing_found",
    "selected",
]

GradientNames = Sequence[str] | Mapping[str, str | None] | None
"""Names of gradients, or gradient name to parameter name; None to search for them."""

Assignments = list[tuple[FoundGradient, ClipChoice | None]]
"""Each gradient with what is to be done to it; None for what is left alone."""


class Selected(NamedTuple):
    """The gradients with their choices, and what a user should know of the rules.

    `asked` are the questions about parameters that would be clipped, `bare` the weights that would
    be and have no gradient.
    """

    assignments: Assignments
    warnings: list[str]
    asked: list[Question]
    bare: list[str]


def as_mapping(gradients: Sequence[str] | Mapping[str, str | None]) -> dict[str, str | None]:
    """Gradient name to parameter name, or None where the caller does not say it."""
    is_list = hasattr(gradients, "__iter__") and getattr(gradients, "shape", None) != ()
    names = list(gradients) if is_list else []
    if any(isinstance(name, Gradient) for name in names):
        raise OnnxClipError(
            "gradients must be names, not Gradient objects: for those found, pass "
            "gradients={g.name: g.parameter.name for g in found}"
        )
    if isinstance(gradients, Mapping):
        told = [name for pair in gradients.items() for name in pair if name is not None]
        if None in gradients or not all(isinstance(name, str) for name in told):
            raise OnnxClipError(
                f"gradients must map names of gradients to names of parameters, not "
                f"{shown(gradients)}"
            )
        return dict(gradients)
    if isinstance(gradients, str):
        raise OnnxClipError(f"gradients must be a list of names, not the string {gradients!r}")
    if not names or not all(isinstance(name, str) for name in names):
        raise OnnxClipError(
            f"gradients must be a list of names, at least one, not {shown(gradients)}"
        )
    return dict.fromkeys(names)


def as_clips(clips: object) -> Clip | Rules:
    """A clip, or rules, one or more; refused if it is neither."""
    if isinstance(clips, Clip):
        return clips
    rules = clips
    if not isinstance(rules, Rules):
        rules = Rules(rules if isinstance(rules, Sequence) else ())
    if not rules or not all(isinstance(rule, Rule) for rule in rules):
        raise OnnxClipError(
            f"expected a clip such as GradientClipByNorm(1.0), or a list of Rule, not "
            f"{shown(clips)}"
        )
    return rules


def selected(
    seen: Survey,
    clips: Clip | Sequence[Rule],
    skip: str | Sequence[str],
    threshold_input: str | None = None,
) -> Selected:
    """The gradients found and what the selection makes of them.

    Args:
        seen: what was found.
        clips: one clip, or rules.
        skip: patterns of what to leave out.
        threshold_input: for all that have none of their own.

    Raises:
        OnnxClipError: there are no gradients, or the selection is at fault.
    """
    picks_all = isinstance(clips, Clip) and any(f.need_clip is None for f in clips.formulas)
    if not (seen.found or seen.questions) and (picks_all or not seen.of_data):
        raise OnnxClipError(nothing_found(seen, can_name=True))
    questions = {
        id(question): _parameter(question.parameter, question.name) for question in seen.questions
    }
    parameters = [found_gradient.gradient.parameter for found_gradient in seen.found]
    parameters += dict.fromkeys(questions.values())
    also = [found_gradient.gradient.parameter for found_gradient in seen.of_data]
    warnings: list[str] = []
    if isinstance(clips, Clip):
        choices = _choices_of_clip(clips, parameters, also, skip)
    else:
        choices, warnings = assign(clips, parameters, also, skip)
    if threshold_input is not None:
        choices = _with_input(choices, threshold_input)
    assignments: Assignments = [(s, choices.get(s.gradient.parameter)) for s in seen.found]
    assignments += [
        (s, choices[s.gradient.parameter]) for s in seen.of_data if s.gradient.parameter in choices
    ]
    asked = [each for each in seen.questions if questions[id(each)] in choices]
    bare = [_parameter(value, value.name) for value in seen.bare]
    return Selected(assignments, warnings, asked, _picked_by_name(clips, skip, parameters, bare))


def _parameter(value: Value, name: str) -> Parameter:
    """A parameter whose gradient is not known."""
    known = value.type or TensorType()
    return Parameter(name, known.shape, known.dtype_name, "")


def _picked_by_name(
    clips: Clip | Sequence[Rule],
    skip: str | Sequence[str],
    parameters: Sequence[Parameter],
    bare: list[Parameter],
) -> list[str]:
    """The names of those of `bare` that would be clipped; a predicate is not asked about them."""
    matcher = PatternMatcher([*parameters, *bare])
    left = by_id(bare)
    for pattern in [skip] if isinstance(skip, str) else skip:
        for p in matcher.matching(pattern, left):
            del left[id(p)]
    picked: set[int] = set()
    if isinstance(clips, Clip):
        wishes = [f.need_clip for f in clips.formulas if not callable(f.need_clip)]
        picked.update(id(p) for wish in wishes for p in matcher.choose(wish, left))
        return [p.name for p in bare if id(p) in picked]
    for rule in clips:
        if callable(rule.need_clip):
            break
        for p in matcher.choose(rule.need_clip, left):
            if rule.bounds.hold(p):
                del left[id(p)]
                picked.update([id(p)] if rule.clip is not None else [])
    return [p.name for p in bare if id(p) in picked]


def _choices_of_clip(
    clip: Clip,
    parameters: Sequence[Parameter],
    also: Sequence[Parameter],
    skip: str | Sequence[str],
) -> dict[Parameter, ClipChoice]:
    picked: dict[Parameter, list[Formula]] = {}
    for formula in clip.formulas:
        for parameter in set(select(parameters, formula.need_clip, skip, also=also)):
            picked.setdefault(parameter, []).append(formula)
    made: dict[tuple[Formula, ...], ClipChoice] = {}
    assignments: dict[Parameter, ClipChoice] = {}
    for parameter, own in picked.items():
        formulas = tuple(own)
        if formulas not in made:
            whole = clip if formulas == clip.formulas else Chain(*formulas)
            made[formulas] = ClipChoice(formulas[0] if len(formulas) == 1 else whole)
        assignments[parameter] = made[formulas]
    return assignments


def _with_input(choices: dict[Parameter, ClipChoice], name: str) -> dict[Parameter, ClipChoice]:
    made = {
        id(choice): choice if choice.threshold_input else replace(choice, threshold_input=name)
        for choice in choices.values()
    }
    return {parameter: made[id(choice)] for parameter, choice in choices.items()}


def nothing_found(seen: Survey, *, can_name: bool) -> str:
    """A message: what was looked for, what was there instead, and what to do.

    Args:
        seen: what was found.
        can_name: whether gradients can be named where this is told.
    """
    scope = seen.flow.index.main
    ops = {node.op_type for node in scope.nodes}
    if ops & SEQUENCE_SLOTS.keys():
        return (
            "this is an optimizer model of ONNX Runtime training: its gradients come as one "
            "sequence without names; rewrite training_model.onnx of the same folder instead, or "
            "the folder, where all of them can be clipped alike"
        )
    outputs = ", ".join(repr(name) for name in scope.outputs[:5]) or "none"
    more = " and more" if len(scope.outputs) > 5 else ""
    if seen.of_data:
        first = seen.of_data[0].gradient
        return (
            f"no gradients of parameters found, only of data: {first.name!r} ({first.evidence}); "
            f"if that is wrong, name it in need_clip (--need-clip) to clip it"
        )
    names = ", or name them with --gradient (in Python: gradients=[…])" if can_name else ""
    if called := seen.gradients_of_nothing:
        return (
            f"no gradients found, though outputs are called so: "
            f"{listed([repr(name) for name in called])}. Export the graph with its parameters as "
            f"inputs (in PyTorch as arguments of what is exported, named by input_names), or "
            f"without constant folding (optimize=False, or do_constant_folding=False){names}: it "
            f"has no parameters of these names"
        )
    return (
        "no gradients found; if there are some, let a run of the model find them with --probe of "
        f"rewrite and inspect (in Python: probe_gradients){names}. Looked for accumulators, "
        "optimizer nodes, Gradient nodes, parameters updated in the graph, and values named after "
        "a parameter (W_grad, W.grad, grad_W, adj_W, …) of its shape, in a graph with "
        f"{len(scope.nodes)} nodes and the outputs {outputs}{more}"
    )
