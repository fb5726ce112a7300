"""A model on the bench: its parameters made movable, its loss and its values read at will."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.gradients.roles import Roles
from onnx_clip_pass.graph import Flow, Index, Value
from onnx_clip_pass.probe.copies import cut_down, double_copy, names_read
from onnx_clip_pass.probe.slopes import Arrays, Point
from onnx_clip_pass.runtime import Provider, Session, open_session

__all__ = ["Bench", "is_float"]

_FREE_INITIALIZERS = 4  # the first IR version in which an initializer need not be an input
_JITTER = 0.1
_TURN = 1.5  # by which the scalars that the loss does not read are multiplied at a second point


def is_float(array: NDArray[Any]) -> bool:
    """Whether a loss or a gradient can have this dtype (ml_dtypes has floats NumPy lacks)."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


@dataclass(slots=True)
class Bench:
    """A model, its feeds, and what of it moves.

    `parameters` are moved; `left_out` are the inputs taken for data, with the reason. `knobs` are
    scalar inputs that the loss does not read: a seed of the backward pass, a learning rate.
    `from_states` is computed from larger ones, such as moments and buffers of accumulated
    gradients, and so is no gradient. Inputs differ from point to point, initializers do not: an
    exporter may have given the backward pass a copy of its own.
    """

    model: ModelProto
    feeds: Arrays
    loss: str
    provider: Provider
    data: tuple[str, ...] = ()
    seed: int = 0
    index: Index = field(init=False)
    parameters: Arrays = field(init=False)
    left_out: dict[str, str] = field(init=False)
    knobs: tuple[str, ...] = field(init=False)
    from_states: set[str] = field(init=False)
    is_double: bool = field(init=False, default=False)
    _loss: Session = field(init=False)
    _makers: dict[str, tuple[str, ...]] = field(init=False)
    _ancestors: dict[str, frozenset[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.index = Index(self.model)
        self._makers = {
            name: tuple(names_read(node))
            for node in self.model.graph.node
            for name in node.output
            if name
        }
        self._sort_inputs()
        self._loss = self._open_loss()

    # -- what moves ----------------------------------------------------------------------------

    def _sort_inputs(self) -> None:
        main = self.index.main
        flow = Flow(self.index)
        updates = Updates(flow)
        roles = Roles(flow, updates.trained, updates.carried)
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
            role = roles.of(Value(flow.main, name))
            if role.is_parameter or name in self.data:
                self.parameters[name] = array
            else:
                self.left_out[name] = role.why
        apart = [n for n in main.inputs if n not in read and n in self.feeds]
        self.knobs = tuple(n for n in apart if self.feeds[n].size == 1 and is_float(self.feeds[n]))
        states = {n for n in apart if self.feeds[n].size > 1 and is_float(self.feeds[n])}
        if self.model.ir_version >= _FREE_INITIALIZERS:
            states.update(n for n in main.inputs if n in main.initializers and n not in read)
        self.from_states = set(states)
        for made, sources in self._makers.items():  # in topological order
            if not self.from_states.isdisjoint(sources):
                self.from_states.add(made)

    def ancestors(self, name: str) -> frozenset[str]:
        """All values of the main graph that a value is computed from, itself included."""
        if name not in self._ancestors:
            seen, todo = {name}, [name]
            while todo:
                for source in self._makers.get(todo.pop(), ()):
                    if source not in seen:
                        seen.add(source)
                        todo.append(source)
            self._ancestors[name] = frozenset(seen)
        return self._ancestors[name]

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
