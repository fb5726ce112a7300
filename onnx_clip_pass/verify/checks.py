"""What a run of the rewritten model is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips import Case
from onnx_clip_pass.record import Record
from onnx_clip_pass.runtime import Arrays
from onnx_clip_pass.verify import compare
from onnx_clip_pass.verify.copies import Port
from onnx_clip_pass.verify.formulas import Formulas, Setting, Slices, norm_that_is_bounded
from onnx_clip_pass.verify.report import Verification
from onnx_clip_pass.verify.targets import Target

__all__ = ["Checks"]

_Ports = list[list[Port]]


class Checks:
    """Compares, and notes what is wrong in the result.

    `raw` are the gradients of the run with the feeds as they are; `setting` what the last run set.
    """

    def __init__(
        self, targets: list[Target], formulas: Formulas, record: Record, result: Verification
    ) -> None:
        self.raw: Slices = {}
        self.setting = Setting()
        self._targets = targets
        self._formulas = formulas
        self._record = record
        self._result = result
        self._last: dict[int, float] = {}  # the precision worked out last for each target

    def clipped(
        self, arrays: Arrays, ports: _Ports, setting: Setting, move: float
    ) -> list[list[NDArray[Any]]]:
        """What comes out of the ports, clipped, in its shape; longer by `move` tolerances."""
        raw = self._slices(arrays, ports)
        expected = self._expected(raw, setting)
        found = []
        for number, (target, group) in enumerate(zip(self._targets, ports, strict=True)):
            precision = self._precision(number, raw)
            slices = iter(expected[number])
            joined = [target.joined(slices, arrays[port.output], port.loops) for port in group]
            if move:
                factors = [1 + move * (precision + compare.epsilon(str(x.dtype))) for x in joined]
                joined = [
                    (x.astype(np.float64) * longer).astype(x.dtype)
                    for x, longer in zip(joined, factors, strict=True)
                ]
            found.append(joined)
        return found

    def gradients(self, raw_ports: _Ports, clipped_ports: _Ports, after: Arrays, when: str) -> None:
        """Whether each clipped gradient is what the formula makes of the raw one beside it."""
        for number, (raw_group, group) in enumerate(zip(raw_ports, clipped_ports, strict=True)):
            for raw_port, port in zip(raw_group, group, strict=True):
                raw, clipped = after[raw_port.output], after[port.output]
                if (raw.shape, raw.dtype) != (clipped.shape, clipped.dtype):
                    self._result.gradients[number].faults.append(
                        f"{when}the raw gradient is {raw.dtype} {list(raw.shape)}, the clipped one "
                        f"{clipped.dtype} {list(clipped.shape)}"
                    )
                    return
        raw_slices = self._slices(after, raw_ports)
        clipped_slices = self._slices(after, clipped_ports)
        expected = self._expected(raw_slices, self.setting)
        precisions = {number: self._precision(number, raw_slices) for number in raw_slices}
        margin = 1 + 4 * max(precisions.values(), default=0.0)
        larger = {n: [compare.wide(x) * margin for x in each] for n, each in raw_slices.items()}
        acting = self._formulas.acting(larger, self.setting)
        if not when:
            self.raw = raw_slices
        for number in raw_slices:
            self._check_one(
                number,
                list(
                    zip(
                        raw_slices[number],
                        clipped_slices[number],
                        expected[number],
                        acting[number],
                        strict=True,
                    )
                ),
                precisions[number],
                when,
            )

    def _check_one(
        self,
        number: int,
        rows: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any], bool]],
        precision: float,
        when: str,
    ) -> None:
        check = self._result.gradients[number]
        if not when and rows:
            check.raw_norm = max(_norm(raw) for raw, *_ in rows)
            check.clipped_norm = max(_norm(clipped) for _, clipped, *_ in rows)
            check.expected_norm = max(_norm(expected) for _, _, expected, _ in rows)
        for raw, clipped, expected, would_act in rows:
            stages = len(self._targets[number].formulas)
            allowed = compare.allowed_ulps(str(raw.dtype), precision) * stages
            error = compare.ulps_apart(clipped, expected)
            check.allowed_ulps = max(check.allowed_ulps, allowed)
            check.error_ulps = max(check.error_ulps, error)
            acts = not compare.is_identical(raw, expected)
            check.acted |= acts
            check.passed |= not acts
            if error > allowed:
                check.faults.append(
                    f"{when}norm {_norm(clipped):.7g}, where {_norm(expected):.7g} is right (raw: "
                    f"{_norm(raw):.7g}); {error:.3g} ulps off, where {allowed:.3g} are allowed"
                )
                return
            if not would_act and not compare.is_identical(clipped, raw):
                check.faults.append(f"{when}within the threshold, but not the same bit for bit")
                return

    def raw_gradients(
        self,
        fed_ports: _Ports,
        raw_ports: _Ports,
        expected: Arrays,
        moved: Arrays,
        after: Arrays,
        steady: set[str],
        when: str,
    ) -> None:
        """Whether the backward pass gives what it gives when it sees raw gradients."""
        for number, target in enumerate(self._targets):
            check = self._result.gradients[number]
            depends = any((target.scope, target.name) in other.behind for other in self._targets)
            for port, raw_port in zip(fed_ports[number], raw_ports[number], strict=True):
                wanted, actual = expected[port.output], after[raw_port.output]
                if port.output not in steady:
                    continue
                if depends:
                    fault = compare.output_fault(actual, wanted, moved[port.output])
                else:
                    fault = "" if compare.is_identical(actual, wanted) else "it differs"
                if fault:
                    check.faults.append(f"{when}the gradient before its clip is not right: {fault}")
                    break

    def outputs(
        self,
        plain: Arrays,
        expected: Arrays,
        moved: Arrays,
        after: Arrays,
        steady: set[str],
        own: Arrays,
        when: str,
    ) -> None:
        """Whether each output is what the original gives on clipped gradients."""
        handed_out = {
            target.name: number
            for number, target in enumerate(self._targets)
            if target.scope == 0 and any(s == 0 and node < 0 for s, node, _ in target.reads)
        }
        for check in self._result.outputs:
            name = check.name
            if name not in after:
                fault = "the rewritten model has no such output"
            elif name not in steady:
                check.is_deterministic = False
                same = (after[name].dtype, after[name].shape) == (
                    plain[name].dtype,
                    plain[name].shape,
                )
                fault = "" if same else "another dtype or shape"
            elif not check.behind_clip:
                same = compare.is_identical(after[name], plain[name])
                fault = "" if same else "it differs, though no clipped gradient leads to it"
            elif name in handed_out:
                longer = compare.wide(own[name]) * (1 + self._last[handed_out[name]])
                fault = compare.output_fault(after[name], own[name], longer)
            else:
                fault = compare.output_fault(after[name], expected[name], moved[name])
            if fault:
                check.faults.append(when + fault)

    def emitted(self, raw_ports: _Ports, after: Arrays, when: str) -> None:
        """Whether the outputs that hand out measures hold what they say."""
        if not self._record.emitted:
            return
        raw = self._slices(after, raw_ports)
        factors = self._formulas.factors(raw, self.setting)
        by_name = {target.name: number for number, target in enumerate(self._targets)}
        for output, quantity, names, group in self._record.emitted:
            numbers = [by_name[name] for name in names if name in by_name]
            if output not in after or len(numbers) != len(names):
                self._result.faults.append(f"{when}there is no output {output!r} as recorded")
                continue
            if quantity == "norm":
                if group:
                    wanted = [self._norm_of_group(group, numbers, raw)]
                else:
                    wanted = [self._norm_of(number, 0, raw) for number in numbers]
            else:
                wanted = [factors[number] for number in numbers]
            precision = max(self._last[number] for number in numbers)
            eps = max(compare.epsilon(str(x.dtype)) for n in numbers for x in raw[n])
            fault = _measure_fault(after[output], quantity, wanted, 2 * precision + 4 * eps)
            if fault:
                self._result.faults.append(f"{when}output {output!r}: {fault}")

    def _norm_of(self, number: int, stage: int, values: Slices) -> float:
        target = self._targets[number]
        parameters = self.setting.parameters.get(number, [None])
        cases = [
            Case(x, parameters[at % len(parameters)], target.axes)
            for at, x in enumerate(values[number])
        ]
        norms = [norm_that_is_bounded(target.formulas[stage], case) for case in cases]
        return max(norms) / self.setting.scale

    def _norm_of_group(self, group: str, numbers: list[int], raw: Slices) -> float:
        formulas = self._targets[numbers[0]].formulas
        stage = next(at for at, formula in enumerate(formulas) if formula.group == group)
        values = self._formulas.before(stage, raw, self.setting)
        norms = [self._norm_of(number, stage, values) for number in numbers]
        ord = float(getattr(formulas[stage], "ord", 2.0))
        if ord == np.inf:
            return max(norms)
        counts = [self._targets[number].count for number in numbers]
        powers = [count * norm**ord for count, norm in zip(counts, norms, strict=True)]
        return float(sum(powers) ** (1 / ord))

    def _expected(self, raw: Slices, setting: Setting) -> Slices:
        if self._record.measures_only:
            return raw
        return self._formulas.clipped(raw, setting)

    def _slices(self, arrays: Arrays, ports: _Ports) -> Slices:
        return {
            number: [x for port in group for x in target.slices(arrays[port.output], port.loops)]
            for number, (target, group) in enumerate(zip(self._targets, ports, strict=True))
        }

    def _precision(self, number: int, raw: Slices) -> float:
        sizes = {
            other: (str(each[0].dtype), max(x.size for x in each))
            for other, each in raw.items()
            if each
        }
        found = self._formulas.precision(number, sizes) if number in sizes else 0.0
        self._last[number] = found
        return found


def _measure_fault(actual: NDArray[Any], quantity: str, wanted: list[float], allowed: float) -> str:
    """Why a measure is not what it should be; empty if it is.

    Whether it is clipped is not held against a factor that rounding alone may move from 1.
    """
    found = [float(x) for x in np.ravel(actual)]
    if len(found) != len(wanted):
        return f"expected {len(wanted)} numbers, but there are {len(found)}"
    for is_there, should_be in zip(found, wanted, strict=True):
        if quantity == "clipped":
            if bool(is_there) != (should_be < 1) and abs(should_be - 1) > allowed:
                return f"{bool(is_there)}, where the factor is {should_be:.7g}"
        elif np.isfinite(should_be) and not abs(is_there - should_be) <= allowed * abs(should_be):
            return f"{is_there:.7g}, where {should_be:.7g} is right"
    return ""


def _norm(array: NDArray[Any]) -> float:
    return float(np.linalg.norm(compare.wide(array).ravel()))
