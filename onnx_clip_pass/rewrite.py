"""Plan which gradient gets which clip, then put the nodes in.

Nothing is changed before everything is planned.

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

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from onnx_clip_pass._version import __version__
from onnx_clip_pass.clips import Clip, Emitter, NonFinite, NormPrecision, Numerics
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient, Sighting, Survey, name_gradients, survey
from onnx_clip_pass.graph import BY_NAME, OUTPUT, Editor, Index, Read, Scope, Value
from onnx_clip_pass.kernels import Need, missing
from onnx_clip_pass.record import Record, digest_of, undo, write_record
from onnx_clip_pass.selection import select

__all__ = ["Clipped", "GradientNames", "Report", "clip_gradients", "clip_in_place"]

GradientNames = Sequence[str] | Mapping[str, str] | None
"""Names of gradients, or gradient name to parameter name; None to search for them."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """A gradient and what was done to it: `clip` is None if it was left alone."""

    gradient: Gradient
    clip: Clip | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a rewrite did: every gradient found, in graph order, and what a user should know."""

    rows: tuple[Clipped, ...]
    warnings: tuple[str, ...] = ()
    replaced: bool = False

    @property
    def clipped(self) -> tuple[Clipped, ...]:
        """The gradients that are clipped."""
        return tuple(row for row in self.rows if row.clip is not None)


def clip_gradients(
    model: ModelProto,
    clip: Clip,
    *,
    gradients: GradientNames = None,
    skip: str | Sequence[str] = (),
    norm_precision: NormPrecision = "auto",
    nonfinite: NonFinite = "propagate",
) -> ModelProto:
    """Insert a clip behind the gradients of a training graph.

    Args:
        model: a training graph; it stays as it is.
        clip: what to do, and by its `need_clip` to which parameters' gradients.
        gradients: the gradients' names, if they are not to be searched for; a mapping also says
            their parameters.
        skip: patterns of parameters or gradients to leave out.
        norm_precision: "plain", one ReduceL2 in float32 (float64 for float64); "wide", everything
            in float64, for any size and magnitude; "auto", plain where its error stays below
            1e-5, else the cheapest form that keeps it.
        nonfinite: what becomes of a gradient with nan or inf in it: "propagate", what the formula
            gives, as in Paddle and PyTorch; "zero", zeros, all of it; "keep", it stays as it is.

    Returns:
        A new model. Its inputs and outputs are those of `model`; clipping a model that is clipped
        already gives what clipping the original would.

    Raises:
        OnnxClipError: no gradient is found, a selection matches nothing, or a gradient has a
            dtype, an opset or a place at which it cannot be clipped. All faults are named at once.
    """
    if not isinstance(model, ModelProto):
        raise OnnxClipError(
            f"expected a ModelProto, not {type(model).__name__}; for a file there is "
            f"clip_gradients_file"
        )
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    clip_in_place(
        rewritten,
        clip,
        gradients=gradients,
        skip=skip,
        numerics=Numerics(norm_precision, nonfinite),
    )
    return rewritten


def clip_in_place(
    model: ModelProto,
    clip: Clip,
    *,
    gradients: GradientNames = None,
    skip: str | Sequence[str] = (),
    numerics: Numerics | None = None,
) -> Report:
    """`clip_gradients` on the model itself; if it raises, the model may be left undone."""
    if not isinstance(clip, Clip):
        raise OnnxClipError(f"expected a clip such as GradientClipByNorm(1.0), not {clip!r}")
    with _without_collecting():
        return _clip(model, clip, gradients, skip, numerics or Numerics())


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Keep the garbage collector from going over millions of new objects that all live on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _clip(
    model: ModelProto,
    clip: Clip,
    gradients: GradientNames,
    skip: str | Sequence[str],
    numerics: Numerics,
) -> Report:
    replaced = undo(model)
    index = Index(model)
    seen = survey(index) if gradients is None else name_gradients(index, _as_mapping(gradients))
    sightings = _selected(seen, clip, skip)
    edits = _plan(index, seen, sightings, numerics)
    notes = _notes(seen, sightings)  # the index is out of date when edits are made
    editor = Editor(index)
    needs: set[Need] = set()
    for edit in edits:
        needs |= edit.apply(editor, numerics)
    editor.finish()
    rows = tuple(Clipped(sighting.gradient, chosen) for sighting, chosen in sightings)
    if any(row.clip for row in rows):
        write_record(model, _record(editor, edits, rows, numerics))
    return Report(rows, (*notes, *_lacking_kernels(needs)), replaced)


# -- which -------------------------------------------------------------------------------------


def _as_mapping(gradients: Sequence[str] | Mapping[str, str]) -> dict[str, str | None]:
    if isinstance(gradients, Mapping):
        return dict(gradients)
    if isinstance(gradients, str):
        raise OnnxClipError(f"gradients must be a list of names, not the string {gradients!r}")
    names = list(gradients) if hasattr(gradients, "__iter__") else []
    if not names or not all(isinstance(name, str) for name in names):
        raise OnnxClipError(f"gradients must be a list of names, at least one, not {gradients!r}")
    return dict.fromkeys(names)


