"""Pairs of which nothing occurs twice, the surest ones first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping
from heapq import heapify, heappop, heappush

__all__ = ["Strangeness", "lone_pairs", "match"]

Strangeness = tuple[bool, bool, bool, bool, int]
"""The objections to a pair; the least is best."""


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


def lone_pairs(
    news: Mapping[int, Collection[Hashable]], roots: Mapping[int, Collection[Hashable]]
) -> list[tuple[int, int]]:
    """Return the pairs that fit each other and nothing else; two fit that have a key in common."""
    found = []
    of_roots, of_news = _by_key(roots), _by_key(news)
    for new, keys in news.items():
        fitting = _first_two(keys, of_roots)
        if len(fitting) == 1:
            (root,) = fitting
            if len(_first_two(roots[root], of_news)) == 1:
                found.append((new, root))
    return found


def _by_key(keyed: Mapping[int, Collection[Hashable]]) -> dict[Hashable, list[int]]:
    """The first two that have each key: a third one makes no difference."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for each, keys in keyed.items():
        for key in keys:
            if len(found[key]) < 2:
                found[key].append(each)
    return found


def _first_two(keys: Collection[Hashable], by_key: Mapping[Hashable, list[int]]) -> set[int]:
    """Those that have one of the keys, two of them where there are more."""
    found: set[int] = set()
    for key in keys:
        found.update(by_key.get(key, ()))
        if len(found) > 1:
            break
    return found
