"""Clipping in an optimizer model: after accumulation, in a sequence whose tensors have no names.

The gradients come as one input, a sequence in an order that the runtime does not promise. What is
put before the optimizer node are Loops, since SequenceMap begins at opset 17 and artifacts have 15.
Their nodes are those that the clips put into any graph: of clips in a row one loop

    for each in gradients: clipped.append(clip(each))

and of one by a global norm two, between which the norm becomes the scale:

    for each in gradients: total += power(each)
    for each in gradients: clipped.append(each * scale)

A chain makes a sequence of each such part, which the next one takes.

ONNX Runtime's own InplaceClipGradNorm is not used: it divides by the norm plus 1e-6, and so
shortens gradients whose norm is just within the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto, TypeProto

from onnx_clip_pass.artifacts.loops import Loops
from onnx_clip_pass.clips import Clip, Formula, Numerics
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient, Parameter
from onnx_clip_pass.graph import OUTPUT, Editor, Index, Read, TensorType
from onnx_clip_pass.record import ClipEntry, Record, undo, write_record
from onnx_clip_pass.rewrite import Clipped, Report
from onnx_clip_pass.rewrite.operators import compared, operators_of
from onnx_clip_pass.rewrite.reporting import lacking_kernels

__all__ = ["GRADIENTS", "Optimizer", "clip_sequence", "find_optimizer", "taken_by_optimizer"]

GRADIENTS = "gradients"
"""The runtime's name for the input that holds the gradients."""

_PARAMETERS = "params"
_SGD = ["learning_rate", "step", _PARAMETERS, GRADIENTS, "first_order_moments"]
_INPUTS = {"SGDOptimizerV2": _SGD, "AdamWOptimizer": [*_SGD, "second_order_moments"]}
_FIRST_CARRIED_SEQUENCE = (
    13  # the first Loop that carries a sequence from one iteration to the next
)


class Optimizer(NamedTuple):
    """An optimizer model: its optimizer node's op type, and the gradients' dtype."""

    op_type: str
    dtype: int
    clips_already: bool


def find_optimizer(model: ModelProto, name: str) -> Optimizer:
    """The optimizer of a model.

    Args:
        model: an optimizer model, not clipped.
        name: what to call it in errors.

    Raises:
        OnnxClipError: it has no optimizer node of the training runtime, or other inputs.
    """
    by_op = {node.op_type: node for node in model.graph.node if node.domain == "com.microsoft"}
    op_type = next((op for op in _INPUTS if op in by_op), None)
    if op_type is None:
        found = ", ".join(sorted({node.op_type for node in model.graph.node})) or "none"
        raise OnnxClipError(
            f"{name} is no optimizer model of ONNX Runtime training: expected a node "
            f"{' or '.join(_INPUTS)}, found {found}"
        )
    inputs = {value.name: value.type for value in model.graph.input}
    gradients = inputs.get(GRADIENTS, TypeProto())
    dtype = gradients.sequence_type.elem_type.tensor_type.elem_type
    if list(inputs) != _INPUTS[op_type] or not dtype:
        raise OnnxClipError(
            f"{name} is of another version: onnxruntime-training 1.19 gives {op_type} the inputs "
            f"{', '.join(_INPUTS[op_type])}, the gradients as a sequence of tensors; here they are "
            f"{', '.join(inputs) or 'none'}; make the artifacts again with that version, or clip "
            f"before the accumulators with --at micro-batch (in Python at='micro-batch')"
        )
    return Optimizer(op_type, dtype, "InplaceClipGradNorm" in by_op)


def taken_by_optimizer(model: ModelProto) -> str:
    """The sequence of gradients that the optimizer node of an optimizer model takes."""
    (node, *_) = (each for each in model.graph.node if each.op_type in _INPUTS)
    # The rate, Adam's step, the parameters and then the gradients.
    return node.input[2 if node.op_type == "SGDOptimizerV2" else 3]


