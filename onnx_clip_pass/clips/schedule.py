"""In which order the formulas of several gradients act, where some have norms in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnx_clip_pass.clips.base import Formula
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["scheduled", "shared_norms"]

Key = tuple[str, int, object]


def shared_norms(formulas: Sequence[Formula], apart: object) -> list[Key | None]:
    """For each formula of a gradient what the gradients with that norm in common share.

    Where a chain has two norms of one group, the first of one gradient goes with the first of
    another. `apart` differs where gradients cannot have a norm in common, as in another step.
    """
    keys: list[Key | None] = []
    count: Counter[str] = Counter()
    for formula in formulas:
        group = formula.group
        if group is None:
            keys.append(None)
            continue
        keys.append((group, count[group], apart))
        count[group] += 1
    return keys


def scheduled(
    chains: Sequence[Sequence[Formula]], apart: Sequence[object]
) -> list[list[tuple[int, int]]]:
    """Lists of (number of the gradient, number of its formula) that act together, in order.

    A formula of one gradient alone acts when those before it have; a norm that several gradients
    share, when all of them have got there.

    Raises:
        OnnxClipError: two groups form a cycle.
    """
    keys = [shared_norms(chain, each) for chain, each in zip(chains, apart, strict=True)]
    members: dict[Key, int] = {}
    for own in keys:
        for key in own:
            if key is not None:
                members[key] = members.get(key, 0) + 1
    at = [0] * len(chains)
    found: list[list[tuple[int, int]]] = []
    waiting: dict[Key, list[tuple[int, int]]] = {}
    ready = list(range(len(chains)))
    for number in ready:  # grows while it is read
        while at[number] < len(keys[number]) and keys[number][at[number]] is None:
            found.append([(number, at[number])])
            at[number] += 1
        if at[number] == len(keys[number]):
            continue
        key = keys[number][at[number]]
        assert key is not None
        together = waiting.setdefault(key, [])
        together.append((number, at[number]))
        if len(together) == members[key]:
            found.append(waiting.pop(key))
            for other, _ in together:
                at[other] += 1
                ready.append(other)
    if waiting:
        names = " and ".join(sorted({repr(group) for group, _, _ in waiting}))
        raise OnnxClipError(
            f"the groups {names} form a cycle: chains have them in different orders; give "
            f"them one order"
        )
    return found
