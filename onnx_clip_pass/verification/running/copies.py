"""Temporary copies of a model, with inner values as outputs, fed from outside, or scaled.

A value of a nested graph comes out through every If, Loop, Scan and call around it: as one more
output of each, stacked along a new first axis by each loop. The same way an array is fed in.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import OUTPUT, Editor, Index, Read, Scope, spec

__all__ = ["Copy", "Port"]


@dataclass(frozen=True, slots=True)
class Port:
    """An output of the main graph by which an inner value comes out, with `loops` axes in front.

    `fed` is the input by which it can be given from outside, or empty.
    """

    output: str
    fed: str
    loops: int


class Copy:
    """A copy of a model, to be changed and run; `numbers` in its interface count its scopes.

    Values become outputs and are fed first (`expose`), then changed (`change`); then `finish`.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.index = Index(self.model)
        self._editor = Editor(self.index)
        self._outputs = set(self.index.main.outputs)

    def finish(self) -> ModelProto:
        """The copy, complete."""
        self._editor.finish()
        return self.model

    def expose(
        self, number: int, name: str, dtype: int, feeds: list[Read] | None = None
    ) -> list[Port]:
        """Make a value of scope `number` an output, and let the given reads take a fed one.

        Args:
            number: of the scope.
            name: of the value.
            dtype: of the value.
            feeds: the reads that shall take what is fed, or None to feed nothing. Reads by which
                the value is an output of the main graph are left as they are.

        Returns:
            A port for each way by which the main graph gets there: a function has one a call.

        Raises:
            OnnxClipError: the value is in a graph that the runtime does not execute.
        """
        scope = self.index.scopes[number]
        fed = "" if feeds is None else self._editor.fresh(f"fed/{name}")
        ports = self._climb(scope, name, fed, dtype)
        for read in feeds or []:
            reader, node, slot = read
            if node != OUTPUT:
                reader.nodes[node].input[slot] = fed
            elif reader is not self.index.main:
                inner = self._copied(reader, fed, f"{fed}/returned")
                if reader.is_function:
                    reader.proto.output[slot] = inner  # type: ignore[call-overload]
                else:
                    reader.proto.output[slot].name = inner  # type: ignore[union-attr]
        return ports

    def change(self, number: int, name: str, dtype: int, factor: float) -> None:
        """Change a value where it is made, in float32 if it is narrower; what is fed stays.

        Args:
            number: of the scope.
            name: of the value.
            dtype: of the value.
            factor: what to multiply it by.
        """
        scope = self.index.scopes[number]
        is_made = name in scope.producers or name in scope.initializers
        if name in scope.input_slots or not is_made:
            return
        position = scope.producers[name][0] + 1 if name in scope.producers else 0
        work = spec.FLOAT if dtype in spec.HALVES else dtype
        value = self._editor.fresh(f"unchanged/{name}")
        self._editor.rename_producer(scope, name, value)

        def node(op_type: str, inputs: list[str], output: str = "", **attributes: int) -> str:
            output = output or self._editor.fresh(f"changed/{name}")
            label = f"change/{name}/{op_type}"
            self._editor.insert(scope, position, op_type, inputs, output, label, attributes)
            return output

        value = node("Cast", [value], to=work)
        value = node("Mul", [value, self._editor.constant(scope, factor, work)])
        node("Cast", [value], name, to=dtype)

    # -- out of nested graphs ------------------------------------------------------------------

    def _climb(self, scope: Scope, name: str, fed: str, dtype: int) -> list[Port]:
        if scope is self.index.main:
            if name not in scope.producers and name not in self._outputs:
                # ONNX Runtime returns the buffer of an input itself, which it may use again
                name = self._copied(scope, name, f"out/{name}")
            if name not in self._outputs:
                self._outputs.add(name)
                scope.proto.output.append(ValueInfoProto(name=name))  # type: ignore[arg-type]
            if fed:
                _declare(scope.proto.input, fed, dtype)
            return [Port(name, fed, 0)]
        holders = self._holders(scope)
        op_type = "" if scope.is_function else holders[0][0].nodes[holders[0][1]].op_type
        _declare(scope.proto.output, self._copied(scope, name, f"out/{name}"), dtype)
        if fed and op_type in ("", "Scan"):
            _declare(scope.proto.input, fed, dtype)
        ports = []
        for outer, number in holders:
            node = outer.nodes[number]
            outside = self._editor.fresh(f"out/{name}")
            # the graph of a Loop has one output more: whether to go on
            _put(node.output, len(scope.proto.output) - 1 - (op_type == "Loop"), outside)
            given = fed if op_type == "If" or not fed else self._editor.fresh(f"fed/{name}")
            if op_type == "If":
                self._fill_other_branches(scope, outer.subgraphs[number], name, fed, dtype)
            elif op_type == "Loop" and fed:
                count = scope.inputs[0]
                self._editor.insert(scope, 0, "Gather", [given, count], fed, f"take/{name}")
            elif fed:
                _put(node.input, len(scope.proto.input) - 1, given)
            if op_type == "Scan":
                _lengthen(node, is_fed=bool(fed))
            is_loop = op_type in ("Loop", "Scan")
            outer_ports = self._climb(outer, outside, given, dtype)
            ports += [replace(port, loops=port.loops + is_loop) for port in outer_ports]
        return ports

    def _fill_other_branches(
        self, scope: Scope, branches: Mapping[str, Scope], name: str, fed: str, dtype: int
    ) -> None:
        """Let branches that are not taken return what is fed, or else a zero."""
        for subgraph in branches.values():
            if subgraph is scope:
                continue
            wish = f"not taken/{name}"
            if fed:
                out = self._copied(subgraph, fed, wish)
            else:
                out = self._editor.fresh(wish)
                zero = TensorProto(dims=[], data_type=dtype, raw_data=bytes(_SIZES[dtype]))
                self._append(subgraph, "Constant", [], out, value=zero)
            _declare(subgraph.proto.output, out, dtype)

    def _holders(self, scope: Scope) -> list[tuple[Scope, int]]:
        """The nodes that run a graph."""
        if scope.is_function:
            return self.index.callers_of(scope)
        outer, number = scope.outer, scope.number
        if outer is None or number == OUTPUT:
            raise OnnxClipError(f"{scope.path}: ONNX Runtime does not execute training_info")
        op_type = outer.nodes[number].op_type
        if op_type not in ("If", "Loop", "Scan"):
            raise OnnxClipError(
                f"{scope.path}: values cannot be taken out of {scope.key} of {op_type}"
            )
        return [(outer, number)]

    def _copied(self, scope: Scope, name: str, wish: str) -> str:
        """A new name at the end of a graph for a value of it."""
        out = self._editor.fresh(wish)
        self._append(scope, "Identity", [name], out)
        return out

    def _append(
        self, scope: Scope, op_type: str, inputs: list[str], output: str, **attributes: object
    ) -> None:
        position = len(scope.nodes)
        name = f"copy/{output}"
        self._editor.insert(scope, position, op_type, inputs, output, name, attributes)


_SIZES = {spec.FLOAT: 4, spec.DOUBLE: 8, spec.FLOAT16: 2, spec.BFLOAT16: 2, spec.BOOL: 1}


def _declare(values: Any, name: str, dtype: int) -> None:
    """Add an input or output to a graph, or to a function, where it is a name alone."""
    has_types = hasattr(values, "add")
    values.append(helper.make_tensor_value_info(name, dtype, None) if has_types else name)


def _put(names: MutableSequence[str], at: int, name: str) -> None:
    """Put a name behind all those that there may be before it."""
    names.extend([""] * (at - len(names)))
    names.append(name)


def _lengthen(node: NodeProto, *, is_fed: bool) -> None:
    """Tell a Scan of one more output, and input if one is fed: along the first axis, forward."""
    for attr in node.attribute:
        kind, _, what = attr.name.removeprefix("scan_").partition("_")
        if what in ("axes", "directions") and (is_fed or kind == "output"):
            attr.ints.append(0)
        elif attr.name == "num_scan_inputs":
            attr.i += is_fed
