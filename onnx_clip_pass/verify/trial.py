"""The runs of a verification, and what they show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from onnx_clip_pass.clips import GradientClipByValue
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index
from onnx_clip_pass.record import Record, read_record, strip_if_clipped
from onnx_clip_pass.runtime import Provider, make_feeds
from onnx_clip_pass.verify import checks, compare
from onnx_clip_pass.verify.declared import declared_faults
from onnx_clip_pass.verify.expected import Member, pressing_factor
from onnx_clip_pass.verify.report import GradientCheck, OutputCheck, Verification
from onnx_clip_pass.verify.runs import Changes, Runs
from onnx_clip_pass.verify.settling import Expected
from onnx_clip_pass.verify.steps import components
from onnx_clip_pass.verify.targets import Target, targets_of

__all__ = ["verify"]

_Model = ModelProto | str | os.PathLike[str]
_FAR = 16.0  # times what makes a clip act
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
    first, second = Index(before), Index(after)
    _check_related(first, _called(original, "original"), _called(rewritten, "rewritten"), record)
    feeds = make_feeds(before, given=feeds, dims=dims, seed=seed)
    result = Verification(
        [], [], declared_faults(before, before_folder, after, after_folder, record)
    )
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
    defaults = _defaults(first, before_folder, targets)
    runs = Runs(*sources, targets, defaults | feeds, provider, record.loss_scale)
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


def _called(source: _Model, what: str) -> str:
    return f"the {what} model" if isinstance(source, ModelProto) else repr(str(source))


def _check_related(before: Index, original: str, rewritten: str, record: Record) -> None:
    known = {name for scope in before.scopes for name in scope.names}
    missing = [str(entry.get("gradient")) for entry in record.clips]
    missing = [name for name in missing if name not in known]
    if missing:
        raise OnnxClipError(
            f"{original} has no value {missing[0]!r}, a gradient that {rewritten} clips (of "
            f"{len(record.clips)} such, {len(missing)} are missing): the two seem unrelated; "
            f"verify takes the original first, then what onnx-clip made of it"
        )


def _defaults(
    index: Index, folder: Path | None, targets: Sequence[Target]
) -> dict[str, NDArray[Any]]:
    """The gradients that are inputs with a default, which are fed so that they can be changed."""
    main = index.main
    return {
        target.name: numpy_helper.to_array(main.initializers[target.name], str(folder or ""))
        for target in targets
        if target.scope == 0 and target.name in main.inputs and target.name in main.initializers
    }


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
        self._acts: list[list[bool]] = [[] for _ in targets]
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
        self._run(Changes(), "")
        for up, sign in ((True, 1), (False, 1)) * _TURNS + ((True, -1),):
            self._press(up, sign, "")
        self._spoil()
        if self._inputs:
            self._press_thresholds()
        unseen = [
            check.gradient
            for check, target in zip(checks_, self._targets, strict=True)
            if not check.acted and not (target.clip.is_identity and not target.threshold_input)
        ]
        if unseen:
            names = ", ".join(unseen[:5]) + (" …" if len(unseen) > 5 else "")
            self._result.notes.append(f"no clip could be seen acting, as for zeros: {names}")

    def _press(
        self, up: bool, sign: int, when: str, thresholds: Mapping[str, float] | None = None
    ) -> None:
        """Scale those gradients that have not been seen clipped, or passing."""
        changes = Changes()
        for numbers in self._together:
            seen = (
                [bool(acts) and all(acts) for acts in self._acts]
                if up
                else [check.passed for check in self._result.gradients]
            )
            if all(seen[number] for number in numbers) or not self._has_sign(numbers, sign):
                continue
            # one factor for all that share norms, in every iteration
            if all(self._members[number] for number in numbers):
                factor = self._factor(numbers, up, sign)
                if factor:
                    changes.factors.update(dict.fromkeys(numbers, factor))
        if changes.factors:
            how = f"{'negated and ' if sign < 0 else ''}scaled {'up' if up else 'down'}"
            words = f"{when} and gradients {how}" if when else f"with gradients {how}"
            self._run(changes, f"{words}: ", thresholds)

    def _has_sign(self, numbers: list[int], sign: int) -> bool:
        """Whether negated gradients may be clipped otherwise: those whose elements are bounded."""
        formulas = [f for number in numbers for f in self._targets[number].clip.formulas]
        return sign > 0 or any(isinstance(formula, GradientClipByValue) for formula in formulas)

    def _factor(self, numbers: list[int], up: bool, sign: int) -> float:
        """The largest that any iteration asks for; the smallest, to let everything pass."""
        keys = dict.fromkeys(key for number in numbers for key in self._members[number])
        found = []
        for key in keys:
            members = [self._members[n][key] for n in numbers if key in self._members[n]]
            nonfinite: Any = self._record.nonfinite
            found.append(pressing_factor(members, nonfinite, up=up, sign=sign))
        found = [factor for factor in found if factor]
        return (max if up else min)(found, key=abs, default=0.0)

    def _spoil(self) -> None:
        """Where there is a policy for gradients with nan: once more with some.

        What it does to the other elements shows on those that would else be clipped.
        """
        if self._record.nonfinite == "propagate":
            return
        changes = Changes()
        for numbers in self._together:
            members = [member for number in numbers for member in self._members[number].values()]
            if members and all(member.case.gradient.size for member in members):
                factor = _FAR * self._factor(numbers, up=True, sign=1) or 1.0
                changes.factors.update(dict.fromkeys(numbers, factor))
                changes.spoiled.update(numbers)
        if changes.spoiled:
            self._run(changes, "with nan in the gradients: ")

    def _press_thresholds(self) -> None:
        """Once more with half of every threshold, and gradients that are beyond it."""
        halves = {}
        for target in self._targets:
            name, threshold = target.threshold_input, target.clip.threshold
            if name is not None and threshold is not None:
                half = threshold / 2 if np.isfinite(threshold) else 1.0
                halves[name] = float(self._inputs[name].type(half))
        when = "with half the threshold fed"
        self._run(Changes(), f"{when}: ", halves)
        self._acts = [[] for _ in self._targets]
        for sign in (1, -1):
            self._press(True, sign, when, halves)

    def _run(
        self, changes: Changes, when: str, thresholds: Mapping[str, float] | None = None
    ) -> None:
        """One trial: run both models and compare."""
        thresholds = thresholds or {}
        feeds = self._runs.feeds(changes)
        session, first = self._runs.original(changes, fed=False)
        plain, again = session.run(feeds), session.run(feeds)
        steady = {name for name in plain if compare.is_identical(plain[name], again[name])}
        del again
        session, original = self._runs.original(changes, fed=True)
        expected = Expected(
            self._targets, self._record, first, plain, session, original, feeds, thresholds
        )
        given = {name: np.array(value, self._inputs[name]) for name, value in thresholds.items()}
        try:
            session, rewritten = self._runs.rewritten(changes)
            after = session.run(feeds | given)
        except OnnxClipError as error:
            self._result.faults.append(f"{when}the rewritten model does not run: {error}")
            return
        seen = checks.Seen(when, plain, expected, after, steady, original, rewritten)
        found = checks.check_gradients(seen, self._targets, self._record, self._result)
        for one, outcome in found:
            acts = zip_longest(self._acts[one.target], outcome.acts, fillvalue=False)
            self._acts[one.target] = [before or now for before, now in acts]
            if not changes:
                self._members[one.target][one.port, one.at] = one.member
        checks.check_raw(seen, self._targets, self._result)
        checks.check_outputs(seen, self._targets, self._result)
        checks.check_emitted(seen, self._targets, self._record, found, self._result)
