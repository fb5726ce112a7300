"""What is to be checked: each recorded clip, its gradient in both models, and who reads it clipped.

The record says only which gradients are clipped and how. Who is to read the clipped value is
worked out here from the original, by walking forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_clip_pass import clips
from onnx_clip_pass.gradients import (
    Gradient,
    Sighting,
    Survey,
    name_gradients,
    survey,
    unit_axes,
)
from onnx_clip_pass.graph import BY_NAME, Index, Read, Scope
from onnx_clip_pass.record import Record
from onnx_clip_pass.verify.reach import Places, reach

__all__ = ["Target", "targets_of"]

_ABOUT = ("gradient", "parameter", "graph")


@dataclass(slots=True)
class Target:
    """A clipped gradient.

    `scope` is the number of its body in both models; `name` is its name in the original, `raw` and
    `clipped` are the names in the rewritten model. `reads` are the reads of the original, as
    (number of the scope, node, slot), that must see the clipped value; `behind` is what they
    lead to, and `ahead` the part of it within an iteration and a call. `count` says of how many
    parameters it is the gradient, `level` of which step; `parameter` is where the parameter is that
    its clip reads, as (number of the scope, name, dtype), and `axes` those of a unit.
    """

    gradient: Gradient
    clip: clips.Clip
    threshold_input: str | None
    nonfinite: Any
    dtype: int
    scope: int
    name: str
    raw: str
    clipped: str
    reads: list[tuple[int, int, int]]
    outputs: frozenset[int]
    behind: set[tuple[int, str]]
    ahead: set[tuple[int, str]]
    is_clipped: bool
    count: int
    parameter: tuple[int, str, int] | None
    axes: tuple[int, ...] | None
    level: int = 0

    @property
    def formulas(self) -> tuple[clips.Formula, ...]:
        """What is applied one after another."""
        return self.clip.formulas

    def slices(self, array: NDArray[Any], loops: int) -> list[NDArray[Any]]:
        """The gradients in what came out: one an iteration, and one a seed."""
        found = [array[at] for at in np.ndindex(array.shape[:loops])]
        if self.gradient.has_seeds:
            found = [np.asarray(x[..., s]) for x in found for s in range(x.shape[-1])]
        return [np.asarray(x) for x in found]

    def joined(
        self, slices: Iterator[NDArray[Any]], like: NDArray[Any], loops: int
    ) -> NDArray[Any]:
        """The way back: as many of the slices as it takes in the shape of `like`."""
        result = np.array(like)
        for at in np.ndindex(like.shape[:loops]):
            if not self.gradient.has_seeds:
                result[at] = next(slices)
                continue
            for seed in range(like.shape[-1]):
                result[(*at, ..., seed)] = next(slices)
        return result


def targets_of(before: Index, after: Index, record: Record) -> list[Target]:
    """The recorded clips as targets.

    Raises:
        OnnxClipError: the record names a clip that this version does not know, or a gradient that
            the original does not have.
    """
    seen, sightings = _sightings(before, record)
    places = Places(before)
    numbers = {id(scope): number for number, scope in enumerate(before.scopes)}
    gradients = {(s.value.frame.scope, s.value.name) for s in (*seen.found, *sightings)}
    ends = {(value.frame.scope, value.name) for value in seen.updates}
    groups: dict[tuple[Scope, str], list[tuple[Sighting, dict[str, Any]]]] = {}
    for sighting, entry in zip(sightings, record.clips, strict=True):
        key = (sighting.value.frame.scope, sighting.value.name)
        groups.setdefault(key, []).append((sighting, entry))
    targets = []
    for (scope, name), group in groups.items():
        first, entry = group[0]
        others = {
            sink
            for s in seen.found
            if (s.value.frame.scope, s.value.name) == (scope, name)
            and all(s.gradient.parameter != taken.gradient.parameter for taken, _ in group)
            for sink in s.sinks
        }
        reads = [
            read
            for read in before.readers_of(scope, name)
            if read.slot != BY_NAME
            and not _is_backward(places, read, (scope, name), gradients, ends)
        ]
        if others:
            own = {Read(k.frame.scope, k.node, k.slot) for s, _ in group for k in s.sinks}
            reads = [read for read in reads if _leads_to(places, read, own)]
        number = numbers[id(scope)]
        raw, clipped, is_clipped = _names_after(after, number, name, record)
        values, outputs = reach(places, reads)
        ahead, _ = reach(places, reads, next_iterations=False, other_calls=False)
        clip = clips.clip_of(entry)
        parameter, axes = _parameter_of(before, first, clip, numbers)
        targets.append(
            Target(
                gradient=first.gradient,
                clip=clip,
                threshold_input=entry.get("threshold_input"),
                nonfinite=record.nonfinite,
                dtype=first.type.dtype or int(TensorProto.FLOAT),
                scope=number,
                name=name,
                raw=raw,
                clipped=clipped,
                reads=[(numbers[id(r.scope)], r.node, r.slot) for r in reads],
                outputs=frozenset(outputs),
                behind={(numbers[id(s)], n) for s, n in values},
                ahead={(numbers[id(s)], n) for s, n in ahead},
                is_clipped=is_clipped,
                count=len({entry.get("parameter") for _, entry in group}),
                parameter=parameter,
                axes=axes,
            )
        )
    _set_levels(targets)
    return targets


def _set_levels(targets: list[Target]) -> None:
    """One above the gradients that are clipped on the way to it: a later step."""
    for _ in targets:  # as many steps as there can be
        for target in targets:
            before = [t for t in targets if (target.scope, target.name) in t.ahead]
            target.level = max((t.level + 1 for t in before if t is not target), default=0)


def _parameter_of(
    index: Index, sighting: Sighting, clip: clips.Clip, numbers: dict[int, int]
) -> tuple[tuple[int, str, int] | None, tuple[int, ...] | None]:
    found = sighting.parameter
    if not clip.reads_parameter or found is None:
        return None, None
    axes = unit_axes(index, found)
    dtype = found.type.dtype if found.type is not None else sighting.type.dtype
    place = (numbers[id(found.frame.scope)], found.name, dtype)
    return place, axes if isinstance(axes, tuple) else None


def _sightings(index: Index, record: Record) -> tuple[Survey, list[Sighting]]:
    seen = survey(index)
    known = {
        (s.gradient.name, s.gradient.parameter.name, s.gradient.graph): s
        for s in (*seen.of_data, *seen.found)
    }
    found = []
    for entry in record.clips:
        name, parameter, graph = (str(entry.get(about)) for about in _ABOUT)
        key = (name, parameter, graph)
        if key not in known:
            wanted = {name: None if parameter == name else parameter}
            named = name_gradients(index, wanted)
            seen = seen._replace(updates=seen.updates | named.updates)
            known[key] = named.found[0]
        found.append(known[key])
    return seen, found


def _is_backward(
    places: Places,
    read: Read,
    own: tuple[Scope, str],
    gradients: set[tuple[Scope, str]],
    ends: set[tuple[Scope, str]],
) -> bool:
    """Whether another gradient of the same step is computed through this read."""
    values, _ = reach(places, [read], stop=ends | gradients, next_iterations=False)
    return not values.isdisjoint(gradients - {own} - ends)


def _leads_to(places: Places, read: Read, sinks: set[Read]) -> bool:
    values, _ = reach(places, [read])
    return read in sinks or any(
        further in sinks for place in values for further in places.index.readers_of(*place)
    )


def _names_after(after: Index, number: int, name: str, record: Record) -> tuple[str, str, bool]:
    """The names of the raw and the clipped value in the rewritten model; whether they differ."""
    scope = after.scopes[number]
    added = set(record.nodes)
    for new, old in record.renamed.items():
        if old == name and new in scope.names:
            node = scope.producer(new)
            is_result = node is not None and node.name in added
            return (name, new, True) if is_result else (new, name, True)
    return name, name, False
