"""The assignment of rules to parameters."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients import Parameter
from onnx_clip_pass.rules.rule import ClipChoice, Rule
from onnx_clip_pass.selection import Among, PatternMatcher, by_id, select

__all__ = ["assign"]


def assign(
    rules: Sequence[Rule],
    parameters: Sequence[Parameter],
    also: Sequence[Parameter] = (),
    skip: str | Sequence[str] = (),
) -> tuple[dict[Parameter, ClipChoice], list[str]]:
    """Assign to each parameter what the first rule that takes it says; also return warnings.

    Args:
        rules: one or more, in order.
        parameters: what there is.
        also: more that a pattern takes only by its very name.
        skip: patterns of what to leave out all the same.

    Returns:
        The choice for each parameter that is to be clipped, and a warning for each rule that takes
        nothing: because nothing matches, or because earlier rules have taken all that does.

    Raises:
        OnnxClipError: a predicate is at fault, a skip pattern matches nothing, or nothing is left
            to clip although rules with clips match.
    """
    matcher = PatternMatcher(parameters, also)
    everything = by_id(dict.fromkeys([*parameters, *also]))
    left = by_id(select(list(everything.values()), None, skip)) if skip else dict(everything)
    taken: dict[Parameter, ClipChoice] = {}
    warnings: list[str] = []
    owner: dict[int, int] = {}
    for number, rule in enumerate(rules, 1):
        picked = [p for p in matcher.choose(rule.need_clip, left) if rule.bounds.hold(p)]
        if not picked:
            warnings.append(_why_idle(rule, number, matcher, owner, everything))
        choice = None if rule.clip is None else ClipChoice(rule.clip, rule.threshold_input, number)
        for parameter in picked:
            owner[id(left.pop(id(parameter)))] = number
            if choice is not None:
                taken[parameter] = choice
    if parameters and not taken and not any(callable(rule.need_clip) for rule in rules):
        raise OnnxClipError(
            "nothing is left to clip: no rule with a clip takes any gradient", warnings
        )
    return taken, warnings


def _why_idle(
    rule: Rule,
    number: int,
    matcher: PatternMatcher,
    owner: dict[int, int],
    everything: Among,
) -> str:
    """The reason why a rule takes nothing."""
    name = rule.where or f"rule {number}"
    if callable(rule.need_clip):
        return f"{name} takes nothing: its predicate says no to all that is left"
    matching = [p for p in matcher.choose(rule.need_clip, everything) if rule.bounds.hold(p)]
    earlier = sorted({owner[id(parameter)] for parameter in matching if id(parameter) in owner})
    if not matching:
        return f"{name} takes nothing: no parameter of this model is like it says"
    if not earlier:
        return f"{name} takes nothing: all that it matches is skipped"
    numbers = listed([f"rule {before}" for before in earlier])
    return f"{name} takes nothing: {numbers} before it takes all that it matches; put it first"
