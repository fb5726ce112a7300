"""A pass of onnx_ir that clips the gradients of a training graph.

onnx_ir is no dependency of the package: this module is imported by those who have it. A model is
converted to a `ModelProto`, clipped and converted back. Its large tensors do not come along but
stand-ins for them, and the result holds the same tensor objects as the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto

from onnx_clip_pass.adapters.stand_ins import StandIns, graphs_of
from onnx_clip_pass.arguments import check_model
from onnx_clip_pass.clipping import clipped_copy
from onnx_clip_pass.deciding import decider
from onnx_clip_pass.errors import OnnxClipError, shown, warn
from onnx_clip_pass.gradients import survey
from onnx_clip_pass.graph import Index, graphs_and_functions
from onnx_clip_pass.options import takes_options
from onnx_clip_pass.record import KEY, OURS, undo
from onnx_clip_pass.rewrite import (
    ClipOrRules,
    Decide,
    Options,
    Settings,
    as_clips,
    without_collecting,
)

__all__ = ["ClipGradients", "from_proto"]


@takes_options(Options)
class ClipGradients(ir.passes.FunctionalPass):
    """Insert a clip behind the gradients of a training graph: `clip_gradients` as a pass.

    The input stays as it is. The result is a model of its own with the same tensor objects, weights
    in memory and weights in files alike; none of their elements is read, unless `probe` asks for a
    run. `modified` says whether the result differs from the input in anything that is saved: a
    model that has this clip already comes out as it went in. `meta` of the result is that of the
    input and holds the `Report` under "onnx_clip_pass"; that of graphs, nodes and values, which is
    not saved either, does not come along.

    Args:
        clip: what to do, see `clip_gradients`.
        probe: as `clip_gradients` takes it. Weights are read if there is something to decide.
        **options: see `Options` in `onnx_clip_pass.rewrite`.

    Raises:
        onnx_ir.passes.PreconditionError: what goes in is no `onnx_ir.Model`, or onnx_ir has lost
            parts of it (sparse initializers).
        onnx_ir.passes.PostconditionError: the record does not fit the result: a fault of ours.
        OnnxClipError: what `clip_gradients` refuses. Of an option it is raised here, of a model by
            the call; within a `Sequential` or `PassManager` it is the cause of their `PassError`.

    Warns:
        OnnxClipWarning: what the report has as `warnings`.
    """

    def __init__(
        self, clip: ClipOrRules, *, probe: bool | Decide = False, **options: Unpack[Options]
    ) -> None:
        as_clips(clip)
        Settings.of(**options)
        self._clip = clip
        self._decide = decider(probe)
        self._options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self._clip)})"

    def requires(self, model: ir.Model) -> None:
        """Refuse what is no model of onnx_ir, and one that is not whole."""
        if not isinstance(model, ir.Model):
            raise ir.passes.PreconditionError(
                f"expected an onnx_ir.Model, not {type(model).__name__}; clip_gradients clips a "
                f"ModelProto, and from_proto of this module makes an onnx_ir.Model of it"
            )
        if faults := list(dict.fromkeys(_gaps(model))):
            error = OnnxClipError("the model is not whole:", faults)
            raise ir.passes.PreconditionError(str(error)) from error

    @without_collecting()
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        stand_ins = StandIns()
        with stand_ins.instead_of_tensors(model):
            before = _to_proto(model)
        decide = False if self._decide is None else stand_ins.filled(self._decide)
        try:
            report, clipped = clipped_copy(before, self._clip, decide, None, self._options)
        except OnnxClipError as error:
            raise _with_note(error, before) from error
        warn(report.warnings)
        result = ir.from_proto(clipped)
        after = ir.to_proto(result)  # as onnx_ir writes it, and wrote what it is compared with
        is_modified = _in_substance(after) != _in_substance(before)
        if not is_modified:
            result = ir.from_proto(before)
        stand_ins.put_back(result)
        result.meta.update(model.meta)
        result.meta[KEY] = report
        return ir.passes.PassResult(result, is_modified)

    def ensures(self, model: ir.Model) -> None:
        """Make sure that all tensors are back, and that the clip can be undone as recorded."""
        stand_ins = StandIns()
        with stand_ins.instead_of_tensors(model):
            undo(_to_proto(model))
        if stand_ins.are_left:
            raise ir.passes.PostconditionError("a tensor has not come back")


def from_proto(model: ModelProto) -> ir.Model:
    """`onnx_ir.from_proto`, for models of which onnx_ir holds everything.

    Of others it drops parts without a word, and gradients may be in them.

    Raises:
        OnnxClipError: it is no `ModelProto`, or has `training_info`, or a sparse initializer or
            attribute.
    """
    check_model(model, "onnx_ir.load")
    faults = [
        f"training_info, number {number}: the graph {info.algorithm.name!r}"
        for number, info in enumerate(model.training_info, 1)
    ]
    for graph in graphs_and_functions(model):
        if isinstance(graph, GraphProto):
            faults += [
                f"the sparse initializer {t.values.name!r}" for t in graph.sparse_initializer
            ]
        faults += [
            f"the sparse attribute {attribute.name!r} of {node.op_type} {node.name!r}"
            for node in graph.node
            for attribute in node.attribute
            if attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)
        ]
    if faults:
        raise OnnxClipError(
            "onnx_ir cannot hold all of this model; clip it as it is, by clip_gradients or "
            "clip_gradients_file:",
            faults,
        )
    return ir.from_proto(model)


def _gaps(model: ir.Model) -> Iterator[str]:
    """Values that are read in a model and not there, and initializers of which nothing is known."""
    for graph in graphs_of(model):
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            is_known = value.dtype and value.shape is not None and value.shape.is_static()
            if value.const_value is None and not is_known:
                yield (
                    f"initializer {value.name!r} has neither a tensor (const_value) nor a dtype "
                    f"and a shape of numbers"
                )
        for node in graph:
            for taken in node.inputs:
                if taken is not None and _is_from_nowhere(taken):
                    yield (
                        f"{taken.name!r}, which {node.op_type} {node.name!r} reads, comes from "
                        f"nowhere: as it loads a model, onnx_ir drops sparse initializers; make "
                        f"it dense, or clip the model before that (clip_gradients_file)"
                    )


def _is_from_nowhere(value: ir.Value) -> bool:
    return value.producer() is None and not value.is_graph_input() and not value.is_initializer()


def _to_proto(model: ir.Model) -> ModelProto:
    try:
        return ir.to_proto(model)
    except Exception as error:  # onnx_ir, protobuf and tensors of any kind have ways of their own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise OnnxClipError(
            f"onnx_ir cannot write this model as a ModelProto: {cause}; onnx_ir.to_proto(model) "
            f"says where"
        ) from error


def _in_substance(model: ModelProto) -> ModelProto:
    """A model without what other passes add to a clip that is put in anew, or move around it.

    Those are the types of its values, and the order of initializers.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for graph in graphs_and_functions(copy):
        kept = [value for value in graph.value_info if OURS not in value.name]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        if isinstance(graph, GraphProto):
            graph.initializer.sort(key=lambda tensor: tensor.name)
    return copy


def _with_note(error: OnnxClipError, model: ModelProto) -> OnnxClipError:
    """The error, and if no gradients are in sight, where they may have been."""
    try:
        if survey(Index(model)).found:
            return error
    except OnnxClipError:
        return error
    return OnnxClipError(
        f"{error}\n(as it loads a model, onnx_ir drops training_info without a word: if the "
        f"gradients were there, clip the model before that, by clip_gradients or "
        f"clip_gradients_file)"
    )
