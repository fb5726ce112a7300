"""What a step does beside training: copies of new weights, averages of data, reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from .nets import Net, Parameter
from .spelling import Spelling
from .update import Optimizer
from .writer import Shape

__all__ = ["Extras"]


@dataclass
class Extras:
    """Writes extras; none of the states here is trained."""

    optimizer: Optimizer
    random: np.random.Generator
    copies_of: set[str]  # parameters that have a copy: an average, or a target network

    def __post_init__(self) -> None:
        self.w = self.optimizer.w
        self.s = Spelling(self.w)

    def _normal(self, shape: Shape) -> np.ndarray:
        return self.random.normal(size=shape)

    def teacher(self, parameter: Parameter) -> str:
        """The copy of a parameter that the loss reads."""
        self.copies_of.add(parameter.name)
        return self.optimizer.state(parameter.name, "copy", self._normal, parameter.shape).value

    def copy(self, parameter: Parameter, new: str) -> None:
        """(1 - tau) * copy + tau * new, in either assignment of the shares."""
        optimizer = self.optimizer
        if parameter.name not in self.copies_of:
            return
        state = optimizer.state(parameter.name, "copy", self._normal, parameter.shape)
        if self.w.maybe(0.15):  # now and then the weights themselves
            flag = optimizer.flag("sync")
            state.value = self.w.put("Where", flag, new, state.value)
        elif self.w.maybe(0.6):
            state.value = self.s.average(state.value, new, optimizer.number("tau", 0.1))
        else:
            state.value = self.s.average(new, state.value, optimizer.number("kept", 0.9))

    def look_ahead(self, parameter: Parameter, new: str) -> str:
        """Lookahead: slow weights, which replace the fast ones now and then."""
        w, optimizer = self.w, self.optimizer
        state = optimizer.state(parameter.name, "slow", self._normal, parameter.shape)
        slow = self.s.average(state.value, new, optimizer.number("alpha", 0.5))
        flag = optimizer.flag("sync")
        state.value = w.put("Where", flag, slow, state.value)
        return w.put("Where", flag, slow, new)

    def running_mean(self, value: str) -> None:
        """The average of an activation over all steps."""
        mean = self.w.reduce("ReduceMean", value, [0], keep=False)
        if self.w.dtypes[mean] != self.w.dtype:
            mean = self.w.high(mean)
        state = self.optimizer.state("net", "mean", self._normal, self.w.shapes[mean])
        share = self.optimizer.number("share_of_mean", 0.1)
        state.value = self.s.average(state.value, mean, share)

    def report(self, net: Net) -> None:
        """Norms, activations, a hit rate, gradients themselves."""
        w = self.w
        for g in net.gradients.values():
            if w.maybe(0.1):
                w.outputs.append(w.reduce("ReduceL2", g, None, keep=False))
            if w.maybe(0.05) and g not in w.outputs:
                w.outputs.append(g)
        if w.maybe(0.12):
            w.outputs.append(self.factor(list(net.gradients.values())))
        if w.maybe(0.12) and net.activity not in w.outputs:
            w.outputs.append(net.activity)
        if w.maybe(0.12):
            w.outputs.append(w.reduce("ReduceMax", net.activity, None, keep=False))
        if w.maybe(0.12):
            rows = w.shapes[net.activity][:1]
            best = [
                w.put("ArgMax", value, axis=1, keepdims=0, shape=rows, dtype=TensorProto.INT64)
                for value in (net.activity, net.target)
            ]
            hits = w.put("Equal", *best, dtype=TensorProto.BOOL)
            share = w.put("Cast", hits, to=w.dtype, dtype=w.dtype)
            w.outputs.append(w.reduce("ReduceMean", share, None, keep=False))

    def factor(self, gradients: list[str]) -> str:
        """The factor by which the global norm clips."""
        w = self.w
        parts = [w.reduce("ReduceSum", self.s.square(g), None, keep=False) for g in gradients]
        norm = self.s.sqrt(self.s.total(parts))
        ratio = self.s.div(w.constant(0.8), self.s.add(norm, w.constant(1e-6)))
        return w.put("Min", ratio, w.constant(1.0))
