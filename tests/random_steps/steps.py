"""Random training steps whose gradients are known by how they were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
import onnx
from onnx import TensorProto

from .nets import Data, Net, Parameter, Shapes, draw_shapes, one_hot
from .optimizers import MATRICES_ONLY, MOVES, NEEDS_TIME, ROUGH, STEPS
from .spelling import Spelling
from .surroundings import BEHIND, FRONT, draw_layout, moved
from .update import Optimizer, Update
from .writer import Array, Number, Writer

__all__ = ["Check", "Step", "random_step"]


@dataclass(frozen=True)
class Check:
    """What must hold of one gradient: it is the derivative of `loss` by the value `point`.

    `point` is the parameter, or its new value from the step before where steps are unrolled.
    """

    parameter: str
    point: str
    loss: str
    gradient: str


@dataclass(frozen=True)
class Step:
    """A training step, and which value is the gradient of which parameter.

    `truth` holds, for each trained parameter, one set for each gradient (one for each unrolled
    step): the names of the values that are this gradient, element for element. `plain` is the
    model before all of it was put into a function; `checks` speak of it.
    """

    model: onnx.ModelProto
    feeds: dict[str, Array]
    truth: dict[str, list[frozenset[str]]]
    loss: str
    description: str
    plain: onnx.ModelProto
    checks: list[Check]


def random_step(seed: int, dtype: int = TensorProto.FLOAT) -> Step:
    """The step of this seed; the same in float64 if `dtype` says so, where slopes are clearer."""
    return _Maker(seed, dtype).make()


@dataclass(frozen=True)
class _Choices:
    """What holds for the updates of all parameters."""

    name: str
    front: tuple[str, ...]
    behind: tuple[str, ...]
    decay: str
    layout: str
    body: str  # "", "if", "if of two", "function"
    skip: str  # "", "input", "finite"


@dataclass
class _Maker:
    seed: int
    dtype: int
    notes: list[str] = field(default_factory=list)
    truth: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def make(self) -> Step:
        draw = self.draw = Random(self.seed)
        self.random = np.random.default_rng(self.seed)
        style = "meaningful" if draw.random() < 0.25 else "meaningless"
        w = self.w = Writer(draw, self.dtype, draw.choice([13, 17, 18, 21]), style)
        shapes = draw_shapes(w)
        optimizer = self.optimizer = Optimizer(w, draw.randrange(2**32))
        choices = self._choose()
        self.parameters = self._parameters(shapes)
        if all(len(p.shape) > 0 for p in self.parameters.values()):
            w.scalars = ((), (), (), (1,))
        scale = w.number(draw.choice([128.0, 1024.0]), "loss_scale") if shapes.scaled else None
        count = draw.choice([2, 3]) if draw.random() < 0.08 else 1
        self.notes += [f"unrolled {count} times"] if count > 1 else []
        losses = []
        for _ in range(count):
            net = Net(w, shapes, self.parameters, scale)
            net.write(self._data(shapes))
            losses.append(net.loss)
            self._note_truth(net)
            self._update(net, choices)
            self._report(net)
        self._close(losses)
        plain = w.model()
        model, loss = plain, losses[-1]
        if draw.random() < 0.06 and not w.functions:
            self.notes.append("all in a function")
            model, loss = self._wrapped(loss)
        description = ", ".join([_described(shapes), choices.name, *self.notes, *optimizer.notes])
        return Step(model, dict(w.feeds), self.truth, loss, description, plain, self.checks)

    # -- what is drawn -------------------------------------------------------------------------

    def _choose(self) -> _Choices:
        draw = self.draw
        name = draw.choice([*MOVES, *STEPS, "sgd", "heavy ball", "adam", "adam"])
        front = tuple(key for key, (_, share) in FRONT.items() if draw.random() < share)
        behind = tuple(key for key, (_, share) in BEHIND.items() if draw.random() < share)
        layouts = ["flat", "turned", "wide"] + ["half"] * (name in ROUGH and not front)
        choices = _Choices(
            name,
            front,
            behind,
            draw.choice(["in the move", "factor", "term"]) if draw.random() < 0.2 else "",
            draw.choice(layouts) if draw.random() < 0.2 else "",
            draw.choice(["if", "if of two", "function"]) if draw.random() < 0.15 else "",
            draw.choice(["input", "finite"]) if draw.random() < 0.1 else "",
        )
        self.notes += [*front, *behind]
        for key in ("decay", "layout", "body", "skip"):
            if getattr(choices, key):
                self.notes.append(f"{key}: {getattr(choices, key)}")
        return choices

    def _parameters(self, shapes: Shapes) -> dict[int, Parameter]:
        draw, made = self.draw, {}
        for at, layer in enumerate(shapes.layers):
            if layer.owner != at:
                continue
            hint = {"dense": "W", "turned": "W", "number": "scale"}.get(layer.kind, "b") + str(at)
            value = self.random.normal(size=layer.shape) * 0.7
            name = self.w.feed(value, hint, held=draw.random() < 0.4)
            made[at] = Parameter(name, layer.shape, name, hint, frozen=draw.random() < 0.1)
        if all(p.frozen for p in made.values()):
            made[0].frozen = False
        return made

    def _data(self, shapes: Shapes) -> list[Data]:
        """Batches: inputs, or constants of a step that reads no data."""
        w, random = self.w, self.random
        held = w.maybe(0.05)
        batches = []
        for _ in range(shapes.batches):
            size = (shapes.batch, shapes.outputs)
            arrays = [random.normal(size=(shapes.batch, shapes.features)), random.normal(size=size)]
            if shapes.loss == "entropy":
                arrays[1] = one_hot(random, size)
            names = [
                w.constant(array, hint, kind="initializer") if held else w.feed(array, hint)
                for array, hint in zip(arrays, ("x", "target"), strict=True)
            ]
            batches.append(Data(*names))
        return batches

    def _note_truth(self, net: Net) -> None:
        for parameter in self.parameters.values():
            if parameter.name in net.gradients:
                g = net.gradients[parameter.name]
                self.checks.append(Check(parameter.name, parameter.value, net.loss, g))

    # -- updates -------------------------------------------------------------------------------

    def _update(self, net: Net, choices: _Choices) -> None:
        w, optimizer = self.w, self.optimizer
        if choices.name in NEEDS_TIME:
            self._count()
        if "clipped by the global norm" in choices.front:
            optimizer.factor = self._global_factor(list(net.gradients.values()))
        more = []
        for hint, value, share in (("warmup", 0.5, 0.2), ("gain_of_rate", 0.8, 0.07)):
            if w.maybe(share):
                more.append(w.number(value, hint))
        flag = optimizer.flag("apply") if choices.skip == "input" else ""
        for parameter in self.parameters.values():
            if parameter.frozen:
                continue
            g = net.gradients[parameter.name]
            if choices.skip == "finite":
                flag = self._is_finite(g)
            names = set(net.aliases[parameter.name])
            results = self._one(parameter, g, choices, more, names)
            self.truth.setdefault(parameter.name, []).append(frozenset(names))
            for key, new in results.items():
                state = optimizer.states.get((parameter.name, key))
                old = parameter.value if state is None else state.value
                new = w.put("Where", flag, new, old) if flag else new
                if state is None:
                    self._copies(parameter, new)
                    parameter.value = new
                else:
                    state.value = new

    def _one(
        self, parameter: Parameter, g: str, choices: _Choices, more: list[Number], names: set[str]
    ) -> dict[str, str]:
        """The new values of a parameter and its states, by key; the parameter's own is W."""
        w = self.w
        if not choices.body:
            return self._written(parameter, g, choices, more, names)
        keys: list[str] = []
        bodies = []
        for _ in range(2 if choices.body == "if of two" else 1):
            with w.body() as nodes:
                results = self._written(parameter, g, choices, more, set())
                keys = sorted(results)
                bodies.append((nodes, self._own([results[key] for key in keys], nodes)))
        if choices.body == "function":
            return dict(zip(keys, w.call(*bodies[0]), strict=True))
        if choices.body == "if":
            with w.body() as nodes:
                states = self.optimizer.states
                olds = [
                    parameter.value if key == "W" else states[parameter.name, key].value
                    for key in keys
                ]
                bodies.append((nodes, [w.put("Identity", old) for old in olds]))
            w.draw.shuffle(bodies)
        flag = self.optimizer.flag("apply_if")
        return dict(zip(keys, w.choose(flag, bodies), strict=True))

    def _own(self, names: list[str], nodes: list[onnx.NodeProto]) -> list[str]:
        """The values as distinct ones that the body makes."""
        made = {out for node in nodes for out in node.output}
        seen: set[str] = set()
        for at, name in enumerate(names):
            if name not in made or name in seen:
                names[at] = self.w.put("Identity", name)
            seen.add(names[at])
        return names

    def _written(
        self, parameter: Parameter, g: str, choices: _Choices, more: list[Number], names: set[str]
    ) -> dict[str, str]:
        w, optimizer = self.w, self.optimizer
        name = choices.name
        layout = draw_layout(w, parameter.shape, choices.layout)
        if name in MATRICES_ONLY and len(layout.shape) != 2:
            name = MATRICES_ONLY[name]
        taken = layout.keep(g)
        if not layout.turned:
            names.add(taken)
        w.working = layout.dtype
        u = Update(
            optimizer,
            parameter.name,
            layout.keep(parameter.value),
            taken,
            layout.shape,
            optimizer.number("lr", 0.05),
            layout.keep,
            layout.give,
            self.random,
        )
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

    def _count(self) -> None:
        """The number of this step: an input, or a state that is counted up."""
        w, optimizer = self.w, self.optimizer
        if not optimizer.time:
            self.counter = w.maybe(0.6)
            kind = TensorProto.INT64 if w.maybe(0.4) else self.dtype
            self.clock = w.feed(np.array(3), "t", dtype=kind)
            self.now = self.clock
        if self.counter:
            one = w.constant(1, dtype=w.dtypes[self.clock])
            self.now = w.put("Add", self.now, one, hint="t_new")
        optimizer.time = self.now

    def _global_factor(self, gradients: list[str]) -> str:
        w = self.w
        s = Spelling(w)
        parts = [w.reduce("ReduceSum", s.square(g), None, keep=False) for g in gradients]
        norm = s.sqrt(s.total(parts))
        ratio = s.div(w.constant(0.8), s.add(norm, w.constant(1e-6)))
        return w.put("Min", ratio, w.constant(1.0))

    def _is_finite(self, g: str) -> str:
        w = self.w
        size = w.reduce("ReduceSum", w.put("Abs", g), None, keep=False)
        bad = [w.put(op, size, dtype=TensorProto.BOOL) for op in ("IsNaN", "IsInf")]
        return w.put("Not", w.put("Or", *bad))

    # -- what is handed out --------------------------------------------------------------------

    def _copies(self, parameter: Parameter, new: str) -> None:
        """Averages of new weights and target networks, which are not trained."""
        w, optimizer = self.w, self.optimizer
        if not w.maybe(0.08):
            return
        self.notes.append("copy")
        own = parameter.shape
        state = optimizer.state(
            parameter.name, "copy", lambda shape: self.random.normal(size=shape), own
        )
        share = optimizer.number("tau", w.draw.choice([0.1, 0.7]))
        s = Spelling(w)
        if w.maybe(0.7):
            state.value = s.average(state.value, new, share)
        else:
            state.value = s.average(new, state.value, share)

    def _report(self, net: Net) -> None:
        """Extras among the outputs."""
        w, draw = self.w, self.draw
        for g in net.gradients.values():
            if w.maybe(0.1):
                w.outputs.append(w.reduce("ReduceL2", g, None, keep=False))
            if w.maybe(0.05) and g not in w.outputs:
                w.outputs.append(g)
        if w.maybe(0.15):
            w.outputs.append(self._global_factor(list(net.gradients.values())))
        if w.maybe(0.15) and net.activity not in w.outputs:
            w.outputs.append(
                draw.choice([net.activity, w.reduce("ReduceMax", net.activity, None, keep=False)])
            )
        if w.maybe(0.06):
            self.notes.append("running mean")
            mean = w.reduce("ReduceMean", net.activity, [0], keep=False)
            state = self.optimizer.state(
                "net", "mean", lambda shape: self.random.normal(size=shape), w.shapes[mean]
            )
            share = self.optimizer.number("share_of_mean", 0.1)
            state.value = Spelling(w).average(state.value, mean, share)

    def _close(self, losses: list[str]) -> None:
        """Hand out losses and all new values."""
        w = self.w
        w.outputs += losses
        for parameter in self.parameters.values():
            if parameter.frozen and w.maybe(0.5):
                continue
            value = parameter.value
            w.outputs.append(w.put("Identity", value) if value == parameter.name else value)
        for state in self.optimizer.states.values():
            value = state.value
            again = value == state.name or value in w.outputs
            w.outputs.append(w.put("Identity", value) if again else value)
        if self.optimizer.time and self.counter:
            w.outputs.append(self.now)

    def _wrapped(self, loss: str) -> tuple[onnx.ModelProto, str]:
        """The model as one call of a function that does everything."""
        w = self.w
        nodes = list(w.nodes)
        w.nodes.clear()
        outs = dict(zip(w.outputs, w.call(nodes, w.outputs), strict=True))
        w.outputs = list(outs.values())
        return w.model(), outs[loss]


def _described(shapes: Shapes) -> str:
    kinds = ["tied" if a.owner != at else a.kind for at, a in enumerate(shapes.layers)]
    more = [
        text
        for text, is_so in (
            ("L2 in the loss", shapes.decay is not None),
            ("two losses", shapes.second),
            (f"{shapes.batches} micro-batches", shapes.batches > 1),
            ("loss scale", shapes.scaled),
        )
        if is_so
    ]
    return " + ".join([f"batch {shapes.batch}: {' '.join(kinds)} {shapes.loss}", *more])
