"""A model on the bench: its parameters made movable, its loss and its values read at will."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.roles import Role, Roles
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import Flow, Index, Value
from onnx_clip_pass.probe.copies import ancestors_in, cut_down, double_copy, names_read
from onnx_clip_pass.probe.slopes import Arrays, Point, noise_of
from onnx_clip_pass.runtime import Provider, Session, open_session

__all__ = ["Bench", "is_float", "one_seed"]

_FREE_INITIALIZERS = 4  # the first IR version in which an initializer need not be an input
_JITTER = 0.1
_TURN = 1.5  # by which the scalars that the loss does not read are multiplied at a second point


def _roles(index: Index) -> Callable[[str], Role]:
    """The role of an input or initializer of the main graph, as `gradients` tells it."""
    flow = Flow(index)
    updates = Updates(flow)
    roles = Roles(flow, updates.trained, updates.carried)
    return lambda name: roles.of(Value(flow.main, name))


def is_float(array: NDArray[Any]) -> bool:
    """Whether a loss or a gradient can have this dtype (ml_dtypes has floats NumPy lacks)."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


@dataclass(slots=True)
class Bench:
    """A model, its feeds, and what of it moves.

    `parameters` are moved; `left_out` are the inputs taken for data, with the reason. With `only`
    what `data` names are the parameters, and nothing else. `knobs` are
    scalar inputs that the loss does not read: a seed of the backward pass, a learning rate;
    `states` are larger ones. What is computed `from_states`, such as moments and buffers of
    accumulated gradients, is no gradient.
    Inputs differ from point to point, initializers do not: an
    exporter may have given the backward pass a copy of its own.
    """

    model: ModelProto
    feeds: Arrays
    loss: str
    provider: Provider
    data: tuple[str, ...] = ()
    seed: int = 0
    only: bool = False
    index: Index = field(init=False)
    parameters: Arrays = field(init=False)
    left_out: dict[str, str] = field(init=False)
    knobs: tuple[str, ...] = field(init=False)
    states: tuple[str, ...] = field(init=False)
    from_states: set[str] = field(init=False)
    is_double: bool = field(init=False, default=False)
    noise: float = field(init=False)
    _loss: Session = field(init=False)
    ancestors: Callable[[str], frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.index = Index(self.model)
        self.ancestors = ancestors_in(self.model.graph)
        self._sort_inputs()
        self._loss = self._open_loss()
        self.noise = noise_of(self.loss_at, self.point(0).feeds, list(self.parameters))

    # -- what moves ----------------------------------------------------------------------------

    def _sort_inputs(self) -> None:
        main = self.index.main
        role_of = None if self.only else _roles(self.index)
        unknown = [name for name in self.data if name not in {*main.inputs, *main.initializers}]
        if unknown:
            raise OnnxClipError(
                "expected inputs or initializers:", [f"{name!r} is neither" for name in unknown]
            )
        read = self.ancestors(self.loss)
        self.parameters, self.left_out = {}, {}
        for name in dict.fromkeys([*main.inputs, *main.initializers]):
            if name not in read:
                continue
            array = self.feeds.get(name)
            if array is None:
                array = numpy_helper.to_array(main.initializers[name])
            if not is_float(array) or array.size == 0:
                continue
            role = role_of(name) if role_of is not None else Role(False, "not asked about")
            if role.is_parameter or name in self.data:
                self.parameters[name] = array
            else:
                self.left_out[name] = role.why
        apart = [n for n in main.inputs if n not in read and n in self.feeds]
        self.knobs = tuple(n for n in apart if self.feeds[n].size == 1 and is_float(self.feeds[n]))
        self.states = tuple(n for n in apart if self.feeds[n].size > 1 and is_float(self.feeds[n]))
        states = set(self.states)
        if self.model.ir_version >= _FREE_INITIALIZERS:
            states.update(n for n in main.inputs if n in main.initializers and n not in read)
        self.from_states = set(states)
        for node in self.model.graph.node:  # in topological order
            if not self.from_states.isdisjoint(names_read(node)):
                self.from_states.update(filter(None, node.output))

    # -- points --------------------------------------------------------------------------------

    def point(self, number: int) -> Point:
        """The feeds as they are (number 0), or others near them."""
        kind = np.float64 if self.is_double else None
        feeds = {name: _as(array, kind) for name, array in (self.feeds | self.parameters).items()}
        rng = np.random.default_rng([self.seed, number])
        for name in sorted({*self.parameters, *self.left_out} & self.feeds.keys()):
            if number and is_float(self.feeds[name]):
                array = np.asarray(self.feeds[name], np.float64)
                shift = rng.uniform(-1, 1, size=array.shape)
                zero = 0.01 * shift if name in self.parameters else 0.0
                moved = np.where(array == 0, zero, array * (1 + _JITTER * shift))
                feeds[name] = np.asarray(moved).astype(kind or self.feeds[name].dtype)
        turned = {}
        for name in self.knobs:
            if number == 1:
                feeds[name] = np.asarray(feeds[name] * _TURN, feeds[name].dtype)
            turned[name] = float(feeds[name].reshape(()))
        return Point(number, feeds, turned)

    # -- running -------------------------------------------------------------------------------

    def loss_at(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """The loss, in double precision where the runtime can."""
        found = self._loss.run({name: feeds[name] for name in self._loss.inputs})
        return float(next(iter(found.values())).reshape(()))

    def _open_loss(self) -> Session:
        own = self._open([self.loss], double=False)
        self._loss = own
        value, again = (self.loss_at(self.point(0).feeds) for _ in range(2))
        if not np.isfinite(value):
            raise OnnxClipError(f"the loss {self.loss!r} is {value} with these feeds; give others")
        if value != again:
            raise OnnxClipError(
                f"two runs with the same feeds give {self.loss!r} two values: something in the "
                f"graph is random (a Dropout in training mode?); switch it off to probe the model"
            )
        try:
            self._loss = self._open([self.loss], double=True)
            self.is_double = True
            wide = self.loss_at(self.point(0).feeds)
            again = self.loss_at(self.point(0).feeds)
        except OnnxClipError:  # no double kernel of some operator
            wide = again = np.nan
        if wide == again and abs(wide - value) <= 0.02 * max(abs(value), abs(wide)) + 1e-6:
            return self._loss
        self.is_double = False
        return own

    def _open(self, wanted: Iterable[str], *, double: bool) -> Session:
        opened = cut_down(self.model, wanted, self.parameters)
        return open_session(
            double_copy(opened) if double else opened, provider=self.provider, optimize=False
        )

    def values(self, names: list[str], points: Iterable[Point]) -> Iterator[tuple[Point, Arrays]]:
        """The named values at each point, in double precision where the runtime can."""
        points = list(points)
        if self.is_double:
            try:
                yield from self._values(names, points, double=True)
            except OnnxClipError:
                pass
            else:
                return
        yield from self._values(names, points, double=False)

    def _values(
        self, names: list[str], points: list[Point], *, double: bool
    ) -> list[tuple[Point, Arrays]]:
        session = self._open(names, double=double)
        own = self.feeds | self.parameters
        found = []
        for point in points:
            fed = {
                name: point.feeds[name]
                if double
                else np.asarray(point.feeds[name]).astype(own[name].dtype)
                for name in session.inputs
            }
            found.append((point, session.run(fed)))
        return found


def _as(array: NDArray[Any], kind: type[np.float64] | None) -> NDArray[Any]:
    return array.astype(kind) if kind is not None and is_float(array) else array


def one_seed(model: ModelProto) -> dict[str, int]:
    """Size 1 for symbols that stand in one input alone, beside no dimension but 1."""
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    ]
    symbols = [size for shape in shapes for size in shape if isinstance(size, str)]
    apart = [shape for shape in shapes if all(isinstance(size, str) or size == 1 for size in shape)]
    lone = [size for shape in apart for size in shape if isinstance(size, str)]
    return dict.fromkeys((each for each in lone if symbols.count(each) == 1), 1)
