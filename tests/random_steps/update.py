"""What every optimizer of a random step has to do with: weight, gradient, states, numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from onnx import TensorProto

from .spelling import Spelling
from .writer import Number, Shape, Writer

__all__ = ["Optimizer", "State", "Update"]


@dataclass
class State:
    """A state: its input, its value by now (steps may be unrolled), and the shape it is kept in."""

    name: str
    value: str


@dataclass
class Optimizer:
    """What is drawn once and holds for all parameters and unrolled steps."""

    w: Writer
    seed: int
    states: dict[tuple[str, str], State] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)
    rate: Number = field(default_factory=lambda: Number(0.0, "value", ""))
    time: str = ""  # the number of this step
    factor: str = ""  # by which the global norm clips
    beside: dict[tuple[str, str], str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def flag(self, hint: str) -> str:
        """A condition that is an input."""
        if hint not in self.flags:
            value = np.array(self.w.maybe(0.7))
            self.flags[hint] = self.w.feed(value, hint, dtype=TensorProto.BOOL)
        return self.flags[hint]

    def number(self, hint: str, value: float, *, plain: bool = False) -> Number:
        """A setting that all parameters share."""
        if hint not in self.numbers:
            self.numbers[hint] = self.w.number(value, hint, plain=plain)
        return self.numbers[hint]

    def state(
        self, owner: str, key: str, array: Callable[[Shape], np.ndarray], shape: Shape
    ) -> State:
        if (owner, key) not in self.states:
            name = self.w.feed(array(shape), f"{owner}_{key}", held=self.w.maybe(0.3))
            self.states[owner, key] = State(name, name)
        return self.states[owner, key]


@dataclass
class Update:
    """One update of one parameter; `gradient` and `weight` are in the layout that is worked in.

    `keep` brings a value of the parameter's own layout there and `give` brings it back; `results`
    holds the new values, in the parameter's own layout.
    """

    optimizer: Optimizer
    owner: str
    weight: str
    gradient: str
    shape: Shape
    keep: Callable[[str], str]
    give: Callable[[str], str]
    random: np.random.Generator
    results: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.w = self.optimizer.w
        self.s = Spelling(self.w)
        # The same choices for every parameter and each step: one formula, in many spellings.
        self.choose = Random(self.optimizer.seed)

    def number(self, hint: str, value: float, *, plain: bool = False) -> Number:
        return self.optimizer.number(hint, value, plain=plain)

    def old(self, key: str, *, positive: bool = False, shape: Shape | None = None) -> str:
        """The value of a state so far; without a shape it is like the parameter."""
        random = self.random

        def array(shape: Shape) -> np.ndarray:
            drawn = random.normal(size=shape)
            return np.abs(drawn) + 0.5 if positive else drawn

        own = self.w.shapes[self.owner]
        state = self.optimizer.state(self.owner, key, array, own if shape is None else shape)
        return self.keep(state.value) if shape is None else self.w.cast(state.value)

    def new(self, key: str, value: str) -> str:
        """Take the new value of a state."""
        state = self.optimizer.states[self.owner, key]
        like = self.w.shapes[state.name] == self.w.shapes[self.owner]
        alike = like and self.w.shapes[value] == self.shape
        self.results[key] = self.give(value) if alike else self.w.cast(value, self.w.dtype)
        return value

    def note(self, text: str) -> None:
        if text not in self.optimizer.notes:
            self.optimizer.notes.append(text)

    # -- what optimizers have in common --------------------------------------------------------

    def average(
        self, key: str, value: str, hint: str, rest: float, *, positive: bool = False
    ) -> str:
        """A moving average of a value: its new state."""
        share = self.number(hint, rest)
        old = self.old(key, positive=positive)
        if self.w.maybe(0.5):
            return self.new(key, self.s.average(old, value, share))
        # The other way round: the number that is given is what the old value keeps.
        kept = self.number(f"{hint}_kept", 1.0 - rest)
        return self.new(key, self.s.average(value, old, kept))

    def corrected(self, value: str, hint: str, rest: float) -> str:
        """The average divided by 1 - beta ** t."""
        w = self.w
        beta = w.use(self.number(f"{hint}_kept", 1.0 - rest))
        power = w.put("Pow", beta, w.cast(self.optimizer.time))
        return self.s.div(value, w.put("Sub", w.constant(1.0), power))

    def under_root(self, v: str, eps: float = 1e-3) -> str:
        """sqrt(v) + eps or sqrt(v + eps)."""
        if self.w.maybe(0.75):
            return self.s.add(self.s.sqrt(v), self.w.use(self.number("eps", eps)))
        return self.s.sqrt(self.s.add(v, self.w.use(self.number("eps", eps))))

    def where(self, flag: str, yes: str, no: str) -> str:
        return self.w.put("Where", flag, yes, no)

    def compare(self, op: str, a: str, b: str) -> str:
        return self.w.put(op, a, b, dtype=TensorProto.BOOL)

    def norm(self, x: str) -> str:
        """The Euclidean norm, as a number."""
        w = self.w
        if w.maybe(0.5):
            return w.reduce("ReduceL2", x, None, keep=False)
        return self.s.sqrt(w.reduce("ReduceSum", self.s.square(x), None, keep=False))
