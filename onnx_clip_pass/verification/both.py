"""Verifying: both models are loaded, compared as they are declared, and run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnx_clip_pass.arguments import model_or_path
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.graph import Index
from onnx_clip_pass.options import checked, takes_options
from onnx_clip_pass.progress import Progress, TellProgress, told
from onnx_clip_pass.record import Record, read_record, strip_if_clipped
from onnx_clip_pass.runtime import Arrays, Provider, RunOptions, make_feeds
from onnx_clip_pass.storage import load_model
from onnx_clip_pass.validity import blaming
from onnx_clip_pass.verification.comparison import Comparison
from onnx_clip_pass.verification.report import GradientCheck, OutputCheck, Verification
from onnx_clip_pass.verification.running.memory import check_memory
from onnx_clip_pass.verification.running.runs import Runs
from onnx_clip_pass.verification.running.trial import Trials
from onnx_clip_pass.verification.running.weights import Weights
from onnx_clip_pass.verification.slopes.forward import Forward
from onnx_clip_pass.verification.slopes.meaning import Meaning, Slopes, check_choice
from onnx_clip_pass.verification.static.declared import declared_faults, recorded_faults
from onnx_clip_pass.verification.static.targets import targets_of

__all__ = ["verify"]

_OTHER_SIZE = 3  # than what is made up
_Model = ModelProto | str | os.PathLike[str]


@takes_options(RunOptions)
def verify(
    original: _Model,
    rewritten: _Model,
    *,
    slopes: Slopes = "on",
    loss: str | None = None,
    **options: Unpack[RunOptions],
) -> Verification:
    """Run both models and compare what they do with the formula in float64.

    Args:
        original: the model before clipping, or its path (needed for external data). One that is
            clipped itself is undone first, and a note says so.
        rewritten: the same after clipping; its record says which gradients are clipped and how.
        slopes: hold gradients to the slopes of the loss, too: "on" takes for wrong what is a
            multiple of its slope, a parameter, a state, or the new value of one; "strict" all that
            is not its slope. "off" does not take slopes.
        loss: the value whose slopes are taken; by default the one scalar output.
        **options: see `RunOptions` in `onnx_clip_pass.runtime`.

    Returns:
        What was found, which is true where all is right: a wrong rewrite is no error. Printed, it
        is what `onnx-clip verify` shows.

    Raises:
        OnnxClipError: a model cannot be read, the rewritten one bears no record, the feeds do not
            fit, there is not enough memory, or the original does not run here.
    """
    check_choice(slopes)
    asked: Any = checked(RunOptions, options)
    wants = asked.pop("progress")
    how = _Options(**asked, slopes=slopes, loss=loss)
    with (
        told(wants) as progress,
        TemporaryDirectory(prefix="onnx-clip-verify-", ignore_cleanup_errors=True) as folder,
    ):
        progress(Progress("reading both models"))
        weights = Weights(Path(folder))
        before = _load(original, "the original model", weights)
        after = _load(rewritten, "the rewritten model", weights)
        with (
            blaming(lambda: before.model, before.called),
            blaming(lambda: after.model, after.called),
        ):
            found = _verify(before, after, how, progress)
    paths = [None if isinstance(m, ModelProto) else Path(m) for m in (original, rewritten)]
    return replace(found, original=paths[0], rewritten=paths[1])


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model, where its external data lies, and what to call it."""

    model: ModelProto
    folder: Path | None
    called: str


def _load(source: _Model, called: str, weights: Weights) -> _Loaded:
    folder = None
    path = model_or_path(called, source)
    if isinstance(path, ModelProto):
        model = ModelProto()
        model.CopyFrom(path)
    else:
        called, folder = repr(str(path)), path.parent
        model = load_model(path, external_data=False)
    stripped = weights.taken_out(model)
    return _Loaded(stripped, folder if stripped is model else weights.folder, called)