def _selected(
    seen: Survey, clip: Clip, skip: str | Sequence[str]
) -> list[tuple[Sighting, Clip | None]]:
    if not seen.found and (clip.need_clip is None or not seen.of_data):
        raise OnnxClipError(nothing_found(seen))
    parameters = [sighting.gradient.parameter for sighting in seen.found]
    also = [sighting.gradient.parameter for sighting in seen.of_data]
    picked = set(select(parameters, clip.need_clip, skip, also=also))
    chosen: list[tuple[Sighting, Clip | None]] = [
        (sighting, clip if sighting.gradient.parameter in picked else None)
        for sighting in seen.found
    ]
    chosen += [
        (sighting, clip) for sighting in seen.of_data if sighting.gradient.parameter in picked
    ]
    return chosen


def nothing_found(seen: Survey) -> str:
    """What was looked for and what was there instead."""
    scope = seen.flow.index.main
    ops = {node.op_type for node in scope.nodes}
    if ops & {"AdamWOptimizer", "SGDOptimizerV2"}:
        return (
            "this is an optimizer model of ONNX Runtime training: its gradients come as one "
            "sequence without names; rewrite training_model.onnx of the same folder instead"
        )
    outputs = ", ".join(repr(name) for name in scope.outputs[:5]) or "none"
    more = " and more" if len(scope.outputs) > 5 else ""
    if seen.of_data:
        first = seen.of_data[0].gradient
        return (
            f"no gradients of parameters found, only of data: {first.name!r} ({first.evidence}); if "
            f"that is wrong, name it in need_clip"
        )
    return (
        "no gradients found: looked for accumulators, optimizer nodes, Gradient nodes, parameters "
        "updated in the graph, and values named after a parameter (W_grad, W.grad, grad_W, adj_W, "
        f"…) of its shape, in a graph with {len(scope.nodes)} nodes and the outputs {outputs}"
        f"{more}; if it has gradients, name them with --gradient (in Python: gradients=[…])"
    )


# -- where -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Edit:
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


def _plan(
    index: Index,
    seen: Survey,
    sightings: list[tuple[Sighting, Clip | None]],
    numerics: Numerics,
) -> list[_Edit]:
    values = [sighting.value for sighting, _ in sightings]
    backward = _backward_reads(index, seen, values)
    groups: dict[tuple[int, str], list[tuple[Sighting, Clip | None]]] = {}
    for sighting, clip in sightings:
        key = (id(sighting.value.frame.scope), sighting.value.name)
        groups.setdefault(key, []).append((sighting, clip))
    edits: list[_Edit] = []
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
    group: list[tuple[Sighting, Clip | None]],
    clip: Clip,
    raw: list[Read],
    others: list[Read],
    faults: list[str],
) -> _Edit:
    sightings = [sighting for sighting, _ in group]
    scope, name = sightings[0].value.frame.scope, sightings[0].value.name
    edit = _Edit(scope, name, clip, sightings, raw)
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
    group: list[tuple[Sighting, Clip | None]],
    others: list[Read],
    faults: list[str],
) -> list[_Edit]:
    ways = [_way_to_sinks(seen, sighting) for sighting, _ in group]
    edits: dict[int, _Edit] = {}
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
            edit = edits.setdefault(key, _Edit(scope, name, clip, sightings, [], []))
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


# -- what is said of it ------------------------------------------------------------------------


def _record(
    editor: Editor, edits: list[_Edit], rows: tuple[Clipped, ...], numerics: Numerics
) -> Record:
    clips: list[dict[str, Any]] = [
        {
            "gradient": row.gradient.name,
            "parameter": row.gradient.parameter.name,
            "graph": row.gradient.graph,
            "clip": type(row.clip).__name__,
            **row.clip.settings(),
        }
        for row in rows
        if row.clip is not None
    ]
    return Record(
        version=__version__,
        clips=clips,
        norm_precision=numerics.norm_precision,
        nonfinite=numerics.nonfinite,
        renamed=dict(edit.renamed for edit in edits),
        nodes=[node.name for node in editor.added.nodes],
        initializers=[tensor.name for tensor in editor.added.initializers],
        values=editor.added.values,
        digest=digest_of([*editor.added.nodes, *editor.added.initializers]),
    )


def _lacking_kernels(needs: set[Need]) -> list[str]:
    warnings = []
    for provider in ("CPU", "CUDA"):
        lacking = [
            f"{need.op_type} ({' to '.join(need.dtypes)}, opset {need.opset})"
            for need in missing(provider, needs)
        ]
        if lacking:
            warnings.append(
                f"ONNX Runtime's {provider} provider has no kernel for {', '.join(lacking)}: such "
                f"nodes run elsewhere, or not at all"
            )
    return warnings


def _notes(seen: Survey, sightings: list[tuple[Sighting, Clip | None]]) -> list[str]:
    warnings = []
    if any(clip and seen.is_accumulated(sighting.value) for sighting, clip in sightings):
        warnings.append(
            "accumulators follow the gradients: each micro-batch is clipped before it is added, "
            "not their sum"
        )
    dismissed = [s for s in seen.of_data if all(s is not taken for taken, _ in sightings)]
    for sighting in dismissed[:3]:
        warnings.append(
            f"{sighting.gradient.name} is left alone as the gradient of data "
            f"({sighting.gradient.evidence}); if that is wrong, name it in need_clip, with '*' for "
            f"all the others"
        )
    if len(dismissed) > 3:
        warnings.append(f"so are {len(dismissed) - 3} more")
    return warnings
