"""Running a training graph over batches, and recording the norms of its gradients."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.arguments import check_flags, check_path, is_text, model_or_path
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients import survey
from onnx_clip_pass.gradients.updates import Carried
from onnx_clip_pass.graph import Index
from onnx_clip_pass.monitoring.adapting import check_count
from onnx_clip_pass.monitoring.batches import Batch, Feeds, batches_of
from onnx_clip_pass.monitoring.keeping import check_places, left_behind, recorder, save_states
from onnx_clip_pass.monitoring.measuring import Watched, add_measures, watched_of
from onnx_clip_pass.monitoring.norms import Norms
from onnx_clip_pass.monitoring.recording import Head, Recorded, Row, is_csv
from onnx_clip_pass.monitoring.stepping import Stepper
from onnx_clip_pass.progress import Progress, WantsProgress, told
from onnx_clip_pass.record import read_record, strip_if_clipped
from onnx_clip_pass.runtime import Provider, load_feeds
from onnx_clip_pass.storage import load_model
from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.views import View, Viewed

__all__ = ["WatchPlan", "plan_watch", "watch"]

_Path = str | os.PathLike[str]
_NO_ROWS: Sequence[Row] = ()


@dataclass(frozen=True, repr=False, eq=False)
class WatchPlan(Viewed):
    """The measures of a run of `watch` and the states that it carries, before it runs.

    `carried` maps states to the outputs that are their new values; `unsure` are those of which
    several outputs may be it.
    """

    head: Head
    watched: tuple[Watched, ...]
    carried: Mapping[str, str]
    unsure: tuple[Carried, ...]
    notes: tuple[str, ...]
    _model: ModelProto
    _folder: Path | None

    def view(self) -> View:
        rows = [(each.gradient, each.parameter, each.found.gradient.dtype) for each in self.watched]
        further = [f"carried: output {new} to {state}" for state, new in self.carried.items()]
        further.append(f"loss: {self.head.loss or 'not known (--loss)'}")
        return View(
            f"would measure {counted(len(rows))} and carry {counted(len(self.carried), 'state')}",
            Table(("gradient", "parameter", "dtype"), tuple(rows)),
            self.notes,
            tuple(self.questions()),
            tuple(further),
        )

    def questions(self) -> Iterator[str]:
        """Questions that have to be answered before it can be run."""
        if self.unsure:
            pairs = [f"{each.new}={each.state}" for each in self.unsure]
            yield (
                f"the outputs {listed([repr(each.new) for each in self.unsure])} may be the new "
                f"values of {listed([repr(each.state) for each in self.unsure])} in any order; say "
                f"which is which, as in carry={pairs!r} (--carry {' --carry '.join(pairs)})"
            )


def plan_watch(
    model: ModelProto | _Path,
    *,
    carry: Mapping[str, str] | None = None,
    loss: str | None = None,
) -> WatchPlan:
    """Find what `watch` measures and carries; see there."""
    folder: Path | None = None
    name = ""
    given = model_or_path("model", model)
    if isinstance(given, Path):
        folder, name = given.parent, given.name
        given = load_model(given, external_data=False)
    before = strip_if_clipped(given)
    record = read_record(given)
    seen = survey(Index(before))
    watched, notes = watched_of(seen.found, record, Index(given))
    if not watched:
        raise OnnxClipError("there is nothing to watch: no gradient is found", notes)
    carried, unsure = _carried(before, seen.states, _as_carry({} if carry is None else carry))
    if at_rest := [each.parameter for each in watched if each.parameter not in carried]:
        notes.append(
            f"no output is known to be the new value of {listed([*map(repr, at_rest)])}: unless "
            f"batches have it, it stays as it is from step to step (--carry)"
        )
    outputs = {value.name for value in given.graph.output}
    loss = seen.loss if loss is None else loss
    if loss is not None and (not is_text(loss) or loss not in outputs):
        raise OnnxClipError(
            f"no output is called {shown(loss)}, which is to be the loss; the outputs are "
            f"{listed([repr(each) for each in outputs])}"
        )
    if record is not None and record.loss_scale != 1:
        notes.append(f"norms are those of the scaled gradients (loss scale {record.loss_scale})")
    head = Head(
        tuple(each.gradient for each in watched),
        tuple(each.parameter for each in watched),
        any(each.raw != each.clipped for each in watched),
        loss,
        carried,
        name,
    )
    return WatchPlan(head, tuple(watched), carried, unsure, tuple(notes), given, folder)


def _as_carry(carry: object) -> dict[str, str]:
    if not isinstance(carry, Mapping) or not all(
        isinstance(each, str) for pair in carry.items() for each in pair
    ):
        raise OnnxClipError(
            f"carry must map names of outputs to names of inputs, not {shown(carry)}"
        )
    return dict(carry)


def _carried(
    model: ModelProto, found: Sequence[Carried], said: Mapping[str, str]
) -> tuple[dict[str, str], tuple[Carried, ...]]:
    """The output that is the new value of each state, as found, and as `said` by output."""
    outputs = {value.name for value in model.graph.output}
    inputs = {value.name for value in model.graph.input}
    inputs |= {tensor.name for tensor in model.graph.initializer}
    wrong = [f"no output is called {new!r}" for new in said if new not in outputs]
    wrong += [f"no input is called {state!r}" for state in said.values() if state not in inputs]
    wrong += [
        f"{state!r} is to be {times} outputs at once"
        for state, times in Counter(said.values()).items()
        if times > 1
    ]
    if wrong:
        raise OnnxClipError("these cannot be carried:", wrong)
    states = {each.state: each.new for each in found if each.new not in said}
    states = {state: new for state, new in states.items() if state not in said.values()}
    unsure = tuple(
        each for each in found if not each.is_sure and states.get(each.state) == each.new
    )
    return states | {state: new for new, state in said.items()}, unsure


def watch(
    model: ModelProto | _Path,
    feeds: Feeds,
    *,
    steps: int | None = None,
    initial: Mapping[str, NDArray[Any]] | _Path | None = None,
    carry: Mapping[str, str] | None = None,
    loss: str | None = None,
    to: _Path | None = None,
    states: _Path | None = None,
    resume: bool = False,
    force: bool = False,
    provider: Provider = "cpu",
    progress: WantsProgress = None,
) -> Norms:
    r"""Run a training graph over batches and record loss and norms of its gradients.

    A training step, whose outputs are the new values of its states, goes on from what it has made;
    which output is the new value of which input is known from finding. A gradient graph without an
    update is run over the batches alone. Of each step are recorded the loss and, of each gradient,
    its L2 norm, its largest element by magnitude, the shares of its elements that are 0 and that
    are not finite and, where it is clipped, its norm behind the clip. Norms are exact to 1e-5, see
    docs/numerics.md. The global norm is

    .. math:: N = \sqrt{\textstyle\sum_k \lVert g_k \rVert_2^2}

    Args:
        model: a training graph, or its path; clipped or not.
        feeds: batches: an .npz file, a folder or a pattern of such files, or any iterable of
            mappings of input names to arrays. Short of steps it goes round.
        steps: how many; by default as many as there are batches.
        initial: values of states before the first step, and of inputs that no batch has, such as a
            learning rate; arrays by name, or the path of an .npz file. States that are initializers
            have theirs.
        carry: names of outputs to names of the inputs that they are the new values of, where that
            is not what finding says.
        loss: the output that is the loss, if that is not clear.
        to: a file to which each step is written at once: JSON lines, or comma-separated values if
            it ends in .csv.
        states: a file (.npz) to which the states are written after the last step.
        resume: go on from `to` and `states`, which an earlier run has left.
        force: replace `to` if it is there, and whatever is at `states`.
        provider: where to run, "cpu" or "cuda".
        progress: is told how many steps are done, and of how many: a callback, or True for a bar.

    Returns:
        What was measured. The run ends early at a loss that is not finite, and says so.

    Raises:
        OnnxClipError: no gradient is found, states cannot be told apart, a batch does not fit or
            cannot be read, or the runtime fails; what was recorded in `to` is kept.
    """
    planned = plan_watch(model, carry=carry, loss=loss)
    if questions := list(planned.questions()):
        raise OnnxClipError("it is not clear what is to be carried:", questions)
    check_flags(resume=resume, force=force)
    check_places(to, states, (model, feeds, initial), resume=resume, force=force)
    batches = batches_of(feeds)
    if batches.count == 0:
        raise OnnxClipError("expected batches to run the step over, but there is none")
    total = steps if steps is not None else batches.count
    if total is None:
        raise OnnxClipError("say how many steps: it cannot be seen how many batches there are")
    check_count("steps", total, 1)
    start, done, said = _given(initial), _NO_ROWS, list[str]()
    if resume:
        left, done, said = left_behind(planned.head, to, states)
        start = {**start, **left}
    copy = ModelProto()
    copy.CopyFrom(planned._model)
    measures = add_measures(copy, planned.watched)
    stepper = Stepper(copy, planned._folder, planned.carried, start, provider)
    doing = f"running {planned.head.model or 'the model'}"
    seen = _Seen(done, keeps_all=to is None or is_csv(to))
    with (
        told(progress) as tell,
        recorder(to, planned.head, seen.count if resume else None, force=force) as write,
    ):
        kept: Mapping[str, Any] = {}
        try:
            for number, batch in enumerate(islice(batches, seen.count, total), seen.count):
                row = _step(stepper, batch, number, planned, measures)
                write(row)
                seen.add(row)
                kept = stepper.states
                tell(Progress(doing, number + 1, total, "steps"))
                if planned.head.loss is not None and not math.isfinite(row.loss):
                    seen.stopped = seen.why(planned.watched)
                    break
        finally:
            if states is not None and kept:
                save_states(Path(states), stepper.arrays(kept), seen.count)
    notes = (*planned.notes, *said, *stepper.notes())
    if seen.count < total and not seen.stopped:
        notes += (f"the batches ended after {counted(seen.count, 'step')}",)
    rows = tuple(seen.rows) if to is None or is_csv(to) else Recorded(Path(to), planned.head)
    return Norms(planned.head, rows, seen.stopped, notes)


class _Seen:
    """The steps so far: all of them, or where they are written to a file the last two."""

    def __init__(self, rows: Sequence[Row], *, keeps_all: bool) -> None:
        self.count = 0
        self.rows = deque[Row](maxlen=None if keeps_all else 2)
        self.stopped = ""
        self._first_odd: Row | None = None
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        self.count += 1
        self.rows.append(row)
        if self._first_odd is None and row.nonfinite.any():
            self._first_odd = row

    def why(self, watched: Sequence[Watched]) -> str:
        """The reason of an end at a loss that is not finite: the gradient that went first."""
        last, odd = self.rows[-1], self._first_odd
        said = f"the loss is {last.loss} in step {last.step}"
        if odd is not None:
            names = [repr(watched[int(at)].parameter) for at in np.flatnonzero(odd.nonfinite)]
            whose = f"those of {listed(names)}" if names[1:] else f"that of {names[0]}"
            first = "gradients that were" if names[1:] else "gradient that was"
            return f"{said}; the first {first} not finite: {whose}, in step {odd.step}"
        before = self.rows[-2] if len(self.rows) > 1 else last
        return (
            f"{said}; all gradients were finite, their norm together {before.global_norm:.3g} in "
            f"step {before.step}"
        )


def _given(initial: Mapping[str, NDArray[Any]] | _Path | None) -> Mapping[str, NDArray[Any]]:
    if initial is None:
        return {}
    if isinstance(initial, Mapping):
        return initial
    check_path("initial, if it is no mapping of names to arrays,", initial)
    return load_feeds(initial)


def _step(
    stepper: Stepper, batch: Batch, number: int, planned: WatchPlan, measures: Mapping[str, str]
) -> Row:
    """Run one step, and look closer where something is not finite."""
    loss = planned.head.loss
    wanted = [*measures.values(), *([loss] if loss is not None else [])]
    try:
        found = stepper.run(batch, wanted)
    except OnnxClipError as error:
        raise OnnxClipError(f"step {number}, {batch.where}: {error}") from error
    vectors = {name: found[output] for name, output in measures.items()}
    told = math.nan if loss is None else _as_loss(found[loss], loss)
    vectors["largest"] = np.maximum(vectors["largest"], 0.0)  # of no element
    vectors["largest"][np.isnan(vectors["norm"])] = np.nan
    nonfinite = np.zeros(len(planned.watched))
    odd = {int(at): planned.watched[at].raw for at in np.flatnonzero(~np.isfinite(vectors["norm"]))}
    raws = stepper.again(batch, list(dict.fromkeys(odd.values()))) if odd else {}
    for at, name in odd.items():
        wide = raws[name].astype(np.float64)
        nonfinite[at] = float(np.mean(~np.isfinite(wide))) if wide.size else 0.0
        if nonfinite[at] == 0:  # finite, and beyond float32
            vectors["norm"][at] = np.sqrt(np.sum(wide * wide))
    return Row(number, told, nonfinite=nonfinite, **vectors)


def _as_loss(array: NDArray[Any], name: str) -> float:
    if array.size != 1:
        raise OnnxClipError(
            f"expected one number as the loss, but {name!r} has the shape {list(array.shape)}; say "
            f"which output is the loss (loss, --loss)"
        )
    return float(np.asarray(array, np.float64).reshape(()))
