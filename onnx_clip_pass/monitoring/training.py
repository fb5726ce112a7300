"""Steps of a folder of training artifacts, run by ONNX Runtime's training runtime.

The runtime is imported where a folder is opened. It has a module name in common with the stock
ONNX Runtime, whose environment it cannot share.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from onnx_clip_pass.artifacts.layout import Layout
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.graph import TensorType
from onnx_clip_pass.monitoring.batches import Batch
from onnx_clip_pass.monitoring.measuring import Watched, add_measures
from onnx_clip_pass.monitoring.stepping import Measured, as_array, as_loss, misfit, unused
from onnx_clip_pass.runtime import Provider, open_session
from onnx_clip_pass.runtime.session import Arrays

__all__ = ["CHECKPOINT", "RATE", "TrainingRun"]

RATE = "learning_rate"
"""The name under which a learning rate is given, that of the optimizer model's input."""
CHECKPOINT, _DATA = "checkpoint", "checkpoint.data"
"""The names under which the bytes of a checkpoint are kept; the second where it is large."""
_KEPT_RATE = "checkpoint.learning_rate"
"""The name under which the learning rate is kept beside it: no checkpoint holds it."""
_INSTALL = (
    "running a folder of training artifacts needs the runtime that made it, which is not installed "
    "here ({}): pip install onnxruntime-training-cpu==1.19.2 onnx==1.16.2 'numpy<2' torch in an "
    "environment of its own, with Python 3.8 to 3.11 and without onnxruntime, whose module has the "
    "same name; see docs/watching.md"
)