def clip_sequence(model: ModelProto, clip: Clip, numerics: Numerics, name: str) -> Report:
    """Clip all gradients of an optimizer model in place; if it raises, a previous clip may be gone.

    Args:
        model: an optimizer model; if it is clipped already, that clip is replaced.
        clip: without `need_clip`.
        numerics: see `clip_gradients`.
        name: what to call the model in errors.

    Raises:
        OnnxClipError: the clip picks by name, it is no optimizer model of a known version, or its
            opset is too old.
    """
    replaced = undo(model) is not None
    optimizer = find_optimizer(model, name)
    index = Index(model)
    opset = index.main.opset or 0
    reads = index.readers_of(index.main, GRADIENTS)
    _check(reads, opset, name)
    _check_clip(clip)
    dtype = TensorType(optimizer.dtype).dtype_name
    gradient = Gradient(
        name=GRADIENTS,
        parameter=Parameter(_PARAMETERS, None, dtype, GRADIENTS),
        shape=None,
        dtype=dtype,
        evidence=f"each tensor of the sequence that {optimizer.op_type} takes",
    )
    if fault := clip.fault(gradient, opset, numerics):
        raise OnnxClipError(f"{name} cannot be clipped: {fault}")
    there = operators_of(index)
    editor = Editor(index)
    loops = Loops(editor, GRADIENTS, optimizer.dtype, numerics)
    renamed: dict[str, str] = {}
    if not clip.is_identity or numerics.nonfinite == "zero":
        clipped = editor.fresh(f"clip/{GRADIENTS}/clipped")
        renamed = {clipped: GRADIENTS}
        editor.redirect(reads, GRADIENTS, clipped)
        _put(loops, clip, clipped)
        editor.finish()
    _write_record(editor, renamed, clip, numerics)
    now = operators_of(Index(model))
    warnings = tuple(lacking_kernels(loops.used))
    if optimizer.clips_already:
        warnings += (
            "the optimizer model clips by a global norm already (InplaceClipGradNorm); that stays, "
            "and takes what is clipped here",
        )
    return Report(
        (Clipped(gradient, clip),),
        warnings,
        replaced,
        layout=numerics.layout,
        new_operators=tuple(sorted(now.keys() - there.keys())),
        operators=compared(there, now),
        rewritten=model,
    )


def _check(reads: list[Read], opset: int, name: str) -> None:
    if opset < _FIRST_CARRIED_SEQUENCE:
        raise OnnxClipError(
            f"{name} has opset {opset}: clipping a sequence needs {_FIRST_CARRIED_SEQUENCE} or "
            f"later, where Loop carries one; export the forward model with a later opset and make "
            f"the artifacts again, or clip before the accumulators with --at micro-batch (in "
            f"Python at='micro-batch')"
        )
    if any(read.node == OUTPUT for read in reads):
        raise OnnxClipError(
            f"{name} returns {GRADIENTS!r} as it is: it can have only one value under that name"
        )


def _check_clip(clip: Clip) -> None:
    """Refuse what cannot be done to tensors of which neither shape nor parameter is known."""
    way_out = "pass --at micro-batch (in Python at='micro-batch'), or another clip"
    if clip.reads_parameter:
        raise OnnxClipError(
            f"{type(clip).__name__} compares each gradient with its parameter, and at the step "
            f"the order of neither is promised; {way_out}"
        )
    given = {name for formula in clip.formulas for name in formula.settings()}
    if "per_sample" in given:
        raise OnnxClipError(
            f"per_sample needs gradients whose first axis is that of samples, which those of a "
            f"step are not; {way_out}"
        )
    if "axes" in given:
        raise OnnxClipError(
            f"axes need gradients of which the rank is known, which those of a step are not; "
            f"{way_out}"
        )


def _put(loops: Loops, clip: Clip, clipped: str) -> None:
    """Put the clip between the sequence and its readers: formulas in a row in one loop."""
    runs: list[list[Formula]] = []
    for formula in clip.formulas:
        if formula.group is None and runs and runs[-1][-1].group is None:
            runs[-1].append(formula)
        else:
            runs.append([formula])
    sequence = GRADIENTS
    for number, run in enumerate(runs, 1):
        result = clipped if number == len(runs) else loops.fresh(f"stage {number}")
        if len(run) == 1:
            run[0].emit_over(loops, sequence, result)
        else:
            loops.of_each(sequence, result, [formula.emit_alone for formula in run])
        sequence = result


def _write_record(editor: Editor, renamed: dict[str, str], clip: Clip, numerics: Numerics) -> None:
    """Note what was added to the main graph; what is in a loop goes with the loop."""
    graph = editor.model.graph
    names = {node.name for node in editor.added.nodes}
    values = set(editor.added.values)
    constants = {tensor.name for tensor in editor.added.initializers}
    nodes = [node for node in graph.node if node.name in names]  # with what their loops hold now
    initializers = [tensor for tensor in graph.initializer if tensor.name in constants]
    record = Record(
        clips=[ClipEntry(GRADIENTS, _PARAMETERS, "", clip.to_dict())],
        norm_precision=numerics.norm_precision,
        nonfinite=numerics.nonfinite,
        layout=numerics.layout,
        renamed=renamed,
        values=[value.name for value in graph.value_info if value.name in values],
    )
    write_record(editor.model, record, nodes, initializers)
