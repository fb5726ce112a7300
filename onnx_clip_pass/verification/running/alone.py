"""The clips of one graph as a model of their own: raw gradients in, clipped ones out.

What a clip does to a gradient is a function of the gradient, its parameter and its threshold. Cut
out of the rewritten model, it can be given any gradient, many times, for what the clip costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnx_clip_pass.graph import Index, Scope
from onnx_clip_pass.runtime import Arrays, Provider, Session, open_session
from onnx_clip_pass.verification.static.targets import Target

__all__ = ["Alone"]


class Alone:
    """The nodes of a rewritten model between raw gradients of one graph and what is made of them.

    Args:
        after: the rewritten model.
        targets: those of one graph.
        outputs: of the main graph that are metrics of them.
        feeds: of the model, for what clips read besides: thresholds and loss scales.
        provider: where to run.
        folder: where external data of the model lies.

    Raises:
        OnnxClipError: the runtime does not load it.
    """

    def __init__(
        self,
        after: Index,
        targets: Sequence[Target],
        outputs: Iterable[str],
        feeds: Arrays,
        provider: Provider,
        folder: Path | None,
    ) -> None:
        scope = after.scopes[targets[0].scope]
        given = {target.raw: target.dtype for target in targets}
        given |= {name: dtype for _, name, dtype in (t.parameter for t in targets if t.parameter)}
        wanted = [*(target.clipped for target in targets), *outputs]
        wanted = [name for name in dict.fromkeys(wanted) if name not in given]
        found = _Slice(scope, wanted, given, feeds)
        self.reads_more = sorted(found.unknown)
        """The values that clips read and that cannot be given here, so that they cannot run."""
        self._feeds = {name: feeds[name] for name in found.inputs if name in feeds}
        self._session: Session | None = None
        if wanted and not self.reads_more:
            model = found.model(after.model)
            self._session = open_session(model, provider=provider, optimize=False, folder=folder)

    def run(self, given: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return these gradients and parameters, and what is made of them, by name."""
        if self._session is None:  # clips of a limit of inf are no nodes
            return dict(given)
        known = set(self._session.inputs)
        feeds = self._feeds | {name: array for name, array in given.items() if name in known}
        return {**given, **self._session.run(feeds)}


class _Slice:
    """All that `wanted` is computed from in a graph and those around it, up to what is `given`."""

    def __init__(
        self,
        scope: Scope,
        wanted: Sequence[str],
        given: Mapping[str, int],
        feeds: Collection[str],
    ) -> None:
        self._wanted = wanted
        self._feeds = feeds
        self._nodes: dict[int, tuple[Scope, set[int]]] = {}
        self._initializers: list[TensorProto] = []
        self.inputs: dict[str, ValueInfoProto] = {
            name: helper.make_tensor_value_info(name, dtype, None) for name, dtype in given.items()
        }
        self.unknown: set[str] = set()
        todo, seen = list(wanted), {"", *given}
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self._take(scope.lookup(name), name)

    def _take(self, home: Scope | None, name: str) -> Iterable[str]:
        """Add what makes a value; what that reads."""
        if home is not None and name in home.producers:
            number = home.producers[name][0]
            if number not in home.subgraphs:
                self._nodes.setdefault(id(home), (home, set()))[1].add(number)
                return home.nodes[number].input
        elif home is not None and home.outer is None and self._is_fed(home, name):
            self.inputs[name] = home.proto.input[home.input_slots[name]]  # type: ignore[assignment]
            return ()
        elif home is not None and name in home.initializers:
            self._initializers.append(home.initializers[name])
            return ()
        self.unknown.add(name)
        return ()

    def _is_fed(self, home: Scope, name: str) -> bool:
        return name in home.input_slots and name in self._feeds and not home.is_function

    def model(self, whole: ModelProto) -> ModelProto:
        """These as a model with the versions of the whole one."""
        model = ModelProto(ir_version=whole.ir_version)
        model.functions.extend(whole.functions)
        around = sorted(self._nodes.values(), key=lambda pair: pair[0].path.count("/"))
        opsets = around[-1][0].opsets if around else {}
        for domain, version in opsets.items():
            model.opset_import.add(domain=domain, version=version)
        model.graph.name = "clips"
        for scope, numbers in around:
            model.graph.node.extend(scope.nodes[number] for number in sorted(numbers))
        model.graph.initializer.extend(self._initializers)
        model.graph.input.extend(self.inputs.values())
        model.graph.output.extend(ValueInfoProto(name=name) for name in self._wanted)
        return model