class TrainingRun:
    """A step that is micro-batches by the training model, and an update by the optimizer model.

    Args:
        layout: the folder.
        ports: a graph with the inputs of the training model.
        measuring: from the buffers of `watched` in order to what is measured, without the measures.
        watched: the gradients.
        loss: the output of the training model that is the loss; it is the mean of micro-batches.
        initial: by name: parameters, inputs that no batch has, the learning rate, a checkpoint.
        done: the number of steps before.
        provider: the CPU.

    Raises:
        OnnxClipError: the runtime is missing or refuses what it is given.
    """

    def __init__(
        self,
        layout: Layout,
        ports: GraphProto,
        measuring: ModelProto,
        watched: Sequence[Watched],
        loss: str | None,
        initial: Mapping[str, NDArray[Any]],
        done: int,
        provider: Provider,
    ) -> None:
        if provider != "cpu":
            raise OnnxClipError(
                f"a folder of training artifacts is run on the CPU: provider must be cpu, not "
                f"{shown(provider)}"
            )
        self.done = done
        self._api, ort = _runtime()
        self._loss = loss
        self._watched = watched
        self._kinds = {value.name: TensorType.of(value.type) for value in ports.input}
        self._given = {name: as_array(name, value) for name, value in initial.items()}
        self._unused: set[str] = set()
        self._is_torn = False
        self._statistics = Arrays()
        self._sums: list[NDArray[Any]] = []
        options = ort.SessionOptions()
        options.log_severity_level = 4
        with _blamed("load the artifacts"):
            kept_rate = self._given.pop(_KEPT_RATE, None)
            self._state = self._loaded(layout)
            training = layout.folder / layout.training
            self._module = self._api.Module(training, self._state, session_options=options)
            self._names = self._module.input_names()
            self._outputs = self._module.output_names()
            self._optimizer = None
            if layout.optimizer:
                optimizer = layout.folder / layout.optimizer
                self._optimizer = self._api.Optimizer(optimizer, self._module)
                if kept_rate is not None:
                    self._optimizer.set_learning_rate(kept_rate.item())
        self._begin()
        self._measuring = ModelProto()
        self._measuring.CopyFrom(measuring)
        self._measures = add_measures(self._measuring, watched)
        self._session = open_session(self._measuring)

    def _loaded(self, layout: Layout) -> Any:
        """The checkpoint to begin with: what was kept of an earlier run, or that of the folder."""
        load = self._api.CheckpointState.load_checkpoint
        if CHECKPOINT not in self._given:
            return load(layout.folder / (layout.prefix + CHECKPOINT))
        with TemporaryDirectory() as place:
            for name in (CHECKPOINT, _DATA):
                if name in self._given:
                    (Path(place) / name).write_bytes(self._given.pop(name).tobytes())
            return load(Path(place) / CHECKPOINT)

    def _begin(self) -> None:
        """Set what was given: the learning rate and, of a run from its start, parameters."""
        parameters = {name for name, _ in self._state.parameters}
        known = {*parameters, *self._names, *([RATE] if self._optimizer else [])}
        faults = [f"nothing is called {name!r}" for name in self._given if name not in known]
        for name, array in self._given.items():
            if name in parameters:
                own = self._state.parameters[name].data
                if (own.dtype, own.shape) != (array.dtype, array.shape):
                    faults.append(
                        f"{name!r}: expected {own.dtype} {list(own.shape)}, but it is "
                        f"{array.dtype} {list(array.shape)}"
                    )
            elif name == RATE and array.size != 1:
                faults.append(f"{name!r}: expected a number, not {list(array.shape)}")
        if faults:
            raise OnnxClipError(
                "initial values are given that do not fit the parameters, the inputs that batches "
                f"have, or {RATE}:",
                faults,
            )
        with _blamed("set initial values"):
            for name in parameters & self._given.keys() if self.done == 0 else ():
                given = self._given[name]  # whose rank 0 ascontiguousarray does not keep
                self._state.parameters[name] = np.ascontiguousarray(given).reshape(given.shape)
            if RATE in self._given and self._optimizer:
                self._optimizer.set_learning_rate(float(self._given[RATE].reshape(())))

    def measure(self, batches: Sequence[Batch]) -> Measured:
        """Run the training model over the micro-batches of a step.

        Raises:
            OnnxClipError: an input has no value, or one that does not fit, or the runtime fails.
        """
        fed = [self._fed(batch) for batch in batches]  # all, before a buffer has anything
        self._statistics = {
            name: parameter.data
            for name, parameter in self._state.parameters
            if not parameter.requires_grad
        }
        losses = []
        with _blamed("run the training model"):
            for feeds in fed:
                made = self._module(*feeds)
                found = dict(
                    zip(self._outputs, made if isinstance(made, tuple) else (made,), strict=True)
                )
                if self._loss is not None:
                    losses.append(as_loss(found[self._loss], self._loss))
            self._sums = [self._state.parameters[each.parameter].grad for each in self._watched]
        inputs = {each.raw: array for each, array in zip(self._watched, self._sums, strict=True)}
        found = self._session.run(inputs)
        vectors = {measure: found[name] for measure, name in self._measures.items()}
        return Measured(math.fsum(losses) / len(losses) if losses else math.nan, vectors)

    def gradients(self, which: Collection[int]) -> dict[int, NDArray[Any]]:
        """Return what buffers held when they were measured."""
        return {at: self._sums[at] for at in which}

    def advance(self) -> None:
        """Let the optimizer step, and begin to add up anew."""
        self._is_torn = True
        with _blamed("run the optimizer model"):
            if self._optimizer is not None:
                self._optimizer.step()
            self._module.lazy_reset_grad()
        self._statistics = {}
        self.done += 1
        self._is_torn = False

    def states(self) -> Arrays:
        """Return the bytes of a checkpoint; nothing where a step was cut short in its update.

        What a step that was cut short before has made of statistics is undone.
        """
        if self._is_torn:
            return {}
        with _blamed("save a checkpoint"), TemporaryDirectory() as place:
            for name, array in self._statistics.items():
                self._state.parameters[name] = array
            path = Path(place) / CHECKPOINT
            self._api.CheckpointState.save_checkpoint(
                self._state, path, include_optimizer_state=True
            )
            found = Arrays()
            for file in sorted(Path(place).iterdir()):
                found[file.name] = np.fromfile(file, np.uint8)
            if self._optimizer is not None:
                found[_KEPT_RATE] = np.array(self._optimizer.get_learning_rate())
            return found

    def notes(self) -> list[str]:
        """Return the initial values that were given for nothing."""
        return unused(self._unused)

    def _fed(self, batch: Batch) -> list[NDArray[Any]]:
        """A value for each input that the training model has for data, in its order."""
        found, faults = [], []
        for name in self._names:
            given = batch.arrays.get(name, self._given.get(name))
            if given is None:
                faults.append(
                    f"{name!r}, an input that neither {batch.where} nor the initial values have"
                )
                continue
            if name in batch.arrays and name in self._given:
                self._unused.add(name)
            array = as_array(name, given)
            if fault := misfit(self._kinds.get(name), array):
                where = batch.where if name in batch.arrays else "the initial values"
                faults.append(f"{name!r} of {where}: {fault}")
            found.append(np.ascontiguousarray(array).reshape(array.shape))
        if faults:
            raise OnnxClipError("the step cannot be fed:", faults)
        return found


def _runtime() -> tuple[Any, Any]:
    """The training interface of ONNX Runtime, and ONNX Runtime.

    Raises:
        OnnxClipError: it is not installed.
    """
    try:
        import onnxruntime as ort
        from onnxruntime.training import api
    except ImportError as error:
        raise OnnxClipError(_INSTALL.format(error)) from error
    return api, ort


@contextmanager
def _blamed(doing: str) -> Iterator[None]:
    """Turn the errors of the runtime, which are many, into ours."""
    try:
        yield
    except OnnxClipError:
        raise
    except Exception as error:
        raise OnnxClipError(
            f"ONNX Runtime failed to {doing}: {(str(error).splitlines() or [''])[0]}"
        ) from error
