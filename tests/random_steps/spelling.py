"""Arithmetic in every spelling: sums, shares, powers, and the numbers that stand in them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .writer import Number, Writer

__all__ = ["Spelling"]


class Spelling:
    """Writes the same formula in another way each time it is asked for."""

    def __init__(self, writer: Writer) -> None:
        self.w = writer

    def pick(self, *ways: str) -> str:
        return self.w.draw.choice(ways)

    # -- two operands --------------------------------------------------------------------------

    def mul(self, a: str, b: str, hint: str = "") -> str:
        first, second = (a, b) if self.w.maybe(0.5) else (b, a)
        return self.w.put("Mul", first, second, hint=hint)

    def add(self, a: str, b: str, hint: str = "") -> str:
        first, second = (a, b) if self.w.maybe(0.5) else (b, a)
        return self.w.put("Sum" if self.w.maybe(0.1) else "Add", first, second, hint=hint)

    def sub(self, a: str, b: str, hint: str = "") -> str:
        way = self.w.draw.random()
        if way < 0.8:
            return self.w.put("Sub", a, b, hint=hint)
        if way < 0.93:
            return self.add(a, self.w.put("Neg", b), hint)
        return self.w.put("Neg", self.w.put("Sub", b, a), hint=hint)

    def div(self, a: str, b: str, hint: str = "") -> str:
        if self.w.maybe(0.85):
            return self.w.put("Div", a, b, hint=hint)
        return self.mul(a, self.w.put("Reciprocal", b), hint)

    def total(self, values: list[str], hint: str = "") -> str:
        """The sum of values, in any order."""
        values = list(values)
        self.w.draw.shuffle(values)
        if len(values) > 2 and self.w.maybe(0.3):
            return self.w.put("Sum", *values, hint=hint)
        while len(values) > 1:
            name = hint if len(values) == 2 else ""
            values[:2] = [self.add(values[0], values[1], name)]
        return values[0]

    # -- one operand ---------------------------------------------------------------------------

    def square(self, x: str) -> str:
        if self.w.maybe(0.7):
            return self.w.put("Mul", x, x)
        return self.w.put("Pow", x, self.w.constant(2.0), shape=self.w.shapes[x])

    def sqrt(self, x: str) -> str:
        if self.w.maybe(0.8):
            return self.w.put("Sqrt", x)
        return self.w.put("Pow", x, self.w.constant(0.5), shape=self.w.shapes[x])

    def scale(self, x: str, number: Number | str | float, hint: str = "") -> str:
        return self.mul(x, self.w.use(number), hint)

    def over(self, x: str, number: Number, hint: str = "") -> str:
        """x divided by a number, as a product with its inverse too."""
        if number.fixed and self.w.maybe(0.4):
            return self.scale(x, 1.0 / number.value, hint)
        return self.div(x, self.w.use(number), hint)

    # -- numbers -------------------------------------------------------------------------------

    def rest(self, share: Number | str) -> Number | str:
        """1 - share: computed, or a number of its own."""
        if isinstance(share, Number) and self.w.maybe(0.5):
            kinds = ("input",) if share.kind == "input" else ("constant", "initializer", "input")
            return self.w.number(1.0 - share.value, "rest", *kinds)
        return self.w.put("Sub", self.w.constant(1.0), self.w.use(share))

    def average(self, x: str, y: str, share: Number | str, hint: str = "") -> str:
        """(1 - share) * x + share * y."""
        ways = ["products"] * 4 + ["x+", "x-", "y+", "y-", "lerp", "lerp in a Where"]
        way = self.pick(*ways)
        if way == "products":
            return self.add(self.scale(x, self.rest(share)), self.scale(y, share), hint)
        if way == "x+":
            return self.add(x, self.scale(self.w.put("Sub", y, x), share), hint)
        if way == "x-":
            return self.sub(x, self.scale(self.w.put("Sub", x, y), share), hint)
        if way == "y+":
            return self.add(y, self.scale(self.w.put("Sub", x, y), self.rest(share)), hint)
        if way == "y-":
            return self.sub(y, self.scale(self.w.put("Sub", y, x), self.rest(share)), hint)
        return self._lerp(x, y, share, hint, choose_last=way == "lerp in a Where")

    def _lerp(self, x: str, y: str, share: Number | str, hint: str, *, choose_last: bool) -> str:
        """What PyTorch decomposes lerp to: numbers from 0.5 on are counted from the other end."""
        w = self.w
        small = isinstance(share, Number) and share.value < 0.5
        if isinstance(share, Number) and share.fixed:
            flag = w.constant(np.array(small), dtype=TensorProto.BOOL)
        else:
            flag = w.put("Less", w.use(share), w.constant(0.5), dtype=TensorProto.BOOL)
        apart = w.put("Sub", y, x)
        if choose_last:
            low = self.add(x, self.scale(apart, share))
            high = w.put("Sub", y, self.scale(apart, self.rest(share)))
            return w.put("Where", flag, low, high, hint=hint)
        if isinstance(share, Number) and share.fixed:
            factor = w.use(share) if small else w.constant(share.value - 1.0)
        else:
            less_one = w.put("Sub", w.use(share), w.constant(1.0))
            factor = w.put("Where", flag, w.use(share), less_one)
        start = w.put("Where", flag, x, y)
        return self.add(self.mul(factor, apart), start, hint)

    # -- steps ---------------------------------------------------------------------------------

    def step(self, weight: str, move: str, rate: Number, more: list[Number], hint: str = "") -> str:
        """weight - rate * move, and `more` factors of the rate at any place."""
        w = self.w
        way = self.pick(*["sub"] * 4, "neg rate", "neg step", "signed", "minus one", "over", "flip")
        if way == "over" and rate.fixed and not more:
            return self.sub(weight, self.div(move, w.constant(1.0 / rate.value)), hint)
        if way == "flip":
            moved = self._scaled(move, [rate, *more], negative=False)
            return w.put("Neg", w.put("Sub", moved, weight), hint=hint)
        negative = way in ("neg rate", "signed")
        moved = self._scaled(move, [rate, *more], negative=negative)
        if way == "minus one":
            moved = self.scale(moved, w.number(-1.0, "sign"))
        elif way == "signed":
            moved = self.scale(moved, w.number(1.0, "sign"))
        elif way == "neg step":
            moved = w.put("Neg", moved)
        elif not negative:
            return self.sub(weight, moved, hint)
        return self.add(weight, moved, hint)

    def _scaled(self, move: str, factors: list[Number], *, negative: bool) -> str:
        """The product of all, in any order; numbers may be multiplied among themselves first."""
        w = self.w
        factors = list(factors)
        w.draw.shuffle(factors)
        turned = w.draw.randrange(len(factors)) if negative else -1
        names: list[str] = []
        for at, factor in enumerate(factors):
            if at != turned:
                names.append(w.use(factor))
            elif factor.fixed and w.maybe(0.5):
                names.append(w.constant(np.full(factor.shape, -factor.value)))
            else:
                names.append(w.put("Neg", w.use(factor)))
        if len(names) > 1 and w.maybe(0.4):
            names = [self.mul(names[0], names[1]), *names[2:]]
        for name in names:
            move = self.mul(move, name)
        if w.maybe(0.07):
            move = self.over(move, w.number(2.0, "divisor"))
        return move
