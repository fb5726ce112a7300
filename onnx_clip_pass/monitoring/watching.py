"""Running a training step over batches, and recording the norms of its gradients."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.arguments import check_flags, check_path, model_or_path
from onnx_clip_pass.clips.norms import norm_of
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.monitoring.adapting import check_count
from onnx_clip_pass.monitoring.batches import Batch, Feeds, batches_of
from onnx_clip_pass.monitoring.folders import plan_folder
from onnx_clip_pass.monitoring.keeping import (
    Keeper,
    check_names,
    check_places,
    left_behind,
    recorder,
)
from onnx_clip_pass.monitoring.measuring import Watched
from onnx_clip_pass.monitoring.norms import Norms
from onnx_clip_pass.monitoring.planning import WatchPlan, plan_model
from onnx_clip_pass.monitoring.recording import Recorded, Row, is_csv
from onnx_clip_pass.monitoring.stepping import Run
from onnx_clip_pass.progress import Progress, WantsProgress, told
from onnx_clip_pass.runtime import Provider, load_feeds
from onnx_clip_pass.storage import load_model
from onnx_clip_pass.tables import counted

__all__ = ["plan_watch", "watch"]

_Path = str | os.PathLike[str]
_NO_ROWS: Sequence[Row] = ()


def plan_watch(
    model: ModelProto | _Path,
    *,
    carry: Mapping[str, str] | None = None,
    loss: str | None = None,
    micro_batches: int = 1,
) -> WatchPlan:
    """Find what `watch` measures and carries; see there."""
    check_count("micro_batches", micro_batches, 1)
    given = model_or_path("model", model)
    if isinstance(given, Path) and given.is_dir():
        return plan_folder(given, carry, loss, micro_batches)
    if micro_batches != 1:
        raise OnnxClipError(
            f"micro_batches (--micro-batches) is for folders of training artifacts, whose runtime "
            f"adds up the gradients of several batches before a step: a model takes one, not "
            f"{micro_batches}"
        )
    if isinstance(given, Path):
        model = load_model(given, external_data=False)
        return plan_model(model, given.parent, given.name, carry, loss)
    return plan_model(given, None, "", carry, loss)


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
    states_every: int | None = None,
    micro_batches: int = 1,
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
        model: a training graph, its path, or a folder of ONNX Runtime's training artifacts; clipped
            or not.
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
        states_every: write them after so many steps, too, so that a run that is killed can be gone
            on with; each time the whole file is replaced at once.
        micro_batches: of a folder, the number of batches in a step.
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
    planned = plan_watch(model, carry=carry, loss=loss, micro_batches=micro_batches)
    if questions := list(planned.questions()):
        raise OnnxClipError("it is not clear what is to be carried:", questions)
    check_flags(resume=resume, force=force)
    if states_every is not None:
        check_count("states_every", states_every, 1)
        if states is None:
            raise OnnxClipError(
                "states_every (--states-every) says how often states are written: say where, too "
                "(states, --states)"
            )
    read = (model, *planned.files, feeds, initial)
    check_places(to, states, read, resume=resume, force=force)
    if states is not None:
        check_names(planned.carried)
    batches = batches_of(feeds)
    if batches.count == 0:
        raise OnnxClipError("expected batches to run the step over, but there is none")
    if steps is None and batches.count is None:
        raise OnnxClipError("say how many steps: it cannot be seen how many batches there are")
    total = math.ceil((batches.count or 0) / micro_batches) if steps is None else steps
    check_count("steps", total, 1)
    start, done, said = _given(initial), _NO_ROWS, list[str]()
    if resume:
        left, done, said = left_behind(planned.head, to, states, has_states=planned.has_states)
        start = {**start, **left}
    seen = _Seen(done, keeps_all=to is None or is_csv(to))
    run = planned.open(start, seen.count, provider)
    doing = f"running {planned.head.model or 'the model'}"
    groups = _grouped(batches, micro_batches, seen.count, total)
    with (
        told(progress) as tell,
        recorder(to, planned.head, seen.count if resume else None, force=force) as writer,
    ):
        keeper = Keeper(None if states is None else Path(states), run, writer, states_every)
        try:
            for number, group in enumerate(groups, seen.count):
                row = _step(run, group, number, planned)
                writer.write(row)
                seen.add(row)
                run.advance()
                keeper.save_if_due()
                tell(Progress(doing, number + 1, total, "steps"))
                if planned.head.loss is not None and not math.isfinite(row.loss):
                    seen.stopped = seen.why(planned.watched)
                    break
        finally:
            keeper.save()
    notes = (*planned.notes, *said, *run.notes())
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


def _grouped(
    batches: Iterable[Batch], size: int, start: int, stop: int
) -> Iterator[tuple[Batch, ...]]:
    """The batches of the steps from one to another; what is left at the end is no step."""
    source = islice(batches, start * size, None)
    for _ in range(start, stop):
        group = tuple(islice(source, size))
        if len(group) < size:
            return
        yield group


def _given(initial: Mapping[str, NDArray[Any]] | _Path | None) -> Mapping[str, NDArray[Any]]:
    if initial is None:
        return {}
    if isinstance(initial, Mapping):
        return initial
    check_path("initial, if it is no mapping of names to arrays,", initial)
    return load_feeds(initial)


def _step(run: Run, batches: Sequence[Batch], number: int, planned: WatchPlan) -> Row:
    """Run one step, and look closer where something is not finite."""
    try:
        loss, vectors = run.measure(batches)
    except OnnxClipError as error:
        where = batches[0].where if len(batches) == 1 else f"from {batches[0].where}"
        raise OnnxClipError(f"step {number}, {where}: {error}") from error
    vectors["largest"] = np.maximum(vectors["largest"], 0.0)  # of no element
    vectors["largest"][np.isnan(vectors["norm"])] = np.nan
    nonfinite = np.zeros(len(planned.watched))
    odd = [int(at) for at in np.flatnonzero(~np.isfinite(vectors["norm"]))]
    for at, gradient in (run.gradients(odd) if odd else {}).items():
        wide = gradient.astype(np.float64)
        nonfinite[at] = float(np.mean(~np.isfinite(wide))) if wide.size else 0.0
        if nonfinite[at] == 0:  # finite, and beyond float32
            vectors["norm"][at] = norm_of(wide).item()
    return Row(number, loss, nonfinite=nonfinite, **vectors)
