"""A small random net with its loss and the backward pass of it, written by the chain rule.

What is read forward leaves behind how its derivative is taken; going back through that list gives
the derivative of the loss by every parameter: `Net.gradients`, the truth of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from onnx import TensorProto

from .shapes import Layer, Shapes
from .spelling import Spelling
from .writer import Number, Shape, Writer

__all__ = ["Data", "Net", "Parameter"]

SMOOTH = ("Tanh", "Sigmoid", "x / (1 + x * x)")


@dataclass
class Parameter:
    """A parameter: its name among the inputs, and what the net reads in this step."""

    name: str
    shape: Shape
    value: str
    hint: str
    frozen: bool = False


@dataclass
class Data:
    """Names of what one batch is made of."""

    x: str
    target: str


@dataclass
class Net:
    """Writes one step's forward and backward pass."""

    w: Writer
    shapes: Shapes
    parameters: dict[int, Parameter]
    scale: Number | None = None
    teacher: str = ""  # a copy of the first layer's weights, which is not trained here
    loss: str = ""
    gradients: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, set[str]] = field(default_factory=dict)
    activity: str = ""
    target: str = ""
    _back: list[Callable[[], None]] = field(default_factory=list)
    _parts: dict[str, list[str]] = field(default_factory=dict)
    _needed: set[str] = field(default_factory=set)
    _ones: set[str] = field(default_factory=set)
    _turned: dict[str, str] = field(default_factory=dict)
    _sums: dict[tuple[str, bool], str] = field(default_factory=dict)
    _low: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.s = Spelling(self.w)
        self.choose = Random(0)

    def write(self, batches: list[Data]) -> None:
        """Write the losses of all batches, the loss, and the gradients of parameters."""
        trained = {id(p): p for p in self.parameters.values() if not p.frozen}
        self._needed |= {p.value for p in trained.values()}
        if self.shapes.low:
            double = self.w.dtype == TensorProto.DOUBLE
            self.w.working = TensorProto.DOUBLE if double else TensorProto.FLOAT16
            for data in batches:
                data.x, data.target = self.w.low(data.x), self.w.low(data.target)
        losses = [self._forward(data) for data in batches]
        total = self.s.total(losses)
        share = 1.0 / len(batches)
        self.loss = self.s.scale(total, share, "loss") if len(batches) > 1 else total
        if self.shapes.low:
            self.loss = self.w.high(self.loss)
        for loss in losses:
            self._start(loss, None if self.scale is None else self.w.use(self.scale))
        for back in reversed(self._back):
            back()
        self.w.working = self.w.dtype
        for parameter in trained.values():
            self._finish(parameter, len(batches))

    def _finish(self, parameter: Parameter, batches: int) -> None:
        """Average over micro-batches, undo the scale of the loss, and bring into shape."""
        w, value = self.w, parameter.value
        hint = f"{parameter.hint}_grad"
        parts = self._parts[value]
        if batches > 1 and w.maybe(0.3):
            share = w.number(1.0 / batches, "share")
            g = self.s.total([self.s.scale(part, share) for part in parts])
        elif batches > 1:
            g = self.s.over(self.s.total(parts), w.number(float(batches), "batches"))
        else:
            g = self.s.total(parts, "" if self.scale else hint)
        if self.scale is not None:
            if self.scale.kind == "input" and w.maybe(0.3):
                g = self.s.mul(g, w.put("Reciprocal", w.use(self.scale)), hint)
            else:
                g = self.s.over(g, self.scale, hint)
        names = {g}
        if self.shapes.low and g in self._low:
            names.add(self._low[g])
        if w.shapes[g] != parameter.shape:
            g = w.reshape(g, parameter.shape, hint)
            names.add(g)
        elif w.maybe(0.05):
            g = w.put("Identity", g)
            names.add(g)
        self.gradients[parameter.name], self.aliases[parameter.name] = g, names

    # -- going back ----------------------------------------------------------------------------

    def _add(self, value: str, slope: str) -> None:
        """Another part of the derivative of the loss by a value."""
        if value in self._needed:
            self._parts.setdefault(value, []).append(slope)

    def _start(self, loss: str, seed: str | None) -> None:
        """The derivative by a loss is the seed, or 1 without one."""
        if seed is None:
            self._ones.add(loss)
        else:
            self._add(loss, seed)

    def _then(self, out: str, *inputs: str, back: Callable[[Any], None]) -> str:
        """Note how the derivative by `out` goes on to the inputs, if any of them needs it.

        A loss hands its `back` None for a derivative of 1.
        """
        if self._needed.intersection(inputs):
            self._needed.add(out)

            def run() -> None:
                parts = self._parts.get(out, [])
                if parts or out in self._ones:
                    back(self.s.total(parts) if parts else None)

            self._back.append(run)
        return out

    def transposed(self, x: str) -> str:
        if x not in self._turned or self.w.maybe(0.3):
            self._turned[x] = self.w.transpose(x)
        return self._turned[x]

    def _over_rows(self, d: str, keep: bool) -> str:
        """The sum over rows, as a product with ones now and then; several may share one sum."""
        w = self.w
        if (d, keep) in self._sums and w.maybe(0.5):
            return self._sums[d, keep]
        if keep and w.maybe(0.2):
            total = w.matmul(w.constant(np.ones((1, w.shapes[d][0]))), d)
        else:
            total = w.reduce("ReduceSum", d, [0], keep=keep)
        self._sums[d, keep] = total
        return total

    # -- forward -------------------------------------------------------------------------------

    def _forward(self, data: Data) -> str:
        w, shapes = self.w, self.shapes
        self.choose.seed(shapes.seed)  # the same net for each batch
        before: dict[Shape, str] = {}
        h, first = data.x, ""
        for layer in shapes.layers:
            parameter = self.parameters[layer.owner]
            if self.choose.random() < 0.2 and w.shapes[h] in before:
                h = self._residual(h, before[w.shapes[h]])
            before[w.shapes[h]] = h
            h = self._layer(layer, h, self._read(parameter.value))
            first = first or h
            if self.choose.random() < 0.4:
                h = self._activation(h)
        losses = [self._loss_of(h, data.target)]
        if shapes.second:
            losses.append(self._small(first, 0.5))
        if self.teacher:
            losses.append(self._near(first, w.matmul(data.x, w.cast(self.teacher))))
        if shapes.decay is not None:
            kept = self.parameters[shapes.layers[shapes.decay].owner]
            losses.append(self._small(self._read(kept.value)))
        self.activity, self.target = h, data.target
        if len(losses) == 1:
            return losses[0]
        total = self.s.total(losses, "loss")

        def back(d: str | None) -> None:
            for loss in losses:
                self._start(loss, d)

        return self._then(total, *losses, back=back)

    def _read(self, value: str) -> str:
        """A parameter as the net reads it."""
        if not self.shapes.low:
            return value

        def back(d: str) -> None:
            g = self.w.high(d)
            self._low[g] = d
            self._add(value, g)

        return self._then(self.w.low(value), value, back=back)

    def _residual(self, h: str, early: str) -> str:
        def back(d: str) -> None:
            self._add(h, d)
            self._add(early, d)

        return self._then(self.s.add(h, early), h, early, back=back)

    def _layer(self, layer: Layer, h: str, p: str) -> str:
        w = self.w
        if layer.kind in ("dense", "turned"):
            turned = layer.kind == "turned"

            def back(d: str) -> None:
                if p in self._needed:
                    self._add(p, self._product(h, d, turned))
                if h in self._needed:
                    self._add(h, w.matmul(d, p if turned else self.transposed(p)))

            return self._then(w.matmul(h, self.transposed(p) if turned else p), h, p, back=back)
        if layer.kind in ("bias", "row", "full"):

            def back(d: str) -> None:
                if p in self._needed:
                    same = layer.kind == "full"
                    self._add(p, d if same else self._over_rows(d, layer.kind == "row"))
                self._add(h, d)

            return self._then(self.s.add(h, p), h, p, back=back)
        return self._gain(layer, h, p)

    def _gain(self, layer: Layer, h: str, p: str) -> str:
        """h times a factor for each column or for all; that of a log gain is exp(p)."""
        w, factor = self.w, p
        if layer.kind == "log gain":
            factor = w.put("Exp", p)
            self._then(factor, p, back=lambda d: self._add(p, self.s.mul(d, factor)))

        def back(d: str) -> None:
            if factor in self._needed:
                product = self.s.mul(d, h)
                if layer.kind == "number":
                    self._add(factor, w.reduce("ReduceSum", product, None, keep=False))
                else:
                    self._add(factor, self._over_rows(product, False))
            if h in self._needed:
                self._add(h, self.s.mul(d, factor))

        return self._then(self.s.mul(h, factor), h, factor, back=back)

    def _product(self, h: str, d: str, turned: bool) -> str:
        """The transpose of h times d, or the transpose of that."""
        w = self.w
        left, right = (d, h) if turned else (h, d)
        if w.maybe(0.8):
            return w.matmul(self.transposed(left), right)
        return w.transpose(w.matmul(self.transposed(right), left))

    def _activation(self, h: str) -> str:
        w, kind = self.w, self.choose.choice(SMOOTH if self.shapes.smooth else ("Relu", *SMOOTH))
        if kind == "x / (1 + x * x)":
            return self._sine(h)
        y = w.put(kind, h)

        def back(d: str) -> None:
            if kind == "Relu":
                mask = w.put("Greater", h, w.constant(0.0), dtype=TensorProto.BOOL)
                self._add(h, w.put("Where", mask, d, w.constant(0.0)))
                return
            one = w.constant(1.0)
            if kind == "Tanh":
                slope = w.put("Sub", one, self.s.square(y))
            else:
                slope = self.s.mul(y, w.put("Sub", one, y))
            self._add(h, self.s.mul(d, slope))

        return self._then(y, h, back=back)

    def _sine(self, h: str) -> str:
        """h / (1 + h * h), which has no operator of its own."""
        w = self.w
        below = w.put("Add", w.constant(1.0), self.s.square(h))

        def back(d: str) -> None:
            above = w.put("Sub", w.constant(1.0), self.s.square(h))
            self._add(h, self.s.mul(d, w.put("Div", above, self.s.square(below))))

        return self._then(w.put("Div", h, below), h, back=back)

    # -- losses --------------------------------------------------------------------------------

    def _loss_of(self, y: str, target: str) -> str:
        w, kind, count = self.w, self.shapes.loss, self.shapes.batch
        size = float(np.prod(w.shapes[y]))
        if kind == "entropy":
            p = w.put("Softmax", y, axis=1)
            rows = w.reduce("ReduceSum", self.s.mul(target, w.put("Log", p)), [1], keep=False)
            loss = w.put("Neg", w.reduce("ReduceMean", rows, None, keep=False), hint="loss")
            error, factor = p, 1.0 / count
        else:
            error = w.put("Sub", y, target)
            op = "ReduceMean" if kind == "mean" else "ReduceSum"
            square = self.s.square(error)
            loss = w.reduce(op, square, None, keep=False)
            factor = {"mean": 2.0 / size, "sum": 2.0, "half": 1.0}[kind]
            if kind == "half":
                loss = self.s.scale(loss, 0.5, "loss")

        def back(d: str | None) -> None:
            apart = w.put("Sub", error, target) if kind == "entropy" else error
            self._add(y, self._seeded(apart, factor, d))

        return self._then(loss, y, back=back)

    def _seeded(self, value: str, factor: float, seed: str | None) -> str:
        """value * factor * seed in any order."""
        numbers = [] if seed is None else [seed]
        if factor != 1.0 or not numbers:
            numbers.append(self.w.constant(factor))
        self.w.draw.shuffle(numbers)
        if len(numbers) > 1 and self.w.maybe(0.5):
            numbers = [self.s.mul(*numbers)]
        for number in numbers:
            value = self.s.mul(value, number)
        return value

    def _near(self, value: str, other: str) -> str:
        """Half the sum of squares of the difference from a value that is not trained."""
        w = self.w
        apart = w.put("Sub", value, other)
        squares = w.reduce("ReduceSum", self.s.square(apart), None, keep=False)
        loss = self.s.scale(squares, 0.5)
        return self._then(loss, value, back=lambda d: self._add(value, self._seeded(apart, 1.0, d)))

    def _small(self, value: str, weight: float = 0.05) -> str:
        """weight * the sum of squares."""
        w = self.w
        squares = w.reduce("ReduceSum", self.s.square(value), None, keep=False)
        loss = self.s.scale(squares, weight)
        return self._then(
            loss, value, back=lambda d: self._add(value, self._seeded(value, 2.0 * weight, d))
        )
