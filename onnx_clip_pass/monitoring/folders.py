"""Watching a folder of ONNX Runtime's training artifacts, which its training runtime trains.

The runtime adds the gradients of the micro-batches of a step up in buffers, which the optimizer
model takes. These sums are what is measured, by a small model of their own:

    raw 0, raw 1, …       = the buffers
    gradients             = SequenceConstruct(raw 0, raw 1, …)
    …                     = what the optimizer model does with them before its optimizer: a clip
    clipped 0, clipped 1… = SequenceAt(…, 0), SequenceAt(…, 1), …

The parameters, moments and statistics stay in a checkpoint of the runtime in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from onnx import ModelProto, helper

from onnx_clip_pass.artifacts.layout import Layout, check_training_model, find_layout
from onnx_clip_pass.artifacts.sequence import GRADIENTS, find_optimizer, taken_by_optimizer
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients import accumulator, survey
from onnx_clip_pass.graph import Editor, Index
from onnx_clip_pass.graph.spec import INT64
from onnx_clip_pass.monitoring.measuring import Watched, watched_of
from onnx_clip_pass.monitoring.planning import WatchPlan, check_loss
from onnx_clip_pass.monitoring.recording import Head
from onnx_clip_pass.monitoring.training import CHECKPOINT, TrainingRun
from onnx_clip_pass.probe.copies import cut_down
from onnx_clip_pass.record import read_record, strip_if_clipped
from onnx_clip_pass.storage import open_model

__all__ = ["plan_folder"]


def plan_folder(
    folder: Path, carry: Mapping[str, str] | None, loss: str | None, micro_batches: int
) -> WatchPlan:
    """Find what is measured of a folder of artifacts.

    Args:
        folder: under any prefix, clipped or not.
        carry: nothing: the runtime carries the states.
        loss: see `watch`.
        micro_batches: the number of batches in a step.

    Raises:
        OnnxClipError: it is no such folder, or has no checkpoint with weights.
    """
    if carry:
        raise OnnxClipError(
            "carry (--carry) is for models: of a folder of training artifacts the runtime itself "
            "carries the states"
        )
    layout = find_layout(folder)
    checkpoint = layout.prefix + CHECKPOINT
    if checkpoint not in layout.files:
        raise OnnxClipError(
            f"expected the file {checkpoint!r}, as onnxruntime-training 1.19 writes it, in "
            f"{str(folder)!r}: without it there are no weights to begin with"
        )
    with open_model(folder / layout.training) as structure:
        training = structure.model
        before, record = strip_if_clipped(training), read_record(training)
        check_training_model(before, layout.shown(layout.training))
        found = survey(Index(before)).found
        outputs = _outputs_of(before)
        ports = ModelProto(ir_version=training.ir_version, opset_import=training.opset_import)
        ports.graph.input.extend(before.graph.input)
    sums, notes = watched_of(found, None, Index(before))
    if not sums:
        raise OnnxClipError("there is nothing to watch: no gradient is accumulated", notes)
    if record is not None:
        notes.append(
            "each micro-batch is clipped before it is added up: norms are those of the sums that "
            "the optimizer takes (strip takes the clips out)"
        )
    loss = outputs[0] if loss is None and outputs else loss
    check_loss(loss, outputs)
    measuring, watched = _measuring_model(layout, ports, sums)
    is_clipped = any(each.raw != each.clipped for each in watched)
    if not layout.optimizer:
        notes.append("there is no optimizer model: the weights stay as they are")
    head = Head(
        tuple(each.gradient for each in watched),
        tuple(each.parameter for each in watched),
        is_clipped,
        loss,
        {},
        folder.name or str(folder),
        micro_batches,
    )
    opens = partial(TrainingRun, layout, ports.graph, measuring, watched, loss)
    files = tuple(file.path for file in layout.files.values())
    return WatchPlan(head, tuple(watched), tuple(notes), opens, (), checkpoint, files)


def _outputs_of(training: ModelProto) -> list[str]:
    """The outputs of a training model that its caller gets, the loss first."""
    sums = {
        output
        for node in training.graph.node
        if node.op_type in accumulator.OPS
        for output in node.output
    }
    return [value.name for value in training.graph.output if value.name not in sums]


def _measuring_model(
    layout: Layout, ports: ModelProto, sums: Sequence[Watched]
) -> tuple[ModelProto, list[Watched]]:
    """A model that measures what the buffers hold before and behind the clip of the optimizer.

    Returns:
        The model, whose inputs are the buffers in order, and the gradients in it.
    """
    model, clipped = _clip_of(layout)
    if model is None:
        model = ModelProto(ir_version=ports.ir_version, opset_import=ports.opset_import)
        model.graph.name = "measures"
    graph = model.graph
    editor = Editor(Index(model))
    raws = [editor.fresh(f"raw {at}") for at in range(len(sums))]
    graph.input.extend(
        helper.make_tensor_value_info(raw, each.found.type.dtype, each.found.gradient.shape)
        for raw, each in zip(raws, sums, strict=True)
    )
    if not clipped:
        return model, [Watched(each.found, raw, raw) for raw, each in zip(raws, sums, strict=True)]
    graph.node.insert(0, helper.make_node("SequenceConstruct", raws, [GRADIENTS]))
    results = [editor.fresh(f"clipped {at}") for at in range(len(sums))]
    for at, result in enumerate(results):
        place = editor.fresh(f"place {at}")
        graph.initializer.append(helper.make_tensor(place, INT64, [], [at]))
        graph.node.append(helper.make_node("SequenceAt", [clipped, place], [result]))
    return model, [
        Watched(each.found, raw, result)
        for each, raw, result in zip(sums, raws, results, strict=True)
    ]


def _clip_of(layout: Layout) -> tuple[ModelProto | None, str]:
    """The part of the optimizer model before its optimizer, and the sequence that this takes.

    None and "" where it takes the gradients as they are, or there is no such model.
    """
    if not layout.optimizer:
        return None, ""
    name = layout.shown(layout.optimizer)
    with open_model(layout.folder / layout.optimizer) as structure:
        model = structure.model
        find_optimizer(strip_if_clipped(model), name)
        taken = taken_by_optimizer(model)
        if taken == GRADIENTS:
            return None, ""
        before = cut_down(model, [taken], {})
    if further := [value.name for value in before.graph.input if value.name != GRADIENTS]:
        raise OnnxClipError(
            f"what {name} does with the gradients depends on {listed([*map(repr, further)])}, too, "
            f"which cannot be measured: strip the folder, or clip it by onnx-clip"
        )
    del before.graph.input[:], before.graph.output[:]
    return before, taken
