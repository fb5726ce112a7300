"""Parameters, states and their new values, none of which is a gradient.

A state is an input or initializer whose new value the graph returns. Its new value is a sum in
which the old one stands with a number before it: `W - lr*g`, `(1-tau)*T + tau*W`, `b*m + (1-b)*g`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import repeat

from onnx import NodeProto

from onnx_clip_pass.graph import Index
from onnx_clip_pass.graph.spec import ALIASES
from onnx_clip_pass.probe.losses import type_of

__all__ = ["factors_of", "state_in"]

_SIGNS: dict[str, Iterable[float]] = {
    **dict.fromkeys((*ALIASES, "Dropout"), (1.0,)),
    **dict.fromkeys(("Add", "Sum"), repeat(1.0)),
    "Sub": (1.0, -1.0),
    "Neg": (-1.0,),
}
_NUMBERS = {"Mul": (1, 0), "Div": (1,), "Where": (0,)}
"""The inputs that scale, or choose, if they are numbers."""
_LARGE_SHARE = 0.5  # less of the old value, as decay adds to a gradient, makes no new value of it
_ROUNDING = 1e-5  # of shares that add up to 1, in float32


def state_in(
    index: Index,
    name: str,
    forward: Collection[str],
    numbers: Mapping[str, float],
    *,
    is_slope: bool | None,
) -> str:
    """The parameter or state that a value is, or is the new value of, in words; else empty.

    Args:
        index: the model.
        name: a value of the main graph.
        forward: what the loss is computed from.
        numbers: the values of those that `factors_of` gives.
        is_slope: whether it is a slope of the loss; None if that is not known, and only averages
            are surely none.
    """
    if is_slope:
        return ""
    if name not in index.main.producers:
        if name in forward:
            return "" if is_slope is None else f"the parameter {name!r}"
        made = (_old_value(index, each, forward, numbers) for each in _like(index, name))
        return f"the state {name!r}" if any(old == name for old, _ in made) else ""
    if name not in index.main.outputs or name in forward:
        return ""
    old, is_average = _old_value(index, name, forward, numbers)
    if old and is_average:
        return f"the new value of {old!r}, an average"
    return f"the new value of {old!r}" if old and is_slope is False else ""


def factors_of(index: Index, names: Collection[str]) -> list[str]:
    """The numbers that stand before terms of these values; without them no share is known."""
    found: dict[str, None] = {}
    for name in names:
        values = [name] if name in index.main.producers else _like(index, name)
        for value in values:
            found |= dict.fromkeys(_terms(index, value, None).factors)
    return list(found)


def _like(index: Index, name: str) -> list[str]:
    """The outputs of the type of a value."""
    return [each for each in index.main.outputs if type_of(index, each) == type_of(index, name)]


def _old_value(
    index: Index, name: str, forward: Collection[str], numbers: Mapping[str, float]
) -> tuple[str, bool]:
    """The input or initializer whose new value a value is, or empty; whether it is an average."""
    terms = _terms(index, name, numbers)
    is_average = abs(sum(terms.of.values()) - 1) <= _ROUNDING and len(terms.of) > 1
    for root, share in terms.of.items():
        if root in index.main.producers or type_of(index, root) != type_of(index, name):
            continue
        if is_average and 0 < share < 1:
            return root, True
        # a share of exactly 1 of what the loss does not read is a buffer that adds gradients up
        if share >= _LARGE_SHARE and (root in forward or share != 1):
            return root, False
    return "", False


@dataclass(slots=True)
class _Terms:
    """A value as a sum: each term, with the number that stands before it."""

    of: dict[str, float] = field(default_factory=dict)
    factors: list[str] = field(default_factory=list)


def _terms(index: Index, name: str, numbers: Mapping[str, float] | None) -> _Terms:
    """Split a value into the terms of its sum, each value once, from the last one back.

    What the graph returns besides is a term as it is, such as new weights that are averaged. Where
    numbers are only looked for, `numbers` being None, both branches of a Where are followed.
    """
    main = index.main
    share = {name: 1.0}
    places = {main.producers[name][0]: name} if name in main.producers else {}
    terms = _Terms({} if places else {name: 1.0})
    todo = [-at for at in places]
    while todo:
        at = -heappop(todo)
        value = places[at]
        node = main.nodes[at]
        is_other = value in main.outputs and value != name
        parts = [] if is_other else _parts(index, node, main.takes[at], numbers, terms.factors)
        if not parts:
            terms.of[value] = terms.of.get(value, 0.0) + share[value]
        for each, factor in parts:
            share[each] = share.get(each, 0.0) + factor * share[value]
            if each not in main.producers:
                terms.of[each] = share[each]
            elif (place := main.producers[each][0]) not in places:
                places[place] = each
                heappush(todo, -place)
    return terms


def _parts(
    index: Index,
    node: NodeProto,
    inputs: Sequence[str],
    numbers: Mapping[str, float] | None,
    factors: list[str],
) -> list[tuple[str, float]]:
    """The terms of a linear operator, each with the number before it; none for any other."""
    op_type = node.op_type
    if op_type in _SIGNS:
        return list(zip(inputs, _SIGNS[op_type], strict=False))
    slots = [at for at in _NUMBERS.get(op_type, ()) if type_of(index, inputs[at]).is_scalar_like]
    if not slots:
        return []
    number = inputs[slots[0]]
    factors.append(number)
    found = 1.0 if numbers is None else numbers.get(number, math.nan)
    rest = [each for at, each in enumerate(inputs) if at != slots[0]]
    if op_type == "Where":
        taken = rest if numbers is None else rest[:1] if found else rest[1:]
        return [(each, 1.0) for each in taken if not math.isnan(found)]
    if not math.isfinite(found) or (op_type == "Div" and found == 0):
        return []
    return [(rest[0], found if op_type == "Mul" else 1 / found)]
