"""What stands around an optimizer: in front of it, behind it, and the layout that it works in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from .optimizers import MOVES, STEPS
from .update import Update
from .writer import Number, Shape, Writer

__all__ = ["BEHIND", "FRONT", "Layout", "draw_layout", "moved"]


# -- layouts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A parameter's values in the shape and dtype that its update is computed in, and back."""

    w: Writer
    own: Shape
    shape: Shape
    dtype: int
    turned: bool

    def keep(self, value: str) -> str:
        w = self.w
        if self.turned:
            value = w.transpose(value)
        elif len(self.shape) == 2 and self.shape != self.own:
            value = w.put("Flatten", value, axis=0, shape=self.shape)
        elif self.shape != self.own:
            value = w.reshape(value, self.shape)
        return self._cast(value, self.dtype)

    def give(self, value: str) -> str:
        w = self.w
        value = self._cast(value, w.dtype)
        if self.turned:
            return w.transpose(value)
        return w.reshape(value, self.own) if self.shape != self.own else value

    def _cast(self, value: str, dtype: int) -> str:
        return value if self.dtype == self.w.dtype else self.w.cast(value, dtype)


def draw_layout(w: Writer, own: Shape, kind: str) -> Layout:
    """The layout of this kind, or the parameter's own where it has no such one."""
    wide = TensorProto.FLOAT if w.dtype == TensorProto.DOUBLE else TensorProto.DOUBLE
    dtype = {"wide": wide, "half": TensorProto.FLOAT16}.get(kind, w.dtype)
    if kind == "flat" and len(own) != 1:
        return Layout(w, own, (int(np.prod(own)),), dtype, False)
    if kind == "flattened" and len(own) > 0:
        return Layout(w, own, (1, int(np.prod(own))), dtype, False)
    if kind == "turned" and len(own) == 2:
        return Layout(w, own, own[::-1], dtype, True)
    return Layout(w, own, own, dtype, False)


# -- in front of the optimizer: each takes the gradient and gives what the next one takes ------


def by_value(u: Update, g: str) -> str:
    w = u.w
    if w.maybe(0.6):
        return w.put("Clip", g, w.constant(-0.7), w.constant(0.7), shape=u.shape)
    low = w.put("Max", g, w.constant(-0.7))
    return w.put("Min", low, w.constant(0.7))


def by_norm(u: Update, g: str) -> str:
    w, limit = u.w, u.number("max_norm", 0.8, plain=True)
    norm = u.norm(g)
    way = w.draw.choice(["factor", "paddle", "where"])
    if way == "paddle":
        return u.s.div(u.s.scale(g, limit), w.put("Max", norm, w.use(limit)))
    if way == "where":
        longer = u.compare("Greater", norm, w.use(limit))
        return u.where(longer, u.s.mul(g, u.s.div(w.use(limit), norm)), g)
    ratio = u.s.div(w.use(limit), u.s.add(norm, w.constant(1e-6)))
    return u.s.mul(g, w.put("Min", ratio, w.constant(1.0)))


def by_global_norm(u: Update, g: str) -> str:
    return u.s.mul(g, u.w.cast(u.optimizer.factor))


def centralised(u: Update, g: str) -> str:
    if len(u.shape) != 2:
        return g
    axis = u.choose.choice([0, 1])
    return u.s.sub(g, u.w.reduce("ReduceMean", g, [axis], keep=True))


def masked(u: Update, g: str) -> str:
    return u.s.mul(g, _beside(u, "mask"))


def decayed(u: Update, g: str) -> str:
    """L2 in the optimizer."""
    return u.s.add(g, u.s.scale(u.weight, u.number("wd", 0.02)))


def decayed_by_sign(u: Update, g: str) -> str:
    return u.s.add(g, u.s.scale(u.w.put("Sign", u.weight), u.number("wd", 0.02)))


def anchored(u: Update, g: str) -> str:
    """FedProx: pulled towards other weights."""
    apart = u.w.put("Sub", u.weight, _beside(u, "anchor"))
    return u.s.add(g, u.s.scale(apart, u.number("prox", 0.1)))


def varied(u: Update, g: str) -> str:
    """SCAFFOLD's variates, or noise."""
    return u.s.add(g, _beside(u, "noise"))


def accumulated(u: Update, g: str) -> str:
    """Added to what former runs left."""
    total = u.s.add(u.old("sum"), g)
    if u.choose.random() < 0.5:
        ready = u.optimizer.flag("ready")
        u.new("sum", u.where(ready, u.w.put("Sub", total, total), total))
    else:
        u.new("sum", total)
    return u.s.scale(total, u.w.number(0.5, "share")) if u.choose.random() < 0.5 else total


