"""The runs of a verification, and what they show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import Record, read_record, strip_if_clipped
from onnx_clip_pass.runtime import Arrays, Provider, make_feeds
from onnx_clip_pass.verify import checks, compare
from onnx_clip_pass.verify.clipping import Clipping
from onnx_clip_pass.verify.declared import declared_faults
from onnx_clip_pass.verify.expected import Member, pressing_factor
from onnx_clip_pass.verify.report import GradientCheck, OutputCheck, Verification
from onnx_clip_pass.verify.runs import Opened, Runs
from onnx_clip_pass.verify.steps import components
from onnx_clip_pass.verify.targets import Target, targets_of

__all__ = ["verify"]

_Model = ModelProto | str | os.PathLike[str]
_MOST_ROUNDS = 100
_TURNS = 2  # scaling a first step can make the gradients of the second vanish: again without it


def verify(
    original: _Model,
    rewritten: _Model,
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    dims: Mapping[str, int] | None = None,
    provider: Provider = "cpu",
    seed: int = 0,
) -> Verification:
    """Run both models and compare what they do with the formula in float64.

    Args:
        original: the model before clipping, or its path (needed for external data).
        rewritten: the same after clipping; its record says which gradients are clipped and how.
        feeds: arrays for inputs; the others are made up, see `make_feeds`.
        dims: sizes of symbolic dimensions.
        provider: where to run: "cpu" or "cuda".
        seed: for what is made up.

    Returns:
        What was found; a wrong rewrite is no error, see `Verification.ok`.

    Raises:
        OnnxClipError: a model cannot be read, the rewritten one bears no record, the feeds do not
            fit, or the original does not run here.
    """
    before, before_folder = _load(original)
    before = strip_if_clipped(before)
    after, after_folder = _load(rewritten)
    record = read_record(after)
    if record is None:
        raise OnnxClipError(
            "expected a rewritten model, but its metadata has no record of onnx-clip; verify takes "
            "the original first, then what onnx-clip made of it"
        )
    given = make_feeds(before, given=feeds, dims=dims, seed=seed)
    result = Verification(
        [], [], declared_faults(before, before_folder, after, after_folder, record)
    )
    first, second = Index(before), Index(after)
    if [scope.path.count("/") for scope in first.scopes] != [
        scope.path.count("/") for scope in second.scopes
    ]:
        result.faults.append("the models differ in their nested graphs and functions")
        return result
    targets = targets_of(first, second, record)
    result.gradients = [
        GradientCheck(t.gradient.name, t.gradient.parameter.name, t.gradient.graph, t.clip.label)
        for t in targets
    ]
    names = [value.name for value in before.graph.output]
    behind = {names[slot] for target in targets for slot in target.outputs}
    result.outputs = [OutputCheck(name, name in behind) for name in dict.fromkeys(names)]
    result.outputs += [
        OutputCheck(output, bool(gradients), quantity)
        for output, quantity, gradients, _ in record.emitted
    ]
    sources = (before, before_folder), (after, after_folder)
    runs = Runs(*sources, targets, given, provider, record.loss_scale)
    _Trials(runs, targets, record, after, result).run_all()
    for check, target in zip(result.gradients, targets, strict=True):
        check.faults[:0] = target.misread
    return result


def _load(source: _Model) -> tuple[ModelProto, Path | None]:
    if isinstance(source, ModelProto):
        return source, None
    path = Path(source)
    try:
        return onnx.load(path, load_external_data=False), path.parent
    except OSError as error:
        raise OnnxClipError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except Exception as error:  # protobuf and onnx raise several kinds
        raise OnnxClipError(f"{str(path)!r} is no ONNX model: {error}") from error


class _Trials:
    """The runs with the feeds as they are, with gradients scaled, and with other thresholds."""

    def __init__(
        self,
        runs: Runs,
        targets: list[Target],
        record: Record,
        after: ModelProto,
        result: Verification,
    ) -> None:
        self._runs = runs
        self._targets = targets
        self._record = record
        self._result = result
        self._inputs = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in after.graph.input
            if value.name in record.inputs
        }
        self._together = components([(t.clip, t.scope, t.name, t.level) for t in targets])
        self._all_acted = [False] * len(targets)
        self._members: list[dict[tuple[Any, ...], Member]] = [{} for _ in targets]

    def run_all(self) -> None:
        checks_ = self._result.gradients
        for number, target in enumerate(self._targets):
            if "training_info" in target.gradient.graph:
                checks_[number].faults.append(
                    "not checked: ONNX Runtime does not execute training_info"
                )
        if any(check.faults for check in checks_):
            return
        self._run({}, "")
        for up in (True, False) * _TURNS:
            factors = self._factors(up)
            if factors:
                self._run(factors, f"with gradients scaled {'up' if up else 'down'}: ")
        if self._inputs:
            self._press_thresholds()
        unseen = [c.gradient for c in checks_ if not c.acted and not c.clip.endswith("inf")]
        if unseen:
            names = ", ".join(unseen[:5]) + (" …" if len(unseen) > 5 else "")
            self._result.notes.append(f"no clip could be seen acting, as for zeros: {names}")

    def _factors(self, up: bool) -> dict[int, float]:
        """By what to scale those gradients that have not been seen clipped, or passing."""
        factors: dict[int, float] = {}
        for numbers in self._together:
            seen = self._all_acted if up else [check.passed for check in self._result.gradients]
            if all(seen[number] for number in numbers):
                continue
            targets = [self._targets[number] for number in numbers]
            if all(t.clip.is_identity and t.threshold_input is None for t in targets):
                continue
            # one factor for all that share norms, in every iteration
            members = [m for number in numbers for m in self._members[number].values()]
            if members and all(self._members[number] for number in numbers):
                factor = self._factor(numbers, up)
                if factor:
                    factors |= dict.fromkeys(numbers, factor)
        return factors

    def _factor(self, numbers: list[int], up: bool) -> float:
        """The largest that any iteration asks for; the smallest, to let everything pass."""
        keys = dict.fromkeys(key for number in numbers for key in self._members[number])
        found = []
        for key in keys:
            members = [self._members[n][key] for n in numbers if key in self._members[n]]
            nonfinite: Any = self._record.nonfinite
            found.append(pressing_factor(members, nonfinite, up=up))
        found = [factor for factor in found if factor]
        return (max(found) if up else min(found)) if found else 0.0

    def _press_thresholds(self) -> None:
        """Once more with half of every threshold, and gradients that are beyond it."""
        halves = {}
        for target in self._targets:
            name, threshold = target.threshold_input, target.clip.threshold
            if name is not None and threshold is not None:
                half = threshold / 2 if np.isfinite(threshold) else 1.0
                halves[name] = float(self._inputs[name].type(half))
        self._run({}, "with half the threshold fed: ", halves)
        self._all_acted = [False] * len(self._targets)
        factors = self._factors(True)
        if factors:
            self._run(factors, "with half the threshold fed and gradients scaled up: ", halves)

    def _run(
        self,
        factors: dict[int, float],
        when: str,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        """One trial: run both models and compare."""
        first = self._runs.original(factors, fed=False)
        feeds = self._runs.feeds(factors)
        plain, again = first.session.run(feeds), first.session.run(feeds)
        steady = {name for name in plain if compare.is_identical(plain[name], again[name])}
        original = self._runs.original(factors, fed=True)
        thresholds = thresholds or {}
        expected, fed, _ = self._settle(original, first, feeds, plain, thresholds, 0.0)
        moved, moved_fed, clipping = self._settle(original, first, feeds, plain, thresholds, 1.0)
        given = {name: np.array(value, self._inputs[name]) for name, value in thresholds.items()}
        try:
            rewritten = self._runs.rewritten(factors)
            after = rewritten.session.run(feeds | given)
        except OnnxClipError as error:
            self._result.faults.append(f"{when}the rewritten model does not run: {error}")
            return
        clipping = Clipping(self._targets, self._record, original, expected, thresholds)
        seen = checks.Seen(
            when,
            plain,
            expected,
            fed,
            moved,
            moved_fed,
            after,
            steady,
            original,
            rewritten,
            clipping,
        )
        found = checks.check_gradients(seen, self._targets, self._record, self._result)
        for one, outcome in found:
            self._all_acted[one.target] |= all(outcome.acts)
            if not factors:
                self._members[one.target][one.port, one.at] = one.member
        checks.check_raw(seen, self._targets, self._result)
        checks.check_outputs(seen, self._targets, self._result)
        checks.check_emitted(seen, self._targets, self._record, found, self._result)

    def _settle(
        self,
        original: Opened,
        first: Opened,
        feeds: Arrays,
        plain: Arrays,
        thresholds: Mapping[str, float],
        move: float,
    ) -> tuple[Arrays, Arrays, Clipping]:
        """Run the original on clipped gradients until they are those of the run itself.

        A gradient of a second step depends on the clipped one of the first: each round settles at
        least one step more. With `move` all clipped gradients are made longer by so many times
        their own tolerance.
        """
        clipping = Clipping(self._targets, self._record, first, plain, thresholds)
        fed = clipping.fed(first.raw, plain, original.raw, move)
        if self._record.measures_only:
            fed = {
                to.fed: plain[port.output]
                for group, into in zip(first.raw, original.raw, strict=True)
                for port, to in zip(group, into, strict=True)
            }
        found = original.session.run(feeds | fed)
        if self._record.measures_only:
            return found, fed, clipping
        for _ in range(_MOST_ROUNDS):
            clipping = Clipping(self._targets, self._record, original, found, thresholds)
            again = clipping.fed(original.raw, found, original.raw, move)
            if all(compare.is_identical(again[name], fed[name]) for name in fed):
                break
            fed = again
            found = original.session.run(feeds | fed)
        return found, fed, clipping
