"""A harness for a model: its parameters made movable, its loss and its values read at will."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.roles import Role, Roles
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import (
    Flow,
    Index,
    Scope,
    Value,
    ancestors_in,
    attribute,
    descendants_in,
)
from onnx_clip_pass.graph.spec import FLOATING, FREE_INITIALIZERS
from onnx_clip_pass.probe.copies import (
    cut_down,
    double_copy,
    sloping_into,
)
from onnx_clip_pass.probe.slopes import Arrays, Point, noise_of
from onnx_clip_pass.runtime import Provider, Session, open_session

__all__ = ["Harness", "is_float"]

_JITTER = 0.02
_FROM_ZERO = 0.01
_SCALAR_FACTOR = 1.37  # a factor that no constant of an optimizer is
_LACKING = re.compile(r"no kernel for (\w+) of|Type 'tensor\(double\)' .* of operator \((\w+)\)")


def _roles(index: Index) -> Callable[[str], Role]:
    """The role of an input or initializer that the loss reads, as `gradients` tells it."""
    flow = Flow(index)
    roles = Roles(flow, Updates(flow).trained, set())
    weights = set(_einsum_weights(index.main))
    return lambda name: (
        Role(True, "the other operand of Einsum has the batch")
        if name in weights
        else roles.of(Value(flow.main, name))
    )


def _einsum_weights(main: Scope) -> Iterator[str]:
    """First operands of Einsum that lack the first dimension of what it makes: its batch."""
    for number in main.numbers_of("Einsum"):
        node = main.nodes[number]
        equation = attribute(node, "equation")
        operands, _, made = (equation.s.decode().replace(" ", "") if equation else "").partition(
            "->"
        )
        first, *others = operands.split(",")
        if len(others) == 1 and made[:1].isalpha() and made[0] not in first:
            yield node.input[0]


def is_float(array: NDArray[Any]) -> bool:
    """True if a loss or a gradient can have this dtype (ml_dtypes has floats NumPy lacks)."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


