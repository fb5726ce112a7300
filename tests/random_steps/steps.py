"""Random training steps whose gradients are known by how they were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
import onnx
from onnx import TensorProto

from .extras import Extras
from .nets import Data, Net, Parameter
from .shapes import Shapes, described, draw_shapes
from .update import Optimizer
from .updates import Updates, draw_choices
from .writer import Array, Writer

__all__ = ["Check", "Step", "random_step"]


@dataclass(frozen=True)
class Check:
    """What must hold of one gradient: it is the derivative of `loss` by the value `point`.

    `point` is the parameter, or its new value from the step before where steps are unrolled; a
    `teacher` is held as it is.
    """

    parameter: str
    point: str
    loss: str
    gradient: str
    teacher: str = ""


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


@dataclass
class _Maker:
    seed: int
    dtype: int
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def make(self) -> Step:
        draw = self.draw = Random(self.seed)
        random = self.random = np.random.default_rng(self.seed)
        style = draw.choices(["meaningless", "meaningful", "odd"], [70, 25, 5])[0]
        w = self.w = Writer(draw, self.dtype, draw.choice([13, 17, 18, 21]), style)
        count = draw.choice([2, 3]) if draw.random() < 0.08 else 1
        shapes = draw_shapes(w, smooth=count > 1)
        optimizer = self.optimizer = Optimizer(w, draw.randrange(2**32))
        choices = draw_choices(w)
        parameters = self.parameters = self._parameters(shapes)
        if all(len(p.shape) > 0 for p in parameters.values()):
            w.scalars = ((), (), (), (1,))
        scales = [4.0, 8.0] if shapes.low else [128.0, 1024.0]
        scale = w.number(draw.choice(scales), "loss_scale") if shapes.scaled else None
        extras = Extras(
            optimizer, random, {p.name for p in parameters.values() if draw.random() < 0.08}
        )
        updates = Updates(optimizer, choices, extras, random)
        averaged = draw.random() < 0.06
        losses = []
        for _ in range(count):
            teacher = extras.teacher(parameters[0]) if shapes.teacher else ""
            net = Net(w, shapes, parameters, scale, teacher)
            net.write(self._data(shapes))
            losses.append(net.loss)
            for parameter in parameters.values():
                if not parameter.frozen:
                    name, g = parameter.name, net.gradients[parameter.name]
                    self.checks.append(Check(name, parameter.value, net.loss, g, teacher))
            updates.write(net)
            extras.report(net)
            if averaged:
                extras.running_mean(net.activity)
        self._close(losses, updates.counter)
        plain = w.model()
        model, loss = plain, losses[-1]
        whole = draw.random() < 0.06 and not w.functions
        if whole:
            model, loss = self._wrapped(loss)
        notes = [
            described(shapes),
            *choices.notes,
            *optimizer.notes,
            *[f"unrolled {count} times"] * (count > 1),
            *["copies"] * bool(extras.copies_of),
            *["running mean"] * averaged,
            *["all in a function"] * whole,
            f"{style} names",
        ]
        truth, feeds = updates.truth, dict(w.feeds)
        return Step(model, feeds, truth, loss, ", ".join(notes), plain, self.checks)

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
                arrays[1] = np.eye(size[1])[random.integers(0, size[1], size[0])]
            names = [
                w.constant(array, hint, kind="initializer") if held else w.feed(array, hint)
                for array, hint in zip(arrays, ("x", "target"), strict=True)
            ]
            batches.append(Data(*names))
        return batches

    def _close(self, losses: list[str], counter: str) -> None:
        """Return losses and all new values from the graph."""
        w = self.w
        new = list(losses)
        new += [p.value for p in self.parameters.values() if not p.frozen or w.maybe(0.5)]
        new += [state.value for state in self.optimizer.states.values()]
        new += [counter] * bool(counter)
        for value in new:
            again = value in w.feeds or value in w.outputs
            w.outputs.append(w.put("Identity", value) if again else value)

    def _wrapped(self, loss: str) -> tuple[onnx.ModelProto, str]:
        """The model as one call of a function that does everything."""
        w = self.w
        nodes = list(w.nodes)
        w.nodes.clear()
        outs = dict(zip(w.outputs, w.call(nodes, w.outputs), strict=True))
        w.outputs = list(outs.values())
        return w.model(), outs[loss]
