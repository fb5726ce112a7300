"""A training step of PyTorch as a function of tensors: run, clipped and exported.

A step takes parameters, states, carried buffers and data, and returns the loss and all new values.
The optimizer is the library's own object: its tensors are replaced by the step's arguments, its
`step` is called, and its tensors are read again. Traced by `make_fx`, that is a graph, which
`torch.onnx.export` takes. Python numbers inside an optimizer (a count of steps) become constants,
unless a step makes tensors of them: then they are states too.
"""

from __future__ import annotations

import copy
import importlib.metadata
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cases
import numpy as np
import onnx
import torch
from torch import Tensor
from torch_tracing import as_if_compiled, branches, traced, without_numbers

VERSIONS = {
    name: importlib.metadata.version(name)
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "pytorch_optimizer")
}
Place = tuple[Any, ...]
Data = list[Tensor]


class CannotExportError(Exception):
    """Says why a step has no graph."""


@dataclass
class Network:
    """Parameters, buffers and how a batch becomes gradients.

    `backward` returns loss, gradients in the order of the parameters, and new buffers.
    """

    name: str
    parameters: dict[str, Tensor]
    backward: Callable[
        [list[Tensor], list[Tensor], Data], tuple[Tensor, list[Tensor], list[Tensor]]
    ]
    batches: list[Data]
    """The last one is the step's; those before it warm the states up."""
    data: list[str]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    follow: Callable[[list[Tensor], list[Tensor]], list[Tensor]] | None = None
    """The buffers' new values from the new parameters: a target network, an average."""
    tolerance: float = cases.TOLERANCE


