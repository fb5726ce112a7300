"""Running a step many times, its states carried from its outputs to its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.graph import TensorType
from onnx_clip_pass.monitoring.batches import Batch
from onnx_clip_pass.runtime import Provider, open_session
from onnx_clip_pass.runtime.session import Arrays

__all__ = ["Stepper", "states_as_inputs"]


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


class Stepper:
    """A step and its states.

    `before` and `states` are the states before and after the last step, as values of the runtime.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path | None,
        carried: Mapping[str, str],
        initial: Mapping[str, NDArray[Any]],
        provider: Provider,
    ) -> None:
        self.carried = dict(carried)
        self.states: dict[str, Any] = {}
        self.before: dict[str, Any] = {}
        self._model = model
        self._folder = folder
        self._provider = provider
        self._own = states_as_inputs(model, set(carried), folder)
        self._given = {name: _as_array(name, value) for name, value in initial.items()}
        self._unused: set[str] = set()
        self._kinds = {value.name: TensorType.of(value.type) for value in model.graph.input}
        self._session = open_session(model, provider=provider, folder=folder)
        unknown = [name for name in initial if name not in self._kinds]
        if unknown:
            raise OnnxClipError(
                f"initial values are given for {listed([*map(repr, unknown)])}, but the inputs of "
                f"the model are {listed([*map(repr, self._kinds)])}"
            )

    def run(self, batch: Batch, wanted: Iterable[str]) -> Arrays:
        """Run one step over a batch, carry its states, and return the wanted outputs.

        Raises:
            OnnxClipError: an input has no value, or one that does not fit, or the runtime fails.
        """
        values = self._values(batch)
        self.before = {name: values[name] for name in self.carried}
        names = [*wanted, *self.carried.values()]
        found = self._session.run_values(values, list(dict.fromkeys(names)))
        self.states = {state: found[new] for state, new in self.carried.items()}
        return {name: self._session.array(found[name]) for name in wanted}

    def again(self, batch: Batch, wanted: list[str]) -> Arrays:
        """Return other values of the step that was run last, over the same batch and states."""
        model = ModelProto()
        model.CopyFrom(self._model)
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(
            helper.make_empty_tensor_value_info(name) for name in wanted if name not in present
        )
        session = open_session(model, provider=self._provider, folder=self._folder)
        found = session.run_values(self._values(batch) | self.before, wanted)
        return {name: session.array(value) for name, value in found.items()}

    def arrays(self, states: Mapping[str, Any]) -> Arrays:
        """Return what `states` was after a step as arrays."""
        return {name: self._session.array(value) for name, value in states.items()}

    def notes(self) -> list[str]:
        """Initial values that were given for nothing."""
        names = listed([*map(repr, sorted(self._unused))])
        said = f"the initial values of {names} are not used: the batches have them"
        return [said] if self._unused else []

    def _values(self, batch: Batch) -> dict[str, Any]:
        """A value for each input: a state, what the batch has, or what was given at first."""
        values, faults = dict(self.states), []
        for name in self._session.inputs:
            if name in values:
                continue
            places = [batch.arrays, self._given, self._own]
            if name in self.carried:  # what a batch says of it is what it was at first
                places = [self._given, batch.arrays, self._own]
            array = next((place[name] for place in places if name in place), None)
            if array is None:
                whose = "a state" if name in self.carried else "an input"
                faults.append(
                    f"{name!r}, {whose} that neither {batch.where} nor the initial values have"
                )
                continue
            if places[0] is batch.arrays and name in batch.arrays and name in self._given:
                self._unused.add(name)
            array = _as_array(name, array)
            if fault := self._fault(name, array):
                faults.append(f"{name!r} of {batch.where}: {fault}")
            else:
                values[name] = self._session.value(name, array)
        if faults:
            raise OnnxClipError("the step cannot be fed:", faults)
        return values

    def _fault(self, name: str, array: NDArray[Any]) -> str | None:
        kind = self._kinds[name]
        if kind is None or not kind.dtype:
            return None
        is_bits = kind.dtype == TensorProto.BFLOAT16 and array.dtype == np.uint16
        if str(array.dtype) != kind.dtype_name and not is_bits:
            return f"expected {kind.dtype_name}, but it is {array.dtype}"
        if kind.agrees_with(TensorType(kind.dtype, array.shape)):
            return None
        shape = "[" + ", ".join("?" if d is None else str(d) for d in kind.shape or ()) + "]"
        return f"expected the shape {shape}, but it is {shown(list(array.shape))}"


def _as_array(name: str, value: object) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a thing that is no array has to say
        raise OnnxClipError(f"{name!r} is no array: {error}") from error
