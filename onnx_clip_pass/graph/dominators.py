"""Dominator tree of a graph without cycles, built while its vertices arrive in topological order.

A vertex d dominates v if every way from a source to v passes d. The immediate dominator of v is
the lowest common ancestor, in the tree, of the vertices that v is computed from (Aho, Hopcroft and
Ullman 1976); ancestors are found in logarithmic time by the jump pointers of Myers (1983), "An
applicative random-access stack".
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ROOT", "Dominators"]

ROOT = 0
"""The vertex above all sources; it stands for no value."""


class Dominators:
    """The tree; vertices are numbered from 1 on in the order in which they are added."""

    def __init__(self) -> None:
        self.above = [ROOT]
        self.depth = [0]
        self._jump = [ROOT]

    def add(self, sources: Iterable[int]) -> int:
        """Add a vertex that is computed from `sources`; return its immediate dominator.

        A vertex without sources is a source itself.
        """
        found = -1
        for source in sources:
            found = source if found < 0 else self.common(found, source)
        found = max(found, ROOT)
        jump = self._jump[found]
        is_even = (
            self.depth[found] - self.depth[jump] == self.depth[jump] - self.depth[self._jump[jump]]
        )
        self.above.append(found)
        self.depth.append(self.depth[found] + 1)
        self._jump.append(self._jump[jump] if is_even else found)
        return found

    def common(self, a: int, b: int) -> int:
        """Return the lowest common ancestor of two vertices."""
        above, depth, jump = self.above, self.depth, self._jump
        if depth[a] < depth[b]:
            a, b = b, a
        while depth[a] > depth[b]:
            a = jump[a] if depth[jump[a]] >= depth[b] else above[a]
        while a != b:
            if jump[a] != jump[b]:
                a, b = jump[a], jump[b]
            else:
                a, b = above[a], above[b]
        return a

    def dominates(self, a: int, b: int) -> bool:
        """Return whether `a` is `b` or dominates it."""
        return self.common(a, b) == a
