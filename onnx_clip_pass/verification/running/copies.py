"""Temporary copies of a model, with inner values handed out, fed from outside, or scaled.

A value of a nested graph comes out through every If, Loop, Scan and call around it: as one more
output of each, stacked along a new first axis by each loop. The same way an array is fed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import OUTPUT, Editor, Index, Read, Scope
from onnx_clip_pass.verification.static.reach import Places

__all__ = ["Copy", "Port"]


@dataclass(frozen=True, slots=True)
class Port:
    """Where an inner value comes out: an output of the main graph, with `loops` axes in front.

    `fed` is the input by which it can be given from outside, or empty.
    """

    output: str
    fed: str
    loops: int


class Copy:
    """A copy of a model, to be changed and run; `numbers` in its interface count its scopes.

    Values are handed out and fed first (`bring_out`), then changed (`change`); then `finish`.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.index = Index(self.model)
        self._places = Places(self.index)
        self._editor = Editor(self.index)
        self._outputs = set(self.index.main.outputs)

    def finish(self) -> ModelProto:
        """The copy, complete."""
        self._editor.finish()
        return self.model

    def bring_out(
        self, number: int, name: str, dtype: int, feeds: list[Read] | None = None
    ) -> list[Port]:
        """Hand a value of scope `number` out, and let the given reads take a fed one.

        Args:
            number: of the scope.
            name: of the value.
            dtype: of the value.
            feeds: the reads that shall take what is fed, or None to feed nothing. Reads by which
                the main graph hands the value out are left as they are.

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
                inner = self._editor.fresh(f"{fed}/handed out")
                self._append(reader, "Identity", [fed], inner)
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
        work = int(TensorProto.FLOAT) if dtype in _HALVES else dtype
        value = self._editor.fresh(f"unchanged/{name}")
        self._editor.rename_producer(scope, name, value)

        def node(op_type: str, inputs: list[str], output: str = "", **attributes: int) -> str:
            output = output or self._editor.fresh(f"changed/{name}")
            label = f"change/{name}/{op_type}"
            self._editor.insert(scope, position, op_type, inputs, output, label, **attributes)
            return output

        value = node("Cast", [value], to=work)
        value = node("Mul", [value, self._editor.constant(scope, factor, work)])
        node("Cast", [value], name, to=dtype)

    # -- out of nested graphs ------------------------------------------------------------------

    def _climb(self, scope: Scope, name: str, fed: str, dtype: int) -> list[Port]:
        if scope is self.index.main:
            if name not in scope.producers and name not in self._outputs:
                # ONNX Runtime hands out the buffer of an input itself, which it may use again
                out = self._editor.fresh(f"out/{name}")
                self._append(scope, "Identity", [name], out)
                name = out
            if name not in self._outputs:
                self._outputs.add(name)
                scope.proto.output.append(ValueInfoProto(name=name))  # type: ignore[arg-type]
            if fed:
                kind = helper.make_tensor_value_info(fed, dtype, None)
                scope.proto.input.append(kind)  # type: ignore[arg-type]
            return [Port(name, fed, 0)]
        if scope.is_function:
            return self._through_calls(scope, name, fed, dtype)
        if id(scope) not in self._places.holder:
            raise OnnxClipError(f"{scope.path}: ONNX Runtime does not execute training_info")
        outer, number, key = self._places.holder[id(scope)]
        op_type = outer.nodes[number].op_type
        if op_type == "If":
            return self._through_if(scope, name, fed, dtype)
        if op_type == "Loop":
            return self._through_loop(scope, name, fed, dtype)
        if op_type == "Scan":
            return self._through_scan(scope, name, fed, dtype)
        raise OnnxClipError(f"{scope.path}: values cannot be taken out of {key} of {op_type}")

    def _through_calls(self, scope: Scope, name: str, fed: str, dtype: int) -> list[Port]:
        out = self._handed(scope, name)
        scope.proto.output.append(out)  # type: ignore[arg-type]
        if fed:
            scope.proto.input.append(fed)  # type: ignore[arg-type]
        ports = []
        for outer, number in self._places.callers.get(id(scope), ()):
            node = outer.nodes[number]
            outside = self._editor.fresh(f"out/{name}")
            node.output.extend([""] * (len(scope.proto.output) - 1 - len(node.output)))
            node.output.append(outside)
            fed_outside = self._editor.fresh(f"fed/{name}") if fed else ""
            if fed:
                node.input.extend([""] * (len(scope.proto.input) - 1 - len(node.input)))
                node.input.append(fed_outside)
            ports += self._climb(outer, outside, fed_outside, dtype)
        return ports

    def _through_if(self, scope: Scope, name: str, fed: str, dtype: int) -> list[Port]:
        outer, number, key = self._places.holder[id(scope)]
        for other_key, body in outer.bodies[number].items():
            if other_key == key:
                out = self._handed(body, name)
            elif fed:  # the branch that is not taken hands back what it is fed
                out = self._editor.fresh(f"not taken/{name}")
                self._append(body, "Identity", [fed], out)
            else:
                out = self._editor.fresh(f"not taken/{name}")
                zero = TensorProto(dims=[], data_type=dtype, raw_data=bytes(_SIZES[dtype]))
                self._append(body, "Constant", [], out, value=zero)
            self._declare_output(body, out, dtype)
        outside = self._editor.fresh(f"out/{name}")
        outer.nodes[number].output.append(outside)
        return self._climb(outer, outside, fed, dtype)

    def _through_loop(self, scope: Scope, name: str, fed: str, dtype: int) -> list[Port]:
        outer, number, _ = self._places.holder[id(scope)]
        self._declare_output(scope, self._handed(scope, name), dtype)
        node = outer.nodes[number]
        outside = self._editor.fresh(f"out/{name}")
        node.output.extend([""] * (len(scope.proto.output) - 2 - len(node.output)))
        node.output.append(outside)
        stack = self._editor.fresh(f"fed/{name}") if fed else ""
        if fed:
            count = scope.inputs[0]
            self._editor.insert(scope, 0, "Gather", [stack, count], fed, f"take/{name}")
        ports = self._climb(outer, outside, stack, dtype)
        return [Port(port.output, port.fed, port.loops + 1) for port in ports]

    def _through_scan(self, scope: Scope, name: str, fed: str, dtype: int) -> list[Port]:
        outer, number, _ = self._places.holder[id(scope)]
        self._declare_output(scope, self._handed(scope, name), dtype)
        node = outer.nodes[number]
        outside = self._editor.fresh(f"out/{name}")
        node.output.extend([""] * (len(scope.proto.output) - 1 - len(node.output)))
        node.output.append(outside)
        _lengthen(node, ("scan_output_axes", "scan_output_directions"))
        stack = self._editor.fresh(f"fed/{name}") if fed else ""
        if fed:
            node.input.append(stack)
            kind = helper.make_tensor_value_info(fed, dtype, None)
            scope.proto.input.append(kind)  # type: ignore[arg-type]
            _lengthen(node, ("scan_input_axes", "scan_input_directions"))
            for attr in node.attribute:
                if attr.name == "num_scan_inputs":
                    attr.i += 1
        ports = self._climb(outer, outside, stack, dtype)
        return [Port(port.output, port.fed, port.loops + 1) for port in ports]

    def _handed(self, scope: Scope, name: str) -> str:
        """A new name at the end of a body for a value of it."""
        out = self._editor.fresh(f"out/{name}")
        self._append(scope, "Identity", [name], out)
        return out

    def _declare_output(self, body: Scope, name: str, dtype: int) -> None:
        kind = helper.make_tensor_value_info(name, dtype, None)
        body.proto.output.append(kind)  # type: ignore[arg-type]

    def _append(
        self, scope: Scope, op_type: str, inputs: list[str], output: str, **attributes: object
    ) -> None:
        position = len(scope.nodes)
        name = f"copy/{output}"
        self._editor.insert(scope, position, op_type, inputs, output, name, **attributes)


_HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_SIZES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.BOOL: 1,
}


def _lengthen(node: NodeProto, names: tuple[str, ...]) -> None:
    """One more 0 in those list attributes that the node has: the first axis, forward."""
    for attr in node.attribute:
        if attr.name in names and attr.type == AttributeProto.INTS:
            attr.ints.append(0)
