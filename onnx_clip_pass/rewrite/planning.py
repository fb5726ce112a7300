"""Where a clip goes in, decided for all gradients before any of it is done.

How a clip is put in, by the laws of docs/design.md:

1. The value's maker gives it a new name, and the clip's last node bears the old one, so that
   whoever reads the gradient reads the clipped one.
2. A read through which another gradient is computed goes to the new name: the raw value. So
   does a read by name in the attributes of a Gradient node.
3. A gradient that is an input of its graph keeps its name as the raw value, and its other reads
   go to the clipped one.
4. Where two parameters share a value and only one is clipped, the value stays as it is and the
   reads on that parameter's way to its update go to the clipped one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx_clip_pass.clips import Clip, Emitter, Numerics
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Sighting, Survey
from onnx_clip_pass.graph import BY_NAME, OUTPUT, Editor, Index, Read, Scope, Value
from onnx_clip_pass.kernels import Need
from onnx_clip_pass.rewrite.selecting import Chosen

__all__ = ["Edit", "plan"]


@dataclass(slots=True)
class Edit:
    """One clip to put in: behind `name` of `scope`, for all its reads or for some."""

    scope: Scope
    name: str
    clip: Clip
    sightings: list[Sighting]
    raw_reads: list[Read]
    redirected: list[Read] | None = None
    renamed: tuple[str, str] = ("", "")

    def apply(self, editor: Editor, numerics: Numerics) -> set[Need]:
        """Put the clip in; the kernels that its nodes need."""
        gradient = self.sightings[0].gradient
        scope, name = self.scope, self.name
        if self.redirected is None:  # rules 1 and 2
            source, target = editor.fresh(f"clip/{name}/raw"), name
            editor.rename_producer(scope, name, source)
            editor.redirect(self.raw_reads, name, source)
            editor.declare(scope, source, self.sightings[0].type)
            self.renamed = (source, name)
        else:  # rules 3 and 4
            source, target = name, editor.fresh(f"clip/{name}/clipped")
            editor.redirect(self.redirected, name, target)
            editor.declare(scope, target, self.sightings[0].type)
            self.renamed = (target, name)
        position = scope.producers[name][0] + 1 if name in scope.producers else 0
        dtype = self.sightings[0].type.dtype
        emitter = Emitter(editor, scope, position, name, source, target, dtype, numerics)
        self.clip.emit(gradient, emitter)
        return emitter.needs


def plan(
    index: Index,
    seen: Survey,
    sightings: Chosen,
    numerics: Numerics,
) -> list[Edit]:
    """The edits that put the clips in.

    Raises:
        OnnxClipError: some gradient cannot be clipped; all reasons are named.
    """
    values = [sighting.value for sighting, _ in sightings]
    backward = _backward_reads(index, seen, values)
    groups: dict[tuple[int, str], Chosen] = {}
    for sighting, clip in sightings:
        key = (id(sighting.value.frame.scope), sighting.value.name)
        groups.setdefault(key, []).append((sighting, clip))
    edits: list[Edit] = []
    faults: list[str] = []
    for group in groups.values():
        clips = {id(clip): clip for _, clip in group}
        wanted = [clip for clip in clips.values() if clip is not None]
        if not wanted:
            continue
        first = group[0][0]
        faults += _faults(first, wanted, numerics)
        if all(clip.is_identity for clip in wanted) and numerics.nonfinite != "zero":
            continue
        readers = index.readers_of(first.value.frame.scope, first.value.name)
        raw = [read for read in readers if read in backward or read.slot == BY_NAME]
        others = [read for read in readers if read not in backward and read.slot != BY_NAME]
        if len(clips) == 1:
            edits.append(_edit_for_all(group, wanted[0], raw, others, faults))
        else:
            edits += _edits_for_some(seen, group, others, faults)
    if faults:
        raise OnnxClipError("this model cannot be clipped:", dict.fromkeys(faults))
    return edits


def _backward_reads(index: Index, seen: Survey, values: list[Value]) -> set[Read]:
    """The reads of gradients through which other gradients are computed."""
    watched = {
        value
        for value in values
        if value.frame.caller is not None
        or any(read.node != OUTPUT for read in index.readers_of(value.frame.scope, value.name))
    }
    if not watched:
        return set()
    _, reads = seen.flow.ancestors(values, seen.updates.__contains__, watched=watched)
    return reads


def _faults(sighting: Sighting, clips: Iterable[Clip], numerics: Numerics) -> list[str]:
    gradient, scope = sighting.gradient, sighting.value.frame.scope
    where = f"{gradient.name!r}" + (f" in {gradient.graph}" if gradient.graph else "")
    if scope.opset is None:
        return [f"gradient {where}: its graph imports no version of the default operator set"]
    found = (clip.fault(gradient, scope.opset, numerics) for clip in clips)
    return [f"gradient {where}: {fault}" for fault in found if fault is not None]


def _edit_for_all(
    group: Chosen,
    clip: Clip,
    raw: list[Read],
    others: list[Read],
    faults: list[str],
) -> Edit:
    sightings = [sighting for sighting, _ in group]
    scope, name = sightings[0].value.frame.scope, sightings[0].value.name
    edit = Edit(scope, name, clip, sightings, raw)
    if name not in scope.producers and name in scope.inputs:
        edit.redirected = others
        if any(read.node == OUTPUT and read.scope is scope for read in others):
            faults.append(
                f"gradient {name!r} is an input and an output of the same graph: it can have "
                f"only one value under that name; hand it out under another one"
            )
    elif name not in scope.producers and name not in scope.initializers:
        faults.append(f"gradient {name!r} is a sparse initializer, which cannot be clipped")
    return edit


def _edits_for_some(
    seen: Survey,
    group: Chosen,
    others: list[Read],
    faults: list[str],
) -> list[Edit]:
    ways = [_way_to_sinks(seen, sighting) for sighting, _ in group]
    edits: dict[int, Edit] = {}
    for read in others:
        takers = [pair for pair, way in zip(group, ways, strict=True) if read in way] or group
        clips = {id(clip): clip for _, clip in takers}
        if len(clips) > 1:
            names = " and ".join(repr(sighting.gradient.parameter.name) for sighting, _ in group)
            place = "an output" if read.node == OUTPUT else "a node"
            faults.append(
                f"gradient {group[0][0].value.name!r} belongs to the parameters {names}, which "
                f"are to be clipped differently, but {place} takes it for both; clip both or none"
            )
            continue
        ((key, clip),) = clips.items()
        if clip is not None:
            sightings = [sighting for sighting, chosen in group if chosen is clip]
            scope, name = sightings[0].value.frame.scope, sightings[0].value.name
            edit = edits.setdefault(key, Edit(scope, name, clip, sightings, [], []))
            assert edit.redirected is not None
            edit.redirected.append(read)
    return list(edits.values())


def _way_to_sinks(seen: Survey, sighting: Sighting) -> set[Read]:
    """The reads by which a gradient gets to where its parameter's optimizer takes it up."""
    way: set[Read] = set()
    for sink in sighting.sinks:
        scope = sink.frame.scope
        way.add(Read(scope, sink.node, sink.slot))
        taken = seen.flow.resolve(sink.frame, scope.nodes[sink.node].input[sink.slot])
        if taken is not None:
            _, reads = seen.flow.ancestors(
                [taken], lambda value: value == sighting.value, watched={sighting.value}
            )
            way |= reads
    return way
