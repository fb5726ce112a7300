"""The pairs of parameter and gradient, where slopes alone leave a choice.

The answer to each doubtful case:

1. Slopes of zero prove nothing: the parameter is undecided.
2. Values that fit but differ from each other: `trial` measures where they differ, or undecided.
3. Equal values, one computed from the other: the last counts, but for a clip between them, before
   which the gradient ends, and for outputs: of them the first, since the others follow it.
4. As many equal values as parameters that they fit, one computed from the other or not: one for
   each, by name, else by their order, lest one is left unclipped. Otherwise each value is that of
   each of the parameters.
5. Values that fit but for a positive factor: only if none fits exactly, if one factor serves every
   parameter, and if none is computed from another that fits with another factor (then it is a
   step or a moment, not a gradient).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.gradients.naming import is_named_after

__all__ = ["Fit", "Undecided", "by_factor", "laid_out", "layouts", "settle"]

_EXPLAINED = 1e-3


@dataclass(frozen=True, slots=True)
class Undecided:
    """A parameter that was given no gradient, and why; or an input that was taken for data.

    `is_asked` says that a value of its shape is the gradient of nothing else, and may be its.
    """

    parameter: str
    reason: str
    is_data: bool = False
    is_asked: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """A value that is `factor` times the slopes of a parameter, laid out in some way.

    A value of one element fits with any factor: it is not `telling`.
    """

    value: str
    layout: str
    error: float
    factor: float = 1.0
    is_telling: bool = True


Before = Callable[[str, str], bool | None]
"""True if a value is computed from another; None if a way leads through a clip."""


def layouts(value: tuple[int, ...], parameter: tuple[int, ...]) -> Iterable[str]:
    """The layouts in which a value of one shape can be the gradient of a parameter of the other."""
    if value == parameter:
        yield ""
    if len(value) == 2 and value == parameter[::-1]:
        yield "transposed"
    elif value == (*parameter, 1):
        yield "with one seed"
    elif value != parameter and prod(value) == prod(parameter):
        yield "reshaped"


def laid_out(array: NDArray[Any], layout: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A gradient in the shape of its parameter."""
    wide = np.asarray(array, np.float64)
    return wide.T if layout == "transposed" else wide.reshape(shape)


def settle(
    fits: Mapping[str, list[Fit]], before: Before, order: Sequence[str], outputs: Collection[str]
) -> list[tuple[Fit, str, str]]:
    """Fits to pairs: each with the parameter's name and a remark (rules 3 and 4).

    Args:
        fits: the values that fit, by parameter; those of one parameter are equal.
        before: see `Before`; called with the earlier value first.
        order: the names of all candidates, in the order of the graph's outputs.
        outputs: the graph's outputs.
    """
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    kept: dict[str, dict[str, Fit]] = {}
    sharing = Counter(_names(equal) for equal in fits.values())
    for parameter, equal in fits.items():
        ends = _ends(equal, before, sharing[_names(equal)], outputs)
        kept[parameter] = {fit.value: fit for fit in ends}
        groups[frozenset(kept[parameter])].append(parameter)
    pairs = []
    for values, parameters in groups.items():
        ordered = sorted(values, key=order.index)
        if len(ordered) == len(parameters) > 1:
            for value, parameter in _assign(ordered, parameters):
                others = ", ".join(repr(p) for p in parameters if p != parameter)
                remark = f"equal to that of {others}, told apart by name or order"
                pairs.append((kept[parameter][value], parameter, remark))
        else:
            for parameter in parameters:
                others = ", ".join(repr(p) for p in parameters if p != parameter)
                remark = f"also the gradient of {others}" if others else ""
                pairs += [(kept[parameter][value], parameter, remark) for value in ordered]
    return pairs


