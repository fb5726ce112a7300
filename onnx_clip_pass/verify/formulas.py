"""The clips of all gradients at once, in float64: what a rewritten graph is held against.

Gradients whose clips share a norm are clipped together, stage by stage where clips are chained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips import Case, Formula, GradientClipByNorm, GradientClipByValue
from onnx_clip_pass.verify import compare
from onnx_clip_pass.verify.targets import Target

__all__ = ["Formulas", "Setting", "Slices", "norm_that_is_bounded"]

Array = NDArray[Any]
Slices = dict[int, list[Array]]
"""The number of a target, and its gradients: one for each iteration of a loop and each seed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run sets besides the gradients.

    `scale` is the loss scale, `fed` the thresholds that are fed by the names of their inputs, and
    `parameters` the arrays that clips compare with.
    """

    scale: float = 1.0
    fed: Mapping[str, float] = field(default_factory=dict)
    parameters: Slices = field(default_factory=dict)


class Formulas:
    """The clips of a list of targets."""

    def __init__(self, targets: Sequence[Target], norm_precision: str) -> None:
        self._targets = targets
        self._norm_precision = norm_precision

    def clipped(self, raw: Slices, setting: Setting) -> Slices:
        """Each gradient as it is to be."""
        return self._run(raw, setting)[0]

    def before(self, stage: int, raw: Slices, setting: Setting) -> Slices:
        """Each gradient as the clips before this stage have made it."""
        return self._run(raw, setting, stage)[0]

    def factors(self, raw: Slices, setting: Setting) -> dict[int, float]:
        """The smallest number that an element of each gradient is multiplied by."""
        return self._run(raw, setting)[1]

    def together(self, number: int) -> list[int]:
        """The targets that share a norm with this one, itself included."""
        own = {self._key(number, stage) for stage in range(len(self._targets[number].formulas))}
        return [
            other
            for other, target in enumerate(self._targets)
            if any(self._key(other, stage) in own for stage in range(len(target.formulas)))
        ]

    def acting(self, raw: Slices, setting: Setting) -> dict[int, list[bool]]:
        """Whether each gradient of each target is changed."""
        found = self.clipped(raw, setting)
        return {
            number: [
                not compare.is_identical(before, after)
                for before, after in zip(raw[number], found[number], strict=True)
            ]
            for number in raw
        }

    def precision(self, number: int, sizes: Mapping[int, tuple[str, int]]) -> float:
        """The relative error that a clipped gradient may have by that of its norms.

        Args:
            number: of the target.
            sizes: the dtype and the number of elements of one gradient of each target.
        """
        total = 0.0
        for formula in self._targets[number].formulas:
            if formula.group is None:
                total += self._of_one(formula, *sizes[number])
                continue
            members = [other for other in self.together(number) if other in sizes]
            worst = max(self._of_one(formula, *sizes[other]) for other in members)
            total += worst + (min(len(members), 64) / 4 + 2) * 2.0**-23
        return total

    def _of_one(self, formula: Formula, dtype: str, size: int) -> float:
        """An L1 sum errs twice as much as the root of a sum of squares; adaptive has two norms."""
        ord = getattr(formula, "ord", 2.0)
        if ord == math.inf:
            size = 1
        norm = compare.precision_of_norm(dtype, size, self._norm_precision)
        if ord not in (1, 2, math.inf) and self._norm_precision == "plain":
            norm *= 1 + ord  # each power rounds in proportion
        return norm * (1 + int(ord == 1) + int(formula.reads_parameter))

    def _key(self, number: int, stage: int) -> tuple[object, ...]:
        target = self._targets[number]
        group = target.formulas[stage].group
        if group is None:
            return (number, stage)
        return (stage, group, target.scope, target.level)

    def _run(
        self, raw: Slices, setting: Setting, until: int | None = None
    ) -> tuple[Slices, dict[int, float]]:
        values = {number: list(arrays) for number, arrays in raw.items()}
        factors = dict.fromkeys(raw, 1.0)
        stages = max((len(target.formulas) for target in self._targets), default=0)
        for stage in range(stages if until is None else until):
            groups: dict[tuple[object, ...], list[int]] = {}
            for number in raw:
                if stage < len(self._targets[number].formulas):
                    groups.setdefault(self._key(number, stage), []).append(number)
            for members in groups.values():
                self._run_together(members, stage, values, factors, setting)
        return values, factors

    def _run_together(
        self,
        members: list[int],
        stage: int,
        values: Slices,
        factors: dict[int, float],
        setting: Setting,
    ) -> None:
        formula = self._set(members[0], stage, setting)
        before = {number: values[number] for number in members}
        count = min(len(arrays) for arrays in before.values())
        for at in range(count):
            cases = [self._case(number, at, before[number][at], setting) for number in members]
            found = formula.reference(cases, self._targets[members[0]].nonfinite)
            for number, array in zip(members, found, strict=True):
                values[number] = [
                    *values[number][:at],
                    np.asarray(array),
                    *values[number][at + 1 :],
                ]
        for number in members:
            factors[number] *= min(
                (
                    _smallest_factor(old, new)
                    for old, new in zip(before[number], values[number], strict=True)
                ),
                default=1.0,
            )

    def _set(self, number: int, stage: int, setting: Setting) -> Formula:
        """A formula as it acts in a run: its threshold may be fed, and is times the loss scale."""
        target = self._targets[number]
        formula, factor = target.formulas[stage], setting.scale
        name = target.threshold_input
        if name is not None and name in setting.fed and formula.threshold:
            factor *= setting.fed[name] / formula.threshold
        scaled = formula if factor == 1 else formula.scaled(factor)
        return scaled.formulas[0]

    def _case(self, number: int, at: int, array: Array, setting: Setting) -> Case:
        target = self._targets[number]
        given = setting.parameters.get(number)
        parameter = None if given is None else given[at % len(given)]
        return Case(array, parameter, target.axes, target.count)


def _smallest_factor(before: Array, after: Array) -> float:
    old, new = compare.wide(before), compare.wide(after)
    seen = (old != 0) & np.isfinite(old)
    if not seen.any():
        return 1.0
    return float(np.min(new[seen] / old[seen]))


def norm_that_is_bounded(formula: Formula, case: Case) -> float:
    """The largest norm that a formula takes of a gradient, worked out without it."""
    wide = compare.wide(case.gradient)
    sizes = np.abs(wide)
    if not wide.size:
        return 0.0
    axes: tuple[int, ...] | None = None
    if getattr(formula, "per_sample", False):
        axes = tuple(range(1, wide.ndim))
    elif formula.reads_parameter or isinstance(formula, GradientClipByNorm):
        given = getattr(formula, "axes", None) or case.axes
        axes = None if given is None else tuple(given)
    is_of_elements = isinstance(formula, GradientClipByValue)
    ord = math.inf if is_of_elements else float(getattr(formula, "ord", 2.0))
    if ord == math.inf:
        return float(sizes.max())
    powers = np.sum(sizes**ord, axis=axes)
    return float(np.max(powers) ** (1 / ord))
