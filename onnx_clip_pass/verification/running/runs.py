"""The two models as sessions, with gradients as outputs, fed, and scaled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.graph import Read, spec
from onnx_clip_pass.runtime import Arrays, Provider, Session, open_session
from onnx_clip_pass.verification.comparison import Comparison
from onnx_clip_pass.verification.running.alone import Alone
from onnx_clip_pass.verification.running.copies import Copy, Port
from onnx_clip_pass.verification.static.targets import Target

__all__ = ["Factors", "Outlets", "Runs"]

Ports = list[list[Port]]
Factors = Mapping[int, float]
"""The factors of gradients in both models alike, by the numbers of their targets."""


@dataclass(frozen=True, slots=True)
class Outlets:
    """The places of gradients in the outputs of a session, and of the original's the rest.

    `clipped` is of the rewritten model, `parameters` and `loss_scale` of the original.
    """

    raw: Ports
    clipped: Ports
    parameters: list[list[Port]]
    loss_scale: str

    def names(self) -> list[str]:
        """The outputs by which a clip can be worked out, in an order of its own."""
        ports = [port for group in (*self.raw, *self.parameters) for port in group]
        return [port.output for port in ports] + [self.loss_scale] * bool(self.loss_scale)


@dataclass(frozen=True, slots=True)
class Runs:
    """Opens both models, with gradients changed in both alike; `given` are the feeds."""

    of: Comparison
    given: Arrays
    provider: Provider

    def original(self, factors: Factors, *, fed: bool) -> tuple[Session, Outlets]:
        """The original; `fed` lets the reads that are to see clipped gradients take fed ones."""
        copy = Copy(self.of.before.model)
        scopes = copy.index.scopes
        ports = [
            copy.expose(
                target.scope,
                target.name,
                target.dtype,
                [Read(scopes[s], node, slot) for s, node, slot in target.reads] if fed else None,
            )
            for target in self.of.targets
        ]
        parameters = [
            [] if target.parameter is None else copy.expose(*target.parameter)
            for target in self.of.targets
        ]
        scale = ""
        if isinstance(self.of.record.loss_scale, str):
            scale = copy.expose(0, self.of.record.loss_scale, spec.FLOAT)[0].output
        for target, factor in self._changed(factors):
            copy.change(target.scope, target.name, target.dtype, factor)
        session = self._open(copy.finish(), self.of.before_folder)
        return session, Outlets(ports, [], parameters, scale)

    def rewritten(self, factors: Factors) -> tuple[Session, Outlets]:
        """The rewritten model."""
        copy = Copy(self.of.after.model)
        raw = [copy.expose(t.scope, t.raw, t.dtype) for t in self.of.targets]
        clipped = [copy.expose(t.scope, t.clipped, t.dtype) for t in self.of.targets]
        for target, factor in self._changed(factors):
            copy.change(target.scope, target.raw, target.dtype, factor)
        return self._open(copy.finish(), self.of.after_folder), Outlets(raw, clipped, [], "")

    def conditions(self) -> dict[tuple[int, str], NDArray[Any]]:
        """The condition of each If of the original, by the number of its scope and its name."""
        copy = Copy(self.of.before.model)
        ports = {}
        for number, scope in enumerate(copy.index.scopes):
            for at in scope.numbers_of("If"):
                name = scope.nodes[at].input[0]
                if (number, name) not in ports:
                    ports[number, name] = copy.expose(number, name, spec.BOOL)
        run = self._open(copy.finish(), self.of.before_folder).run(self.given)
        return {
            key: np.concatenate([run[port.output].ravel() for port in own])
            for key, own in ports.items()
            if own
        }

    def alone(self, number: int, outputs: Iterable[str], thresholds: Arrays) -> Alone:
        """The clips of a graph of the rewritten model without the rest of it."""
        own = [target for target in self.of.targets if target.scope == number]
        feeds = self.given | thresholds
        return Alone(self.of.after, own, outputs, feeds, self.provider, self.of.after_folder)

    def feeds(self, factors: Factors) -> Arrays:
        """The feeds, with gradients that are inputs changed."""
        feeds = dict(self.given)
        for target, factor in self._changed(factors):
            if target.scope == 0 and target.name in feeds:
                old = feeds[target.name]
                feeds[target.name] = (old * factor).astype(old.dtype)
        return feeds

    def _changed(self, factors: Factors) -> list[tuple[Target, float]]:
        """Each gradient that is changed, once, however many clips it has, and by what."""
        values = {(t.scope, t.name): (t, n) for n, t in enumerate(self.of.targets) if n in factors}
        return [(target, factors[number]) for target, number in values.values()]

    def _open(self, model: ModelProto, folder: Path | None) -> Session:
        return open_session(model, provider=self.provider, optimize=False, folder=folder)
