"""Pairs of which nothing occurs twice, the surest ones first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

__all__ = ["match"]

Strangeness = tuple[bool, bool, bool, int]
"""What speaks against a pair; the least is best."""


def match(
    pairs: list[tuple[int, int]],
    strangeness: Callable[[tuple[int, int]], Strangeness],
    taken: dict[int, int],
    given: set[int],
) -> None:
    """Choose pairs in which nothing occurs twice: lone choices first, then the least strange."""
    by_new: dict[int, set[int]] = defaultdict(set)
    by_root: dict[int, set[int]] = defaultdict(set)
    for new, root in pairs:
        by_new[new].add(root)
        by_root[root].add(new)
    rest = sorted(pairs, key=strangeness, reverse=True)
    lone = [new for new, choices in by_new.items() if len(choices) == 1]
    while lone or rest:
        if lone:
            new = lone.pop()
            if new in taken or len(by_new[new]) != 1:
                continue
            (root,) = by_new[new]
        else:
            new, root = rest.pop()
            if new in taken or root in given:
                continue
        taken[new] = root
        given.add(root)
        for other in by_root[root] - {new}:
            by_new[other].discard(root)
            if len(by_new[other]) == 1:
                lone.append(other)
