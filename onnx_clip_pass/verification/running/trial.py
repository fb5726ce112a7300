"""The runs of a verification, and what they show."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
from onnx import helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.runtime import Arrays
from onnx_clip_pass.saving import initial_states
from onnx_clip_pass.verification.running import checks
from onnx_clip_pass.verification.running.clipping import history_of
from onnx_clip_pass.verification.running.fixed_point import Expected
from onnx_clip_pass.verification.running.runs import Factors, Runs
from onnx_clip_pass.verification.running.stressing import Stressing
from onnx_clip_pass.verification.static.branches import not_run, unlike_branches
from onnx_clip_pass.verification.tolerance import compare
from onnx_clip_pass.verification.tolerance.expected import Member, activating_scale

__all__ = ["Trials"]

_ATTEMPTS = 2  # scaling a first step can make the gradients of the second vanish: again without it


class Trials:
    """The runs with the feeds as they are, gradients scaled, other thresholds; and clips alone."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._of = of = runs.of
        self._result = of.result
        self._targets = targets = of.targets
        self._inputs = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in of.after.model.graph.input
            if value.name in of.record.inputs
        }
        self._states = initial_states(of.after.model)
        self._loss_scale = 1.0
        self._acts: list[list[bool]] = [[] for _ in targets]
        self._members: list[dict[tuple[Any, ...], Member]] = [{} for _ in targets]

    def run_all(self) -> None:
        """All of them; what they show goes to the result."""
        checks_ = self._result.gradients
        for number, target in enumerate(self._targets):
            if "training_info" in target.gradient.graph:
                self._of.fault(number, "not checked: ONNX Runtime does not execute training_info")
        if any(check.faults for check in checks_):
            return
        self._run({}, "")
        for up, sign in ((True, 1), (False, 1)) * _ATTEMPTS + ((True, -1),):
            self._force_clipping(up, sign, "")
        if self._states:
            self._run({}, "in a further step: ")
        if self._halves():
            self._force_by_thresholds()
        self._stress_alone()
        self._read_branches()
        unseen = [
            check.gradient
            for check, target in zip(checks_, self._targets, strict=True)
            if not check.acted and not (target.clip.is_identity and not target.threshold_input)
        ]
        if unseen:
            names = ", ".join(unseen[:5]) + (" …" if len(unseen) > 5 else "")
            self._result.notes.append(f"no clip could be seen acting, as for zeros: {names}")

    def _force_clipping(
        self, up: bool, sign: int, when: str, thresholds: Mapping[str, float] | None = None
    ) -> None:
        """Scale those gradients that have not been seen clipped, or passing."""
        factors: dict[int, float] = {}
        acted = [bool(acts) and all(acts) for acts in self._acts]
        seen = acted if up else [check.passed for check in self._result.gradients]
        for numbers in self._of.together:
            if all(seen[number] for number in numbers) or not self._has_sign(numbers, sign):
                continue
            # one factor for all that share norms, in every iteration
            if all(self._members[number] for number in numbers):
                factor = self._factor(numbers, up, sign)
                factors |= dict.fromkeys(numbers, factor) if factor else {}
        if factors:
            how = f"{'negated and ' if sign < 0 else ''}scaled {'up' if up else 'down'}"
            words = f"{when} and gradients {how}" if when else f"with gradients {how}"
            self._run(factors, f"{words}: ", thresholds)

    def _has_sign(self, numbers: list[int], sign: int) -> bool:
        """Return whether negated gradients may be clipped otherwise: where elements are bounded."""
        formulas = [f for number in numbers for f in self._targets[number].clip.formulas]
        return sign > 0 or any(formula.is_elementwise for formula in formulas)

    def _factor(self, numbers: list[int], up: bool, sign: int) -> float:
        """The largest that any iteration asks for; the smallest, to let everything pass."""
        keys = dict.fromkeys(key for number in numbers for key in self._members[number])
        found = []
        for key in keys:
            members = [
                self._members[n][key].on(
                    history=history_of(self._targets[n], self._states, self._loss_scale)
                )
                for n in numbers
                if key in self._members[n]
            ]
            found.append(activating_scale(members, self._of.numerics, up=up, sign=sign))
        found = [factor for factor in found if factor]
        return (max if up else min)(found, key=abs, default=0.0)

    def _stress_alone(self) -> None:
        """The clips without the rest of the model, if all else is right."""
        if self._result.ok:
            halves = self._halves()
            firsts = [next(iter(members.values()), None) for members in self._members]
            fed, states = self._fed(halves), self._states
            Stressing(self._runs, firsts, self._loss_scale, halves, fed, states).run_all()

    def _read_branches(self) -> None:
        """Say which branches were not run, and compare the nodes of these."""
        checks_ = self._result.gradients
        if idle := dict.fromkeys(check.graph for check in checks_ if not check.has_run):
            self._result.notes.append(
                f"not run by these feeds: {', '.join(idle)}; the clips there were tried alone"
            )
        unlike = unlike_branches(self._of.before, self._of.after, self._of.record)
        if not unlike:
            return
        conditions = self._runs.conditions()
        for number, how in unlike.items():
            if not_run(self._of.before, number, conditions):
                path = self._of.before.scopes[number].path
                self._result.faults.append(
                    f"{path} was not run and is not that of the original: {how}; feed what takes it"
                )

    def _halves(self) -> dict[str, float]:
        """Half of every threshold that is an input; 1 for one without limit."""
        halves = {}
        for target in self._targets:
            name, threshold = target.threshold_input, target.clip.threshold
            if name is not None and threshold is not None:
                half = threshold / 2 if np.isfinite(threshold) else 1.0
                halves[name] = float(self._inputs[name].type(half))
        return halves

    def _force_by_thresholds(self) -> None:
        """Once more with half of every threshold, and gradients that are beyond it."""
        halves = self._halves()
        when = "with half the threshold fed"
        self._run({}, f"{when}: ", halves)
        self._acts = [[] for _ in self._targets]
        for sign in (1, -1):
            self._force_clipping(True, sign, when, halves)

    def _fed(self, thresholds: Mapping[str, float]) -> Arrays:
        return {name: np.array(value, self._inputs[name]) for name, value in thresholds.items()}

    def _run(
        self, factors: Factors, when: str, thresholds: Mapping[str, float] | None = None
    ) -> None:
        """One trial: run both models and compare."""
        self._of.tell(f"running both models {when.removesuffix(': ')}".rstrip())
        thresholds = thresholds or {}
        feeds = self._runs.feeds(factors)
        # one session after another, for each has weights of its own
        session, first = self._runs.original(factors, fed=False)
        plain, again = session.run(feeds), session.run(feeds)
        steady = {name for name in plain if compare.is_identical(plain[name], again[name])}
        del session, again
        open_fed = partial(self._runs.original, factors, fed=True)
        expected = Expected(self._of, first, plain, open_fed, feeds, {**thresholds, **self._states})
        compared = [c for c in self._result.outputs if not (c.behind_clip and c.name in steady)]
        plain = {check.name: plain[check.name] for check in compared if not check.quantity}
        given = self._fed(thresholds)
        try:
            session, rewritten = self._runs.rewritten(factors)
            after = session.run(feeds | given | self._states)
        except OnnxClipError as error:
            self._result.faults.append(f"{when}the rewritten model does not run: {error}")
            return
        del session
        seen = checks.Seen(when, after, rewritten, expected.clipping, plain, expected, steady)
        self._loss_scale = expected.clipping.loss_scale
        found = checks.check_gradients(seen)
        for one, outcome in found:
            self._result.gradients[one.target].has_run = True
            acts = zip_longest(self._acts[one.target], outcome.acts, fillvalue=False)
            self._acts[one.target] = [before or now for before, now in acts]
            if not factors:
                self._members[one.target][one.port, one.at] = one.member
        checks.check_raw(seen)
        checks.check_outputs(seen)
        checks.check_emitted(seen, found)
        checks.check_states(seen, found)
        self._states |= checks.carried(seen, self._states)
