"""Recorded gradients held to the slopes of the loss.

A clip can be right to the last bit on a value that is no gradient: on a step of the optimizer,
whose norm is another, or on the new weights of another network. So the loss is run with parameters
moved along what is recorded, and its slopes are compared with that:

1. a parameter, or the new value of one or of a state, is wrong;
2. what points where the slope points and is longer or shorter is wrong, unless by the loss scale;
3. what points elsewhere is no fault by itself: gradients are stopped, replaced by estimates, taken
   at another point, or those of another loss;
4. where nothing can be compared, it is said why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients import accumulator
from onnx_clip_pass.probe.deciding import SlopeCheck, check_slopes
from onnx_clip_pass.probe.losses import type_of
from onnx_clip_pass.runtime import Arrays
from onnx_clip_pass.verification.comparison import Comparison
from onnx_clip_pass.verification.slopes.forward import Forward
from onnx_clip_pass.verification.slopes.scales import NEAR, is_near, seeds_of
from onnx_clip_pass.verification.slopes.states import factors_of, state_in
from onnx_clip_pass.verification.static.targets import Target

__all__ = ["Meaning", "Slopes", "check_choice"]

Slopes = Literal["on", "strict", "off"]
"""The treatment of gradients that are no slopes of the loss, see `verify`."""

_ASIDE = 2e-3  # times the slope: what points no farther aside points where the slope does
_NOISE = 0.2  # times the slope: with more of it nothing can be said
_MARGIN = 4  # times what finite differences are thought to be off
_MOST_NAMES = 5

_UNKNOWN = "it is not known whose gradients these are, so their meaning was not checked"
_LATER = "these gradients and the loss are of different steps, so their meaning was not checked"
_INSIDE = "the meaning of gradients in nested graphs was not checked"
_SEEDS = "the meaning of gradients for several seeds at once was not checked"
_ROWS = "the meaning of gradients of another size than their parameters was not checked"
_UNREAD = (
    "the loss does not read these parameters, so the meaning of their gradients was not checked"
)
_NOISY = "the slopes of the loss are too small or too noisy to tell the meaning of these gradients"
_NO_SLOPES = (
    "these are no slopes of the loss {}, as stopped gradients, straight-through estimates or "
    "gradients of other losses are none"
)
_IN_PLACE = (
    "the meaning of the gradients was not checked: accumulators of the graph write to their inputs"
)
_SIZES = (
    "these are the slope of the loss times what changes with the sizes of inputs, which were made "
    "up; give those that the model is made for (dims=, --dim, or feeds)"
)


def check_choice(slopes: object) -> None:
    """Refuse what is none of `Slopes`.

    Raises:
        OnnxClipError: what was expected, and what arrived.
    """
    if not isinstance(slopes, str) or slopes not in get_args(Slopes):
        words = " or ".join(map(repr, get_args(Slopes)))
        raise OnnxClipError(f"slopes must be {words}, not {shown(slopes)}")


@dataclass(frozen=True, slots=True)
class _Pair:
    """The number of a target, its gradient, and the parameter that this is the gradient of."""

    number: int
    gradient: str
    parameter: str
    is_known: bool = True


_Measured = tuple[_Pair, SlopeCheck]


@dataclass(slots=True)
class Meaning:
    """The recorded gradients of an original, and where to tell what they are.

    `other_sizes` gives feeds with other sizes where the sizes of inputs were made up, or None where
    none was.
    """

    of: Comparison
    forward: Forward
    seed: int
    is_strict: bool
    other_sizes: Callable[[ModelProto], Arrays | None]
    _remarks: dict[str, list[str]] = field(init=False, default_factory=dict)

    def check(self) -> None:
        """Compare gradients with the slopes of the loss; what is found goes to the result.

        Raises:
            OnnxClipError: what is named as the loss is none.
        """
        self.forward.check_loss()
        if self.forward.index.main.numbers_of(*accumulator.OPS):
            self.of.note(_IN_PLACE)
            return
        try:
            self._compare()
        except OnnxClipError as error:
            self.of.note(f"the meaning of the gradients was not checked: {error}")
        for why, names in self._remarks.items():
            shown = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
            self.of.note(f"{why}: {shown}")

    # -- comparing -----------------------------------------------------------------------------

    def _compare(self) -> None:
        targets: dict[tuple[str, str], int] = {}
        for number, target in enumerate(self.of.targets):
            if target.scope != 0:
                self._remark(_INSIDE, target.name)
            elif self._has_several_seeds(target):
                self._remark(_SEEDS, target.name)
            else:
                targets.setdefault((target.name, target.gradient.parameter.name), number)
        if not targets:
            return
        forward = self.forward
        gradients = {name for name, _ in targets if not forward.is_root(name)}
        parameters = {parameter for _, parameter in targets}
        forward.prepare(gradients, parameters, of_any_size=self.is_strict)
        pairs = [self._pair(number, *names) for names, number in targets.items()]
        read = self._of_equal_size([pair for pair in pairs if pair.parameter in forward.sources])
        self._judge(self._measured(read, forward.feeds))
        for pair in self._but_states([p for p in pairs if p.parameter not in forward.sources]):
            self._remark(_UNREAD if pair.is_known else _UNKNOWN, pair.gradient)

    def _remark(self, why: str, name: str) -> None:
        self._remarks.setdefault(why, []).append(name)

    def _has_several_seeds(self, target: Target) -> bool:
        """Return whether the last dimension of a gradient counts seeds and several are fed."""
        if not target.gradient.has_seeds:
            return False
        count = (target.gradient.shape or (None,))[-1]
        for value in self.forward.model.graph.input:
            symbols = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
            if isinstance(count, str) and count in symbols and value.name in self.forward.feeds:
                count = self.forward.feeds[value.name].shape[symbols.index(count)]
        return count != 1

    def _pair(self, number: int, name: str, parameter: str) -> _Pair:
        """A gradient with its parameter.

        If that is not known, or the loss reads a copy of it, as of master weights, the only one of
        the gradient's shape that the loss reads.
        """
        forward, main = self.forward, self.forward.index.main
        is_known = parameter != name and forward.is_root(parameter)
        if is_known and parameter in forward.sources:
            return _Pair(number, name, parameter)
        shape = type_of(forward.index, name).shape
        roots = dict.fromkeys([*main.inputs, *main.initializers])
        kinds = {root: type_of(forward.index, root) for root in roots if root in forward.sources}
        fitting = [root for root, k in kinds.items() if k.is_floating and k.shape == shape]
        if len(fitting) == 1 and shape is not None and fitting[0] != name:
            return _Pair(number, name, fitting[0])
        return _Pair(number, name, parameter if is_known else "", is_known)

    def _of_equal_size(self, pairs: Sequence[_Pair]) -> list[_Pair]:
        """Gradients with as many elements as their parameters have, unlike those of some rows."""
        names = {name for pair in pairs for name in (pair.gradient, pair.parameter)}
        shapes = {name: type_of(self.forward.index, name).shape for name in names}
        unknown = [n for n, s in shapes.items() if s is None or not all(type(d) is int for d in s)]
        shapes |= {name: array.shape for name, array in self.forward.run(unknown).items()}
        sizes: Any = {name: math.prod(shape or ()) for name, shape in shapes.items()}
        others = {pair: None for pair in pairs if sizes[pair.gradient] != sizes[pair.parameter]}
        for pair in others:
            self._remark(_ROWS, pair.gradient)
        return [pair for pair in pairs if pair not in others]

    def _measured(self, pairs: Sequence[_Pair], feeds: Arrays) -> list[_Measured]:
        forward = self.forward
        roots = {pair.gradient for pair in pairs if forward.is_root(pair.gradient)}
        model, names = forward.with_copies(sorted(roots))
        found: list[_Measured] = []
        self.of.tell(f"taking slopes of {forward.loss} along {len(pairs)} gradients")
        for part in _each_gradient_once(pairs):
            of = {names.get(pair.gradient, pair.gradient): pair for pair in part}
            checks = check_slopes(
                model,
                {name: pair.parameter for name, pair in of.items()},
                feeds=feeds,
                loss=forward.loss,
                seed=self.seed,
                provider=forward.provider,
            )
            found += [(of[check.gradient], check) for check in checks]
        return found

    # -- judging -------------------------------------------------------------------------------

    def _judge(self, found: Sequence[_Measured]) -> None:
        """Tell the right ones among gradients with what the slopes of the loss say of them."""
        factors = self._sure_factors(found)
        scales = [*self._recorded_scales()]
        scales += seeds_of(self.forward.index, self.forward.feeds, self.forward.sources, factors)
        later = self._of_later_steps([pair for pair, _ in found])
        doubtful = []
        for pair, check in found:
            if _is_right(check, scales):
                continue
            if pair in later:
                self._remark(_LATER, pair.gradient)
            elif not _is_clear(check):
                self._remark(_NOISY, pair.gradient)
            else:
                doubtful.append((pair, check))
        multiples = []
        left = set(self._but_states([pair for pair, _ in doubtful]))
        for pair, check in doubtful:
            if pair not in left:
                continue
            if _is_parallel(check) and any(is_near(check.factor, f) for f in factors.values()):
                multiples.append((pair, check))
            elif self.is_strict:
                self.of.fault(
                    pair.number,
                    f"it is no slope of the loss {self.forward.loss!r} by {pair.parameter}",
                )
            else:
                self._remark(_NO_SLOPES.format(repr(self.forward.loss)), pair.gradient)
        self._judge_multiples(multiples)

    def _judge_multiples(self, found: Sequence[_Measured]) -> None:
        """Those that are parallel to the slope, and longer or shorter.

        An export can have the size of its batch as a number in it: where sizes were made up, that
        is no fault.
        """
        feeds = self.other_sizes(self.of.before.model) if found else None
        again: dict[_Pair, float] = {}
        if feeds is not None:
            measured = self._measured([pair for pair, _ in found], feeds)
            again = {pair: check.factor for pair, check in measured}
        for pair, check in found:
            if is_near(again.get(pair, check.factor), check.factor, _MARGIN * check.error):
                times = f"it is {check.factor:.4g} times the slope of the loss by {pair.parameter}"
                self.of.fault(pair.number, f"{times}, so that its norm is not the gradient's")
            else:
                self._remark(_SIZES, pair.gradient)

    def _but_states(self, pairs: Sequence[_Pair]) -> list[_Pair]:
        """Those that are neither parameters nor states nor their new values; the rest is wrong."""
        forward, left = self.forward, []
        numbers = forward.numbers(factors_of(forward.index, [pair.gradient for pair in pairs]))
        for pair in pairs:
            is_slope = False if pair.is_known else None
            state = state_in(
                forward.index, pair.gradient, forward.sources, numbers, is_slope=is_slope
            )
            if state:
                self.of.fault(pair.number, f"it is no gradient but {state}")
            else:
                left.append(pair)
        return left

    def _sure_factors(self, found: Sequence[_Measured]) -> dict[str, float]:
        """Return how many times the slope gradients are, as far as that is sure.

        Of a parameter of one element it is not: every number is a multiple of every other.
        """
        return {
            pair.gradient: check.factor
            for pair, check in found
            if _is_parallel(check)
            and not type_of(self.forward.index, pair.parameter).is_scalar_like
        }

    def _of_later_steps(self, pairs: Sequence[_Pair]) -> set[_Pair]:
        """Gradients of unrolled steps that are not taken at the parameters that are fed.

        Those are behind another gradient of the same parameter; and all of its gradients are in
        question if the loss comes behind one.
        """
        groups: dict[str, list[_Pair]] = {}
        for pair in pairs:
            groups.setdefault(pair.parameter, []).append(pair)
        found: set[_Pair] = set()
        for group in groups.values():
            made = {p.gradient for p in group if not self.forward.is_root(p.gradient)}
            if not made.isdisjoint(self.forward.sources):
                found.update(group)
            elif len(made) > 1:
                for pair in group:
                    earlier = self.forward.sources_of(pair.gradient) & made
                    found.update([pair] * (earlier != {pair.gradient}))
        return found

    def _recorded_scales(self) -> Iterator[float]:
        yield 1.0
        scale = self.of.record.loss_scale
        yield self.forward.numbers([scale]).get(scale, 1.0) if isinstance(scale, str) else scale


def _each_gradient_once(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Split so that no part has a gradient twice: a value can be that of several parameters."""
    parts: list[dict[str, _Pair]] = []
    for pair in pairs:
        part = next((part for part in parts if pair.gradient not in part), None)
        if part is None:
            parts.append(part := {})
        part[pair.gradient] = pair
    return [list(part.values()) for part in parts]


def _is_clear(check: SlopeCheck) -> bool:
    """Return whether it is known that the loss does not move along a gradient, or how much."""
    return check.error <= _NOISE or math.isinf(check.factor)


def _is_right(check: SlopeCheck, scales: Sequence[float]) -> bool:
    """Return whether a gradient is the slope, times a scale of the loss; or both are zero."""
    off = _MARGIN * check.error
    if not check.error <= _NOISE or check.orthogonal > max(NEAR, off):
        return False
    return math.isnan(check.factor) or any(is_near(check.factor, scale, off) for scale in scales)


def _is_parallel(check: SlopeCheck) -> bool:
    """Return whether a gradient lies on the line of the slope."""
    is_measured = check.error <= _NOISE and math.isfinite(check.factor)
    return is_measured and check.orthogonal <= max(_ASIDE, _MARGIN * check.error)