def _verify(
    original: _Loaded, rewritten: _Loaded, options: _Options, progress: TellProgress
) -> Verification:
    record = read_record(rewritten.model)
    if record is None:
        raise OnnxClipError(
            f"{rewritten.called} has no record of onnx-clip in its metadata, so it is no rewritten "
            f"model; verify takes the original first, then what onnx-clip made of it"
        )
    before, after = Index(strip_if_clipped(original.model)), Index(rewritten.model)
    _check_related(before, original.called, rewritten.called, record)
    feeds = options.feeds_of(before.model)
    result = Verification([], [], recorded_faults(record))
    if result.faults:
        return result
    result.faults = declared_faults(before, original.folder, after, rewritten.folder, record)
    if read_record(original.model) is not None:
        result.notes.append("the first model is clipped, too: it was undone before comparing")
    depths, now = ([s.path.count("/") for s in index.scopes] for index in (before, after))
    if depths != now:
        result.faults.append("the models differ in their nested graphs and functions")
        return result
    targets = targets_of(before, after, record)
    of = Comparison(
        before, original.folder, after, rewritten.folder, record, targets, result, progress
    )
    result.gradients = [
        GradientCheck(t.gradient.name, t.gradient.parameter.name, t.gradient.graph, t.clip.label)
        for t in targets
    ]
    names = before.main.outputs
    behind = {names[slot] for target in targets for slot in target.outputs}
    result.outputs = [OutputCheck(name, name in behind) for name in dict.fromkeys(names)]
    result.outputs += [OutputCheck(new, True, "norms so far") for new in record.states.values()]
    result.outputs += [
        OutputCheck(output, bool(gradients), quantity)
        for output, quantity, gradients, _ in record.emitted
    ]
    check_memory(before, targets)
    feeds = _defaults(of) | feeds
    try:
        Trials(Runs(of, feeds, options.provider)).run_all()
    except OnnxClipError as error:
        sizes = options.made_up_sizes(before.model)
        raise (_with_sizes(error, sizes) if sizes else error) from error
    for check, target in zip(result.gradients, targets, strict=True):
        check.faults[:0] = target.misread
    if options.slopes != "off":
        forward = Forward(before.model, original.folder, feeds, options.provider, options.loss)
        is_strict = options.slopes == "strict"
        Meaning(of, forward, options.seed, is_strict, options.feeds_of_other_sizes).check()
    return result


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of `verify`."""

    feeds: Mapping[str, NDArray[Any]] | None
    dims: Mapping[str, int] | None
    provider: Provider
    seed: int
    slopes: Slopes
    loss: str | None

    def feeds_of(self, model: ModelProto) -> Arrays:
        return make_feeds(model, given=self.feeds, dims=self.dims, seed=self.seed)

    def made_up_sizes(self, model: ModelProto) -> list[str]:
        """The dimensions whose sizes nobody says."""
        known: set[str] = set(self.dims or {})
        made_up: set[str] = set()
        for value in model.graph.input:
            symbols = {dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param}
            (known if value.name in (self.feeds or {}) else made_up).update(symbols)
        return sorted(made_up - known)

    def feeds_of_other_sizes(self, model: ModelProto) -> Arrays | None:
        """The same where the sizes that were made up are others; None if none was made up."""
        sizes = dict.fromkeys(self.made_up_sizes(model), _OTHER_SIZE)
        dims = {**(self.dims or {}), **sizes}
        return replace(self, dims=dims).feeds_of(model) if sizes else None


def _with_sizes(error: OnnxClipError, sizes: Sequence[str]) -> OnnxClipError:
    names = listed([repr(size) for size in sizes])
    return OnnxClipError(
        f"{error}\nthe sizes of {names} are made up: if they do not go together, say them "
        f"(--dim NAME=SIZE, in Python dims={{name: size}}) or give --feeds (feeds=)"
    )


def _check_related(before: Index, original: str, rewritten: str, record: Record) -> None:
    known = {name for scope in before.scopes for name in scope.names}
    missing = [entry.gradient for entry in record.clips]
    missing = [name for name in missing if name not in known]
    if missing:
        raise OnnxClipError(
            f"{original} has no value {missing[0]!r}, a gradient that {rewritten} clips (of "
            f"{len(record.clips)} such, {len(missing)} are missing): the two seem unrelated; "
            f"verify takes the original first, then what onnx-clip made of it"
        )


def _defaults(of: Comparison) -> Arrays:
    """The gradients that are inputs with a default, which are fed so that they can be changed."""
    main = of.before.main
    names = {target.name for target in of.targets if target.scope == 0}
    return {
        name: numpy_helper.to_array(main.initializers[name], str(of.before_folder or ""))
        for name in names & main.input_slots.keys() & main.initializers.keys()
    }
