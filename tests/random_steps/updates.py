"""The updates of all parameters of a step: what is drawn for them, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from .extras import Extras
from .nets import Net, Parameter
from .optimizers import MATRICES_ONLY, MOVES, NEEDS_TIME, ROUGH, STEPS
from .surroundings import BEHIND, FRONT, draw_layout, moved
from .update import Optimizer, Update
from .writer import Number, Writer

__all__ = ["Choices", "Updates", "draw_choices"]


@dataclass(frozen=True)
class Choices:
    """What holds for the updates of all parameters."""

    name: str
    other: str  # for parameters that are no matrices
    front: tuple[str, ...]
    behind: tuple[str, ...]
    decay: str
    layout: str
    body: str  # "", "if", "if of two", "function"
    skip: str  # "", "input", "finite": when nothing is updated
    rate: str  # "", or how the learning rate is computed
    ahead: bool  # Lookahead

    @property
    def notes(self) -> list[str]:
        named = [
            f"{key}: {value}"
            for key in ("decay", "layout", "body", "skip", "rate")
            if (value := getattr(self, key))
        ]
        names = [self.name] if self.other == self.name else [f"{self.name} and {self.other}"]
        return [*names, *self.front, *self.behind, *named, *["lookahead"] * self.ahead]


def draw_choices(w: Writer) -> Choices:
    """Draw an optimizer and what surrounds it; most steps have little around it."""
    draw = w.draw
    name = draw.choice([*MOVES, *STEPS, "sgd", "heavy ball", "adam", "adam"])
    other = draw.choice([*MOVES, *STEPS]) if draw.random() < 0.1 else name
    front = [key for key, (_, share) in FRONT.items() if draw.random() < share]
    draw.shuffle(front)
    behind = [key for key, (_, share) in BEHIND.items() if draw.random() < share]
    layouts = ["flat", "flattened", "turned", "wide"] + ["half"] * (
        name in ROUGH and not front and other == name
    )

    def one_of(share: float, *ways: str) -> str:
        return draw.choice(ways) if draw.random() < share else ""

    return Choices(
        name,
        other,
        tuple(front),
        tuple(behind),
        one_of(0.25 if name in MOVES else 0.0, "in the move", "factor", "term"),
        one_of(0.2, *layouts),
        one_of(0.15, "if", "if of two", "function"),
        one_of(0.1, "input", "finite"),
        one_of(0.15, "falling", "warm", "state"),
        draw.random() < 0.04,
    )


@dataclass
class Updates:
    """Writes the updates of each step; `truth` gathers the names of all gradients."""

    optimizer: Optimizer
    choices: Choices
    extras: Extras
    random: np.random.Generator
    truth: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    counter: str = ""  # the number of the step behind the last one, if it is counted up

    def write(self, net: Net) -> None:
        """Update every parameter that is not frozen."""
        w, optimizer, choices = self.optimizer.w, self.optimizer, self.choices
        if not NEEDS_TIME.isdisjoint((choices.name, choices.other)) or choices.rate in (
            "falling",
            "warm",
        ):
            self._count()
        self._set_rate()
        if "clipped by the global norm" in choices.front:
            optimizer.factor = self.extras.factor(list(net.gradients.values()))
        more = []
        for hint, value, share in (("warmup", 0.5, 0.2), ("gain_of_rate", 0.8, 0.07)):
            if w.maybe(share):
                more.append(w.number(value, hint))
        flag = optimizer.flag("apply") if choices.skip == "input" else ""
        for parameter in net.parameters.values():
            if parameter.frozen:
                continue
            g = net.gradients[parameter.name]
            if choices.skip == "finite":
                flag = self._is_finite(g)
            names = set(net.aliases[parameter.name])
            results = self._one(parameter, g, more, names)
            self.truth.setdefault(parameter.name, []).append(frozenset(names))
            self._take(parameter, results, flag)

    def _take(self, parameter: Parameter, results: dict[str, str], flag: str) -> None:
        """Make results the values of parameter and states, under a condition if there is one."""
        w, optimizer = self.optimizer.w, self.optimizer
        for key, new in results.items():
            state = optimizer.states.get((parameter.name, key))
            old = parameter.value if state is None else state.value
            new = w.put("Where", flag, new, old) if flag else new
            if key != "sum" and "ready" in optimizer.flags:
                new = w.put("Where", optimizer.flags["ready"], new, old)
            if state is not None:
                state.value = new
                continue
            if self.choices.ahead:
                new = self.extras.look_ahead(parameter, new)
            self.extras.copy(parameter, new)
            parameter.value = new

    def _one(
        self, parameter: Parameter, g: str, more: list[Number], names: set[str]
    ) -> dict[str, str]:
        """The new values of a parameter and its states, by key; the parameter's own is W."""
        w, body = self.optimizer.w, self.choices.body
        if not body:
            return self._written(parameter, g, more, names)
        flag = ""
        if body != "function":
            computed = w.maybe(0.4)
            flag = self._is_finite(g) if computed else self.optimizer.flag("apply_if")
        keys: list[str] = []
        inner: set[str] = set()
        bodies = []
        for _ in range(2 if body == "if of two" else 1):
            with w.body() as nodes:
                results = self._written(parameter, g, more, inner)
                keys = sorted(results)
                bodies.append((nodes, self._own([results[key] for key in keys], nodes)))
        if body == "function":
            outs = w.call(*bodies[0])
            names |= inner | {formal for formal, name in w.formals.items() if name in names}
            return dict(zip(keys, outs, strict=True))
        if body == "if":
            names |= inner
            with w.body() as nodes:
                olds = [self._old(parameter, key) for key in keys]
                bodies.append((nodes, [w.put("Identity", old) for old in olds]))
            w.draw.shuffle(bodies)
        return dict(zip(keys, w.choose(flag, bodies), strict=True))

    def _old(self, parameter: Parameter, key: str) -> str:
        state = self.optimizer.states.get((parameter.name, key))
        return parameter.value if state is None else state.value

    def _own(self, names: list[str], nodes: list[onnx.NodeProto]) -> list[str]:
        """The values as distinct ones that the body makes."""
        made = {out for node in nodes for out in node.output}
        own: list[str] = []
        for name in names:
            again = name not in made or name in own
            own.append(self.optimizer.w.put("Identity", name) if again else name)
        return own

    def _written(
        self, parameter: Parameter, g: str, more: list[Number], names: set[str]
    ) -> dict[str, str]:
        w, choices = self.optimizer.w, self.choices
        layout = draw_layout(w, parameter.shape, choices.layout)
        name = choices.name if len(parameter.shape) == 2 else choices.other
        if name in MATRICES_ONLY and len(layout.shape) != 2:
            name = MATRICES_ONLY[name]
        taken = layout.keep(g)
        w.working = layout.dtype
        u = Update(
            self.optimizer,
            parameter.name,
            layout.keep(parameter.value),
            taken,
            layout.shape,
            layout.keep,
            layout.give,
            self.random,
        )
        if not layout.turned:
            names.add(taken)
        for at, key in enumerate(choices.front):
            u.gradient = FRONT[key][0](u, u.gradient)
            if at == 0 and key == "rounded" and not layout.turned:
                names.add(u.gradient)
        new = moved(u, name, choices.decay, more)
        for key in choices.behind:
            new = BEHIND[key][0](u, new)
        u.results["W"] = layout.give(new)
        w.working = w.dtype
        return u.results

    # -- numbers of the step -------------------------------------------------------------------

    def _count(self) -> None:
        """The number of this step: an input, or a state that is counted up."""
        w, optimizer = self.optimizer.w, self.optimizer
        if not optimizer.time:
            kind = TensorProto.INT64 if w.maybe(0.4) else w.dtype
            optimizer.time = w.feed(np.array(3), "t", dtype=kind)
            self.counter = optimizer.time if w.maybe(0.6) else ""
        if self.counter:
            one = w.constant(1, dtype=w.dtypes[self.counter])
            optimizer.time = self.counter = w.put("Add", self.counter, one, hint="t_new")

    def _set_rate(self) -> None:
        """The learning rate of this step: a number, one that time changes, or a state."""
        w, optimizer, way = self.optimizer.w, self.optimizer, self.choices.rate
        rate = optimizer.number("lr", 0.05)
        if way == "state":
            state = optimizer.state("lr", "now", lambda shape: np.full(shape, 0.05), ())
            rate = Number(0.05, "value", state.value)
            state.value = w.put("Mul", state.value, w.constant(0.9))
        elif way == "falling":
            power = w.put("Pow", w.constant(0.9), w.cast(optimizer.time))
            rate = Number(0.05, "value", w.put("Mul", w.use(rate), power))
        elif way == "warm":
            share = w.put("Div", w.cast(optimizer.time), w.constant(10.0))
            part = w.put("Min", share, w.constant(1.0))
            rate = Number(0.05, "value", w.put("Mul", part, w.use(rate)))
        optimizer.rate = rate

    def _is_finite(self, g: str) -> str:
        w = self.optimizer.w
        size = w.reduce("ReduceSum", w.put("Abs", g), None, keep=False)
        bad = [w.put(op, size, dtype=TensorProto.BOOL) for op in ("IsNaN", "IsInf")]
        return w.put("Not", w.put("Or", *bad))
