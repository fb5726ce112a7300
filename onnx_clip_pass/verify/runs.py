"""The two models as sessions, with gradients handed out, fed, and scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto

from onnx_clip_pass.graph import Read
from onnx_clip_pass.runtime import Arrays, Provider, Session, open_session
from onnx_clip_pass.verify.copies import Copy, Port
from onnx_clip_pass.verify.targets import Target

__all__ = ["Opened", "Runs"]

Ports = list[list[Port]]
Factors = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and where in its outputs the gradients are, and of the original's the rest.

    `clipped` is of the rewritten model, `parameters` and `loss_scale` of the original.
    """

    session: Session
    raw: Ports
    clipped: Ports
    parameters: list[list[Port]]
    loss_scale: str


class Runs:
    """Opens both models, for given factors of the gradients."""

    def __init__(
        self,
        before: tuple[ModelProto, Path | None],
        after: tuple[ModelProto, Path | None],
        targets: Sequence[Target],
        feeds: Arrays,
        provider: Provider,
        loss_scale: float | str,
    ) -> None:
        self._before, self._after = before, after
        self._targets = targets
        self._feeds = feeds
        self._provider = provider
        self._loss_scale = loss_scale

    def original(self, factors: Factors, *, fed: bool) -> Opened:
        """The original; `fed` lets the reads that are to see clipped gradients take fed ones."""
        copy = Copy(self._before[0])
        scopes = copy.index.scopes
        ports = [
            copy.bring_out(
                target.scope,
                target.name,
                target.dtype,
                [Read(scopes[s], node, slot) for s, node, slot in target.reads] if fed else None,
            )
            for target in self._targets
        ]
        parameters = [
            [] if target.parameter is None else copy.bring_out(*target.parameter)
            for target in self._targets
        ]
        scale = ""
        if isinstance(self._loss_scale, str):
            scale = copy.bring_out(0, self._loss_scale, int(TensorProto.FLOAT))[0].output
        self._scale(copy, factors, [target.name for target in self._targets])
        return Opened(self._open(copy.finish(), self._before[1]), ports, [], parameters, scale)

    def rewritten(self, factors: Factors) -> Opened:
        """The rewritten model."""
        copy = Copy(self._after[0])
        raw = [copy.bring_out(t.scope, t.raw, t.dtype) for t in self._targets]
        clipped = [copy.bring_out(t.scope, t.clipped, t.dtype) for t in self._targets]
        self._scale(copy, factors, [target.raw for target in self._targets])
        return Opened(self._open(copy.finish(), self._after[1]), raw, clipped, [], "")

    def feeds(self, factors: Factors) -> Arrays:
        """The feeds, with gradients that are inputs scaled."""
        feeds = dict(self._feeds)
        scaled = {
            self._targets[n].name: factor
            for n, factor in factors.items()
            if self._targets[n].scope == 0
        }
        for name, factor in scaled.items():
            if name in feeds:
                feeds[name] = (feeds[name] * factor).astype(feeds[name].dtype)
        return feeds

    def _scale(self, copy: Copy, factors: Factors, names: list[str]) -> None:
        """Several clips of one gradient have one factor."""
        scaled = {
            (self._targets[number].scope, names[number]): (factor, self._targets[number].dtype)
            for number, factor in factors.items()
        }
        for (scope, name), (factor, dtype) in scaled.items():
            copy.scale(scope, name, factor, dtype)

    def _open(self, model: ModelProto, folder: Path | None) -> Session:
        return open_session(model, provider=self._provider, optimize=False, folder=folder)