@dataclass(slots=True)
class Harness:
    """A model, its feeds, and what of it moves.

    `parameters` are moved; `left_out` are the inputs taken for data, with the reason. With `only`
    the parameters are what `data` names, and nothing else. `scalars` are scalar inputs that the
    loss does not read: a seed of the backward pass, a learning rate; `states` are larger ones. What
    is computed `from_states`, such as moments and buffers of accumulated gradients, is no gradient;
    `zeros` are initializers that may be states that have not been filled yet.
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
    scalars: tuple[str, ...] = field(init=False)
    states: tuple[str, ...] = field(init=False)
    from_states: set[str] = field(init=False)
    zeros: set[str] = field(init=False)
    is_double: bool = field(init=False, default=False)
    noise: float = field(init=False)
    _loss: Session = field(init=False)
    _single: set[str] = field(init=False, default_factory=set)
    ancestors: Callable[[str], frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.index = Index(self.model)
        self.ancestors = ancestors_in(self.model.graph.node)
        self._sort_inputs()
        self._loss = self._open_loss()
        self.noise = self._noise()

    # -- what moves ----------------------------------------------------------------------------

    def _sort_inputs(self) -> None:
        main = self.index.main
        unknown = [name for name in self.data if name not in {*main.inputs, *main.initializers}]
        if unknown:
            raise OnnxClipError(
                "expected inputs or initializers:", [f"{name!r} is neither" for name in unknown]
            )
        read = self.ancestors(self.loss)
        self._sort_what_is_read()
        fed = {n: self.feeds[n] for n in main.inputs if n not in read and n in self.feeds}
        floats = {name: array for name, array in fed.items() if is_float(array)}
        self.scalars = tuple(name for name, array in floats.items() if array.size == 1)
        self.states = tuple(name for name, array in floats.items() if array.size > 1)
        states = set(self.states)
        if self.model.ir_version >= FREE_INITIALIZERS:
            states.update(n for n in main.inputs if n in main.initializers and n not in read)
        self.zeros = {
            name
            for name, tensor in main.initializers.items()
            if name not in read and tensor.data_type in FLOATING and _are_zeros(tensor)
        }
        self.from_states = descendants_in(self.model.graph.node, states)

    def _sort_what_is_read(self) -> None:
        """Tell parameters from data among what the loss has a slope by."""
        main = self.index.main
        sloping = sloping_into(self.model.graph, self.loss)
        role_of = (lambda _: Role(True, "")) if self.only else _roles(self.index)
        self.parameters, self.left_out = {}, {}
        for name in dict.fromkeys([*main.inputs, *main.initializers]):
            if name not in sloping or (self.only and name not in self.data):
                continue
            array = self.feeds.get(name)
            if array is None:
                array = numpy_helper.to_array(main.initializers[name])
            if not is_float(array) or array.size == 0:
                continue
            role = role_of(name)
            if role.is_parameter or name in self.data:
                self.parameters[name] = array
            else:
                self.left_out[name] = role.why

    def _noise(self) -> float:
        """The noise of the loss; parameters with which it does not run are left out."""
        feeds, fitting = self.point(2).feeds, []
        # one number alone may be a number in the formula of the loss, such as an exponent
        large = [name for name, array in self.parameters.items() if array.size > 1]
        with suppress(OnnxClipError):
            return noise_of(self.loss_at, feeds, large)
        for name in large:
            try:
                noise_of(self.loss_at, feeds, [name])
                fitting.append(name)
            except OnnxClipError:
                self.left_out[name] = "the model does not run when it is moved"
        self.parameters = {n: a for n, a in self.parameters.items() if n not in self.left_out}
        return noise_of(self.loss_at, feeds, fitting)

    # -- points --------------------------------------------------------------------------------

    def point(self, number: int) -> Point:
        """The feeds as they are (0), or with parameters moved (2) and what hides others varied (1).

        Where parameters, states or rates are zero or one, values are equal that differ elsewhere.
        Initializers are moved only where they are zero: an exporter may have given the backward
        pass a copy of its own.
        """
        kind = np.float64 if self.is_double else None
        feeds = {name: _as(array, kind) for name, array in (self.feeds | self.parameters).items()}
        rng = np.random.default_rng([self.seed, 1])
        for name in sorted(self.parameters) if number else ():
            array = np.asarray(self.parameters[name], np.float64)
            if name in self.feeds or (array.size > 1 and not np.any(array)):
                shift = rng.uniform(-1, 1, size=array.shape)
                moved = np.where(array == 0, _FROM_ZERO * shift, array * (1 + _JITTER * shift))
                feeds[name] = moved.astype(feeds[name].dtype)
        for name in self.states if number == 1 else ():
            if not np.any(feeds[name]):
                feeds[name] = rng.uniform(0.1, 1, size=feeds[name].shape).astype(feeds[name].dtype)
        for name in self.scalars if number == 1 else ():
            feeds[name] = (feeds[name] * _SCALAR_FACTOR or feeds[name] + _SCALAR_FACTOR - 1).astype(
                feeds[name].dtype
            )
        return Point(number, feeds, {name: float(feeds[name].reshape(())) for name in self.scalars})

    # -- running -------------------------------------------------------------------------------

    def loss_at(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """The loss, in double precision where the runtime can."""
        found = self._loss.run({name: feeds[name] for name in self._loss.inputs})
        return float(next(iter(found.values())).reshape(()))

    def _open_loss(self) -> Session:
        self._loss = own = self._open([self.loss], double=False)
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
            wide, again = (self.loss_at(self.point(0).feeds) for _ in range(2))
        except OnnxClipError:  # no double kernel of some operator
            wide = again = np.nan
        if wide == again and abs(wide - value) <= 0.02 * max(abs(value), abs(wide)) + 1e-6:
            return self._loss
        self.is_double = False
        return own

    def _open(self, wanted: Iterable[str], *, double: bool) -> Session:
        opened = cut_down(self.model, wanted, self.parameters)
        while True:
            copy = double_copy(opened, self._single) if double else opened
            try:
                return open_session(copy, provider=self.provider, optimize=False)
            except OnnxClipError as error:
                lacking = _LACKING.search(str(error)) if double else None
                if lacking is None or not self._single.isdisjoint(filter(None, lacking.groups())):
                    raise
                self._single.update(filter(None, lacking.groups()))

    def values(self, names: list[str], points: Iterable[Point]) -> list[tuple[Point, Arrays]]:
        """The named values at each point, in double precision where the runtime can."""
        points = list(points)
        if self.is_double:
            with suppress(OnnxClipError):
                return self._values(names, points, double=True)
        return self._values(names, points, double=False)

    def _values(
        self, names: list[str], points: list[Point], *, double: bool
    ) -> list[tuple[Point, Arrays]]:
        session = self._open(names, double=double)
        own = self.feeds | self.parameters
        found = []
        for point in points:
            fed = {name: point.feeds[name] for name in session.inputs}
            if not double:
                fed = {name: array.astype(own[name].dtype) for name, array in fed.items()}
            found.append((point, session.run(fed)))
        return found


def _are_zeros(tensor: TensorProto) -> bool:
    array = numpy_helper.to_array(tensor)
    return array.size > 1 and not np.any(array)


def _as(array: NDArray[Any], kind: type[np.float64] | None) -> NDArray[Any]:
    return array.astype(kind) if kind is not None and is_float(array) else array