def zeroed(u: Update, g: str) -> str:
    """Nothing where the gradient is not finite."""
    w = u.w
    size = w.reduce("ReduceSum", w.put("Abs", g), None, keep=False)
    return u.where(u.compare("Less", size, w.constant(1e4)), g, w.constant(0.0))


def scaled(u: Update, g: str) -> str:
    return u.s.scale(g, u.number("gain", 0.3))


def rounded(u: Update, g: str) -> str:
    w = u.w
    half = w.put("Cast", g, to=TensorProto.FLOAT16, dtype=TensorProto.FLOAT16)
    return w.put("Cast", half, to=w.working, dtype=w.working)


def negated(u: Update, g: str) -> str:
    """A sign in front that is taken back."""
    return u.w.put("Neg", u.w.put("Neg", g))


FRONT: dict[str, tuple[Callable[[Update, str], str], float]] = {
    "rounded": (rounded, 0.04),
    "accumulated": (accumulated, 0.06),
    "clipped by value": (by_value, 0.05),
    "clipped by norm": (by_norm, 0.06),
    "clipped by the global norm": (by_global_norm, 0.06),
    "zero on overflow": (zeroed, 0.04),
    "centralised": (centralised, 0.06),
    "scaled": (scaled, 0.05),
    "masked gradient": (masked, 0.05),
    "L2": (decayed, 0.2),
    "L1": (decayed_by_sign, 0.03),
    "FedProx": (anchored, 0.04),
    "variates": (varied, 0.04),
    "two signs": (negated, 0.03),
}


# -- the step itself ---------------------------------------------------------------------------


def moved(u: Update, name: str, decay: str, more: list[Number]) -> str:
    """The new weight by the optimizer of this name, with decoupled decay in one of its forms."""
    w, s, rate = u.w, u.s, u.optimizer.rate
    if name in STEPS:
        return STEPS[name](u, u.gradient, rate, more)
    move = MOVES[name](u, u.gradient)
    decays = u.number("wd_apart", 0.03)
    if decay == "in the move":
        return s.step(u.weight, s.add(move, s.scale(u.weight, decays)), rate, more)
    if decay == "factor":
        if rate.fixed and decays.fixed and w.maybe(0.4):
            kept = w.constant(1.0 - rate.value * decays.value)
        else:
            kept = w.put("Sub", w.constant(1.0), s.mul(w.use(rate), w.use(decays)))
        return s.step(s.mul(u.weight, kept), move, rate, more)
    if decay == "term":
        new = s.step(u.weight, move, rate, more)
        return s.sub(new, s.scale(s.scale(u.weight, rate), decays))
    return s.step(u.weight, move, rate, more)


# -- behind it: each takes the new weight and gives another ------------------------------------


def not_negative(u: Update, new: str) -> str:
    return u.w.put("Relu", new)


def bounded(u: Update, new: str) -> str:
    w = u.w
    return w.put("Clip", new, w.constant(-3.0), w.constant(3.0), shape=u.shape)


def not_below(u: Update, new: str) -> str:
    return u.w.put("Max", new, u.w.constant(-2.0))


def masked_weight(u: Update, new: str) -> str:
    return u.s.mul(new, _beside(u, "mask"))


def short(u: Update, new: str) -> str:
    """Weights of norm 4 at most."""
    size = u.w.put("Max", u.s.scale(u.norm(new), 0.25), u.w.constant(1.0))
    return u.s.div(new, size)


BEHIND: dict[str, tuple[Callable[[Update, str], str], float]] = {
    "masked weight": (masked_weight, 0.06),
    "Relu": (not_negative, 0.02),
    "Clip": (bounded, 0.03),
    "Max": (not_below, 0.02),
    "short": (short, 0.02),
}


def _beside(u: Update, what: str) -> str:
    """A tensor of the parameter's shape that the update alone reads."""
    known = u.optimizer.beside
    if (u.owner, what) not in known:
        own = u.w.shapes[u.owner]
        random = u.random
        array = random.normal(size=own) * 0.1
        if what == "mask":
            array = (random.random(size=own) < 0.7).astype(float)
        hint = f"{u.owner}_{what}"
        if u.w.maybe(0.4):
            known[u.owner, what] = u.w.constant(array, hint, dtype=u.w.dtype, kind="initializer")
        else:
            known[u.owner, what] = u.w.feed(array, hint)
    return u.keep(known[u.owner, what])
