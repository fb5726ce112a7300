"""The clip alone as a model: gradients in, clipped gradients out.

For gradients that do not stay in one graph: averaged over workers, kept by a training loop, made by
something else than ONNX. The nodes are those that a rewrite would put into the graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from onnx_clip_pass.arguments import check_flags, check_model, check_path
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.errors import OnnxClipError, warn
from onnx_clip_pass.extract.sharding import NAMES, Cut, Phase, ShardAxis, Sharding
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.graph import Editor, Index, TensorType
from onnx_clip_pass.graph.spec import FLOATING
from onnx_clip_pass.options import takes_options
from onnx_clip_pass.record import is_clipped, note_states
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Clipped,
    Decide,
    Made,
    Options,
    PlannedEdits,
    Report,
    emit,
    plan_edits,
    report_of,
)
from onnx_clip_pass.saving import beside
from onnx_clip_pass.storage import (
    Structure,
    check_replaceable,
    errors_name,
    file_at,
    holds,
    locations,
    open_model,
    recover,
    write_bytes,
)
from onnx_clip_pass.validity import blaming

__all__ = ["Phase", "ShardAxis", "extract_clip", "extract_clip_file"]

_Path = str | os.PathLike[str]
_PRODUCER = "onnx_clip_pass.extract"


@takes_options(Options, "measure_only")
def extract_clip(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    phase: Phase | None = None,
    shard_axis: ShardAxis = None,
    replicated: str | Sequence[str] = (),
    probe: bool | Decide = False,
    **options: Unpack[Options],
) -> ModelProto:
    """The clip of a training graph as a model of its own, or half of it for gradients in parts.

    With `phase` the gradients that go in are parts: those of one worker of several, which together
    have all of each. "norms" gives what they are to add up, `clip/sums`, or take the maximum of,
    `clip/maxima`: a vector of float64 each, or one of them (float32 where `norm_precision` is
    "plain" and no policy is set). "scale" takes the parts and these vectors, reduced over all
    workers, and gives the clipped parts. Whatever is emitted is that of whole gradients.

    Args:
        model: a training graph that is not clipped; it stays as it is.
        clip: what to do, see `clip_gradients`.
        phase: "norms" or "scale", where several workers have parts of each gradient.
        shard_axis: the axis of each gradient along which it is cut into parts; "flat" for parts
            that are vectors of elements in a row; None for any. Norms over some axes need it.
        replicated: patterns of parameters or gradients of which several workers have the same part.
            The phase "norms" then takes `clip/replicas`, for each the number of these workers, in
            the order of inputs, and they count once.
        probe: as `clip_gradients` takes it.
        **options: those of `clip_gradients` but `measure_only`; a `loss_scale` that is a value of
            the graph becomes an input.

    Returns:
        A model with an input for each gradient, of its name, shape and dtype, and an output
        `<name>.clipped` for each, in the same order; those that are not clipped come out as they
        went in. Behind them: inputs for parameters that a clip reads, for a named loss scale and
        for thresholds, and outputs for what is emitted. It has `model`'s opset and IR version.
        Of a phase it has the inputs and outputs besides gradients that it needs. Its metadata entry
        `onnx_clip_pass.sharded` is JSON with a `fingerprint` that all workers must have alike.

    Raises:
        OnnxClipError: what `clip_gradients` refuses, a model that is rewritten already, and
            gradients in nested graphs or functions, of which only one parameter's share is to be
            clipped, or whose `<name>.clipped` is the name of a value that goes in. With a phase:
            a clip of one norm behind another, that asks nothing of a whole gradient, of a power
            above 8, or with norms over some axes where the axis of the parts is not said; an axis
            that a gradient does not have; and gradients with the names of those vectors.
    """
    check_model(model, "extract_clip_file")
    sharding = Sharding.of(phase, shard_axis, replicated)
    with blaming(lambda: model, "this"):
        extracted, report = _extract(model, clip, options, decider(probe), sharding)
    warn(report.warnings)
    return extracted


@takes_options(Options, "measure_only")
def extract_clip_file(
    source: _Path,
    target: _Path,
    clip: ClipOrRules,
    *,
    phase: Phase | None = None,
    shard_axis: ShardAxis = None,
    replicated: str | Sequence[str] = (),
    force: bool = False,
    probe: bool | Decide = False,
    **options: Unpack[Options],
) -> Report:
    """`extract_clip` from file to file; the weights are not read.

    Args:
        source: a model file.
        target: where to write the clip; the first values of its states go beside it, see
            `initial_states`.
        clip: what to do, see `clip_gradients`.
        phase: see `extract_clip`, as for the next two.
        shard_axis: the axis along which gradients are cut.
        replicated: patterns of what several workers have the same part of.
        force: replace a target that `extract_clip_file` did not write.
        probe: as `clip_gradients` takes it; the model is then loaded with its weights.
        **options: see `extract_clip`.

    Returns:
        What was found, and what becomes of it in the clip.

    Raises:
        OnnxClipError: what `extract_clip` refuses, and files that cannot be read or written, or
            must not be replaced: never the model or its external data.
    """
    check_path("source", source)
    check_path("target", target)
    check_flags(force=force)
    sharding = Sharding.of(phase, shard_axis, replicated)
    source, target = Path(source), Path(target)
    decide = decider(probe, source)
    recover(target.parent)
    with open_model(source) as structure:
        _check_target(structure, target, force=force)
        extracted, report = _extract(structure.model, clip, options, decide, sharding)
        small = beside(extracted, target, _own_files(structure), force=force)
    write_bytes(target, extracted.SerializeToString(), small)
    return report


def _extract(
    model: ModelProto,
    clip: ClipOrRules,
    options: Options,
    decide: Decide | None,
    sharding: Sharding | None,
) -> tuple[ModelProto, Report]:
    """The clips that are planned for the model, put into one that has their inputs alone."""
    if options.get("measure_only"):
        raise OnnxClipError("measure_only clips nothing, so there is no clip to extract")
    if is_clipped(model):
        raise OnnxClipError(
            "the model is rewritten already, and what is extracted is the clip that is asked for "
            "here, not that one: give the original, or what onnx-clip strip (in Python: strip) "
            "makes of it"
        )
    planned = plan_edits(model, clip, decide=decide, **options)
    if not any(row.clip for row in planned.rows):
        raise OnnxClipError("nothing is clipped, so there is no clip to extract")
    gradients = {row.gradient.name: row.gradient for row in planned.rows if not row.gradient.graph}
    read = _read_besides(planned)
    thresholds = {edit.choice.threshold_input for edit in planned.edits}
    _check(planned.rows, {*gradients, *read, *thresholds}, NAMES if sharding else ())
    cut = None if sharding is None else Cut(sharding, planned)
    kinds = {name: _kind_of(gradient, sharding) for name, gradient in gradients.items()}
    further = {name: _further_kind(planned.index, name) for name in read}
    if sharding is not None:
        further |= {
            edit.site.name: further[edit.site.name]._replace(shape=sharding.shape(edit.gradient))
            for edit in planned.edits
            if edit.site is not None
        }
    alone = helper.make_model(
        helper.make_graph(
            [],
            "clip",
            [_port(name, kind) for name, kind in {**kinds, **further}.items()],
            [_port(f"{name}.clipped", kind) for name, kind in kinds.items()],
        ),
        opset_imports=[helper.make_opsetid("", planned.index.main.opset or 1)],
        ir_version=model.ir_version,
        producer_name=_PRODUCER,
    )
    if cut is not None:
        alone.graph.input.extend(cut.inputs())
    editor = Editor(Index(alone))
    edits = [
        replace(edit, scope=editor.index.main, redirected=[], clipped=f"{edit.name}.clipped")
        for edit in (planned.edits if cut is None else cut.edits)
    ]
    made = emit(editor, replace(planned, edits=edits), None if cut is None else cut.workers)
    clipped = {edit.name for edit in edits}
    for name in [name for name in gradients if name not in clipped]:  # left alone
        label = f"clip/{name}/Identity"
        alone.graph.node.append(helper.make_node("Identity", [name], [f"{name}.clipped"], label))
    reduced = None if cut is None else cut.finish(alone)
    ports = {port.name for port in (*alone.graph.input, *alone.graph.output)}
    made = replace(made, states=tuple(state for state in made.states if state.output in ports))
    if made.states:
        note_states(alone, {state.input: state.output for state in made.states})
    if cut is not None:
        made = _left_of(replace(made, used=made.used | cut.used), alone.graph)
    _order_inputs(alone.graph, kinds)
    return alone, replace(report_of(planned, made), reduced=reduced)


def _left_of(made: Made, graph: GraphProto) -> Made:
    """The part of what was made that is in one phase of it."""
    ports = {port.name for port in (*graph.input, *graph.output)}
    operators = {node.op_type for node in graph.node}
    return replace(
        made,
        used={used for used in made.used if used[0] in operators},
        emitted=tuple(each for each in made.emitted if each.output in ports),
        added=replace(made.added, inputs=[name for name in made.added.inputs if name in ports]),
    )


def _read_besides(planned: PlannedEdits) -> list[str]:
    """The values besides gradients that clips may read: parameters, and a named loss scale."""
    names = [edit.site.name for edit in planned.edits if edit.site is not None]
    scale = planned.settings.thresholds.loss_scale
    return [*names, scale] if isinstance(scale, str) else names


def _order_inputs(graph: GraphProto, first: Iterable[str]) -> None:
    """Drop inputs that nothing reads but the first, and put the others in the order of reading."""
    ports = {port.name: port for port in graph.input}
    read = [name for node in graph.node for name in node.input if name in ports]
    kept = [ports[name] for name in dict.fromkeys([*first, *read])]
    del graph.input[:]
    graph.input.extend(kept)


def _check(rows: Sequence[Clipped], goes_in: set[str | None], taken: Sequence[str]) -> None:
    """Refuse a clip that cannot stand alone.

    Args:
        rows: the gradients.
        goes_in: the names of its inputs.
        taken: names that it has for something else.
    """
    faults = [
        f"gradient {row.gradient.name!r} is in {row.gradient.graph}: only a clip of the main graph "
        f"can stand alone"
        for row in rows
        if row.clip and row.gradient.graph
    ]
    clips: dict[str, set[str]] = {}
    for row in rows:
        clips.setdefault(row.gradient.name, set()).add(repr(row.clip))
    faults += [
        f"gradient {name!r} belongs to several parameters that are clipped differently: it can "
        f"come out in one way only"
        for name, different in clips.items()
        if len(different) > 1
    ]
    faults += [
        f"gradient {name!r} would come out as '{name}.clipped', but a value of that name goes in; "
        f"give that another name"
        for name in clips
        if f"{name}.clipped" in goes_in
    ]
    faults += [
        f"a value {name!r} goes in, and a phase has that name for something else; give it another"
        for name in taken
        if name in {*goes_in, *(f"{name}.clipped" for name in clips)}
    ]
    if faults:
        raise OnnxClipError("the clip cannot be extracted:", dict.fromkeys(faults))


def _kind_of(gradient: Gradient, sharding: Sharding | None) -> TensorType:
    dtypes = {TensorType(dtype).dtype_name: dtype for dtype in FLOATING}
    if gradient.dtype not in dtypes:
        raise OnnxClipError(
            f"gradient {gradient.name!r}: expected a floating tensor, but it is {gradient.dtype}"
        )
    shape = gradient.shape if sharding is None else sharding.shape(gradient)
    return TensorType(dtypes[gradient.dtype], shape)


def _further_kind(index: Index, name: str) -> TensorType:
    declared = index.main.type_of(name)
    if declared is not None and not declared.dtype:
        declared = index.inferred(index.main, name)
    if declared is None or not declared.dtype:
        raise OnnxClipError(f"{name!r} is read by the clip, and nothing tells its dtype")
    return declared


def _port(name: str, kind: TensorType) -> ValueInfoProto:
    shape = None if kind.shape is None else list(kind.shape)
    return helper.make_tensor_value_info(name, kind.dtype, shape)


def _check_target(structure: Structure, target: Path, *, force: bool) -> None:
    """Refuse to replace the model, its external data, or by default what we did not write."""
    source = structure.source.path
    with errors_name(target):
        if not file_at(target, "clip.onnx"):
            return
        is_source = target.samefile(source)
        is_data = any(_is_one(target, path) for path in _own_files(structure)[1:])
    if is_source or is_data:
        what = "the model itself" if is_source else "where the model's external data lies"
        raise OnnxClipError(f"the output {str(target)!r} is {what}; choose another name")
    check_replaceable(
        target,
        partial(holds, lambda model: model.producer_name == _PRODUCER),
        force=force,
        otherwise="exists and onnx-clip did not extract it",
    )


def _own_files(structure: Structure) -> list[Path]:
    """The files of a model: itself, and its external data."""
    source = structure.source.path
    return [source, *(source.parent / location for location in locations(structure.model))]


def _is_one(file: Path, path: Path) -> bool:
    try:
        return file.samefile(path)
    except (OSError, ValueError):  # it is not there, or no path at all
        return False
