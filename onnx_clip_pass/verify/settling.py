"""The original on clipped gradients: what the rewritten model has to give, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from onnx_clip_pass.record import Record
from onnx_clip_pass.runtime import Arrays, Session
from onnx_clip_pass.verify import compare
from onnx_clip_pass.verify.clipping import Clipping
from onnx_clip_pass.verify.runs import Outlets
from onnx_clip_pass.verify.targets import Target

__all__ = ["Expected"]

_MOST_ROUNDS = 100
_MOVES = 8
"""Ways in which gradients are moved to see what their rounding does to what is computed from them.
One is not enough: behind a cancellation, as in 1 - tanh(x)^2 where tanh is close to 1, a result
changes in large steps, of which a move may meet none and another rounding several."""


class Expected:
    """Runs of the original with each clipped gradient fed to whoever must see it.

    `arrays` are its outputs and what was fed, by name; `clipping` is that of this run.

    Args:
        targets: the clips.
        record: of the rewrite.
        first: where the gradients are in the original as it is.
        plain: a run of that.
        session: the original with gradients fed.
        original: where they are in it.
        feeds: for both.
        thresholds: what is fed for thresholds.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        record: Record,
        first: Outlets,
        plain: Arrays,
        session: Session,
        original: Outlets,
        feeds: Arrays,
        thresholds: Mapping[str, float],
    ) -> None:
        self._targets, self._record = targets, record
        self._first, self._plain = first, plain
        self._session, self._original = session, original
        self._feeds = feeds
        self._thresholds = thresholds
        self._moves: list[Arrays] = []
        self.arrays, self.clipping = self._settle(0)

    def fault(self, name: str, actual: NDArray[Any]) -> str:
        """Why what the rewritten model gives for one of `arrays` is wrong; empty if it is not."""
        return compare.output_fault(actual, self.arrays[name], self._moved(name))

    def _moved(self, name: str) -> Iterator[NDArray[Any]]:
        """The same with gradients moved; each move is run when it is first asked for."""
        if self._record.measures_only:
            return
        for number in range(_MOVES):
            if number == len(self._moves):
                self._moves.append(self._settle(number + 1)[0])
            yield self._moves[number][name]

    def _settle(self, move: int) -> tuple[Arrays, Clipping]:
        """Run the original on clipped gradients until they are those of the run itself.

        A gradient of a second step depends on the clipped one of the first: each round settles at
        least one step more.
        """
        raw = self._original.raw
        if self._record.measures_only:
            fed = {
                to.fed: self._plain[port.output]
                for group, into in zip(self._first.raw, raw, strict=True)
                for port, to in zip(group, into, strict=True)
            }
            found = self._session.run(self._feeds | fed)
            return found | fed, self._clipping(self._first, self._plain)
        clipping = self._clipping(self._first, self._plain)
        fed = clipping.fed(self._first.raw, self._plain, raw, move)
        found = self._session.run(self._feeds | fed)
        for _ in range(_MOST_ROUNDS):
            clipping = self._clipping(self._original, found)
            again = clipping.fed(raw, found, raw, move)
            if all(compare.is_identical(again[name], fed[name]) for name in fed):
                break
            fed = again
            found = self._session.run(self._feeds | fed)
        return found | fed, clipping

    def _clipping(self, opened: Outlets, run: Arrays) -> Clipping:
        return Clipping(self._targets, self._record, opened, run, self._thresholds)
