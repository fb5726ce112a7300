"""Places for the boxes of a small graph, in layers from left to right.

The steps are those of Sugiyama, Tagawa and Toda (1981): layers by longest paths, an order within
each layer with few crossings, then places. Arrows over several layers bend at points between them,
which are placed as boxes are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Place", "Placed", "placed"]

_SWEEPS = 8
_PASSES = 60
_STRAIGHT = 4.0  # times as much as other arrows, those between bends pull


@dataclass(frozen=True, slots=True)
class Place:
    """The middle of a box."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Placed:
    """Places of boxes, and for each arrow the points between its ends; all within the size."""

    boxes: list[Place]
    bends: list[list[Place]]
    width: float
    height: float


def placed(
    sizes: Sequence[tuple[float, float]],
    arrows: Sequence[tuple[int, int]],
    *,
    between: float = 28,
    apart: float = 14,
) -> Placed:
    """Places for boxes of these widths and heights.

    Args:
        sizes: of each box.
        arrows: from which box to which; without a cycle.
        between: the space between two layers.
        apart: the space between two boxes of a layer.
    """
    layer = _layers(len(sizes), arrows)
    heights = [height for _, height in sizes]
    links: list[tuple[int, int, float]] = []
    chains = []
    for source, target in arrows:
        chain = [source]
        for at in range(layer[source] + 1, layer[target]):
            chain.append(len(layer))
            layer.append(at)
            heights.append(4)
        chain.append(target)
        chains.append(chain)
        inner = range(len(sizes), len(layer))
        links += [
            (a, b, _STRAIGHT if a in inner and b in inner else 1.0) for a, b in pairwise(chain)
        ]
    layers: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for box, at in enumerate(layer):
        layers[at].append(box)
    near = _neighbours(links)
    _untangle(layers, near)
    y = _heights(layers, heights, near, apart)
    widest = [max((sizes[b][0] for b in boxes if b < len(sizes)), default=0) for boxes in layers]
    left = 0.0
    middles = []
    for width in widest:
        middles.append(left + width / 2)
        left += width + between
    top = min((y[b] - heights[b] / 2 for b in range(len(y))), default=0)
    places = [Place(middles[layer[b]], y[b] - top) for b in range(len(layer))]
    bottom = max((place.y + heights[b] / 2 for b, place in enumerate(places)), default=0)
    bends = []
    for chain in chains:  # level past the whole of a layer, so that no box of it is crossed
        sides = [(box, side) for box in chain for side in (-1, 1)][1:-1]
        bends.append(
            [Place(places[b].x + side * widest[layer[b]] / 2, places[b].y) for b, side in sides]
        )
    return Placed(places[: len(sizes)], bends, max(left - between, 0), bottom)


def _layers(count: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each box: behind all that leads to it; a start stands just before its first."""
    after: dict[int, list[int]] = defaultdict(list)
    waiting = [0] * count
    for source, target in arrows:
        after[source].append(target)
        waiting[target] += 1
    layer = [0] * count
    ready = [box for box in range(count) if not waiting[box]]
    starts = ready[:]
    for box in ready:  # grows while it is read
        for target in after[box]:
            layer[target] = max(layer[target], layer[box] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if len(ready) < count:
        raise ValueError("the arrows form a cycle")
    for box in starts[1:]:  # the first is what the drawing begins with
        if after[box]:
            layer[box] = min(layer[target] for target in after[box]) - 1
    return layer


def _neighbours(
    links: Sequence[tuple[int, int, float]],
) -> dict[int, list[tuple[int, float]]]:
    near: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for a, b, weight in links:
        near[a].append((b, weight))
        near[b].append((a, weight))
    return near


def _untangle(layers: list[list[int]], near: dict[int, list[tuple[int, float]]]) -> None:
    """Order each layer by the means of the neighbours' places, down and up again."""
    rank = {box: float(at) for boxes in layers for at, box in enumerate(boxes)}
    best, fewest = [boxes[:] for boxes in layers], _crossings(layers, near)
    for sweep in range(_SWEEPS):
        for number in range(len(layers))[:: 1 if sweep % 2 == 0 else -1]:
            side = number - 1 if sweep % 2 == 0 else number + 1
            others = set(layers[side]) if 0 <= side < len(layers) else set()
            mean = {}
            for box in layers[number]:
                there = [rank[other] for other, _ in near[box] if other in others]
                mean[box] = sum(there) / len(there) if there else rank[box]
            layers[number].sort(key=lambda box: mean[box])
            rank.update({box: float(at) for at, box in enumerate(layers[number])})
        if (now := _crossings(layers, near)) < fewest:
            best, fewest = [boxes[:] for boxes in layers], now
    layers[:] = best


def _crossings(layers: list[list[int]], near: dict[int, list[tuple[int, float]]]) -> int:
    """The number of pairs of arrows that cross."""
    total = 0
    for left, right in pairwise(layers):
        at = {box: place for place, box in enumerate(right)}
        ends = [
            (place, at[other])
            for place, box in enumerate(left)
            for other, _ in near[box]
            if other in at
        ]
        total += sum((a - c) * (b - d) < 0 for n, (a, b) in enumerate(ends) for c, d in ends[:n])
    return total


def _heights(
    layers: list[list[int]],
    heights: Sequence[float],
    near: dict[int, list[tuple[int, float]]],
    apart: float,
) -> list[float]:
    """The middle of each box: near those of its neighbours, in the order and the space of a layer.

    Each pass moves the boxes of a layer to the medians of their neighbours, which keeps more arrows
    straight than the means, as near as the order allows in least squares (isotonic regression by
    pooling).
    """
    y = [0.0] * len(heights)
    for boxes in layers:
        top = 0.0
        for box in boxes:
            y[box] = top + heights[box] / 2
            top += heights[box] + apart
        for box in boxes:
            y[box] -= (top - apart) / 2
    for number in range(_PASSES):
        for boxes in layers[:: 1 if number % 2 == 0 else -1]:
            offset, wished, weights = 0.0, [], []
            offsets = []
            for at, box in enumerate(boxes):
                if at:
                    offset += heights[boxes[at - 1]] / 2 + apart + heights[box] / 2
                offsets.append(offset)
                wished.append(_median([(y[o], w) for o, w in near[box]], y[box]) - offset)
                weights.append(sum(w for _, w in near[box]) or 1e-6)
            for box, start, extra in zip(boxes, _ascending(wished, weights), offsets, strict=True):
                y[box] = start + extra
    return y


def _median(values: list[tuple[float, float]], now: float) -> float:
    """The weighted median; where it is any of an interval, the one that is nearest to `now`."""
    values.sort()
    half, below = sum(weight for _, weight in values) / 2, 0.0
    for at, (value, weight) in enumerate(values):
        below += weight
        if below > half:
            return value
        if below == half:
            return min(max(now, value), values[at + 1][0])
    return now


def _ascending(wished: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The numbers that never fall and are nearest to these in weighted least squares."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(wished, weights, strict=True):
        mean, total, size = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, heavy, many = pools.pop()
            mean = (before * heavy + mean * total) / (heavy + total)
            total, size = total + heavy, size + many
        pools.append((mean, total, size))
    return [mean for mean, _, size in pools for _ in range(size)]
