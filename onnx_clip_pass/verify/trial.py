"""The runs of a verification, and what they show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index, Read
from onnx_clip_pass.record import Record, read_record, strip_if_clipped
from onnx_clip_pass.runtime import Arrays, Provider, Session, make_feeds, open_session
from onnx_clip_pass.verify import compare
from onnx_clip_pass.verify.checks import Checks
from onnx_clip_pass.verify.copies import Copy, Port
from onnx_clip_pass.verify.declared import declared_faults
from onnx_clip_pass.verify.formulas import Formulas, Setting
from onnx_clip_pass.verify.report import GradientCheck, OutputCheck, Verification
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
    trials = _Trials(
        (before, before_folder), (after, after_folder), targets, given, provider, record, result
    )
    trials.run_all()
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


_Where = tuple[ModelProto, Path | None]
_Ports = list[list[Port]]


class _Trials:
    """The runs with the feeds as they are, with gradients scaled up and down, and so on."""

    def __init__(
        self,
        before: _Where,
        after: _Where,
        targets: list[Target],
        feeds: Arrays,
        provider: Provider,
        record: Record,
        result: Verification,
    ) -> None:
        self._before, self._after = before, after
        self._targets = targets
        self._feeds = feeds
        self._provider = provider
        self._record = record
        self._formulas = Formulas(targets, record.norm_precision)
        self._checks = Checks(targets, self._formulas, record, result)
        self._result = result
        self._names = [value.name for value in before[0].graph.output]
        clipped = {slot for target in targets for slot in target.outputs}
        behind = {self._names[slot] for slot in clipped} if not record.measures_only else set()
        result.outputs = [OutputCheck(name, name in behind) for name in dict.fromkeys(self._names)]

    def run_all(self) -> None:
        checks = self._result.gradients
        for number, target in enumerate(self._targets):
            if "training_info" in target.gradient.graph:
                checks[number].faults.append(
                    "not checked: ONNX Runtime does not execute training_info"
                )
        if any(check.faults for check in checks):
            return
        self._run({}, "")
        for up in (True, False) * _TURNS:
            factors = self._pressing_factors(up)
            if factors:
                self._run(factors, f"with gradients scaled {'up' if up else 'down'}: ")
        thresholds = self._other_thresholds()
        if thresholds:
            self._run({}, "with other thresholds: ", thresholds)
        unseen = [c.gradient for c in checks if not c.acted and not c.clip.endswith("inf")]
        if unseen and not self._record.measures_only:
            names = ", ".join(unseen[:5]) + (" …" if len(unseen) > 5 else "")
            self._result.notes.append(f"no clip could be seen acting, as for zeros: {names}")

    def _pressing_factors(self, up: bool) -> dict[int, float]:
        """By what to scale gradients so that clips are seen acting, or letting pass."""
        checks, raw = self._result.gradients, self._checks.raw
        factors: dict[int, float] = {}
        for number, target in enumerate(self._targets):
            seen = checks[number].acted if up else checks[number].passed
            if seen or target.clip.is_identity or number not in raw or number in factors:
                continue
            members = [other for other in self._formulas.together(number) if other in raw]

            def acts(margin: float, members: list[int] = members) -> list[bool]:
                scaled = {
                    other: [compare.wide(x) * margin for x in raw[other] if np.any(x)]
                    for other in members
                }
                setting = self._checks.setting
                return [any(each) for each in self._formulas.acting(scaled, setting).values()]

            arrays = [x for other in members for x in raw[other]]
            factor = compare.pressing_factor(acts, arrays, up)
            if factor:
                factors |= dict.fromkeys(members, factor)
        return factors

    def _other_thresholds(self) -> Arrays:
        """A half of each default, to be fed."""
        given = {port.name: port for port in self._after[0].graph.input}
        defaults = {tensor.name: tensor for tensor in self._after[0].graph.initializer}
        found: Arrays = {}
        for name in self._record.inputs:
            if name in given and name in defaults:
                default = numpy_helper.to_array(defaults[name])
                if np.isfinite(default):
                    found[name] = np.asarray(default / 2, default.dtype)
        return found

    # -- one trial -----------------------------------------------------------------------------

    def _run(self, factors: dict[int, float], when: str, thresholds: Arrays | None = None) -> None:
        session, ports = self._original(factors, fed=False)
        feeds = self._scaled(factors)
        plain, again = session.run(feeds), session.run(feeds)
        steady = {name for name in plain if compare.is_identical(plain[name], again[name])}
        setting = self._setting(plain, thresholds or {})
        fed_session, fed_ports = self._original(factors, fed=True)
        expected, values = self._settle(fed_session, fed_ports, feeds, plain, ports, setting, 0.0)
        moved, _ = self._settle(fed_session, fed_ports, feeds, plain, ports, setting, 1.0)
        try:
            rewritten, raw_ports, clipped_ports = self._rewritten(factors)
            after = rewritten.run(feeds | (thresholds or {}))
        except OnnxClipError as error:
            self._result.faults.append(f"{when}the rewritten model does not run: {error}")
            return
        checks = self._checks
        checks.setting = setting
        checks.gradients(raw_ports, clipped_ports, after, when)
        checks.raw_gradients(fed_ports, raw_ports, expected, moved, after, steady, when)
        own = {port.output: values[port.fed] for ports in fed_ports for port in ports}
        checks.outputs(plain, expected, moved, after, steady, own, when)
        checks.emitted(raw_ports, after, when)

    def _original(self, factors: dict[int, float], *, fed: bool) -> tuple[Session, _Ports]:
        copy = Copy(self._before[0])
        scopes = copy.index.scopes
        ports = [
            copy.bring_out(
                target.scope,
                target.name,
                target.dtype,
                [Read(scopes[s], node, slot) for s, node, slot in target.reads] if fed else None,
            )
            for target in self._targets
        ]
        if not fed:
            self._bring_out_what_clips_read(copy)
        for number, factor in factors.items():
            target = self._targets[number]
            copy.scale(target.scope, target.name, factor, target.dtype)
        return self._open(copy.finish(), self._before[1]), ports

    def _bring_out_what_clips_read(self, copy: Copy) -> None:
        self._parameters = {
            number: copy.bring_out(*target.parameter)
            for number, target in enumerate(self._targets)
            if target.parameter is not None
        }
        if isinstance(self._record.loss_scale, str):
            copy.bring_out(0, self._record.loss_scale, int(TensorProto.FLOAT))

    def _setting(self, plain: Arrays, thresholds: Arrays) -> Setting:
        scale = self._record.loss_scale
        if isinstance(scale, str):
            scale = float(np.max(plain[scale]))
        parameters = {
            number: [
                array
                for port in ports
                for array in compare.iterations(plain[port.output], port.loops)
            ]
            for number, ports in self._parameters.items()
        }
        fed = {name: float(array) for name, array in thresholds.items()}
        return Setting(scale, fed, parameters)

    def _rewritten(self, factors: dict[int, float]) -> tuple[Session, _Ports, _Ports]:
        copy = Copy(self._after[0])
        raw = [copy.bring_out(t.scope, t.raw, t.dtype) for t in self._targets]
        clipped = [copy.bring_out(t.scope, t.clipped, t.dtype) for t in self._targets]
        for number, factor in factors.items():
            target = self._targets[number]
            copy.scale(target.scope, target.raw, factor, target.dtype)
        return self._open(copy.finish(), self._after[1]), raw, clipped

    def _open(self, model: ModelProto, folder: Path | None) -> Session:
        return open_session(model, provider=self._provider, optimize=False, folder=folder)

    def _scaled(self, factors: dict[int, float]) -> Arrays:
        """The feeds, with gradients that are inputs scaled."""
        feeds = dict(self._feeds)
        for number, factor in factors.items():
            target = self._targets[number]
            if target.scope == 0 and target.name in feeds:
                feeds[target.name] = (feeds[target.name] * factor).astype(feeds[target.name].dtype)
        return feeds

    def _settle(
        self,
        session: Session,
        fed_ports: _Ports,
        feeds: Arrays,
        plain: Arrays,
        ports: _Ports,
        setting: Setting,
        move: float,
    ) -> tuple[Arrays, Arrays]:
        """Run the original on clipped gradients until they are those of the run itself.

        A gradient of a second step depends on the clipped one of the first: each round settles at
        least one step more. With `move` all clipped gradients are made longer by so many times
        their own tolerance.
        """

        def clip(arrays: Arrays, of: _Ports) -> Arrays:
            found = self._checks.clipped(arrays, of, setting, move)
            return {
                to.fed: found[number][at]
                for number, group in enumerate(fed_ports)
                for at, to in enumerate(group)
            }

        fed = clip(plain, ports)
        found = session.run(feeds | fed)
        for _ in range(_MOST_ROUNDS):
            again = clip(found, fed_ports)
            if all(compare.is_identical(again[name], fed[name]) for name in fed):
                break
            fed = again
            found = session.run(feeds | fed)
        return found, fed
