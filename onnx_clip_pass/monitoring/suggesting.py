"""Thresholds that follow from the norms of a run, as rules."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.clips import GradientClipByGlobalNorm, GradientClipByNorm
from onnx_clip_pass.clips.norms import norm_of
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.monitoring.adapting import AutoClip, ZClip, check_percentile, percentile_of
from onnx_clip_pass.patterns import check_pattern, is_expression, reader_of
from onnx_clip_pass.rules import Rule
from onnx_clip_pass.tables import Table, counted, escape_control
from onnx_clip_pass.views import View, Viewed

__all__ = ["Each", "Suggestion", "Threshold", "suggest"]

Each = Literal["gradient", "global"]
_Numbers = NDArray[np.float64]
_SHORT = 50
_ALWAYS, _NEVER = 0.5, 0.01
_SETTLED = 1.5
_UPWARDS = Context(prec=4, rounding=ROUND_CEILING)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold for the gradients of these parameters: for each alone, or for all together.

    `acts` is the share of the steps in which it would have acted, `pattern` that of a group, ""
    for one parameter. `autoclip` and `zclip` are what these would have ended at.
    """

    parameters: tuple[str, ...]
    limit: float
    acts: float
    median: float
    largest: float
    autoclip: float
    zclip: float
    pattern: str = ""
    is_global: bool = False


@dataclass(frozen=True, repr=False)
class Suggestion(Viewed):
    """Thresholds for a clip of each gradient, of groups, or of all together.

    Printed, or displayed by rich or a notebook, it shows a line for each.
    """

    thresholds: tuple[Threshold, ...]
    percentile: float
    steps: int
    warnings: tuple[str, ...] = ()

    @property
    def rules(self) -> list[Rule]:
        """The rules for `clip_gradients` and `plan_clips`, which `toml` writes."""
        found = []
        for each in self.thresholds:
            if each.is_global:
                group = each.pattern or "default_group"
                clip = GradientClipByGlobalNorm(each.limit, group_name=group)
                found.append(Rule(_patterns(each), clip))
            else:
                found.append(Rule(_patterns(each), GradientClipByNorm(each.limit)))
        return found

    def toml(self) -> str:
        """Return the rules as the text of a clip.toml, with the figures in comments."""
        lines = [
            f"# Thresholds from {counted(self.steps, 'step')}: the {self.percentile:g}th "
            f"percentile of the norms seen.",
            *(f"# Note: {_comment(warning)}" for warning in self.warnings),
        ]
        for each in self.thresholds:
            patterns = _patterns(each)
            lines += [
                "",
                f"# median {each.median:.4g}, largest {each.largest:.4g}; acts in {each.acts:.0%} "
                f"of the steps; AutoClip would be at {each.autoclip:.4g}, ZClip at "
                f"{each.zclip:.4g}",
                "[[rule]]",
                *([] if patterns is None else [f"parameters = {_toml(patterns)}"]),
                f'clip = "{"global-norm" if each.is_global else "norm"}"',
            ]
            if each.is_global and each.pattern:
                lines.append(f"group_name = {_toml(each.pattern)}")
            lines.append(f"clip_norm = {each.limit!r}")
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        return {
            "steps": self.steps,
            "percentile": self.percentile,
            "thresholds": [
                asdict(each) | {"autoclip": _or_none(each.autoclip), "zclip": _or_none(each.zclip)}
                for each in self.thresholds
            ],
            "warnings": list(self.warnings),
        }

    def view(self) -> View:
        rows = []
        for each in self.thresholds:
            whose = each.pattern or (each.parameters[0] if not each.is_global else "all together")
            figures = (each.limit, each.median, each.largest, each.autoclip, each.zclip)
            rows.append((whose, *(f"{figure:.4g}" for figure in figures), f"{each.acts:.0%}"))
        return View(
            f"thresholds from {counted(self.steps, 'step')}, {self.percentile:g}th percentile",
            Table(
                ("parameters", "clip_norm", "median", "largest", "AutoClip", "ZClip", "acts"),
                tuple(rows),
            ),
            self.warnings,
        )


