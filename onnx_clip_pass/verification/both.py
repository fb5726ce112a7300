"""Verifying: both models are loaded, compared as they are declared, and run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnx_clip_pass.arguments import check_path
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import Record, read_record, strip_if_clipped
from onnx_clip_pass.runtime import Arrays, Provider, make_feeds
from onnx_clip_pass.storage import unfinished
from onnx_clip_pass.storage.messages import check_messages
from onnx_clip_pass.storage.reading import open_regular
from onnx_clip_pass.validity import blaming
from onnx_clip_pass.verification.report import GradientCheck, OutputCheck, Verification
from onnx_clip_pass.verification.running.memory import check_memory
from onnx_clip_pass.verification.running.runs import Runs
from onnx_clip_pass.verification.running.trial import Trials
from onnx_clip_pass.verification.running.weights import Weights
from onnx_clip_pass.verification.slopes.forward import Forward
from onnx_clip_pass.verification.slopes.meaning import Meaning, Slopes, check_choice
from onnx_clip_pass.verification.static.declared import declared_faults, recorded_faults
from onnx_clip_pass.verification.static.targets import Target, targets_of

__all__ = ["verify"]

_OTHER_SIZE = 3  # than what is made up
_Model = ModelProto | str | os.PathLike[str]


def verify(
    original: _Model,
    rewritten: _Model,
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    dims: Mapping[str, int] | None = None,
    provider: Provider = "cpu",
    seed: int = 0,
    slopes: Slopes = "on",
    loss: str | None = None,
) -> Verification:
    """Run both models and compare what they do with the formula in float64.

    Args:
        original: the model before clipping, or its path (needed for external data). One that is
            clipped itself is undone first, and a note says so.
        rewritten: the same after clipping; its record says which gradients are clipped and how.
        feeds: arrays for inputs; the others are made up, see `make_feeds`.
        dims: sizes of symbolic dimensions.
        provider: where to run: "cpu" or "cuda".
        seed: for what is made up.
        slopes: hold gradients to the slopes of the loss, too: "on" takes for wrong what is a
            multiple of its slope, a parameter, a state, or the new value of one; "strict" all that
            is not its slope. "off" does not take slopes.
        loss: the value whose slopes are taken; by default the one scalar output.

    Returns:
        What was found; a wrong rewrite is no error, see `Verification.ok`.

    Raises:
        OnnxClipError: a model cannot be read, the rewritten one bears no record, the feeds do not
            fit, there is not enough memory, or the original does not run here.
    """
    check_choice(slopes)
    with TemporaryDirectory(prefix="onnx-clip-verify-", ignore_cleanup_errors=True) as folder:
        weights = Weights(Path(folder))
        before = _load(original, "the original model", weights)
        after = _load(rewritten, "the rewritten model", weights)
        with (
            blaming(lambda: before.model, before.called),
            blaming(lambda: after.model, after.called),
        ):
            return _verify(before, after, feeds, dims, provider, seed, slopes, loss)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model, where its external data lies, and what to call it."""

    model: ModelProto
    folder: Path | None
    called: str


def _load(source: _Model, called: str, weights: Weights) -> _Loaded:
    folder = None
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
    else:
        check_path(called, source, also="a ModelProto or ")
        path = Path(source)
        called, folder = repr(str(path)), path.parent
        if not path.exists() and (reason := unfinished(path)):
            raise OnnxClipError(f"cannot read {called}: {reason}")
        with open_regular(path) as file:
            try:
                check_messages(file.read(), called)
                file.seek(0)
                model = onnx.load(file, load_external_data=False)
            except OSError as error:
                raise OnnxClipError(f"cannot read {called}: {error.strerror}") from error
            except OnnxClipError:
                raise
            except Exception as error:  # protobuf and onnx raise several kinds
                raise OnnxClipError(f"{called} is no ONNX model: {error}") from error
    thin = weights.taken_out(model)
    return _Loaded(thin, folder if thin is model else weights.folder, called)


