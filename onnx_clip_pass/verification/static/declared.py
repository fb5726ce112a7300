"""Inputs, outputs and weights, which are compared without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from onnx_clip_pass.clips import clip_from_dict
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import Record
from onnx_clip_pass.rewrite.metrics import Emit

__all__ = ["declared_faults", "recorded_faults"]


def declared_faults(
    before: Index,
    before_folder: Path | None,
    after: Index,
    after_folder: Path | None,
    record: Record,
) -> list[str]:
    """Inputs and outputs that are not the same ones in the same order, and weights that differ.

    Behind the old ones there may be what the record names: threshold inputs, and measures.
    """
    faults = _faults_of_states(after, record)
    for kind, old, new, added in (
        ("inputs", before.model.graph.input, after.model.graph.input, record.inputs),
        ("outputs", before.model.graph.output, after.model.graph.output, record.outputs),
    ):
        names, new_names = [value.name for value in old], [value.name for value in new]
        if [*names, *added] != new_names:
            behind = f" with {_list(added)} behind them" if added else ""
            faults.append(
                f"the {kind} were {_list(names)}, and are {_list(new_names)}"
                + (f"; expected the old ones{behind}" if added else "")
            )
        elif any(a.type != b.type for a, b in zip(old, new, strict=False)):
            faults.append(f"the {kind} have other types than in the original")
    for number, (scope, other) in enumerate(zip(before.scopes, after.scopes, strict=False)):
        renamed = {old: new for new, old in record.renamed.items() if new in other.initializers}
        for name, tensor in scope.initializers.items():
            found = other.initializers.get(renamed.get(name, name))
            where = f" of {scope.path}" if number else ""
            if found is None:
                faults.append(f"the initializer {name!r}{where} is gone")
            elif not _is_same(tensor, before_folder, found, after_folder):
                faults.append(f"the initializer {name!r}{where} has another value")
    return faults


def recorded_faults(record: Record) -> list[str]:
    """Contradictions within a record, so that nothing can be held against it."""
    faults = []
    thresholds = {e.threshold_input for e in record.clips if e.threshold_input is not None}
    if thresholds != set(record.threshold_inputs):
        faults.append(
            f"the threshold inputs are {_list(sorted(thresholds))}, but the inputs that were added "
            f"are {_list(record.threshold_inputs)}"
        )
    states = {e.state for e in record.clips if e.state is not None}
    if states != record.states.keys() or not states <= {*record.inputs}:
        faults.append(
            f"the states of clips are {_list(sorted(states))}, but those that were added are "
            f"{_list([*record.states])}"
        )
    measures = [*record.states.values(), *(measure.output for measure in record.emitted)]
    if measures != record.outputs:
        faults.append(
            f"the outputs that were added are {_list(record.outputs)}, but the metrics recorded "
            f"are {_list(measures)}"
        )
    clipped = {entry.gradient for entry in record.clips}
    for output, quantity, gradients, _ in record.emitted:
        if quantity not in get_args(Emit):
            faults.append(f"the output {output!r} is said to be {quantity!r}")
        if not gradients or not clipped.issuperset(gradients):
            faults.append(f"the output {output!r} is said to measure {_list(gradients)}")
    return faults


def _faults_of_states(after: Index, record: Record) -> list[str]:
    """The faults of states: each is a history of as many norms as its clip keeps."""
    faults = []
    for entry in record.clips:
        sizes = [(f.history_size,) for f in clip_from_dict(entry.clip).formulas if f.history_size]
        kind = after.main.type_of(entry.state) if entry.state is not None else None
        if entry.state in after.main.initializers:
            faults.append(
                f"the state {entry.state!r} has a default: a loop that does not carry it would "
                f"never notice"
            )
        if sizes != ([] if kind is None else [kind.shape]):
            faults.append(
                f"the state of the clip of {entry.gradient!r} is {entry.state!r}, which is no "
                f"history of norms as this clip keeps one"
            )
    return faults


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _is_same(
    left: TensorProto, left_folder: Path | None, right: TensorProto, right_folder: Path | None
) -> bool:
    if (left.data_type, list(left.dims)) != (right.data_type, list(right.dims)):
        return False
    location, other = _location(left, left_folder), _location(right, right_folder)
    if location is not None and location == other:
        return True
    return _payload(left, left_folder) == _payload(right, right_folder)


@contextmanager
def _reading(tensor: TensorProto, folder: Path) -> Iterator[None]:
    """Say which weights cannot be read, and from where."""
    try:
        yield
    except Exception as error:  # onnx raises several kinds besides OSError
        location = folder / ExternalDataInfo(tensor).location
        reason = getattr(error, "strerror", None) or str(error)
        raise OnnxClipError(
            f"cannot read the weights {tensor.name!r} from {str(location)!r}: {reason}; put the "
            f"data file of the model back to where it was when the model was saved"
        ) from error


def _location(tensor: TensorProto, folder: Path | None) -> tuple[Any, ...] | None:
    """The location of external data: the file itself, whatever its path, and the location in it."""
    if tensor.data_location != TensorProto.EXTERNAL or folder is None:
        return None
    info = ExternalDataInfo(tensor)
    with _reading(tensor, folder):
        status = (folder / info.location).stat()
    return (status.st_dev, status.st_ino, info.offset, info.length)


def _payload(tensor: TensorProto, folder: Path | None) -> bytes:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    if tensor.data_location == TensorProto.EXTERNAL and folder is not None:
        with _reading(tensor, folder):
            load_external_data_for_tensor(copy, str(folder))
        copy.ClearField("data_location")
        copy.ClearField("external_data")
    return copy.SerializeToString(deterministic=True)