def by_autograd(
    loss: Callable[[list[Tensor], list[Tensor], Data], tuple[Tensor, list[Tensor]]],
) -> Callable[[list[Tensor], list[Tensor], Data], tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Return the backward pass of a loss that also returns new buffers."""

    def backward(
        parameters: list[Tensor], buffers: list[Tensor], data: Data
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        value, carried = loss(leaves, buffers, data)
        gradients = torch.autograd.grad(value, leaves)
        return value.detach(), list(gradients), [buffer.detach() for buffer in carried]

    return backward


def clip_by_norm(gradient: Tensor, clip_norm: float) -> Tensor:
    """Return the gradient itself where its norm is not above the clip norm, else scaled to it."""
    norm = torch.linalg.vector_norm(gradient.double())
    if norm <= clip_norm:
        return gradient
    return (gradient.double() * clip_norm / norm).to(gradient.dtype)


class Step:
    """A network with its optimizers behind some steps of warming up, as a function of tensors."""

    def __init__(
        self,
        network: Network,
        make: Callable[[dict[str, torch.nn.Parameter]], list[Any]] | None,
        *,
        patched: bool = False,
    ) -> None:
        self.network, self.patched = network, patched
        self.parameters = {
            name: torch.nn.Parameter(value.clone()) for name, value in network.parameters.items()
        }
        buffers = [buffer.clone() for buffer in network.buffers.values()]
        self.optimizers = make(self.parameters) if make else []
        for data in network.batches[:-1] if make else ():
            _, gradients, buffers = network.backward(
                [parameter.detach() for parameter in self.parameters.values()], buffers, data
            )
            _update(self.optimizers, list(self.parameters.values()), gradients, patched)
        self.buffers = buffers
        self.states = self._tensors(self.optimizers, list(self.parameters.values()))
        if self.optimizers:
            self._numbers_that_become_tensors()
        self.arguments = [
            *(parameter.detach().clone() for parameter in self.parameters.values()),
            *(buffer.clone() for buffer in self.buffers),
            *(state.detach().clone() for state in self.states.values()),
            *(tensor.clone() for tensor in network.batches[-1]),
        ]

    def __call__(self, *arguments: Tensor, clip_norm: float | None = None) -> list[Tensor]:
        """Return loss, new parameters, new buffers and new states; or loss and gradients."""
        parameters, buffers, states, data = self._split(arguments)
        loss, gradients, carried = self.network.backward(parameters, buffers, data)
        if clip_norm is not None:
            gradients = [clip_by_norm(gradient, clip_norm) for gradient in gradients]
        if not self.optimizers:
            return [loss, *gradients, *carried]
        # The optimizer writes into its tensors; those of the caller stay as they are.
        leaves = [parameter.detach().clone().requires_grad_() for parameter in parameters]
        memo: dict[int, Any] = {
            id(old): new for old, new in zip(self.parameters.values(), leaves, strict=True)
        }
        for old, new in zip(self.states.values(), states, strict=True):
            memo[id(old)] = new.detach().clone()
        optimizers = [_copy(optimizer, memo) for optimizer in self.optimizers]
        _update(optimizers, leaves, gradients, self.patched)
        if self.network.follow:
            carried = self.network.follow([leaf.detach() for leaf in leaves], carried)
        after = self._tensors(optimizers, leaves)
        missing = [place for place in self.states if place not in after]
        if missing:
            raise CannotExportError(f"the step does away with its states {missing}")
        new = [after[place].detach() for place in self.states]
        return [loss, *(leaf.detach() for leaf in leaves), *carried, *new]

    def gradients(self) -> list[Tensor]:
        """Return the raw gradients at the arguments."""
        parameters, buffers, _, data = self._split(self.arguments)
        return self.network.backward(parameters, buffers, data)[1]

    def _split(
        self, arguments: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        ends = [len(self.parameters), len(self.buffers), len(self.states)]
        parts, start = [], 0
        for length in ends:
            parts.append(list(arguments[start : start + length]))
            start += length
        return parts[0], parts[1], parts[2], list(arguments[start:])

    def _tensors(self, optimizers: list[Any], parameters: list[Tensor]) -> dict[Place, Tensor]:
        indices = {id(p): index for index, p in enumerate(parameters)}
        found = {
            place: value
            for place, value in _walk(optimizers, (), indices, set())
            if isinstance(value, Tensor) and id(value) not in indices
        }
        # A tensor that hangs in two places is one state.
        first: dict[int, Place] = {}
        for place, value in found.items():
            first.setdefault(id(value), place)
        return {place: found[place] for place in first.values()}

    def _numbers_that_become_tensors(self) -> None:
        """Make states of the numbers of which a step makes tensors."""
        parameters = list(self.parameters.values())
        memo: dict[int, Any] = {}
        leaves = [parameter.detach().clone().requires_grad_() for parameter in parameters]
        memo |= {id(old): new for old, new in zip(parameters, leaves, strict=True)}
        trial = [_copy(optimizer, memo) for optimizer in self.optimizers]
        _update(trial, leaves, self._trial_gradients(), self.patched)
        after = self._tensors(trial, leaves)
        indices = {id(p): index for index, p in enumerate(parameters)}
        for place, value in list(_walk(self.optimizers, (), indices, set())):
            if isinstance(value, (int, float)) and place in after:
                _put(self.optimizers, place, parameters, torch.tensor(float(value)))
        self.states = self._tensors(self.optimizers, parameters)

    def _trial_gradients(self) -> list[Tensor]:
        parameters = [parameter.detach() for parameter in self.parameters.values()]
        buffers = [buffer.clone() for buffer in self.buffers]
        return self.network.backward(parameters, buffers, self.network.batches[-1])[1]


def _update(
    optimizers: list[Any], parameters: list[Tensor], gradients: list[Tensor], patched: bool
) -> None:
    """Call the optimizers' own `step` with these gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.detach().clone(memory_format=torch.contiguous_format)
    with without_numbers() if patched else as_if_compiled():
        for optimizer in optimizers:
            optimizer.step()


def _copy(optimizer: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy in which the tensors of `memo` are replaced."""
    new = object.__new__(type(optimizer))
    memo[id(optimizer)] = new
    new.__dict__ = copy.deepcopy(optimizer.__dict__, memo)
    return new


def _walk(value: Any, place: Place, indices: dict[int, int], seen: set[int]) -> Iterator[Any]:
    """Yield each tensor and number of an optimizer with its place."""
    if isinstance(value, (Tensor, int, float)) and not isinstance(value, bool):
        yield place, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            if place and place[-1] in ("defaults", "_optimizer_step_pre_hooks"):
                continue
            name = ("parameter", indices[id(key)]) if id(key) in indices else key
            yield from _walk(item, (*place, name), indices, seen)
    elif isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(value):
            yield from _walk(item, (*place, index), indices, seen)
    elif hasattr(value, "__dict__") and not isinstance(
        value, (type, types.FunctionType, types.MethodType, types.ModuleType, torch.nn.Module)
    ):
        yield from _walk(vars(value), (*place, "."), indices, seen)


def _put(value: Any, place: Place, parameters: list[Tensor], new: Tensor) -> None:
    """Put a tensor where a number was."""
    for step in place[:-1]:
        if step == ".":
            value = vars(value)
        elif isinstance(step, tuple):
            value = value[parameters[step[1]]]
        else:
            value = value[step]
    value[place[-1]] = new


@dataclass
class Description:
    """What the table says of a case."""

    name: str
    source: str
    optimizer: str
    options: str = ""
    notes: tuple[str, ...] = ()


def _clip_norm(gradients: list[Tensor]) -> float:
    """Return half of the smallest norm; of zero gradients (an unused weight) there is none."""
    norms = [float(torch.linalg.vector_norm(gradient)) for gradient in gradients]
    return float(f"{0.5 * min(norm for norm in norms if norm > 1e-4):.3g}")


def alike_branches(step: Step) -> bool:
    """Return if the step takes the same branches on data with and without the clip."""
    taken = []
    for norm in (None, _clip_norm(step.gradients())):
        branches.clear()
        step(*step.arguments, clip_norm=norm)
        taken.append(list(branches))
    return taken[0] == taken[1]


def export(step: Step, what: Description, root: Path) -> None:
    """Write a case; raise CannotExportError where the graph does not do what PyTorch does."""
    network, raw = step.network, step.gradients()
    clip_norm = _clip_norm(raw)
    plain = [tensor.clone() for tensor in step(*step.arguments)]
    clipped = [tensor.clone() for tensor in step(*step.arguments, clip_norm=clip_norm)]
    branches.clear()
    graph = traced(step, step.arguments)
    notes = ["branches on data are those of the example"] if branches else []
    folder = root / what.name
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, tuple(step.arguments), dynamo=True, verbose=False, opset_version=18
        )
    model = program.model_proto
    onnx.save(model, folder / "model.onnx")
    inputs = _roles(step)
    outputs = _results(step)
    if len(model.graph.input) != len(inputs) or len(model.graph.output) != len(outputs):
        raise CannotExportError("the exporter left out inputs or outputs")
    values = (*model.graph.input, *model.graph.output)
    for described, value in zip((*inputs, *outputs), values, strict=True):
        described["name"] = value.name
    feeds = [argument.detach().numpy() for argument in step.arguments]
    expected = [tensor.detach().numpy() for tensor in plain]
    got = _run(folder / "model.onnx", dict(zip((i["name"] for i in inputs), feeds, strict=True)))
    off = list(map(cases.distance, got, expected))
    worst = max(range(len(off)), key=off.__getitem__)
    if off[worst] > network.tolerance:
        said = f"differs from PyTorch by {off[worst]:.1e} in {outputs[worst]['is']}"
        raise CannotExportError(f"the exported graph {said}")
    truth = cases.Truth(
        **{key: getattr(what, key) for key in ("name", "source", "optimizer", "options")},
        architecture=network.name,
        kind="step" if step.optimizers else "gradients",
        clip_norm=clip_norm,
        inputs=inputs,
        outputs=outputs,
        versions=VERSIONS,
        notes=[*network.notes, *what.notes, *notes],
        tolerance=network.tolerance,
    )
    gradients = {place: gradient.numpy() for place, gradient in enumerate(raw)}
    after = [tensor.detach().numpy() for tensor in clipped]
    cases.save(folder, truth, feeds, expected, after, gradients)


def _roles(step: Step) -> list[dict[str, Any]]:
    names = list(step.parameters)
    return [
        *({"role": "parameter", "is": name} for name in names),
        *({"role": "carried", "is": name} for name in step.network.buffers),
        *({"role": "state", "is": _said(place, names)} for place in step.states),
        *({"role": "data", "is": name} for name in step.network.data),
    ]


def _results(step: Step) -> list[dict[str, Any]]:
    taken = len(step.parameters) + len(step.buffers)
    carried = [
        {"role": "carried", "is": name, "input": len(step.parameters) + place}
        for place, name in enumerate(step.network.buffers)
    ]
    kind = "parameter" if step.optimizers else "gradient"
    first = [
        {"role": kind, "is": name, "input": place} for place, name in enumerate(step.parameters)
    ]
    states = [
        {"role": "state", "is": _said(place, list(step.parameters)), "input": taken + index}
        for index, place in enumerate(step.states)
    ]
    return [{"role": "loss", "is": "loss"}, *first, *carried, *states]


def _said(place: Place, names: list[str]) -> str:
    words = [
        names[step[1]] if isinstance(step, tuple) else str(step)
        for step in place
        if step not in (".", "state", "param_groups")
    ]
    return ".".join(words[1:] if len(words) > 1 and words[0] == "0" else words)


def _run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: feed for name, feed in feeds.items() if name in wanted})
