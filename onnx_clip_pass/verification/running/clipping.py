"""The recorded clips on the arrays of one run: graph by graph, iteration by iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips import Case, Clip
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.runtime import Arrays
from onnx_clip_pass.verification.comparison import Comparison
from onnx_clip_pass.verification.running.copies import Port
from onnx_clip_pass.verification.running.runs import Outlets
from onnx_clip_pass.verification.static.targets import Target
from onnx_clip_pass.verification.tolerance import compare
from onnx_clip_pass.verification.tolerance.expected import Member, Outcome, clip_together

__all__ = ["Clipping", "Given", "One", "history_of"]

Array = NDArray[Any]
Given = Mapping[str, float | Array]
"""The values of inputs that a rewrite added, as fed: thresholds, and states of clips."""


@dataclass(frozen=True, slots=True)
class One:
    """A gradient of one iteration and call: which target's, where in which port's array."""

    target: int
    port: int
    at: tuple[int, ...]
    member: Member

    @property
    def raw(self) -> Array:
        """Before clipping."""
        return self.member.gradient


def history_of(target: Target, given: Given, loss_scale: float) -> Array | None:
    """The norms so far by which a gradient is clipped, in its own unit; None if there are none."""
    if target.state is None or target.state not in given:
        return None
    return np.asarray(given[target.state], np.float64) * loss_scale


class Clipping:
    """The clips with the thresholds, states and loss scale of one run, and the parameters in it.

    `is_given` says that the clips were given the very gradients of the run.

    Raises:
        OnnxClipError: the loss scale is no positive number in this run.
    """

    def __init__(
        self,
        of: Comparison,
        opened: Outlets,
        run: Arrays,
        given: Given,
        *,
        is_given: bool = False,
    ) -> None:
        self.of = of
        self._is_given = is_given
        self._parameters = [[run[port.output] for port in ports] for ports in opened.parameters]
        self._parameter_ports = opened.parameters
        recorded = of.record.loss_scale
        self.loss_scale = float(
            np.asarray(run[opened.loss_scale]).astype(np.float64).ravel()[0]
            if isinstance(recorded, str)
            else recorded
        )
        if not 0 < self.loss_scale < np.inf:
            raise OnnxClipError(
                f"expected a positive number as the loss scale {recorded!r}, but it is "
                f"{self.loss_scale:g} in this run; feed another"
            )
        self._given = given
        self._clips = [self._clip_of(target) for target in of.targets]
        self._has_runtime_threshold = [
            target.threshold_input is not None or self.loss_scale != 1 for target in of.targets
        ]

    def ones(self, ports: Sequence[Sequence[Port]], run: Arrays) -> Iterator[list[One]]:
        """The gradients in a run, those of one iteration that have anything to do with each other.

        They are computed one after another, for each takes several times its memory.
        """
        for numbers in self.of.together:
            for port, first in enumerate(ports[numbers[0]]):
                shape = run[first.output].shape[: first.loops]
                for at in np.ndindex(shape):
                    found = [
                        One(n, port, at, self._member(n, run[ports[n][port].output][at], port, at))
                        for n in numbers
                        if not self._is_not_taken(n, run[ports[n][port].output][at])
                    ]
                    if found:
                        yield found

    def outcomes(self, ones: Sequence[One]) -> list[Outcome]:
        """The results of the formulas."""
        return self.outcomes_of([one.member for one in ones])

    def outcomes_of(self, members: Sequence[Member]) -> list[Outcome]:
        """The same of members that may be scaled."""
        return clip_together(members, self.of.numerics)

    def fed(
        self,
        ports: Sequence[Sequence[Port]],
        run: Arrays,
        to: Sequence[Sequence[Port]],
        move: int,
    ) -> Arrays:
        """The clipped gradients of a run by the inputs that they are fed to.

        Move 0 is none; 1 makes all of them longer by their own tolerance, as an error of a norm
        would; each further one moves every element by it, up or down at random.
        """
        found = {
            into.fed: np.array(run[port.output])
            for group, into_group in zip(ports, to, strict=True)
            for port, into in zip(group, into_group, strict=True)
        }
        rng = np.random.default_rng(move)
        for ones in self.ones(ports, run):
            for one, outcome in zip(ones, self.outcomes(ones), strict=True):
                array = found[to[one.target][one.port].fed]
                clipped = outcome.clipped
                if move:
                    signs = 1.0 if move == 1 else rng.choice([-1.0, 1.0], size=clipped.shape)
                    precision = outcome.precision + compare.epsilon(str(clipped.dtype))
                    clipped = clipped.astype(np.float64) * (1 + signs * precision)
                array[one.at] = clipped.astype(array.dtype)
        return found

    def _clip_of(self, target: Target) -> Clip:
        clip = target.clip
        if target.threshold_input is not None and target.threshold_input in self._given:
            clip = clip.with_threshold(float(self._given[target.threshold_input]))
        return clip if self.loss_scale == 1 else clip.scaled(self.loss_scale)

    def _member(self, number: int, array: Array, port: int, at: tuple[int, ...]) -> Member:
        target = self.of.targets[number]
        case = Case(
            np.asarray(array),
            self._parameter(number, port, at),
            target.axes,
            target.count,
            target.gradient.has_seeds and np.ndim(array) > 0,
            history_of(target, self._given, self.loss_scale),
        )
        clip, has_runtime_threshold = self._clips[number], self._has_runtime_threshold[number]
        return Member(
            clip.formulas, case, target.unrolled_step, has_runtime_threshold, self._is_given
        )

    def _parameter(self, number: int, port: int, at: tuple[int, ...]) -> Array | None:
        arrays = self._parameters[number]
        if not arrays:
            return None
        which = port if len(arrays) > 1 else 0
        return np.asarray(arrays[which][at[: self._parameter_ports[number][which].loops]])

    def _is_not_taken(self, number: int, array: Array) -> bool:
        """Return whether it stands for the gradient of a branch that was not taken."""
        shape = self.of.targets[number].gradient.shape
        return np.ndim(array) == 0 and bool(shape)
