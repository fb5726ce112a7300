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
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.graph import Editor, Index, TensorType
from onnx_clip_pass.graph.spec import FLOATING
from onnx_clip_pass.options import takes_options
from onnx_clip_pass.record import is_clipped
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Clipped,
    Decide,
    Options,
    PlannedEdits,
    Report,
    emit,
    plan_edits,
    report_of,
)
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

__all__ = ["extract_clip", "extract_clip_file"]

_Path = str | os.PathLike[str]
_PRODUCER = "onnx_clip_pass.extract"


@takes_options(Options, "measure_only")
def extract_clip(
    model: ModelProto,
    clip: ClipOrRules,
    *,
    probe: bool | Decide = False,
    **options: Unpack[Options],
) -> ModelProto:
    """The clip of a training graph as a model of its own.

    Args:
        model: a training graph that is not clipped; it stays as it is.
        clip: what to do, see `clip_gradients`.
        probe: as `clip_gradients` takes it.
        **options: those of `clip_gradients` but `measure_only`; a `loss_scale` that is a value of
            the graph becomes an input.

    Returns:
        A model with an input for each gradient, of its name, shape and dtype, and an output
        `<name>.clipped` for each, in the same order; those that are not clipped come out as they
        went in. Behind them: inputs for parameters that a clip reads, for a named loss scale and
        for thresholds, and outputs for what is emitted. It has `model`'s opset and IR version.

    Raises:
        OnnxClipError: what `clip_gradients` refuses, a model that is rewritten already, and
            gradients in nested graphs or functions, of which only one parameter's share is to be
            clipped, or whose `<name>.clipped` is the name of a value that goes in.
    """
    check_model(model, "extract_clip_file")
    with blaming(lambda: model, "this"):
        return _extract(model, clip, options, decider(probe))[0]


@takes_options(Options, "measure_only")
def extract_clip_file(
    source: _Path,
    target: _Path,
    clip: ClipOrRules,
    *,
    force: bool = False,
    probe: bool | Decide = False,
    **options: Unpack[Options],
) -> Report:
    """`extract_clip` from file to file; the weights are not read.

    Args:
        source: a model file.
        target: where to write the clip.
        clip: what to do, see `clip_gradients`.
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
    source, target = Path(source), Path(target)
    decide = decider(probe, source)
    recover(target.parent)
    with open_model(source) as structure:
        _check_target(structure, target, force=force)
        extracted, report = _extract(structure.model, clip, options, decide)
    write_bytes(target, extracted.SerializeToString())
    return report


def _extract(
    model: ModelProto, clip: ClipOrRules, options: Options, decide: Decide | None
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
    _check(planned.rows, {*gradients, *read, *thresholds})
    kinds = {name: _kind_of(gradient) for name, gradient in gradients.items()}
    further = {name: _further_kind(planned.index, name) for name in read}
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
    editor = Editor(Index(alone))
    edits = [
        replace(edit, scope=editor.index.main, redirected=[], clipped=f"{edit.name}.clipped")
        for edit in planned.edits
    ]
    made = emit(editor, replace(planned, edits=edits))
    clipped = {edit.name for edit in edits}
    for name in [name for name in gradients if name not in clipped]:  # left alone
        label = f"clip/{name}/Identity"
        alone.graph.node.append(helper.make_node("Identity", [name], [f"{name}.clipped"], label))
    _order_inputs(alone.graph, kinds)
    return alone, report_of(planned, made)


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


def _check(rows: Sequence[Clipped], goes_in: set[str | None]) -> None:
    """Refuse a clip that cannot stand alone; `goes_in` are the names of its inputs."""
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
    if faults:
        raise OnnxClipError("the clip cannot be extracted:", dict.fromkeys(faults))


def _kind_of(gradient: Gradient) -> TensorType:
    dtypes = {TensorType(dtype).dtype_name: dtype for dtype in FLOATING}
    if gradient.dtype not in dtypes:
        raise OnnxClipError(
            f"gradient {gradient.name!r}: expected a floating tensor, but it is {gradient.dtype}"
        )
    return TensorType(dtypes[gradient.dtype], gradient.shape)


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
        paths = [source.parent / location for location in locations(structure.model)]
        is_data = any(_is_one(target, path) for path in paths)
    if is_source or is_data:
        what = "the model itself" if is_source else "where the model's external data lies"
        raise OnnxClipError(f"the output {str(target)!r} is {what}; choose another name")
    check_replaceable(
        target,
        partial(holds, lambda model: model.producer_name == _PRODUCER),
        force=force,
        otherwise="exists and onnx-clip did not extract it",
    )


def _is_one(file: Path, path: Path) -> bool:
    try:
        return file.samefile(path)
    except (OSError, ValueError):  # it is not there, or no path at all
        return False