def suggest(
    names: Sequence[str],
    norms: _Numbers,
    percentile: float = 90.0,
    *,
    groups: Sequence[str] = (),
    each: Each = "gradient",
) -> Suggestion:
    """Return thresholds: a percentile of the finite norms that were seen before clipping.

    Args:
        names: of the parameters.
        norms: of their gradients, shape (steps, gradients).
        percentile: of the norms that stay as they are, 0 to 100.
        groups: patterns of parameters, each a group with a global norm of its own; the first that
            matches takes a parameter.
        each: "gradient", a threshold for each of the others; "global", one for all of them.

    Raises:
        OnnxClipError: there are no finite norms, a pattern matches nothing, or `percentile` is no
            number from 0 to 100.
    """
    check_percentile(percentile)
    check_choice("each", each, Each)
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise OnnxClipError(f"groups must be a list of patterns, not {shown(groups)}")
    left = list(range(len(names)))
    found: list[Threshold] = []
    for pattern in groups:
        check_pattern(pattern)
        matches = reader_of(pattern)
        members = [at for at in left if matches(names[at])]
        if not members:
            raise OnnxClipError(
                f"the pattern {shown(pattern)} matches no parameter that was watched and that no "
                f"pattern before it takes"
            )
        left = [at for at in left if at not in members]
        found.append(_of_all(names, norms, members, percentile, pattern))
    if each == "global" and left:
        found.append(_of_all(names, norms, left, percentile, ""))
    elif each == "gradient":
        own: dict[str, list[int]] = {}
        for at in left:  # of a parameter with a gradient in each unrolled step there are several
            own.setdefault(names[at], []).append(at)
        found += [_threshold((n,), norms[:, ats].ravel(), percentile) for n, ats in own.items()]
    useless = [each for each in found if not 0 < each.limit < math.inf]
    found = [each for each in found if 0 < each.limit < math.inf]
    if not found:
        raise OnnxClipError(
            f"no threshold follows from {counted(len(norms), 'step')}: no norm is finite and not 0"
        )
    warnings = [*_doubts(norms), *_of_thresholds(found)]
    warnings += [
        f"no threshold for {', '.join(each.parameters[:3])}: its norms are 0 or not finite"
        for each in useless
    ]
    return Suggestion(tuple(found), float(percentile), len(norms), tuple(warnings))


def _of_all(
    names: Sequence[str], columns: _Numbers, members: list[int], percentile: float, pattern: str
) -> Threshold:
    """The threshold of the norm of several gradients together."""
    together = norm_of(columns[:, members], axes=(1,))[:, 0]
    return _threshold(
        tuple(names[at] for at in members), together, percentile, pattern, is_global=True
    )


def _threshold(
    parameters: tuple[str, ...],
    norms: _Numbers,
    percentile: float,
    pattern: str = "",
    *,
    is_global: bool = False,
) -> Threshold:
    exact = percentile_of(norms, percentile)
    limit = float(f"{exact:.4g}")  # a percentile has no more digits
    if ((limit < norms) & (norms <= exact)).any():
        limit = float(_UPWARDS.create_decimal(exact))
    auto, z = percentile_of(norms, AutoClip.percentile), ZClip()
    for norm in norms:
        z.update(float(norm))
    return Threshold(
        parameters,
        limit,
        float(np.mean(~(norms <= limit))) if len(norms) else 0.0,
        percentile_of(norms, 50),
        percentile_of(norms, 100),
        math.inf if math.isnan(auto) else auto,
        z.threshold,
        pattern,
        is_global,
    )


def _doubts(norms: _Numbers) -> list[str]:
    """Reasons against thresholds from this run."""
    found = []
    if len(norms) < _SHORT:
        found.append(
            f"a percentile of {counted(len(norms), 'step')} says little; watch {_SHORT} or more"
        )
    whole = norm_of(norms, axes=(1,))[:, 0]
    finite = whole[np.isfinite(whole)]
    if len(finite) >= 4 * 4:
        quarter = len(finite) // 4
        before, last = np.median(finite[-2 * quarter : -quarter]), np.median(finite[-quarter:])
        if last > 0 and before > 0 and not 1 / _SETTLED < last / before < _SETTLED:
            found.append(
                f"the norms still change: their median was {before:.3g} in the third quarter of "
                f"the run and is {last:.3g} in the last; watch longer, or take the steps alone "
                f"that went well (--steps; in Python: steps)"
            )
    return found


def _of_thresholds(thresholds: Sequence[Threshold]) -> list[str]:
    """Thresholds that would act nearly always, or never."""
    found = []
    for least, most, what in (
        (_ALWAYS, math.inf, "would act in most steps"),
        (-math.inf, _NEVER, "would hardly ever act"),
    ):
        odd = [each for each in thresholds if least < each.acts < most]
        names = [each.pattern or each.parameters[0] for each in odd]
        if names:
            more = f" and {len(names) - 3} more" if names[3:] else ""
            found.append(f"{', '.join(names[:3])}{more} {what}")
    return found


def _patterns(each: Threshold) -> str | list[str] | None:
    """The selection of its parameters: a pattern, a name, or None for the rest."""
    if each.pattern:
        return each.pattern
    if each.is_global:
        return None
    return exactly(each.parameters[0])


def exactly(name: str) -> str:
    """The pattern that matches one name and nothing else."""
    pattern = glob.escape(name)
    return f"[r]{pattern[1:]}" if is_expression(pattern) else pattern


def _toml(value: object) -> str:
    """Text, or a list of it, as TOML writes it: JSON's texts are TOML's."""
    return json.dumps(value, ensure_ascii=True)


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _comment(text: str) -> str:
    return escape_control(" ".join(text.split()))
