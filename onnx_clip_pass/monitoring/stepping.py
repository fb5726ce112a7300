"""Running a step many times, its states carried from its outputs to its inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.graph import TensorType
from onnx_clip_pass.monitoring.batches import Batch
from onnx_clip_pass.monitoring.measuring import Watched, add_measures
from onnx_clip_pass.runtime import Provider, open_session
from onnx_clip_pass.runtime.session import Arrays
from onnx_clip_pass.saving import initial_states

__all__ = [
    "Measured",
    "ModelRun",
    "Run",
    "as_array",
    "as_loss",
    "misfit",
    "states_as_inputs",
    "unused",
]


class Measured(NamedTuple):
    """The loss of a step, nan where it has none, and a vector for each of `MEASURES`."""

    loss: float
    vectors: Arrays


class Run(Protocol):
    """A step that is run again and again.

    What it makes of the states counts once it has advanced: whoever is told the measures of a step
    can write them before, and is never behind the states.
    """

    @property
    def done(self) -> int:
        """The number of steps that count."""

    def measure(self, batches: Sequence[Batch]) -> Measured:
        """Run one step over the batches that it takes."""

    def gradients(self, which: Collection[int]) -> dict[int, NDArray[Any]]:
        """Return gradients of the step that was measured and has not yet counted."""

    def advance(self) -> None:
        """Go on from what the step has made."""

    def states(self) -> Arrays:
        """Return the states after `done` steps; none where there are none, or nobody knows."""

    def notes(self) -> list[str]:
        """Return what is to be known of the run."""


def states_as_inputs(model: ModelProto, states: Collection[str], folder: Path | None) -> Arrays:
    """Make inputs of initializers that are states, in place; return what they were.

    Args:
        model: a model of the caller's own.
        states: names of inputs and initializers.
        folder: where its external data lies.
    """
    graph, found = model.graph, Arrays()
    inputs = {value.name for value in graph.input}
    for at in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[at]
        if tensor.name in states:
            if folder is None and tensor.data_location == TensorProto.EXTERNAL:
                raise OnnxClipError(
                    f"the initial value of {tensor.name!r} lies in another file: give the path of "
                    f"the model, or load it with its weights"
                )
            try:
                found[tensor.name] = numpy_helper.to_array(tensor, str(folder or ""))
            except Exception as error:  # onnx has many ways to refuse
                raise OnnxClipError(
                    f"the initial value of {tensor.name!r} cannot be read: {error}"
                ) from error
            if tensor.name not in inputs:
                graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
            del graph.initializer[at]
    return found


class ModelRun:
    """A step that is one model.

    Args:
        model: the step, with the weights that are no states or their places.
        folder: where its external data lies.
        watched: the gradients.
        carried: states to the outputs that are their new values.
        loss: the output that is the loss.
        initial: values of states before the first step, and of inputs that no batch has.
        done: the number of steps before.
        provider: where to run.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path | None,
        watched: Sequence[Watched],
        carried: Mapping[str, str],
        loss: str | None,
        initial: Mapping[str, NDArray[Any]],
        done: int,
        provider: Provider,
    ) -> None:
        self._model = ModelProto()
        self._model.CopyFrom(model)
        self._folder = folder
        self._watched = watched
        self._carried = dict(carried)
        self._loss = loss
        self._provider = provider
        self._measures = add_measures(self._model, watched)
        self._own = initial_states(model) | states_as_inputs(self._model, set(carried), folder)
        self._given = {name: as_array(name, value) for name, value in initial.items()}
        self._unused: set[str] = set()
        self._kinds = {value.name: TensorType.of(value.type) for value in self._model.graph.input}
        self._session = open_session(self._model, provider=provider, folder=folder)
        self._values: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        # In one place, so that an interrupt never comes between the states and their count.
        self._after: tuple[int, dict[str, Any]] = done, {}
        unknown = [name for name in initial if name not in self._kinds]
        if unknown:
            raise OnnxClipError(
                f"initial values are given for {listed([*map(repr, unknown)])}, but the inputs of "
                f"the model are {listed([*map(repr, self._kinds)])}"
            )

    @property
    def done(self) -> int:
        """The number of steps that count."""
        return self._after[0]

    def measure(self, batches: Sequence[Batch]) -> Measured:
        """Run one step over its batch.

        Raises:
            OnnxClipError: an input has no value, or one that does not fit, or the runtime fails.
        """
        (batch,) = batches
        self._values = self._fed(batch)
        wanted = [*self._measures.values(), *([] if self._loss is None else [self._loss])]
        names = list(dict.fromkeys([*wanted, *self._carried.values()]))
        found = self._session.run_values(self._values, names)
        self._new = {state: found[new] for state, new in self._carried.items()}
        arrays = {name: self._session.array(found[name]) for name in wanted}
        vectors = {measure: arrays[name] for measure, name in self._measures.items()}
        loss = math.nan if self._loss is None else as_loss(arrays[self._loss], self._loss)
        return Measured(loss, vectors)

    def gradients(self, which: Collection[int]) -> dict[int, NDArray[Any]]:
        """Return gradients before their clips, from another run of the same step."""
        names = {at: self._watched[at].raw for at in which}
        model = ModelProto()
        model.CopyFrom(self._model)
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(
            helper.make_empty_tensor_value_info(name)
            for name in dict.fromkeys(names.values())
            if name not in present
        )
        session = open_session(model, provider=self._provider, folder=self._folder)
        found = session.run_values(self._values, list(dict.fromkeys(names.values())))
        return {at: session.array(found[name]) for at, name in names.items()}

    def advance(self) -> None:
        """Carry the states."""
        self._after = self.done + 1, self._new

    def states(self) -> Arrays:
        """Return the states after the last step that counts; none before the first."""
        return {name: self._session.array(value) for name, value in self._after[1].items()}

    def notes(self) -> list[str]:
        """Return the initial values that were given for nothing."""
        return unused(self._unused)

    def _fed(self, batch: Batch) -> dict[str, Any]:
        """A value for each input: a state, what the batch has, or what was given at first."""
        values, faults = dict(self._after[1]), []
        for name in self._session.inputs:
            if name in values:
                continue
            places = {batch.where: batch.arrays, "the initial values": self._given}
            if name in self._carried:  # what a batch says of it is what it was at first
                places = {"the initial values": self._given, batch.where: batch.arrays}
            places["the model"] = self._own
            where = next((where for where, place in places.items() if name in place), None)
            if where is None:
                whose = "a state" if name in self._carried else "an input"
                faults.append(
                    f"{name!r}, {whose} that neither {batch.where} nor the initial values have "
                    f"(--initial, --set; in Python: initial)"
                )
                continue
            if where == batch.where and name in self._given:
                self._unused.add(name)
            array = as_array(name, places[where][name])
            if fault := misfit(self._kinds[name], array):
                faults.append(f"{name!r} of {where}: {fault}")
            else:
                values[name] = self._session.value(name, array)
        if faults:
            raise OnnxClipError("the step cannot be fed:", faults)
        return values


