"""The sources of a value, followed through control flow and into local functions.

The same function may be called by several nodes, so values are told apart by `Frame`: a scope
as entered by one call. If, Loop and Scan follow the operators' specifications
(https://onnx.ai/onnx/operators/): output k of an If is output k of either branch; a value carried
by a Loop is what the subgraph returned in the iteration before, or what the node was given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from onnx import NodeProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph.control import (
    node_input_of_output,
    node_inputs_of_subgraph_input,
    subgraph_output,
    subgraph_output_of_input,
)
from onnx_clip_pass.graph.ordering import in_order
from onnx_clip_pass.graph.scopes import (
    BY_NAME,
    OUTPUT,
    Index,
    Read,
    Scope,
)
from onnx_clip_pass.graph.subgraphs import names_by_attribute
from onnx_clip_pass.graph.types import TensorType

__all__ = ["Flow", "Frame", "Value"]

_MAX_FRAMES = 50_000
_MAX_DEPTH = 64


@dataclass(eq=False, slots=True, repr=False)
class Frame:
    """A scope as entered from node number `call` of `caller`."""

    scope: Scope
    caller: Frame | None = None
    call: int = OUTPUT
    depth: int = 0

    def __repr__(self) -> str:
        return f"<Frame {self.scope.path or 'main graph'}>"


class Value(NamedTuple):
    """A name and the frame that defines it."""

    frame: Frame
    name: str

    @property
    def node(self) -> NodeProto | None:
        """The node that computes it, in its own frame."""
        return self.frame.scope.producer(self.name)

    @property
    def type(self) -> TensorType | None:
        """Its declared type, see `Scope.type_of`."""
        return self.frame.scope.declared(self.name)


class Flow:
    """Follows values of an `Index` backwards.

    Raises:
        OnnxClipError: nodes form a cycle, so that following would not end.
    """

    def __init__(self, index: Index) -> None:
        for scope in index.scopes:
            if not scope.is_sorted:
                in_order(scope, scope.nodes, advice="it takes what is computed from its own result")
        self.index = index
        self.main = Frame(index.main)
        self._entered: dict[tuple[int, int, str], Frame] = {}
        self._frames: list[Frame] | None = None

    def roots(self) -> list[Frame]:
        """A frame for every graph that runs on its own: main graph and training_info."""
        return [self.main] + [
            self._enter(self.main, OUTPUT, scope)
            for scope in self.index.scopes
            if scope.path.startswith("training_info[") and scope.outer in (None, self.index.main)
        ]

    def frames(self) -> list[Frame]:
        """Every frame that a run of the model enters, callers before callees."""
        if self._frames is None:
            self._frames = self.roots()
            for frame in self._frames:  # grows while it is read
                for number in sorted(frame.scope.special):
                    node = frame.scope.nodes[number]
                    self._frames += [
                        inner_frame for _, inner_frame in self.inner_frames(frame, number, node)
                    ]
        return self._frames

    def is_run_or_iteration(self, frame: Frame) -> bool:
        """True if the outputs of a frame are those of a whole run, or of an iteration."""
        if frame.caller is None or frame.call == OUTPUT:
            return True
        return frame.caller.scope.nodes[frame.call].op_type in ("Loop", "Scan")

    def resolve(self, frame: Frame, name: str) -> Value | None:
        """The value that `name` means inside `frame`; None if nothing defines it."""
        at: Frame | None = frame
        while at is not None:
            if name in at.scope.names:
                return Value(at, name)
            at = None if at.scope.outer is None else at.caller
        return None

    def inner_frames(self, frame: Frame, number: int, node: NodeProto) -> list[tuple[str, Frame]]:
        """The frames of what a node runs: the function it calls, or its subgraphs."""
        if number not in frame.scope.special:
            return []
        function = self.index.function_of(node)
        if function is not None:
            return [("", self._enter(frame, number, function))]
        nested = frame.scope.subgraphs.get(number, {})
        return [(key, self._enter(frame, number, scope)) for key, scope in nested.items()]

    def frame_in(self, frame: Frame, scope: Scope) -> Frame | None:
        """The frame of a graph nested in `frame`, at whatever depth."""
        chain = []
        at: Scope | None = scope
        while at is not None and at is not frame.scope:
            chain.append(at)
            at = at.outer
        if at is None:
            return None
        for nested in reversed(chain):
            frame = self._enter(frame, nested.number, nested)
        return frame

    def given(self, value: Value) -> Value | None:
        """For an input of a function, what its caller passes for it."""
        frame = value.frame
        if frame.caller is None or not frame.scope.is_function or value.node is not None:
            return None
        call = frame.caller.scope.nodes[frame.call]
        slot = frame.scope.input_slots.get(value.name, -1)
        if not 0 <= slot < len(call.input) or not call.input[slot]:
            return None
        return self.resolve(frame.caller, call.input[slot])

    def canonical(self, value: Value) -> Value:
        """The same value where it was made: an input of a function as its caller knows it."""
        while (outer := self.given(value)) is not None:
            value = outer
        return value

    def operand(self, value: Value, slot: int) -> Value | None:
        """The value that the node making `value` reads at `slot`, where that was made."""
        frame, name = value
        made = frame.scope.producers.get(name)
        inputs = () if made is None else frame.scope.takes[made[0]]
        if slot >= len(inputs) or not inputs[slot]:
            return None
        found = self.resolve(frame, inputs[slot])
        return None if found is None else self.canonical(found)

    def operands(self, value: Value) -> list[Value]:
        """All inputs present of the node that makes `value`, see `operand`."""
        frame, name = value
        made = frame.scope.producers.get(name)
        found = (
            self.resolve(frame, source)
            for source in (() if made is None else frame.scope.takes[made[0]])
            if source
        )
        return [self.canonical(operand) for operand in found if operand is not None]

    def inside(self, value: Value) -> list[Value]:
        """The values from which a call or an If takes this one: one of each branch that may run."""
        frame, name = value
        made = frame.scope.producers.get(name)
        if made is None:
            return []
        number, slot = made
        if number not in frame.scope.special:
            return []
        node = frame.scope.nodes[number]
        if self.index.function_of(node) is None and node.op_type != "If":
            return []
        results = [
            self.resolve(inner_frame, inner_frame.scope.outputs[slot])
            for _, inner_frame in self.inner_frames(frame, number, node)
            if slot < len(inner_frame.scope.outputs)
        ]
        return [self.canonical(inner) for inner in results if inner is not None]

    def root_name(self, value: Value) -> str:
        """The name at the outermost graph of what a function is given or a loop starts from."""
        seen = {value}
        while True:
            value = self.canonical(value)
            frame = value.frame
            if frame.caller is None or frame.call == OUTPUT or value.node is not None:
                return value.name
            at = frame.scope.input_slots.get(value.name)
            if at is None:
                return value.name
            call = frame.caller.scope.nodes[frame.call]
            slots = node_inputs_of_subgraph_input(call, at)
            outer = (
                self.resolve(frame.caller, call.input[slots[0]])
                if len(slots) == 1 and slots[0] < len(call.input)
                else None
            )
            if outer is None or outer in seen:
                return value.name
            value = outer
            seen.add(value)

    def outer_output(self, value: Value) -> Value | None:
        """The output of the If or call around it that has this value as it is."""
        frame = value.frame
        if (
            frame.caller is None
            or frame.call == OUTPUT
            or value.name not in frame.scope.output_slots
        ):
            return None
        call = frame.caller.scope.nodes[frame.call]
        slot = frame.scope.output_slots[value.name]
        if (frame.scope.is_function or call.op_type == "If") and slot < len(call.output):
            return self.resolve(frame.caller, call.output[slot]) if call.output[slot] else None
        return None

    def sources(self, value: Value) -> Iterator[tuple[Value, Read]]:
        """The values that `value` is computed from in one step, each with the read that does it."""
        frame, name = value
        made = frame.scope.producers.get(name)
        if made is None:
            yield from self._sources_of_input(value)
            return
        number, slot = made
        scope = frame.scope
        node = scope.nodes[number]
        inner_frames = self.inner_frames(frame, number, node)
        if not inner_frames:
            for at, source in enumerate(scope.takes[number]):
                if source in scope.names:
                    yield Value(frame, source), Read(scope, number, at)
                else:
                    yield from self._read(frame, source, Read(scope, number, at))
            if number in scope.special:
                for source in names_by_attribute(node):
                    yield from self._read(frame, source, Read(scope, number, BY_NAME))
            return
        if node.op_type == "If":
            yield from self._read(frame, node.input[0], Read(frame.scope, number, 0))
        for _, inner_frame in inner_frames:
            shift = subgraph_output(node, slot)
            if shift < len(inner_frame.scope.outputs):
                result = inner_frame.scope.outputs[shift]
                yield from self._read(inner_frame, result, Read(inner_frame.scope, OUTPUT, shift))
        carried = node_input_of_output(node, slot)
        if carried is not None and carried < len(node.input):
            yield from self._read(frame, node.input[carried], Read(frame.scope, number, carried))

    def ancestors(
        self,
        starts: Iterable[Value],
        stop: Callable[[Value], bool] = lambda value: False,
        *,
        watched: Collection[Value] = (),
    ) -> tuple[set[Value], set[Read]]:
        """All that the starts are computed from, and the reads by which the watched values are.

        A value for which `stop` holds is not followed further (it is in the result all the same).
        """
        todo = list(starts)
        seen = set(todo)
        reads: set[Read] = set()
        done: set[tuple[Frame, int]] = set()
        while todo:
            value = todo.pop()
            if not self._is_first(value, done):
                continue
            plain = self._plain_sources(value, seen, watched)
            for source, read in self.sources(value) if plain is None else plain:
                if source in watched:
                    reads.add(read)
                if source not in seen:
                    seen.add(source)
                    if not stop(source):
                        todo.append(source)
        return seen, reads

    def _is_first(self, value: Value, done: set[tuple[Frame, int]]) -> bool:
        """True if no other output of the node is done yet, where all have the same sources."""
        frame, name = value
        made = frame.scope.producers.get(name)
        if made is None or len((node := frame.scope.nodes[made[0]]).output) < 2:
            return True
        if (frame, made[0]) in done:
            return False
        if not self.inner_frames(frame, made[0], node):
            done.add((frame, made[0]))
        return True

    def _plain_sources(
        self, value: Value, seen: set[Value], watched: Collection[Value]
    ) -> list[tuple[Value, Read]] | None:
        """The part of `sources` that is new or watched, where all of it is of the same frame.

        Large graphs consist of this, and most of what is met has been met before.
        """
        frame, name = value
        scope = frame.scope
        made = scope.producers.get(name)
        if (
            made is None
            or made[0] in scope.special
            or not scope.names.issuperset(scope.takes[made[0]])
        ):
            return None
        return [
            (Value(frame, source), Read(scope, made[0], slot))
            for slot, source in enumerate(scope.takes[made[0]])
            if (frame, source) not in seen or (frame, source) in watched
        ]

    # -- one step ------------------------------------------------------------------------------

    def _read(self, frame: Frame, name: str, read: Read) -> Iterator[tuple[Value, Read]]:
        value = self.resolve(frame, name) if name else None
        if value is not None:
            yield value, read

    def _sources_of_input(self, value: Value) -> Iterator[tuple[Value, Read]]:
        frame, name = value
        at = frame.scope.input_slots.get(name)
        if frame.caller is None or frame.call == OUTPUT or at is None:
            return
        call = frame.caller.scope.nodes[frame.call]
        if frame.scope.is_function:
            passed: list[int] = [at]
        else:
            passed = node_inputs_of_subgraph_input(call, at)
            fed_back = subgraph_output_of_input(call, at)
            if fed_back is not None and fed_back < len(frame.scope.outputs):
                result = frame.scope.outputs[fed_back]
                yield from self._read(frame, result, Read(frame.scope, OUTPUT, fed_back))
        for slot in passed:
            if slot < len(call.input):
                read = Read(frame.caller.scope, frame.call, slot)
                yield from self._read(frame.caller, call.input[slot], read)

    def _enter(self, caller: Frame, number: int, scope: Scope) -> Frame:
        key = (id(caller), number, scope.path)
        if key not in self._entered:
            if caller.depth >= _MAX_DEPTH or len(self._entered) >= _MAX_FRAMES:
                raise OnnxClipError(
                    f"the calls of local functions and nested graphs are too deep or too many at "
                    f"{scope.path!r}: at most {_MAX_DEPTH} levels and {_MAX_FRAMES} calls are "
                    f"followed; does a function call itself?"
                )
            self._entered[key] = Frame(scope, caller, number, caller.depth + 1)
        return self._entered[key]
