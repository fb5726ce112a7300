"""The clips of a rewritten model under stress, graph by graph, without the rest of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.runtime import Arrays
from onnx_clip_pass.tables import counted
from onnx_clip_pass.verification.running import checks
from onnx_clip_pass.verification.running.alone import Alone
from onnx_clip_pass.verification.running.clipping import Clipping
from onnx_clip_pass.verification.running.copies import Port
from onnx_clip_pass.verification.running.runs import Outlets, Runs
from onnx_clip_pass.verification.tolerance import compare
from onnx_clip_pass.verification.tolerance.expected import Member
from onnx_clip_pass.verification.tolerance.stresses import Stress, stresses

__all__ = ["Stressing"]

_LOSS_SCALE = "loss scale"
_MADE_UP = 3  # the size of a dimension of a gradient that was not computed
_MOST_ELEMENTS = 1 << 21
_FIRST_STEPS = 3  # a history has so many norms, or fewer, in turns
_LEAST_STRESSES = 6
"""No fewer, and no more with more elements than those. A stress takes as long as a good part of a
run of the model, and a group has four for each of its gradients."""


@dataclass(frozen=True, slots=True)
class Stressing:
    """Runs the clips of each graph on gradients made from those of the first run.

    `members` are a gradient of each target, as it was in the first run, None if it was not
    computed; `loss_scale` is the one of that run, `thresholds` are those that are inputs, and
    `threshold_feeds` are they as arrays. `states` are those of clips; they go on from one stress to
    the next, as from step to step, full from the first on, so that as many norms as they hold are
    seen, too.
    """

    runs: Runs
    members: Sequence[Member | None]
    loss_scale: float
    thresholds: Mapping[str, float]
    threshold_feeds: Arrays
    states: Arrays

    def run_all(self) -> None:
        """All stresses of all graphs; what they show goes to the result."""
        for scope in sorted({target.scope for target in self.runs.of.targets}):
            self._run_scope(scope)

    def _run_scope(self, scope: int) -> None:
        of = self.runs.of
        path = of.after.scopes[scope].path or "the main graph"
        numbers = [n for n, target in enumerate(of.targets) if target.scope == scope]
        arrays = self._arrays(numbers)
        if arrays is None:
            of.note(f"clips of {path} were not tried alone: a gradient has an unknown shape")
            return
        try:
            outputs = () if scope else of.record.outputs
            feeds = self.threshold_feeds | self.states
            alone = self.runs.alone(scope, outputs, feeds)
        except OnnxClipError as error:
            of.result.faults.append(f"the clips of {path} do not run alone: {error}")
            return
        if alone.reads_more:
            of.note(f"clips of {path} were not tried alone: they read {alone.reads_more[0]!r}")
            return
        self._fill_states()
        full = {} if scope else dict(self.states)  # no clip in a nested graph has any
        clipping, outlets, given = self._clipping(arrays, self.states)
        groups = [
            {one.target: one.member for one in ones} for ones in clipping.ones(outlets.raw, given)
        ]
        most = max(
            _LEAST_STRESSES * sum(array.size for array in arrays.gradients.values()), _MOST_ELEMENTS
        )
        values = [target.raw for target in of.targets]
        behind = 0
        for number, stress in enumerate(stresses(groups, values, of.numerics)):
            of.tell(f"trying the clips of {path} alone, {number} done")
            most -= sum(array.size for array in stress.gradients.values())
            if most < 0:
                of.note(
                    f"the gradients of {path} are large and many: not each was tried with nan, or "
                    f"far above the others, on its own"
                )
                return
            own = arrays.parameters | stress.parameters
            stress = replace(stress, parameters=own)
            if not self._run(alone, stress, self.states):
                return
            # in a first step, and in the next ones, there is less to go by
            known = 0 if _is_odd(stress) else 1 + behind % _FIRST_STEPS
            behind += known > 0
            stress = replace(stress, when=f"behind {counted(known, 'step')}, {stress.when}")
            if full and not self._run(alone, stress, _of_few(full, known)):
                return

    def _fill_states(self) -> None:
        """Put norms like those that there are, or like 1, where a history has none yet."""
        rng = np.random.default_rng(0)
        for name, history in self.states.items():
            is_seen = np.isfinite(history)
            unit = history[is_seen].mean() if is_seen.any() else 1.0
            made = unit * rng.lognormal(size=history.shape)
            self.states[name] = np.where(is_seen, history, made).astype(history.dtype)

    def _arrays(self, numbers: Sequence[int]) -> Stress | None:
        """Gradients and parameters as in the first run, made up where there are none but zeros."""
        rng = np.random.default_rng(0)
        found = Stress("")
        made: dict[str, NDArray[Any]] = {}
        for number in numbers:
            target, member = self.runs.of.targets[number], self.members[number]
            dtype = helper.tensor_dtype_to_np_dtype(target.dtype)
            shape = target.gradient.shape
            if member is not None:
                array = member.case.gradient
                if not np.isfinite(wide := compare.wide(array)).all() or not wide.any():
                    array = rng.standard_normal(array.shape).astype(dtype)
                parameter = member.case.parameter
            elif shape is None:
                return None
            else:
                sizes = [size if isinstance(size, int) else _MADE_UP for size in shape]
                array = np.asarray(rng.standard_normal(sizes)).astype(dtype)
                parameter = None
            found.gradients[number] = made.setdefault(target.raw, np.asarray(array))
            if target.parameter is not None:
                if parameter is None:
                    kind = helper.tensor_dtype_to_np_dtype(target.parameter[2])
                    own = array.shape[: array.ndim - int(target.gradient.has_seeds)]
                    parameter = np.asarray(rng.standard_normal(own)).astype(kind)
                found.parameters[number] = made.setdefault(target.parameter[1], parameter)
        return found

    def _clipping(self, stress: Stress, states: Arrays) -> tuple[Clipping, Outlets, Arrays]:
        """The clips on these arrays, where these are, and all of them by name."""
        ports: list[list[list[Port]]] = [[[] for _ in self.runs.of.targets] for _ in range(3)]
        raw, clipped, parameters = ports
        given: Arrays = {_LOSS_SCALE: np.array(self.loss_scale)}
        for number, array in stress.gradients.items():
            target = self.runs.of.targets[number]
            given[target.raw] = array
            raw[number] = [Port(target.raw, "", 0)]
            clipped[number] = [Port(target.clipped, "", 0)]
            if target.parameter is not None:
                given[target.parameter[1]] = stress.parameters[number]
                parameters[number] = [Port(target.parameter[1], "", 0)]
        outlets = Outlets(raw, clipped, parameters, _LOSS_SCALE)
        clipping = Clipping(
            self.runs.of, outlets, given, {**self.thresholds, **states}, is_given=True
        )
        return clipping, outlets, given

    def _run(self, alone: Alone, stress: Stress, states: Arrays) -> bool:
        """Run the clips on one stress, and carry the states; whether all is right so far."""
        of = self.runs.of
        clipping, outlets, given = self._clipping(stress, states)
        try:
            after = alone.run(given | states)
        except OnnxClipError as error:
            of.result.faults.append(f"{stress.when}the clips alone do not run: {error}")
            return False
        seen = checks.Clipped(stress.when, after, outlets, clipping)
        found = checks.check_gradients(seen)
        if of.record.outputs and of.targets[next(iter(stress.gradients))].scope == 0:
            checks.check_emitted(seen, found)
            checks.check_states(seen, found)
            states.update(checks.carried(seen, states))
        return of.result.ok


def _is_odd(stress: Stress) -> bool:
    """Return whether a norm is not finite, or all are 0."""
    arrays = [compare.wide(array) for array in stress.gradients.values()]
    return not all(np.isfinite(array).all() for array in arrays) or not any(map(np.any, arrays))


def _of_few(histories: Arrays, known: int) -> Arrays:
    """These histories with so many of their last norms, and none before."""
    found = {}
    for name, history in histories.items():
        found[name] = np.full_like(history, np.inf)
        if known:
            found[name][-known:] = history[-known:]
    return found