def by_factor(
    fits: Mapping[str, list[Fit]], before: Before, allowed: set[str], known: Sequence[float]
) -> tuple[dict[str, list[Fit]], list[Undecided]]:
    """The fits that one factor explains, of all that fit but for a factor (rule 5).

    Args:
        fits: of allowed values and of those they are computed from.
        before: see `Before`.
        allowed: the values that may be called gradients.
        known: factors that a seed of the backward pass makes, or a mean in place of a sum; asked
            for where one parameter alone judges.
    """
    others = [fit.factor for found in fits.values() for fit in found if fit.is_telling]
    left, undecided = {}, []
    for parameter, every in fits.items():
        found = [f for f in every if f.is_telling or _is_among(f.factor, [*others, *known])]
        scaled = {
            fit.value: other.value
            for fit in found
            for other in found
            if not _alike(fit, other) and before(other.value, fit.value) is not False
        }
        first = [fit for fit in found if fit.value in allowed - scaled.keys()]
        blocked = sorted(allowed & scaled.keys())
        if blocked and not (first and all(_is_among(fit.factor, known) for fit in first)):
            reason = (
                f"{blocked[0]!r} is a multiple of {scaled[blocked[0]]!r}, from which it is "
                f"computed: one may be a step or a moment; name the gradient"
            )
            undecided.append(Undecided(parameter, reason))
        elif first:
            left[parameter] = first
    serving: list[Fit] = []
    for fit in next(iter(left.values()), []):
        serves = all(any(_alike(fit, other) for other in found) for found in left.values())
        if serves and not any(_alike(fit, other) for other in serving):
            serving.append(fit)
    if len(serving) == 1 and (len(left) > 1 or _is_among(serving[0].factor, known)):
        return {
            p: [f for f in found if _alike(f, serving[0])] for p, found in left.items()
        }, undecided
    for parameter, found in left.items():
        factors = [f"{fit.value!r} is {fit.factor:.6g} times its gradient" for fit in found]
        reason = f"no single factor explains all parameters: {', '.join(factors)}"
        undecided.append(Undecided(parameter, reason))
    return {}, undecided


def _is_among(factor: float, known: Iterable[float]) -> bool:
    return any(abs(factor - each) <= _EXPLAINED * each for each in known)


def _alike(fit: Fit, other: Fit) -> bool:
    """Return whether two fits have the same factor, as far as their precision tells."""
    precision = 10 * max(fit.error, other.error, 1e-5)
    return abs(fit.factor - other.factor) <= precision * max(fit.factor, other.factor)


def _names(fits: list[Fit]) -> frozenset[str]:
    return frozenset(fit.value for fit in fits)


def _ends(equal: list[Fit], before: Before, sharing: int, outputs: Collection[str]) -> list[Fit]:
    """Of equal values the last on each way, the last before a clip, or an output (rule 3).

    All of them before a clip if they are as many as the parameters `sharing` them (rule 4).
    """
    values = [fit.value for fit in equal]
    behind_clip = {b for a in values for b in values if a != b and before(a, b) is None}
    open_ = [fit for fit in equal if fit.value not in behind_clip]
    if len(_names(open_)) == sharing:
        return open_
    names = [fit.value for fit in open_]
    ends = [
        fit
        for fit in open_
        if not any(before(fit.value, name) for name in names if name != fit.value)
    ]
    shown = [name for name in names if name in outputs]
    kept = [
        fit
        for fit in open_
        if (fit in ends or fit.value in shown)
        and not any(before(name, fit.value) for name in shown if name != fit.value)
    ]
    return list({fit.value: fit for fit in kept}.values())


def _assign(values: list[str], parameters: list[str]) -> list[tuple[str, str]]:
    """Equal values to as many parameters: by name where each has one, else in order (rule 4)."""
    named = [[v for v in values if is_named_after(v, parameter)] for parameter in parameters]
    firsts = [found[0] for found in named if len(found) == 1]
    if len(set(firsts)) == len(parameters):
        return list(zip(firsts, parameters, strict=True))
    return list(zip(values, parameters, strict=True))