def unused(names: Collection[str]) -> list[str]:
    """Return in words that initial values were given for nothing, if they were."""
    said = f"the initial values of {listed([*map(repr, sorted(names))])} are not used: the batches"
    return [f"{said} have them"] if names else []


def misfit(kind: TensorType | None, array: NDArray[Any]) -> str | None:
    """Return why an array cannot be an input of this type; None if it can, or nobody knows."""
    if kind is None or not kind.dtype:
        return None
    is_bits = kind.dtype == TensorProto.BFLOAT16 and array.dtype == np.uint16
    if str(array.dtype) != kind.dtype_name and not is_bits:
        return f"expected {kind.dtype_name}, but it is {array.dtype}"
    if kind.agrees_with(TensorType(kind.dtype, array.shape)):
        return None
    shape = "[" + ", ".join("?" if d is None else str(d) for d in kind.shape or ()) + "]"
    return f"expected the shape {shape}, but it is {shown(list(array.shape))}"


def as_array(name: str, value: object) -> NDArray[Any]:
    """Return what was given for an input as an array.

    Raises:
        OnnxClipError: it is none.
    """
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a thing that is no array has to say
        raise OnnxClipError(f"{name!r} is no array: {error}") from error


def as_loss(array: NDArray[Any], name: str) -> float:
    """Return the number that an output is.

    Raises:
        OnnxClipError: it has several elements.
    """
    if array.size != 1:
        raise OnnxClipError(
            f"expected one number as the loss, but {name!r} has the shape {list(array.shape)}; say "
            f"which output is the loss (loss, --loss)"
        )
    return float(np.asarray(array, np.float64).reshape(()))
