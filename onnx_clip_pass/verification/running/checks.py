"""Checks of one run of both models, gradient by gradient and output by output."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.record import Measure
from onnx_clip_pass.runtime import Arrays
from onnx_clip_pass.verification.comparison import Comparison
from onnx_clip_pass.verification.report import OutputCheck
from onnx_clip_pass.verification.running.clipping import Clipping, One
from onnx_clip_pass.verification.running.fixed_point import Expected
from onnx_clip_pass.verification.running.runs import Outlets
from onnx_clip_pass.verification.tolerance import compare
from onnx_clip_pass.verification.tolerance.expected import History, Outcome, enlarged

__all__ = [
    "Clipped",
    "Seen",
    "carried",
    "check_emitted",
    "check_gradients",
    "check_outputs",
    "check_raw",
    "check_states",
]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Clipped:
    """One run of clips: `rewritten` says where in `after` the gradients are.

    `when` says what is particular, for messages, and `clipping` are the clips in this run.
    """

    when: str
    after: Arrays
    rewritten: Outlets
    clipping: Clipping

    @property
    def of(self) -> Comparison:
        """The models that are compared."""
        return self.clipping.of

    def made(self, one: One) -> Array:
        """A gradient as the graph clips it."""
        port = self.rewritten.clipped[one.target][one.port]
        return np.asarray(self.after[port.output][one.at])

    def fault(self, number: int, fault: str) -> None:
        """Tell what is wrong with a clip in this run."""
        self.of.fault(number, self.when + fault)


@dataclass(frozen=True, slots=True)
class Seen(Clipped):
    """One run of the original and of the rewritten model, which is `after`.

    `plain` are those outputs of the original as it is that clipping does not change, and `expected`
    is the original with clipped gradients fed to it. `steady` are the outputs of the original that
    are the same in every run.
    """

    plain: Arrays
    expected: Expected
    steady: set[str]


def check_gradients(seen: Clipped) -> list[tuple[One, Outcome]]:
    """Hold every clipped gradient to the formulas; what these say of each, but for its elements."""
    record = seen.of.record
    found: list[tuple[One, Outcome]] = []
    faulty: set[int] = set()
    for number, (raw, clipped) in enumerate(
        zip(seen.rewritten.raw, seen.rewritten.clipped, strict=True)
    ):
        for port, other in zip(raw, clipped, strict=True):
            left, right = seen.after[port.output], seen.after[other.output]
            if left.shape != right.shape or left.dtype != right.dtype:
                faulty.add(number)
                seen.fault(
                    number,
                    f"the raw gradient is {left.dtype} {list(left.shape)}, the clipped one "
                    f"{right.dtype} {list(right.shape)}",
                )
    for ones in seen.clipping.ones(seen.rewritten.raw, seen.after):
        outcomes = seen.clipping.outcomes(ones)
        exact = _unrounded(seen.clipping, ones)
        within = _within(seen, ones, outcomes)
        for at, (one, outcome, is_within) in enumerate(zip(ones, outcomes, within, strict=True)):
            found.append((one, replace(outcome, clipped=np.empty(0, one.raw.dtype))))
            if one.target in faulty or not outcome.is_promised:
                continue
            if record.measures_only:
                wanted, allowed, is_within = one.raw, 0.0, np.ones(one.raw.shape, np.bool_)
            else:
                wanted = outcome.clipped
                allowed = compare.allowed_ulps(str(one.raw.dtype), outcome.precision)
            made = seen.made(one)
            is_rounded = record.norm_precision == "wide" or compare.is_half(str(made.dtype))
            if exact and is_rounded and compare.is_misrounded(made, exact[at], outcome.precision):
                allowed = 0.0
            _check_one(seen, one, outcome, made, wanted, allowed, is_within)
            if seen.of.result.gradients[one.target].faults:
                faulty.add(one.target)
    return found


def _within(
    seen: Clipped, ones: Sequence[One], outcomes: Sequence[Outcome]
) -> list[NDArray[np.bool_]]:
    """Return where gradients must be as they are, bit for bit, though their norm is inexact.

    Asked of the formulas only if something that they leave as it is has other bits.
    """
    changed = False
    for one, outcome in zip(ones, outcomes, strict=True):
        made = seen.made(one)
        if made.shape == one.raw.shape:
            kept = _unchanged(outcome.clipped, one.raw)
            changed |= bool(np.any(kept & ~_unchanged(made, one.raw)))
    if not changed:
        return [np.zeros(one.raw.shape, np.bool_) for one in ones]
    larger = enlarged([one.member for one in ones], 1 + 4 * max(o.precision for o in outcomes))
    return [
        _unchanged(outcome.clipped, member.case.gradient)
        for member, outcome in zip(larger, seen.clipping.outcomes_of(larger), strict=True)
    ]


def _unrounded(clipping: Clipping, ones: Sequence[One]) -> list[Array]:
    """The result of formulas before it is rounded to a dtype narrower than they are computed in.

    Two units of that, which may be wrong elsewhere, hide what is computed in the dtype itself.
    """
    members = [one.member for one in ones]
    if not all(member.is_given and len(member.formulas) == 1 for member in members):
        return []
    is_wide = clipping.of.record.norm_precision == "wide"
    if not is_wide and not any(compare.is_half(str(one.raw.dtype)) for one in ones):
        return []
    return [outcome.clipped for outcome in clipping.outcomes_of(enlarged(members, 1.0))]


def _check_one(
    seen: Clipped,
    one: One,
    outcome: Outcome,
    clipped: Array,
    wanted: Array,
    allowed: float,
    is_within: NDArray[np.bool_],
) -> None:
    check, raw = seen.of.result.gradients[one.target], one.raw
    norms = [_norm(array, one.member.case.has_seeds) for array in (clipped, wanted, raw)]
    if not seen.when:
        check.clipped_norm, check.expected_norm, check.raw_norm = map(
            _larger, (check.clipped_norm, check.expected_norm, check.raw_norm), norms
        )
    error = compare.ulps_apart(clipped, wanted)
    check.allowed_ulps = max(check.allowed_ulps, allowed)
    check.error_ulps = max(check.error_ulps, error)
    check.acted |= any(outcome.acts)
    check.passed |= not any(outcome.acts)
    if error > allowed:
        is_norm, right_norm, raw_norm = norms
        seen.fault(
            one.target,
            f"norm {is_norm:.7g}, where {right_norm:.7g} is right (raw: {raw_norm:.7g}); "
            f"{error:.3g} ulps off, where {allowed:.3g} are allowed",
        )
    elif not compare.is_identical(clipped[is_within], raw[is_within]):
        seen.fault(one.target, "within the threshold, but not the same bit for bit")


def _unchanged(clipped: Array, raw: Array) -> NDArray[np.bool_]:
    """Return where the formula leaves an element as it is, its sign and nan too."""
    same = (clipped == raw) & (np.signbit(clipped) == np.signbit(raw))
    return np.asarray(same)


def _larger(left: float, right: float) -> float:
    return right if math.isnan(left) else max(left, right)


def _norm(array: Array, has_seeds: bool) -> float:
    wide = compare.wide(array)
    columns = wide.reshape(-1, wide.shape[-1] if has_seeds else 1)
    with np.errstate(over="ignore"):
        return float(np.max(np.linalg.norm(columns, axis=0), initial=0.0))


def check_raw(seen: Seen) -> None:
    """Hold the backward pass to what it gives when it sees raw gradients."""
    behind = {ref for target in seen.of.targets for ref in target.behind}
    for number, target in enumerate(seen.of.targets):
        depends = (target.scope, target.name) in behind
        ports = zip(seen.expected.outlets.raw[number], seen.rewritten.raw[number], strict=True)
        for port, raw_port in ports:
            name, actual = port.output, seen.after[raw_port.output]
            if name not in seen.steady:
                continue
            if depends:
                fault = seen.expected.fault(name, actual)
            else:
                is_same = compare.is_identical(actual, seen.expected.arrays[name])
                fault = "" if is_same else "it differs"
            if fault:
                seen.fault(number, f"the gradient before its clip is not right: {fault}")
                break


def check_outputs(seen: Seen) -> None:
    """The outputs that both models have."""
    returned = {
        target.name: seen.expected.outlets.raw[number][0].fed
        for number, target in enumerate(seen.of.targets)
        if target.scope == 0 and any(s == 0 and node < 0 for s, node, _ in target.reads)
    }
    for check in seen.of.result.outputs:
        if not check.quantity:
            fault = _output_fault(seen, check, returned.get(check.name, check.name))
            check.faults += [seen.when + fault] * bool(fault)


def _output_fault(seen: Seen, check: OutputCheck, stands_for: str) -> str:
    if check.name not in seen.after:
        return "the rewritten model has no such output"
    actual = seen.after[check.name]
    if check.name not in seen.steady:
        plain = seen.plain[check.name]
        check.is_deterministic = False
        is_alike = (actual.dtype, actual.shape) == (plain.dtype, plain.shape)
        return "" if is_alike else "another dtype or shape"
    if not check.behind_clip:
        same = compare.is_identical(actual, seen.plain[check.name])
        return "" if same else "it differs, though no clipped gradient leads to it"
    return seen.expected.fault(stands_for, actual)


def check_emitted(seen: Clipped, found: Sequence[tuple[One, Outcome]]) -> None:
    """The measures that are outputs, with what the formulas say of the raw gradients."""
    targets = seen.of.targets
    known: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for one, outcome in sorted(found, key=lambda pair: pair[0].target):
        if targets[one.target].scope == 0:
            for group in outcome.norms:
                known[targets[one.target].name, group].append(outcome)
    told: Counter[tuple[str, str, str]] = Counter()
    checks = {check.name: check for check in seen.of.result.outputs if check.quantity}
    for measure in seen.of.record.emitted:
        check = checks[measure.output]
        outcomes = []
        for name in measure.gradients:  # of several clips each is named once, in their order
            clips = known.get((name, measure.group), [None])
            at = told[measure.quantity, measure.group, name]
            outcomes.append(clips[min(at, len(clips) - 1)])
            told[measure.quantity, measure.group, name] += 1
        if not check.faults:
            fault = _emitted_fault(seen, measure, outcomes)
            check.faults += [seen.when + fault] * bool(fault)


def check_states(seen: Clipped, found: Sequence[tuple[One, Outcome]]) -> None:
    """The new values of states, with the histories that the formulas make of them."""
    states = seen.of.record.states
    checks = {check.name: check for check in seen.of.result.outputs if check.quantity}
    done: set[str] = set()
    for one, outcome in found:
        name = seen.of.targets[one.target].state
        if name is None or name in done or outcome.history is None or not outcome.is_promised:
            continue
        done.add(name)
        check = checks[states[name]]
        if not check.faults:
            fault = _state_fault(seen, states[name], outcome.history)
            check.faults += [seen.when + fault] * bool(fault)


def _state_fault(seen: Clipped, output: str, history: History) -> str:
    if output not in seen.after:
        return "the rewritten model has no such output"
    actual, wanted = seen.after[output], history.norms / seen.clipping.loss_scale
    if actual.shape != wanted.shape:
        return f"expected {list(wanted.shape)} norms, but its shape is {list(actual.shape)}"
    rounding = 4 * compare.epsilon(str(actual.dtype))
    with np.errstate(invalid="ignore"):  # inf - inf is nan
        off = np.abs(actual.astype(np.float64) - wanted)
        allowed = rounding * np.abs(wanted)
        allowed[-1] += history.precision * wanted[-1] + history.off / seen.clipping.loss_scale
    wrong = np.flatnonzero(~((actual == wanted) | (np.isfinite(wanted) & (off <= allowed))))
    if not len(wrong):
        return ""
    at = int(wrong[0])
    return f"the norm number {at} in it is {actual[at]:.7g}, where {wanted[at]:.7g} is right"


def carried(seen: Clipped, states: Arrays) -> Arrays:
    """The states for the next step: their new values, where these can be."""
    found = {name: seen.after.get(new) for name, new in seen.of.record.states.items()}
    return {
        name: array
        for name, array in found.items()
        if array is not None and (array.shape, array.dtype) == _kind(states[name])
    }


def _kind(array: Array) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return array.shape, array.dtype


def _emitted_fault(seen: Clipped, measure: Measure, outcomes: Sequence[Outcome | None]) -> str:
    output, _, names, group = measure
    if None in outcomes:
        return f"the rewritten model has no gradient {names[outcomes.index(None)]!r}"
    if output not in seen.after:
        return "the rewritten model has no such output"
    actual = seen.after[output]
    if actual.size != (1 if group else len(names)) or actual.ndim > 1:
        return f"expected {len(names)} numbers, but it is {list(actual.shape)}"
    for outcome, number in zip(outcomes, actual.ravel(), strict=False):  # of a group there is one
        if outcome is not None and outcome.is_promised:
            fault = _measure_fault(seen, measure, outcome, number)
            if fault:
                return fault
    return ""


def _measure_fault(seen: Clipped, measure: Measure, outcome: Outcome, actual: Any) -> str:
    quantity = measure.quantity
    is_wide = outcome.clipped.dtype == np.float64  # what is measured of it is float64 throughout
    # of the limit, the loss scale, and twice of itself
    rounding = 4 * compare.epsilon("float64" if is_wide else "float32")
    if quantity == "norm":
        norm, precision, unrounded = outcome.norms[measure.group]
        wanted = norm / seen.clipping.loss_scale
        allowed = (precision + rounding) * abs(wanted) + unrounded / seen.clipping.loss_scale
    elif outcome.scale is None:
        if not seen.when:
            seen.of.note("metrics of gradients with nan or inf were not compared, but for norms")
        return ""
    else:
        wanted, allowed = outcome.scale, max(outcome.precision, outcome.rounding) + rounding
    if quantity == "clipped":
        if actual.dtype != np.bool_:
            return f"expected a bool, but it is {actual.dtype}"
        is_near = wanted < 1 and 1 - wanted <= allowed
        is_right = is_near or bool(actual) == (wanted < 1)
        return "" if is_right else f"it is {bool(actual)}, where the scale is {wanted:.7g}"
    if abs(wanted) > float(np.finfo(actual.dtype).max):  # of the dtype of the output
        wanted = math.copysign(math.inf, wanted)
    if not np.isfinite(wanted):
        is_right = np.array_equal(float(actual), wanted, equal_nan=True)
        return "" if is_right else f"it is {actual:.7g}, where {wanted} is right"
    error = abs(float(actual) - wanted)
    if error <= allowed:
        return ""
    return f"it is {actual:.7g}, where {wanted:.7g} is right, within {allowed:.3g}"
