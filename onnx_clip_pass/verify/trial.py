"""The runs of a verification, and what they show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index, Read
from onnx_clip_pass.record import Record, read_record, strip_if_clipped
from onnx_clip_pass.runtime import Arrays, Provider, Session, make_feeds, open_session
from onnx_clip_pass.verify import compare
from onnx_clip_pass.verify.copies import Copy, Port
from onnx_clip_pass.verify.declared import declared_faults
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
    """The runs with the feeds as they are, and with gradients scaled up and down."""

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
        self._norm_precision = getattr(record, "norm_precision", "plain")
        self._result = result
        self._names = [value.name for value in before[0].graph.output]
        clipped = {slot for target in targets for slot in target.outputs}
        behind = {self._names[slot] for slot in clipped}
        result.outputs = [OutputCheck(name, name in behind) for name in dict.fromkeys(self._names)]
        self._raw: dict[int, list[NDArray[Any]]] = {}

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
            factors = {}
            for number, target in enumerate(self._targets):
                seen = checks[number].acted if up else checks[number].passed
                if seen or target.clip.is_identity or number not in self._raw:
                    continue
                factor = compare.pressing_factor(target.reference_of_one, self._raw[number], up)
                if factor:
                    factors[number] = factor
            if factors:
                self._run(factors, f"with gradients scaled {'up' if up else 'down'}: ")
        unseen = [c.gradient for c in checks if not c.acted and not c.clip.endswith("inf")]
        if unseen:
            names = ", ".join(unseen[:5]) + (" …" if len(unseen) > 5 else "")
            self._result.notes.append(f"no clip could be seen acting, as for zeros: {names}")

    # -- one trial -----------------------------------------------------------------------------

    def _run(self, factors: dict[int, float], when: str) -> None:
        session, ports = self._original(factors, fed=False)
        feeds = self._scaled(factors)
        plain, again = session.run(feeds), session.run(feeds)
        steady = {name for name in plain if compare.is_identical(plain[name], again[name])}
        fed_session, fed_ports = self._original(factors, fed=True)
        expected, values = self._settle(fed_session, fed_ports, feeds, plain, ports, 0.0)
        moved, _ = self._settle(fed_session, fed_ports, feeds, plain, ports, 1.0)
        try:
            rewritten, raw_ports, clipped_ports = self._rewritten(factors)
            after = rewritten.run(feeds)
        except OnnxClipError as error:
            self._result.faults.append(f"{when}the rewritten model does not run: {error}")
            return
        for number, target in enumerate(self._targets):
            self._check_gradient(
                number, target, raw_ports[number], clipped_ports[number], after, when
            )
            self._check_raw(
                number, fed_ports[number], raw_ports[number], expected, moved, after, steady, when
            )
        own = {port.output: values[port.fed] for ports in fed_ports for port in ports}
        self._check_outputs(plain, expected, moved, after, steady, own, when)

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
        for number, factor in factors.items():
            target = self._targets[number]
            copy.scale(target.scope, target.name, factor, target.dtype)
        return self._open(copy.finish(), self._before[1]), ports

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
        move: float,
    ) -> tuple[Arrays, Arrays]:
        """Run the original on clipped gradients until they are those of the run itself.

        A gradient of a second step depends on the clipped one of the first: each round settles at
        least one step more. With `move` all clipped gradients are made longer by so many times
        their own tolerance.
        """

        def clip(target: Target, raw: NDArray[Any], loops: int) -> NDArray[Any]:
            clipped = target.reference(raw, loops)
            longer = 1 + move * self._precision(target, raw, loops)
            return clipped if not move else (clipped.astype(np.float64) * longer).astype(raw.dtype)

        fed = {
            to.fed: clip(target, plain[port.output], port.loops)
            for target, group, to_group in zip(self._targets, ports, fed_ports, strict=True)
            for port, to in zip(group, to_group, strict=True)
        }
        found = session.run(feeds | fed)
        for _ in range(_MOST_ROUNDS):
            again = {
                port.fed: clip(target, found[port.output], port.loops)
                for target, group in zip(self._targets, fed_ports, strict=True)
                for port in group
            }
            if all(compare.is_identical(again[name], fed[name]) for name in fed):
                break
            fed = again
            found = session.run(feeds | fed)
        return found, fed

    def _precision(self, target: Target, raw: NDArray[Any], loops: int) -> float:
        """The relative error that the clipped gradient may have: of its norm, and by rounding."""
        size = int(np.prod(raw.shape[loops:], dtype=np.int64))
        dtype = str(raw.dtype)
        precision = compare.precision_of_norm(dtype, size, self._norm_precision)
        return precision + compare.epsilon(dtype)

    # -- what is compared ----------------------------------------------------------------------

    def _check_gradient(
        self,
        number: int,
        target: Target,
        raw_ports: list[Port],
        clipped_ports: list[Port],
        after: Arrays,
        when: str,
    ) -> None:
        check = self._result.gradients[number]
        pairs = []
        for raw_port, port in zip(raw_ports, clipped_ports, strict=True):
            raw, clipped = after[raw_port.output], after[port.output]
            if raw.shape != clipped.shape or raw.dtype != clipped.dtype:
                check.faults.append(
                    f"{when}the raw gradient is {raw.dtype} {list(raw.shape)}, the clipped one "
                    f"{clipped.dtype} {list(clipped.shape)}"
                )
                return
            own, of_clip = target.slices(raw, port.loops), target.slices(clipped, port.loops)
            pairs += list(zip(own, of_clip, strict=True))
        if not when:
            self._raw[number] = [raw for raw, _ in pairs]
        wanted = [target.reference_of_one(raw) for raw, _ in pairs]
        if not when and pairs:
            check.raw_norm = max(_norm(raw) for raw, _ in pairs)
            check.clipped_norm = max(_norm(clipped) for _, clipped in pairs)
            check.expected_norm = max(_norm(expected) for expected in wanted)
        for (raw, clipped), expected in zip(pairs, wanted, strict=True):
            precision = compare.precision_of_norm(str(raw.dtype), raw.size, self._norm_precision)
            allowed = compare.allowed_ulps(str(raw.dtype), precision)
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
            larger = compare.wide(raw) * (1 + 4 * precision)
            is_within = compare.is_identical(target.reference_of_one(larger), larger)
            if is_within and not compare.is_identical(clipped, raw):
                check.faults.append(f"{when}within the threshold, but not the same bit for bit")
                return

    def _check_raw(
        self,
        number: int,
        fed_ports: list[Port],
        raw_ports: list[Port],
        expected: Arrays,
        moved: Arrays,
        after: Arrays,
        steady: set[str],
        when: str,
    ) -> None:
        """Whether the backward pass gives what it gives when it sees raw gradients."""
        target, check = self._targets[number], self._result.gradients[number]
        depends = any((target.scope, target.name) in other.behind for other in self._targets)
        for port, raw_port in zip(fed_ports, raw_ports, strict=True):
            wanted, actual = expected[port.output], after[raw_port.output]
            if port.output not in steady:
                continue
            if depends:
                fault = compare.output_fault(actual, wanted, moved[port.output])
            else:
                fault = "" if compare.is_identical(actual, wanted) else "it differs"
            if fault:
                check.faults.append(f"{when}the gradient before its clip is not right: {fault}")
                return

    def _check_outputs(
        self,
        plain: Arrays,
        expected: Arrays,
        moved: Arrays,
        after: Arrays,
        steady: set[str],
        own: Arrays,
        when: str,
    ) -> None:
        handed_out = {
            target.name
            for target in self._targets
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
                fault = compare.output_fault(after[name], own[name], self._longer(own[name]))
            else:
                fault = compare.output_fault(after[name], expected[name], moved[name])
            if fault:
                check.faults.append(when + fault)

    def _longer(self, array: NDArray[Any]) -> NDArray[Any]:
        precision = compare.precision_of_norm(str(array.dtype), array.size, self._norm_precision)
        return np.asarray(compare.wide(array) * (1 + precision))


def _norm(array: NDArray[Any]) -> float:
    return float(np.linalg.norm(compare.wide(array).ravel()))
