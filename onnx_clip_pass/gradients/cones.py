"""The sources of numbers, by way of other numbers: norms, counts, shapes, rates.

A norm of all gradients is made of as many reductions, and as many factors may be made of it. So a
cone shares what it has in common with those that it is made of, and is looked into, not gone over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from onnx_clip_pass.gradients.ops import ELEMENTWISE, SHAPES
from onnx_clip_pass.gradients.values import Values

__all__ = ["Cone", "Cones", "Vertices"]

_MOST_OWN = 16
_MOST_PARTS = 32


class Vertices:
    """A set of vertices that shares its larger parts with others; it never changes."""

    __slots__ = ("_own", "_parts")

    def __init__(self, own: Iterable[int] = (), of: Iterable[Vertices] = ()) -> None:
        """The union of some vertices and some sets."""
        others = list(of)
        few = frozenset(own).union(*(other._own for other in others))
        parts = list({id(part): part for other in others for part in other._parts}.values())
        if len(few) > _MOST_OWN:
            parts.append(few)
            few = frozenset()
        if len(parts) > _MOST_PARTS:
            parts.sort(key=len)  # the smaller ones are joined, two by two
            small, large = parts[:_MOST_OWN], parts[_MOST_OWN:]
            parts = [a | b for a, b in zip(small[::2], small[1::2], strict=True)] + large
        self._own: frozenset[int] = few
        self._parts: tuple[frozenset[int], ...] = tuple(parts)

    def __contains__(self, vertex: int) -> bool:
        return vertex in self._own or any(vertex in part for part in self._parts)

    def __bool__(self) -> bool:
        return bool(self._own or self._parts)

    def __iter__(self) -> Iterator[int]:
        yield from self._own
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        """Return the number of vertices, or more where parts overlap."""
        return len(self._own) + sum(map(len, self._parts))


class Cone(NamedTuple):
    """The sources of a number: results of contractions, inputs, states, shapes."""

    ends: Vertices
    inputs: Vertices
    has_state: bool
    has_shape: bool


_NOTHING = Cone(Vertices(), Vertices(), False, False)


class Cones:
    """The cones of a run, each computed when it is asked for; what is in it is asked for once."""

    def __init__(self, values: Values, roots: set[int]) -> None:
        """`roots` are the states; `ends` is to be filled with the ends of contractions."""
        self.ends: set[int] = set()
        self._values = values
        self._roots = roots
        self._known: dict[int, Cone] = {0: _NOTHING}

    def of(self, vertex: int) -> Cone:
        """Return the cone of a vertex; all that it is computed from must have been told of."""
        known, takes = self._known, self._values.takes
        todo = [vertex]
        while todo:
            at = todo[-1]
            if at in known:
                todo.pop()
                continue
            is_inner = self._is_inner(at)
            waiting = [each for each in takes[at] if each not in known] if is_inner else []
            if waiting:
                todo += waiting
                continue
            known[todo.pop()] = self._made(at, is_inner)
        return known[vertex]

    def _is_inner(self, at: int) -> bool:
        """Return whether what a vertex is computed from is in its cone as well."""
        values = self._values
        op = values.op[at]
        return (
            bool(op)
            and op not in SHAPES
            and (values.is_scalar_like(at) or (op in ELEMENTWISE and at not in self.ends))
        )

    def _made(self, at: int, is_inner: bool) -> Cone:
        values = self._values
        op = values.op[at]
        if op in SHAPES:
            return _NOTHING._replace(has_shape=True)
        if not op:
            if values.is_constant(at) and at not in self._roots:
                return _NOTHING
            return _NOTHING._replace(inputs=Vertices([at]), has_state=at in self._roots)
        own = [at] if at in self.ends or not is_inner else []
        if not is_inner:
            return _NOTHING._replace(ends=Vertices(own))
        parts = [self._known[each] for each in values.takes[at]]
        return Cone(
            Vertices(own, (part.ends for part in parts)),
            Vertices((), (part.inputs for part in parts)),
            any(part.has_state for part in parts),
            any(part.has_shape for part in parts),
        )
