"""What is to be checked: each recorded clip, its gradient in both models, and who reads it clipped.

The record says only which gradients are clipped and how. Who is to read the clipped value is
worked out here from the original, by walking forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_clip_pass import clips
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient, Sighting, Survey, name_gradients, survey
from onnx_clip_pass.graph import BY_NAME, Index, Read, Scope
from onnx_clip_pass.record import Record
from onnx_clip_pass.verify.reach import Places, reach

__all__ = ["Target", "targets_of"]

_ABOUT = ("gradient", "parameter", "graph", "clip")


@dataclass(slots=True)
class Target:
    """A clipped gradient.

    `scope` is the number of its body in both models; `name` is its name in the original, `raw` and
    `clipped` are the names in the rewritten model. `reads` are the reads of the original, as
    (number of the scope, node, slot), that must see the clipped value.
    """

    gradient: Gradient
    clip: clips.Clip
    nonfinite: Any
    dtype: int
    scope: int
    name: str
    raw: str
    clipped: str
    reads: list[tuple[int, int, int]]
    outputs: frozenset[int]
    behind: set[tuple[int, str]]
    is_clipped: bool

    def slices(self, array: NDArray[Any], loops: int) -> list[NDArray[Any]]:
        """The gradients in what came out: one an iteration, and one a seed."""
        found = [array[at] for at in np.ndindex(array.shape[:loops])]
        if self.gradient.has_seeds:
            found = [np.asarray(x[..., s]) for x in found for s in range(x.shape[-1])]
        return [np.asarray(x) for x in found]

    def reference_of_one(self, array: NDArray[Any]) -> NDArray[Any]:
        """The clip on one of the `slices`, in float64."""
        return np.asarray(self.clip.reference(array, nonfinite=self.nonfinite))

    def reference(self, array: NDArray[Any], loops: int = 0) -> NDArray[Any]:
        """The clip on each of them, in float64."""
        if loops == 0 and not self.gradient.has_seeds:
            return self.reference_of_one(array)
        result = np.array(array)
        for at in np.ndindex(array.shape[:loops]):
            x = array[at]
            if not self.gradient.has_seeds or x.ndim == 0:
                result[at] = self.reference_of_one(np.asarray(x))
                continue
            for seed in range(x.shape[-1]):
                one = np.asarray(x[..., seed])
                result[(*at, ..., seed)] = self.reference_of_one(one)
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
        targets.append(
            Target(
                gradient=first.gradient,
                clip=_clip_of(entry),
                nonfinite=getattr(record, "nonfinite", "propagate"),
                dtype=first.type.dtype or int(TensorProto.FLOAT),
                scope=number,
                name=name,
                raw=raw,
                clipped=clipped,
                reads=[(numbers[id(r.scope)], r.node, r.slot) for r in reads],
                outputs=frozenset(outputs),
                behind={(numbers[id(s)], n) for s, n in values},
                is_clipped=is_clipped,
            )
        )
    return targets


def _sightings(index: Index, record: Record) -> tuple[Survey, list[Sighting]]:
    seen = survey(index)
    known = {
        (s.gradient.name, s.gradient.parameter.name, s.gradient.graph): s
        for s in (*seen.of_data, *seen.found)
    }
    found = []
    for entry in record.clips:
        name, parameter, graph = (str(entry.get(about)) for about in _ABOUT[:3])
        key = (name, parameter, graph)
        if key not in known:
            wanted = {name: None if parameter == name else parameter}
            named = name_gradients(index, wanted)
            seen = seen._replace(updates=seen.updates | named.updates)
            known[key] = named.found[0]
        found.append(known[key])
    return seen, found


def _clip_of(entry: dict[str, Any]) -> clips.Clip:
    settings = {name: value for name, value in entry.items() if name not in _ABOUT}
    kind = getattr(clips, str(entry.get("clip")), None)
    try:
        if not isinstance(kind, type) or not issubclass(kind, clips.Clip):
            raise TypeError(f"there is no clip {entry.get('clip')!r}")
        return kind(**settings)
    except TypeError as error:
        raise OnnxClipError(
            f"the record holds a clip that this version does not know: {error}; use the version "
            f"that wrote it"
        ) from error


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
