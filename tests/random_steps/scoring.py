"""How well what was found in a step fits the truth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from .steps import Step

__all__ = ["Pair", "Score", "faults", "score"]

Pair = tuple[str, str]  # gradient, parameter
Score = Literal["exact", "partial", "wrong"]


def score(step: Step, found: Iterable[Pair]) -> Score:
    """Judge pairs of a gradient and its parameter.

    Returns:
        "exact" if every gradient of every trained parameter is found and nothing else is claimed;
        "partial" if some are missing and nothing else is claimed; "wrong" if a pair is claimed
        that is none, or one gradient twice.
    """
    missing, false = faults(step, found)
    return "wrong" if false else "partial" if missing else "exact"


def faults(step: Step, found: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The pairs that are missing and those that are false."""
    open_ = [(names, p) for p, gradients in step.truth.items() for names in gradients]
    false = []
    for gradient, parameter in found:
        hit = next((each for each in open_ if each[1] == parameter and gradient in each[0]), None)
        if hit is None:
            false.append((gradient, parameter))
        else:
            open_.remove(hit)
    return [("|".join(sorted(names)), p) for names, p in open_], false