def _verify(
    original: _Loaded,
    rewritten: _Loaded,
    given: Mapping[str, NDArray[Any]] | None,
    dims: Mapping[str, int] | None,
    provider: Provider,
    seed: int,
    slopes: Slopes,
    loss: str | None,
) -> Verification:
    before = (strip_if_clipped(original.model), original.folder)
    after = (rewritten.model, rewritten.folder)
    record = read_record(rewritten.model)
    if record is None:
        raise OnnxClipError(
            f"{rewritten.called} has no record of onnx-clip in its metadata, so it is no rewritten "
            f"model; verify takes the original first, then what onnx-clip made of it"
        )
    first, second = Index(before[0]), Index(after[0])
    _check_related(first, original.called, rewritten.called, record)
    feeds = make_feeds(before[0], given=given, dims=dims, seed=seed)
    result = Verification([], [], recorded_faults(record))
    if result.faults:
        return result
    result.faults = declared_faults(first, original.folder, second, rewritten.folder, record)
    if read_record(original.model) is not None:
        result.notes.append("the first model is clipped, too: it was undone before comparing")
    if [scope.path.count("/") for scope in first.scopes] != [
        scope.path.count("/") for scope in second.scopes
    ]:
        result.faults.append("the models differ in their nested graphs and functions")
        return result
    targets = targets_of(first, second, record)
    result.gradients = [
        GradientCheck(t.gradient.name, t.gradient.parameter.name, t.gradient.graph, t.clip.label)
        for t in targets
    ]
    names = first.main.outputs
    behind = {names[slot] for target in targets for slot in target.outputs}
    result.outputs = [OutputCheck(name, name in behind) for name in dict.fromkeys(names)]
    result.outputs += [
        OutputCheck(output, bool(gradients), quantity)
        for output, quantity, gradients, _ in record.emitted
    ]
    check_memory(first, targets)
    feeds = _defaults(first, original.folder, targets) | feeds
    runs = Runs(before, after, targets, feeds, provider, record.loss_scale)
    Trials(runs, targets, record, first, second, result).run_all()
    for check, target in zip(result.gradients, targets, strict=True):
        check.faults[:0] = target.misread
    if slopes != "off":
        Meaning(
            Forward(before[0], before[1], feeds, provider, loss),
            targets,
            record,
            seed,
            slopes == "strict",
            lambda: _with_other_sizes(before[0], given, dims, seed),
            result,
        ).check()
    return result


def _with_other_sizes(
    model: ModelProto,
    given: Mapping[str, NDArray[Any]] | None,
    dims: Mapping[str, int] | None,
    seed: int,
) -> Arrays | None:
    """Feeds in which the dimensions have other sizes whose sizes were made up; None if none was."""
    told: set[str] = set(dims or {})
    made_up: set[str] = set()
    for value in model.graph.input:
        symbols = {dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param}
        (told if value.name in (given or {}) else made_up).update(symbols)
    sizes = dict(dims or {}) | dict.fromkeys(made_up - told, _OTHER_SIZE)
    return make_feeds(model, given=given, dims=sizes, seed=seed) if made_up - told else None


def _check_related(before: Index, original: str, rewritten: str, record: Record) -> None:
    known = {name for scope in before.scopes for name in scope.names}
    missing = [entry["gradient"] for entry in record.clips]
    missing = [name for name in missing if name not in known]
    if missing:
        raise OnnxClipError(
            f"{original} has no value {missing[0]!r}, a gradient that {rewritten} clips (of "
            f"{len(record.clips)} such, {len(missing)} are missing): the two seem unrelated; "
            f"verify takes the original first, then what onnx-clip made of it"
        )


def _defaults(
    index: Index, folder: Path | None, targets: Sequence[Target]
) -> dict[str, NDArray[Any]]:
    """The gradients that are inputs with a default, which are fed so that they can be changed."""
    main = index.main
    return {
        target.name: numpy_helper.to_array(main.initializers[target.name], str(folder or ""))
        for target in targets
        if target.scope == 0
        and target.name in main.input_slots
        and target.name in main.initializers
    }
