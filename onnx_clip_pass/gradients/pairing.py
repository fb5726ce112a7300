"""Pairs of which nothing occurs twice, the surest ones first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from heapq import heapify, heappop, heappush

__all__ = ["Strangeness", "match"]

Strangeness = tuple[bool, bool, bool, bool, int]
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
    strange = {pair: strangeness(pair) for pair in pairs}
    rest = sorted(pairs, key=strange.__getitem__, reverse=True)
    lone = [
        (strange[new, root], new)
        for new, choices in by_new.items()
        if len(choices) == 1
        for root in choices
    ]
    heapify(lone)
    while lone or rest:
        if lone:
            _, new = heappop(lone)
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
                heappush(lone, (strange[other, next(iter(by_new[other]))], other))
