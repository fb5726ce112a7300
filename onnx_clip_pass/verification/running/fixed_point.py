"""The original on clipped gradients: what the rewritten model has to give, and how exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

from onnx_clip_pass.runtime import Arrays, Session
from onnx_clip_pass.verification.comparison import Comparison
from onnx_clip_pass.verification.running.clipping import Clipping, Given
from onnx_clip_pass.verification.running.runs import Outlets
from onnx_clip_pass.verification.tolerance import compare

__all__ = ["Expected"]

_MOST_ROUNDS = 100
_MOVES = 8
"""Ways in which gradients are moved to see what their rounding does to what is computed from them.
One is not enough: behind a cancellation, as in 1 - tanh(x)^2 where tanh is close to 1, a result
changes in large steps, of which a move may meet none and another rounding several."""


class Expected:
    """Runs of the original with each clipped gradient fed to whoever must see it.

    `arrays` are its outputs and what was fed, by name; `outlets` says where in them the gradients
    are, and `clipping` is that of this run.

    Args:
        of: the models and the clips.
        first: where the gradients are in the original as it is.
        plain: a run of that.
        open_fed: opens the original with gradients fed.
        feeds: for both.
        given: what is fed for the inputs that the rewrite added.
    """

    def __init__(
        self,
        of: Comparison,
        first: Outlets,
        plain: Arrays,
        open_fed: Callable[[], tuple[Session, Outlets]],
        feeds: Arrays,
        given: Given,
    ) -> None:
        self._of = of
        self._open_fed = open_fed
        self._feeds = feeds
        self._given = given
        self._moves: list[Arrays] = []
        self._again: Session | None = None
        session, self.outlets = open_fed()
        self.arrays, self.clipping = self._iterate(session, first, plain, 0)

    def fault(self, name: str, actual: NDArray[Any]) -> str:
        """Return why an output of the rewritten model is wrong, one of `arrays`; empty if not."""
        return compare.output_fault(actual, self.arrays[name], self._moved(name))

    def _moved(self, name: str) -> Iterator[NDArray[Any]]:
        """The same with gradients moved; each move is run when it is first asked for."""
        if self._of.record.measures_only:
            return
        if self._again is None:
            self._again, _ = self._open_fed()
        for number in range(_MOVES):
            if number == len(self._moves):
                moved, _ = self._iterate(self._again, self.outlets, self.arrays, number + 1)
                self._moves.append(moved)
            yield self._moves[number][name]

    def _iterate(
        self, session: Session, outlets: Outlets, run: Arrays, move: int
    ) -> tuple[Arrays, Clipping]:
        """Run the original on clipped gradients until they are those of the run itself.

        The first are those of the given run, which is to be found there by the given outlets.

        A gradient of a second step depends on the clipped one of the first: each iteration fixes at
        least one step more.
        """
        raw = self.outlets.raw
        for _ in range(_MOST_ROUNDS):
            clipping = Clipping(self._of, outlets, run, self._given)
            if self._of.record.measures_only:
                fed = {
                    to.fed: run[port.output]
                    for group, into in zip(outlets.raw, raw, strict=True)
                    for port, to in zip(group, into, strict=True)
                }
            else:
                fed = clipping.fed(outlets.raw, run, raw, move)
            taken = [run[name] for name in outlets.names()]
            run = session.run(self._feeds | fed)
            outlets = self.outlets
            now = [run[name] for name in outlets.names()]
            if all(compare.is_identical(*pair) for pair in zip(taken, now, strict=True)):
                break
        return run | fed, clipping
