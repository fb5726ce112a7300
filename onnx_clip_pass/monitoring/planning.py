"""The plan of a run: what is measured and what is carried, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.arguments import is_text
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients import survey
from onnx_clip_pass.gradients.updates import Carried
from onnx_clip_pass.graph import Index
from onnx_clip_pass.monitoring.measuring import Watched, watched_of
from onnx_clip_pass.monitoring.recording import Head
from onnx_clip_pass.monitoring.stepping import ModelRun, Run
from onnx_clip_pass.record import read_record, strip_if_clipped
from onnx_clip_pass.runtime import Provider
from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.views import View, Viewed

__all__ = ["Opens", "WatchPlan", "check_loss", "plan_model"]

Opens = Callable[[Mapping[str, NDArray[Any]], int, Provider], Run]
"""Makes ready to run, from initial values, the number of steps before, and where to run."""


@dataclass(frozen=True, repr=False, eq=False)
class WatchPlan(Viewed):
    """The measures of a run of `watch` and the states that it carries, before it runs.

    `unsure` are the states of which several outputs may be the new value; `checkpoint` is the file
    whose contents the training runtime carries, "" where it is no folder of artifacts, and `files`
    are those of such a folder. `open` makes it ready to run.
    """

    head: Head
    watched: tuple[Watched, ...]
    notes: tuple[str, ...]
    open: Opens
    unsure: tuple[Carried, ...] = ()
    checkpoint: str = ""
    files: tuple[Path, ...] = ()

    @property
    def has_states(self) -> bool:
        """True if a run goes on from something that it has made."""
        return bool(self.carried or self.checkpoint)

    @property
    def carried(self) -> Mapping[str, str]:
        """States to the outputs that are their new values."""
        return self.head.carried

    def view(self) -> View:
        rows = [(each.gradient, each.parameter, each.found.gradient.dtype) for each in self.watched]
        further = [f"carried: output {new} to {state}" for state, new in self.carried.items()]
        if self.checkpoint:
            further.append(f"carried: all that {self.checkpoint} holds, by the training runtime")
            further.append(f"micro-batches in each step: {self.head.micro_batches}")
        further.append(f"loss: {self.head.loss or 'not known (--loss)'}")
        states = self.checkpoint or counted(len(self.carried), "state")
        return View(
            f"would measure {counted(len(rows))} and carry {states}",
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


def plan_model(
    model: ModelProto,
    folder: Path | None,
    name: str,
    carry: Mapping[str, str] | None,
    loss: str | None,
) -> WatchPlan:
    """Find what is measured and carried of a step that is one model.

    Args:
        model: clipped or not.
        folder: where its external data lies.
        name: its file.
        carry: see `watch`.
        loss: see `watch`.
    """
    before = strip_if_clipped(model)
    record = read_record(model)
    seen = survey(Index(before))
    watched, notes = watched_of(seen.found, record, Index(model))
    if not watched:
        raise OnnxClipError("there is nothing to watch: no gradient is found", notes)
    ours = {} if record is None else record.states
    said = _as_carry({} if carry is None else carry)
    said = {new: name for new, name in said.items() if ours.get(name) != new}
    carried, unsure = _carried(before, seen.states, said)
    carried |= ours
    if at_rest := [each.parameter for each in watched if each.parameter not in carried]:
        notes.append(
            f"no output is known to be the new value of {listed([*map(repr, at_rest)])}: unless "
            f"batches have it, it stays as it is from step to step (--carry)"
        )
    loss = seen.loss if loss is None else loss
    check_loss(loss, [value.name for value in model.graph.output])
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
    opens = partial(ModelRun, model, folder, watched, carried, loss)
    return WatchPlan(head, tuple(watched), tuple(notes), opens, unsure)


def check_loss(loss: object, outputs: Collection[str]) -> None:
    """Refuse as the loss what is no output; None is, where the loss is not known."""
    if loss is not None and (not is_text(loss) or loss not in outputs):
        raise OnnxClipError(
            f"no output is called {shown(loss)}, which is to be the loss; the outputs are "
            f"{listed([repr(each) for each in outputs])}"
        )


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
    states = dict[str, str]()
    for each in found:  # of a value that is two outputs the first
        if each.new not in said:
            states.setdefault(each.state, each.new)
    states = {state: new for state, new in states.items() if state not in said.values()}
    unsure = tuple(
        each for each in found if not each.is_sure and states.get(each.state) == each.new
    )
    return states | {state: new for new, state in said.items()}, unsure
