"""Gradients that are clipped together: those of a group that belong to the same step.

Worked out from the original by walking forward, apart from what a rewrite does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx_clip_pass.clips import Clip, shared_norms
from onnx_clip_pass.graph import OUTPUT, Index, Read, Scope

__all__ = ["components", "unrolled_steps"]


def unrolled_steps(
    index: Index,
    scope: Scope,
    reads: Mapping[str, Sequence[Read]],
    parameters: Mapping[str, Collection[str]],
) -> dict[str, int]:
    """The step of each gradient of a scope, from 0.

    Args:
        index: the original.
        scope: where they are values.
        reads: of each gradient that has a norm in common with others, those that see it clipped.
        parameters: the names of the parameters of each gradient.

    Returns:
        One more than the highest of those from whose clipped values a gradient is computed, and no
        less than how many gradients of its parameter are computed before it.
    """
    behind = {name: _behind(index, scope, own) for name, own in reads.items()}
    found: dict[str, int] = {}
    earlier: Counter[str] = Counter()
    for name in sorted(reads, key=lambda name: scope.producers.get(name, (-1, 0))):
        clipped = [found[other] + 1 for other in found if name in behind[other]]
        found[name] = max([*clipped, *(earlier[own] for own in parameters[name])])
        earlier.update(parameters[name])
    return found


def _behind(index: Index, scope: Scope, reads: Iterable[Read]) -> set[str]:
    """The values of a scope that these reads lead to within one run of it."""
    todo = list(reads)
    values: set[str] = set()
    for read in todo:  # grows while it is read
        number = read.node if read.scope is scope else read.scope.number_in(scope)
        if number == OUTPUT:
            continue
        for name in scope.nodes[number].output:
            if name and name not in values:
                values.add(name)
                todo += index.readers_of(scope, name)
    return values


def components(clips: Sequence[tuple[Clip, int, str, int]]) -> list[list[int]]:
    """The numbers of clips that share norms or a gradient, directly or through others.

    Args:
        clips: each clip with the number of its gradient's scope, the gradient's name, and its step.
    """
    owner: dict[object, int] = {}
    root = list(range(len(clips)))

    def find(number: int) -> int:
        while root[number] != number:
            number = root[number]
        return number

    for number, (clip, scope, name, unrolled_step) in enumerate(clips):
        for key in ((scope, name), *shared_norms(clip.formulas, (scope, unrolled_step))):
            if key is not None:
                root[find(number)] = find(owner.setdefault(key, number))
    found: dict[int, list[int]] = {}
    for number in range(len(clips)):
        found.setdefault(find(number), []).append(number)
    return list(found.values())
