"""The subjects of checks: recorded clips, their gradients in both models, and who reads those.

The record says only which gradients are clipped and how. Who is to read the clipped value is
worked out here from the original, by walking forward.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx_clip_pass.clips import Clip, clip_from_dict
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import (
    FoundGradient,
    Gradient,
    Survey,
    name_gradients,
    survey,
    unit_axes,
)
from onnx_clip_pass.graph import BY_NAME, Index, Read, Scope
from onnx_clip_pass.graph.dtypes import dtype_of
from onnx_clip_pass.graph.spec import FLOAT
from onnx_clip_pass.record import ClipEntry, Record
from onnx_clip_pass.verification.static.reach import ValueRef, reach
from onnx_clip_pass.verification.static.reads import Readers
from onnx_clip_pass.verification.static.unrolled import unrolled_steps

__all__ = ["Target", "targets_of"]

_Group = list[tuple[FoundGradient, ClipEntry]]
"""Gradients of one value, each with its entry in the record."""


@dataclass(slots=True)
class Target:
    """A clip of a gradient; a value that several parameters share can have several.

    `scope` is the number of its graph in both models; `name` is its name in the original, `raw` and
    `clipped` are the names in the rewritten model. `reads` are the reads of the original, as
    (number of the scope, node, slot), that must see the clipped value; `misread` says which reads
    of it do not see what they must. `state` is the input that is the history of norms of a clip
    that keeps one. `parameter` is the number of its parameter's scope, its name
    and dtype, for a clip that reads it, and `axes` those of a unit; `count` says of how many
    parameters it is the gradient, `unrolled_step` which of the unrolled steps of its graph.
    """

    gradient: Gradient
    clip: Clip
    threshold_input: str | None
    state: str | None
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
    misread: list[str] = field(default_factory=list)
    unrolled_step: int = 0


def targets_of(before: Index, after: Index, record: Record) -> list[Target]:
    """The recorded clips as targets.

    Which gradients are known decides who is in the backward pass: those that the caller named, or
    else all that a search finds.

    Raises:
        OnnxClipError: the record names a clip that this version does not know, or a gradient that
            the original does not have.
    """
    if record.named is None:
        seen = survey(before, record.optimizer_ops).answered(record.answers)
    else:
        seen = name_gradients(before, record.named, record.optimizer_ops)
    known = {
        (s.gradient.name, s.gradient.parameter.name, s.gradient.graph): s
        for s in (*seen.of_data, *seen.found)
    }
    found_gradients = []
    for entry in record.clips:
        name, parameter, graph = entry.gradient, entry.parameter, entry.graph
        if (name, parameter, graph) not in known:
            raise OnnxClipError(
                f"the record says that {name!r} is clipped as the gradient of {parameter!r}, which "
                f"it is not in the original; use the original of this model, and the version of "
                f"onnx-clip that rewrote it"
            )
        found_gradients.append(known[name, parameter, graph])
    return _Reading(before, after, record, seen).targets(found_gradients)


class _Reading:
    """Reads the targets off both models."""

    def __init__(self, before: Index, after: Index, record: Record, seen: Survey) -> None:
        self._before, self._after = before, after
        self._record = record
        self._seen = seen
        self._readers = Readers(after, record)
        self._added = set(record.nodes)
        self._ends = {(value.frame.scope, value.name) for value in seen.updates}
        self._gradients: set[ValueRef] = set()
        self._stops: set[ValueRef] = set()
        self._shared: dict[ValueRef, set[str]] = defaultdict(set)
        for found_gradient in seen.found:
            self._shared[_ref_of(found_gradient)].add(found_gradient.gradient.parameter.name)

    def targets(self, found_gradients: Iterable[FoundGradient]) -> list[Target]:
        groups: dict[ValueRef, _Group] = {}
        for found_gradient, entry in zip(found_gradients, self._record.clips, strict=True):
            groups.setdefault(_ref_of(found_gradient), []).append((found_gradient, entry))
        self._gradients = {*groups, *self._shared}
        self._stops = self._gradients | self._ends
        targets: list[Target] = []
        grouped: dict[Scope, dict[str, list[Read]]] = {}
        for ref, group in groups.items():
            made = self._targets_of(ref, group)
            for target, reads in made:
                if any(formula.group is not None for formula in target.clip.formulas):
                    grouped.setdefault(ref[0], {}).setdefault(ref[1], []).extend(reads)
            targets += [target for target, _ in made]
        for scope, reads_of in grouped.items():
            parameters = {
                name: {s.gradient.parameter.name for s, _ in groups[scope, name]}
                for name in reads_of
            }
            found = unrolled_steps(self._before, scope, reads_of, parameters)
            for target in targets:
                if target.scope == scope.at:
                    target.unrolled_step = found.get(target.name, 0)
        return targets

    def _targets_of(self, ref: ValueRef, group: _Group) -> list[tuple[Target, list[Read]]]:
        """One for each clip of a value, with the reads that lead to where its clip belongs."""
        scope, name = ref
        all_reads = [r for r in self._before.readers_of(scope, name) if r.slot != BY_NAME]
        reads = [read for read in all_reads if not self._is_backward(read, ref)]
        parts = self._parts(ref, group, reads)
        raw = parts[0].raw
        clipped: dict[Read, set[str]] = {}
        for part in parts:
            for read in () if self._record.measures_only else part.reads:
                clipped.setdefault(read, set()).add(part.clipped)
        made = [(self._target(ref, part), part.reads) for part in parts]
        made[0][0].misread += self._readers.misread(all_reads, clipped, raw)
        if not reads and not self._record.measures_only:
            made[0][0].misread.append("no update reads it: all that does computes other gradients")
        return made

    def _parts(self, ref: ValueRef, group: _Group, reads: list[Read]) -> list[_Part]:
        """The gradients that share a clip of this value.

        One clip serves all its reads, unless some of its parameters are to have another or none.
        """
        scope, name = ref
        now = self._after.scopes[scope.at]
        renamed = self._record.renamed.items()
        new = [new for new, old in renamed if old == name and new in now.names]
        recorded = {found_gradient.gradient.parameter.name for found_gradient, _ in group}
        if (
            self._shared[ref] <= recorded
            and len(new) <= 1
            and len({_facts(entry) for _, entry in group}) == 1
        ):
            raw, clipped = (new[0], name) if new else (name, name)
            made = now.producer(raw)
            if new and made is not None and made.name in self._added:
                raw, clipped = clipped, raw
            return [_Part(group, raw, clipped, reads)]
        parts: dict[tuple[str, str], _Part] = {}
        for found_gradient, entry in group:
            own = [read for read in reads if self._leads_to(read, found_gradient)]
            read_now = map(self._readers.name_at, own)
            clipped = next((n for n in read_now if n in new), new[0] if new else name)
            part = parts.setdefault((_facts(entry), clipped), _Part([], name, clipped, []))
            part.group.append((found_gradient, entry))
            part.reads += [read for read in own if read not in part.reads]
        # in the order in which a rewrite puts them in, which is that of the outputs they add
        return sorted(parts.values(), key=lambda part: min(map(reads.index, part.reads), default=0))

    def _target(self, ref: ValueRef, part: _Part) -> Target:
        first, entry = part.group[0]
        clip = clip_from_dict(entry.clip)
        reads = [] if self._record.measures_only else part.reads
        values, outputs = reach(self._before, reads)
        return Target(
            gradient=first.gradient,
            clip=clip,
            threshold_input=entry.threshold_input,
            state=entry.state,
            parameter=_parameter(self._seen, first, clip),
            axes=_axes(self._before, first, clip),
            count=len({found_gradient.gradient.parameter.name for found_gradient, _ in part.group}),
            dtype=first.type.dtype or FLOAT,
            scope=ref[0].at,
            name=ref[1],
            raw=part.raw,
            clipped=part.clipped,
            reads=[(r.scope.at, r.node, r.slot) for r in reads],
            outputs=frozenset(outputs),
            behind={(scope.at, name) for scope, name in values},
        )

    def _is_backward(self, read: Read, own: ValueRef) -> bool:
        """Return whether another gradient of the same step is computed through this read."""
        values, _ = reach(self._before, [read], stop=self._stops, next_iterations=False)
        return any(x in self._gradients and x != own and x not in self._ends for x in values)

    def _leads_to(self, read: Read, found_gradient: FoundGradient) -> bool:
        """Return whether its parameter is updated through this read, in the same step."""
        sinks = {Read(sink.frame.scope, sink.node, sink.slot) for sink in found_gradient.sinks}
        values, _ = reach(self._before, [read], stop=self._ends, next_iterations=False)
        return read in sinks or any(
            further in sinks
            for ref in values - self._ends
            for further in self._before.readers_of(*ref)
        )


@dataclass(slots=True)
class _Part:
    """The gradients of one value that are clipped alike, and the reads that are to see it."""

    group: _Group
    raw: str
    clipped: str
    reads: list[Read]


def _ref_of(found_gradient: FoundGradient) -> ValueRef:
    return found_gradient.value.frame.scope, found_gradient.value.name


def _facts(entry: ClipEntry) -> str:
    """All that an entry of the record says of its clip."""
    return json.dumps([entry.clip, entry.threshold_input, entry.state], sort_keys=True)


def _parameter(
    seen: Survey, found_gradient: FoundGradient, clip: Clip
) -> tuple[int, str, int] | None:
    parameter = found_gradient.parameter
    if parameter is None or not clip.reads_parameter:
        return None
    dtype = dtype_of(seen.flow, parameter) or found_gradient.type.dtype or FLOAT
    return parameter.frame.scope.at, parameter.name, dtype


def _axes(index: Index, found_gradient: FoundGradient, clip: Clip) -> tuple[int, ...] | None:
    if found_gradient.parameter is None or not clip.reads_parameter:
        return None
    found = unit_axes(index, found_gradient.parameter)
    return None if isinstance(found, str) else found
