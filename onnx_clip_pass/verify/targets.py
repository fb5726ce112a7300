"""What is to be checked: each recorded clip, its gradient in both models, and who reads it clipped.

The record says only which gradients are clipped and how. Who is to read the clipped value is
worked out here from the original, by walking forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnx_clip_pass.clips import Clip, clip_of
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
from onnx_clip_pass.verify.steps import levels

__all__ = ["Target", "targets_of"]

_ABOUT = ("gradient", "parameter", "graph")


@dataclass(slots=True)
class Target:
    """A clipped gradient.

    `scope` is the number of its body in both models; `name` is its name in the original, `raw` and
    `clipped` are the names in the rewritten model. `reads` are the reads of the original, as
    (number of the scope, node, slot), that must see the clipped value. `parameter` is the number of
    its parameter's scope, its name and dtype, for a clip that reads it, and `axes` those of a unit;
    `count` says of how many parameters it is the gradient, `level` of which step of its graph.
    """

    gradient: Gradient
    clip: Clip
    threshold_input: str | None
    parameter: tuple[int, str, int] | None
    axes: tuple[int, ...] | None
    count: int
    dtype: int
    scope: int
    name: str
    raw: str
    clipped: str
    reads: list[tuple[int, int, int]]
    outputs: frozenset[int]
    behind: set[tuple[int, str]]
    level: int = 0


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
    grouped: dict[Scope, dict[str, list[Read]]] = {}
    for (scope, name), group in groups.items():
        first, entry = group[0]
        # named outright, without a parameter: it is clipped for whoever reads it
        is_whole = any(each.get("parameter") == name for _, each in group)
        others = {
            sink
            for s in seen.found
            if not is_whole
            and (s.value.frame.scope, s.value.name) == (scope, name)
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
        raw, clipped = _names_after(after, number, name, record)
        clip = clip_of(entry)
        if any(formula.group is not None for formula in clip.formulas):
            grouped.setdefault(scope, {})[name] = reads
        if record.measures_only:
            reads = []
        values, outputs = reach(places, reads)
        targets.append(
            Target(
                gradient=first.gradient,
                clip=clip,
                threshold_input=entry.get("threshold_input"),
                parameter=_parameter(seen, first, clip, numbers),
                axes=_axes(before, first, clip),
                count=len({sighting.gradient.parameter.name for sighting, _ in group}),
                dtype=first.type.dtype or int(TensorProto.FLOAT),
                scope=number,
                name=name,
                raw=raw,
                clipped=clipped,
                reads=[(numbers[id(r.scope)], r.node, r.slot) for r in reads],
                outputs=frozenset(outputs),
                behind={(numbers[id(s)], n) for s, n in values},
            )
        )
    for scope, reads_of in grouped.items():
        found = levels(before, scope, reads_of)
        for target in targets:
            if target.scope == numbers[id(scope)]:
                target.level = found.get(target.name, 0)
    return targets


def _parameter(
    seen: Survey, sighting: Sighting, clip: Clip, numbers: dict[int, int]
) -> tuple[int, str, int] | None:
    parameter = sighting.parameter
    if parameter is None or not any(formula.reads_parameter for formula in clip.formulas):
        return None
    dtype = seen.flow.dtype(parameter) or sighting.type.dtype or int(TensorProto.FLOAT)
    return numbers[id(parameter.frame.scope)], parameter.name, dtype


def _axes(index: Index, sighting: Sighting, clip: Clip) -> tuple[int, ...] | None:
    if sighting.parameter is None or not any(formula.reads_parameter for formula in clip.formulas):
        return None
    found = unit_axes(index, sighting.parameter)
    return None if isinstance(found, str) else found


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


def _names_after(after: Index, number: int, name: str, record: Record) -> tuple[str, str]:
    """The names of the raw and the clipped value in the rewritten model."""
    scope = after.scopes[number]
    added = set(record.nodes)
    for new, old in record.renamed.items():
        if old == name and new in scope.names:
            node = scope.producer(new)
            is_result = node is not None and node.name in added
            return (name, new) if is_result else (new, name)
    return name, name
