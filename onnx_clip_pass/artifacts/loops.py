"""Loops over a sequence of tensors: something made of each, or one number of all of them.

count   = SequenceLength(sequence)
clipped = Loop(count, so_far = SequenceEmpty()):
              each   = SequenceAt(sequence, number)
              so_far = SequenceInsert(so_far, f(each))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from onnx import GraphProto, TypeProto, helper

from onnx_clip_pass.clips import Emitter, Numerics, Tensor
from onnx_clip_pass.clips.tape import Used
from onnx_clip_pass.gradients import Gradient, Parameter
from onnx_clip_pass.graph import Editor, Scope, TensorType
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, INT64

__all__ = ["Loops"]


class _Loop(NamedTuple):
    """A loop that is being filled: its graph, how many times it runs, and the tensor in loop."""

    graph: GraphProto
    scope: Scope
    times: str
    source: str


class Loops:
    """Puts loops over sequences of tensors of one dtype at the beginning of a main graph.

    `used` collects what kernels the nodes of clips need.
    """

    def __init__(self, editor: Editor, label: str, dtype: int, numerics: Numerics) -> None:
        self.used: set[Used] = set()
        self._editor = editor
        self._main = editor.index.main
        self._label = label
        self._dtype = dtype
        self._numerics = numerics

    def fresh(self, word: str) -> str:
        """A name for a value of the main graph, or of a loop."""
        return self._editor.fresh(f"clip/{self._label}/{word}")

    def of_each(
        self, sequence: str, clipped: str, emits: Sequence[Callable[[Emitter], object]]
    ) -> None:
        """A loop that makes the sequence `clipped` of what clips make of each tensor in loop.

        Args:
            sequence: the tensors.
            clipped: the name of the new sequence.
            emits: put one clip after another in.
        """
        each = self._editor.fresh(f"{self._label}/each")
        loop = self._open(sequence, each, is_made=True)
        empty = self._add("SequenceEmpty", [], "empty", dtype=self._dtype)
        source = loop.source
        for stage, emit in enumerate(emits, 1):
            target = each
            if stage < len(emits):
                target = self._editor.fresh(f"clip/{each}/stage {stage}")
                self._editor.declare(loop.scope, target, TensorType(self._dtype))
            emit(self._emitter(loop.scope, each, source, target))
            source = target
        so_far, more = self.fresh("so far"), self.fresh("more")
        self._insert(loop.scope, "SequenceInsert", [so_far, each], more)
        kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(self._dtype, None))
        self._close(loop, empty, (so_far, more), kind, clipped)

    def of_all(self, sequence: str, emit: Callable[[Emitter, Tensor], Tensor]) -> Tensor:
        """A loop that makes one float64 number of all tensors, from 0; it.

        Args:
            sequence: the tensors.
            emit: put in what makes of each, and of the number so far, the next.
        """
        each = self._editor.fresh(f"{self._label}/each")
        zero = self._editor.constant(self._main, 0.0, DOUBLE)
        so_far, result = self.fresh("total so far"), self.fresh("total of all")
        loop = self._open(sequence, each)
        to = self._emitter(loop.scope, each, loop.source, "")
        total = emit(to, Tensor(so_far, DOUBLE, ()))
        kind = helper.make_tensor_type_proto(DOUBLE, [])
        self._close(loop, zero, (so_far, total.name), kind, result)
        return Tensor(result, DOUBLE, ())

    def of_main(self, label: str) -> Emitter:
        """An emitter of nodes of this label, behind the loops that are there."""
        return self._emitter(self._main, self._label, "", "").relabelled(label)

    def _emitter(self, scope: Scope, name: str, source: str, target: str) -> Emitter:
        dtype = TensorType(self._dtype).dtype_name
        gradient = Gradient(name, Parameter("", None, dtype, name), None, dtype, "")
        tensor = Tensor(source, self._dtype, None)
        to = Emitter(self._editor, scope, 0, gradient, tensor, target, self._numerics)
        to.used = self.used
        return to

    def _open(self, sequence: str, each: str, *, is_made: bool = False) -> _Loop:
        """A loop whose graph has the tensor of the iteration.

        `each` is what the clips' nodes are named after, and a value if it `is_made` there.
        """
        times = self._add("SequenceLength", [sequence], "count")
        number, going, goes_on = (self.fresh(word) for word in ("number", "going", "goes on"))
        graph = helper.make_graph(
            [],
            self.fresh("body"),
            [
                helper.make_tensor_value_info(number, INT64, []),
                helper.make_tensor_value_info(going, BOOL, []),
            ],
            [helper.make_tensor_value_info(goes_on, BOOL, [])],
        )
        scope = self._editor.nested(graph, self._main)
        source = self._editor.fresh(f"clip/{each}/raw")
        for name in [each, source] if is_made else [source]:
            self._editor.declare(scope, name, TensorType(self._dtype))
        self._insert(scope, "SequenceAt", [sequence, number], source)
        return _Loop(graph, scope, times, source)

    def _close(
        self, loop: _Loop, start: str, names: tuple[str, str], kind: TypeProto, output: str
    ) -> None:
        """Put in the loop, which carries one value by `names` into its graph and out of it."""
        graph = loop.graph
        self._insert(loop.scope, "Identity", [graph.input[1].name], graph.output[0].name)
        graph.input.append(helper.make_value_info(names[0], kind))
        graph.output.append(helper.make_value_info(names[1], kind))
        self._insert(self._main, "Loop", [loop.times, "", start], output, body=graph)

    def _add(self, op_type: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        output = self.fresh(result)
        self._insert(self._main, op_type, inputs, output, **attributes)
        return output

    def _insert(
        self, scope: Scope, op_type: str, inputs: Sequence[str], output: str, **attributes: Any
    ) -> None:
        name = f"clip/{self._label}/{op_type}"
        self._editor.insert(scope, 0, op_type, inputs, output, name, attributes)
