"""Which rule takes which parameter's gradient."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Parameter
from onnx_clip_pass.rules.rule import Choice, Rule
from onnx_clip_pass.selection import Chooser, select

__all__ = ["assign"]


def assign(
    rules: Sequence[Rule],
    parameters: Sequence[Parameter],
    also: Sequence[Parameter] = (),
    skip: str | Sequence[str] = (),
) -> tuple[dict[Parameter, Choice], list[str]]:
    """What each parameter's gradient gets by the first rule that takes it, and warnings.

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
    chooser = Chooser(parameters, also)
    left = list(dict.fromkeys([*parameters, *also]))
    if skip:
        kept = set(select(left, None, skip))
        left = [parameter for parameter in left if parameter in kept]
    taken: dict[Parameter, Choice] = {}
    warnings: list[str] = []
    owner: dict[Parameter, int] = {}
    for number, rule in enumerate(rules, 1):
        picked = [p for p in chooser.choose(rule.need_clip, left) if rule.bounds.hold(p)]
        if not picked:
            warnings.append(_why_idle(rule, number, chooser, owner, [*parameters, *also]))
        choice = None if rule.clip is None else Choice(rule.clip, rule.threshold_input, number)
        for parameter in picked:
            owner[parameter] = number
            if choice is not None:
                taken[parameter] = choice
        gone = set(map(id, picked))  # hashing a Parameter takes longer than matching it
        left = [parameter for parameter in left if id(parameter) not in gone]
    if parameters and not taken and not any(callable(rule.need_clip) for rule in rules):
        raise OnnxClipError(
            "nothing is left to clip: no rule with a clip takes any gradient", warnings
        )
    return taken, warnings


def _why_idle(
    rule: Rule,
    number: int,
    chooser: Chooser,
    owner: dict[Parameter, int],
    everything: Sequence[Parameter],
) -> str:
    """Why a rule takes nothing."""
    name = rule.where or f"rule {number}"
    if callable(rule.need_clip):
        return f"{name} takes nothing: its predicate says no to all that is left"
    matching = [p for p in chooser.choose(rule.need_clip, everything) if rule.bounds.hold(p)]
    earlier = sorted({owner[parameter] for parameter in matching if parameter in owner})
    if not matching:
        return f"{name} takes nothing: no parameter of this model is like it says"
    if not earlier:
        return f"{name} takes nothing: all that it matches is skipped"
    numbers = " and ".join(f"rule {before}" for before in earlier)
    return f"{name} takes nothing: {numbers} before it takes all that it matches; put it first"
