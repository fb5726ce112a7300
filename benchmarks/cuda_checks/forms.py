"""Every form that a clip has: where its nodes run, and what they compute, against float64."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cuda_checks.outcome import Row, TimeLimit
from cuda_checks.sessions import Placement, Provider, run_profiled
from cuda_checks.subjects import Subjects, all_subjects, clipped_model, counting_subjects
from onnx_clip_pass import Report
from onnx_clip_pass.record import read_record

__all__ = ["CONFIGURATIONS", "OPSETS", "Configuration", "check_forms", "misplaced", "wrong"]

OPSETS = (7, 8, 9, 12, 13, 17, 18, 21, 23, 24, 25)
"""Where operators of clips changed, and the first two that CUDA lacks kernels for."""

KINDS = ("acting", "passing", "broken")
Arrays = dict[str, NDArray[Any]]

_RELATIVE = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-5, "float64": 1e-11}
"""Half precision is rounded once; norms are off by 1e-5 at most, products by less."""
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 0.0}


@dataclass(frozen=True)
class Configuration:
    """The options of a rewrite that choose a form."""

    layout: str = "cpu"
    norm_precision: str = "auto"
    nonfinite: str = "propagate"

    def __str__(self) -> str:
        return f"{self.layout}, {self.norm_precision}, {self.nonfinite}"

    @property
    def options(self) -> dict[str, str]:
        """Return them as `clip_gradients` takes them."""
        return dict(vars(self))


CONFIGURATIONS = tuple(
    Configuration(layout, norm_precision, nonfinite)
    for layout, norm_precision in (
        ("cpu", "auto"), ("cuda", "auto"), ("x86-64", "auto"), ("cpu", "plain"), ("cpu", "wide")
    )
    for nonfinite in ("propagate", "zero", "keep")
)  # fmt: skip


def check_forms(
    provider: Provider,
    limit: TimeLimit,
    *,
    opsets: Sequence[int] = OPSETS,
    configurations: Sequence[Configuration] = CONFIGURATIONS,
    subjects: Subjects | None = None,
    computes: bool = True,
) -> Iterator[Row]:
    """A row for the forms of each configuration, over all opsets, dtypes, shapes and clips.

    Then one for those that count elements, which ONNX Runtime does on the host: told is what it
    copies. What the layout x86-64 computes is left to the checks of norms on CUDA, where products
    may be rounded to TensorFloat-32. Where the device `computes` nothing, where nodes ran is all.
    """
    chosen = all_subjects() if subjects is None else subjects
    for configuration in configurations:
        faults: list[str] = []
        number = 0
        for opset in opsets:
            limit.check()
            found, _, seen = _check(provider, configuration, opset, chosen, computes=computes)
            faults += [f"opset {opset}: {fault}" for fault in found]
            number += seen
        yield _row(str(configuration), faults, f"{number} gradients")
    limit.check()
    counted = counting_subjects()
    faults, placement, number = _check(
        provider, Configuration(), 17, counted, strict=False, computes=computes
    )
    elsewhere = sum(map(len, placement.elsewhere.values()))
    said = f"{number} gradients, {elsewhere} nodes elsewhere, {placement.copies} copies"
    yield _row("RMS where nobody knows the shape", faults, said)


def _row(what: str, faults: list[str], said: str) -> Row:
    if not faults:
        return Row("forms", what, "ok", said)
    more = f" and {len(faults) - 3} more" if faults[3:] else ""
    return Row("forms", what, "fault", "; ".join(faults[:3]) + more)


def _check(
    provider: Provider,
    configuration: Configuration,
    opset: int,
    subjects: Subjects,
    *,
    strict: bool = True,
    computes: bool = True,
) -> tuple[list[str], Placement, int]:
    """The faults of all forms at one opset, where they ran, and how many gradients were clipped.

    With `strict` every node has to be on the provider.
    """
    options: dict[str, Any] = {**configuration.options, "emit": ("norm", "scale", "clipped")}
    model, report, kept = clipped_model(subjects, opset, **options)
    record = read_record(model) if kept else None
    if record is None:
        return [], Placement(), 0
    (acting, passing, broken), placement = run_profiled(
        model, provider, [feeds(kept, kind) for kind in KINDS], record.nodes
    )
    faults = misplaced(placement, report, provider) if strict else []
    if not computes or (configuration.layout == "x86-64" and provider.device == "cuda"):
        return faults, placement, len(kept)
    for kind, out in (("acting", acting), ("broken", broken)):
        faults += wrong(kept, out, expected(kept, kind, configuration.nonfinite))
    given = feeds(kept, "passing")
    faults += [
        f"{subject.name}: is within its limit and is changed"
        for subject in kept
        if out_bits(passing[subject.name]) != out_bits(given[f"{subject.name} in"])
    ]
    return faults, placement, len(kept)


def misplaced(placement: Placement, report: Report, provider: Provider) -> list[str]:
    """What is not where the report says: on the provider, but for operators that it may lack."""
    name = provider.device.upper()
    warned = [said for said in report.warnings if f"{name} provider has no" in said]
    lacking = set(re.findall(r"(\w+) \(", " ".join(warned)))
    faults = [
        f"{op_type} runs elsewhere, as {nodes[0]!r}"
        for op_type, nodes in placement.elsewhere.items()
        if op_type not in lacking
    ]
    faults += [
        f"{node!r} did not run"
        for node in placement.unseen
        if "/Cast" not in node  # of which ONNX Runtime takes out those that undo each other
    ]
    if placement.copies and not lacking:
        faults.append(f"{placement.copies} copies between devices")
    return faults


def wrong(subjects: Subjects, out: Arrays, wanted: Arrays) -> list[str]:
    """What is not as the formula has it in float64."""
    faults = []
    for subject in subjects:
        found, wide = (each[subject.name].astype(np.float64) for each in (out, wanted))
        bound = _RELATIVE[subject.dtype] * np.abs(wide) + _SMALLEST[subject.dtype]
        if found.shape != wide.shape:
            faults.append(f"{subject.name}: shape {found.shape}, expected {wide.shape}")
            continue
        with np.errstate(invalid="ignore"):
            is_right = (np.abs(found - wide) <= bound) | (np.isnan(found) & np.isnan(wide))
        if not is_right.all():
            at = np.argmin(is_right)
            values = (found.reshape(-1)[at], wide.reshape(-1)[at])
            faults.append("{}: {:.9g}, expected {:.9g}".format(subject.name, *values))
    return faults


@cache
def expected(subjects: Subjects, kind: str, policy: Any) -> Arrays:
    """The gradients as the formulas make them in float64, those of one clip together."""
    clips = {id(subject.clip): subject.clip for subject in subjects}
    arrays: Arrays = {}
    for key, clip in clips.items():
        own = [subject for subject in subjects if id(subject.clip) == key]
        arrays |= clip.apply(
            {subject.name: getattr(subject, kind)() for subject in own},
            parameters={subject.name: subject.weights() for subject in own},
            nonfinite=policy,
        )
    return arrays


@cache
def feeds(subjects: Subjects, kind: str) -> Arrays:
    """What goes in for these gradients, and their parameters."""
    return {f"{subject.name} in": getattr(subject, kind)() for subject in subjects} | {
        subject.parameter: subject.weights() for subject in subjects
    }


def out_bits(array: NDArray[Any]) -> bytes:
    """The bits of an array, as they lie in memory."""
    return np.ascontiguousarray(array).tobytes()
