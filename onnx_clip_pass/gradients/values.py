"""The values of one run as a graph without cycles: what each is computed from, and what is known.

A node of many inputs and many outputs stands among them itself, as its *hub*: the outputs are
computed from it and it from the inputs, so that their ways are as many as inputs and outputs, and
not as pairs of them.

A run is what executes once: the main graph, an algorithm of `training_info` joined with it, or one
iteration of the subgraph of a Loop or Scan. Local functions are entered at each call, and both
branches of an If. A Loop or Scan inside the run is one operator here, since its subgraph is a run
of its own; so there is no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from sys import intern

from onnx_clip_pass.gradients.ops import ALIASES, CALL, ELEMENTWISE, PHI
from onnx_clip_pass.graph import Flow, Frame, Scope, TensorType, Value, attribute
from onnx_clip_pass.graph.ordering import in_order

__all__ = ["Values"]

_MANY = 16
"""More inputs than any operator has by its definition that has several outputs."""


class Values:
    """The vertices, in topological order; number 0 is none of them.

    `value[i]` is where vertex i is defined, `op[i]` the operator that computes it ("" for an
    input, an initializer or what a nested subgraph takes from around it), `takes[i]` what that
    operator is given, slot by slot (0 where a slot is left empty); of an output of a hub that
    alone, see `operands`.
    """

    def __init__(self, flow: Flow, frames: Iterable[Frame]) -> None:
        """The values of `frames` and of the functions and branches entered from them."""
        self.flow = flow
        self.value: list[Value] = [Value(flow.main, "")]
        self.op: list[str] = [""]
        self.takes: list[tuple[int, ...]] = [()]
        self.types: list[TensorType | None] = [None]
        self.hubs: set[int] = set()
        self._numbers: dict[Value, int] = {}
        for frame in frames:
            self._add_frame(frame)

    def __len__(self) -> int:
        return len(self.value)

    def find(self, value: Value | None) -> int:
        """Return the number of a value; 0 if it is not of this run."""
        return 0 if value is None else self._numbers.get(value, 0)

    def named(self, frame: Frame, name: str) -> int:
        """Return the number of what a name means in a frame."""
        found = self.flow.resolve(frame, name) if name else None
        if found is None:
            return 0
        return self._numbers.get(found, 0) or self._add(found, "", ())

    def name(self, vertex: int) -> str:
        """Return the name of a vertex in its own graph."""
        return self.value[vertex].name

    def behind(self, vertex: int) -> int:
        """Return the vertex at the end of a chain of aliases."""
        while self.op[vertex] in ALIASES and self.takes[vertex] and self.takes[vertex][0]:
            vertex = self.takes[vertex][0]
        return vertex

    def hub(self, vertex: int) -> int:
        """Return the hub of which a vertex is an output; 0 for none."""
        takes = self.takes[vertex]
        return takes[0] if takes and takes[0] in self.hubs else 0

    def operands(self, vertex: int) -> tuple[int, ...]:
        """Return what the operator of a vertex is given, slot by slot, past its hub."""
        return self.takes[self.hub(vertex) or vertex]

    def shape(self, vertex: int) -> tuple[int | str | None, ...] | None:
        """Return the shape of a vertex as far as it is known."""
        known = self.types[vertex]
        return None if known is None else known.shape

    def size(self, vertex: int) -> int | None:
        """Return the number of elements; None if it is unknown."""
        return size_of(self.shape(vertex))

    def is_scalar_like(self, vertex: int) -> bool:
        """Return whether a vertex is known to hold one element."""
        return self.size(vertex) == 1

    def is_constant(self, vertex: int) -> bool:
        """True if a vertex is a Constant node, or an initializer that no caller can replace."""
        if self.op[vertex]:
            return self.op[vertex] == "Constant"
        frame, name = self.value[vertex]
        return name in frame.scope.initializers and name not in frame.scope.input_slots

    def is_like(self, vertex: int, other: int) -> bool:
        """Return whether nothing known of two vertices' shapes contradicts."""
        a, b = self.types[vertex], self.types[other]
        return a is not None and b is not None and a.agrees_with(b)

    @cached_property
    def readers(self) -> list[tuple[int, ...]]:
        """The vertices that are computed from each vertex."""
        readers: list[list[int]] = [[] for _ in self.value]
        for vertex, takes in enumerate(self.takes):
            for source in dict.fromkeys(takes):
                readers[source].append(vertex)
        return [tuple(each) for each in readers]

    # -- building ------------------------------------------------------------------------------

    def _add_frame(self, frame: Frame) -> None:
        scope = frame.scope
        for name in dict.fromkeys((*scope.inputs, *sorted(scope.names - scope.producers.keys()))):
            if name and name not in scope.producers and self.flow.given(Value(frame, name)) is None:
                self._add(Value(frame, name), "", ())
        for number in _order(scope):
            self._add_node(frame, number)

    def _add_node(self, frame: Frame, number: int) -> None:
        scope, flow = frame.scope, self.flow
        node = scope.nodes[number]
        inner_frames = flow.inner_frames(frame, number, node)
        op = intern(node.op_type)
        takes = tuple(self._read(frame, name) for name in scope.takes[number])
        is_call = flow.index.function_of(node) is not None
        if is_call or op == "If":
            for _, inner_frame in inner_frames:
                self._add_frame(inner_frame)
        elif inner_frames:
            takes += tuple(
                found
                for _, inner_frame in inner_frames
                for name in _captured(inner_frame.scope)
                if (found := self._read(frame, name))
            )
        elif node.domain not in ("", "ai.onnx") and op in ELEMENTWISE:
            op = f"{node.domain}::{op}"
        if len(takes) > _MANY and len(node.output) > 1 and not (is_call or op == "If"):
            hub = self._append(Value(frame, ""), op, takes)
            self.hubs.add(hub)
            takes = (hub,)
        for slot, name in enumerate(node.output):
            if not name:
                continue
            if is_call or op == "If":
                inner = tuple(
                    found
                    for _, inner_frame in inner_frames
                    if slot < len(inner_frame.scope.outputs)
                    and (found := self._read(inner_frame, inner_frame.scope.outputs[slot]))
                )
                kind = CALL if is_call else PHI
                self._add(Value(frame, name), kind, inner if is_call else (*takes[:1], *inner))
            else:
                self._add(Value(frame, name), op, takes)

    def _read(self, frame: Frame, name: str) -> int:
        found = self.flow.resolve(frame, name) if name else None
        if found is None:
            return 0
        found = self.flow.canonical(found)
        return self._numbers.get(found, 0) or self._add(found, "", ())

    def _add(self, value: Value, op: str, takes: tuple[int, ...]) -> int:
        if value in self._numbers:
            return self._numbers[value]
        number = self._numbers[value] = self._append(value, op, takes)
        return number

    def _append(self, value: Value, op: str, takes: tuple[int, ...]) -> int:
        number = len(self.value)
        self.value.append(value)
        self.op.append(op)
        self.takes.append(takes)
        self.types.append(self._type(value, op, takes) if value.name else None)
        return number

    def _type(self, value: Value, op: str, takes: tuple[int, ...]) -> TensorType | None:
        """Declared, inferred, or else what elementwise operators make of their operands."""
        known = value.type
        if known is None or (known.dtype and known.shape is not None):
            return known
        scope = value.frame.scope
        if not scope.is_function:
            inferred = self.flow.index.inferred(scope, value.name)
            shape = inferred.shape if known.shape is None else known.shape
            known = TensorType(known.dtype or inferred.dtype, shape)
        if known.shape is None:
            known = TensorType(known.dtype, self._made_shape(value, op, takes))
        return scope.alike.setdefault(known, known)

    def _made_shape(
        self, value: Value, op: str, takes: tuple[int, ...]
    ) -> tuple[int | str | None, ...] | None:
        node = value.node
        if op == "Constant" and node is not None:
            for attr in node.attribute:
                if attr.name == "value":
                    return tuple(attr.t.dims)
                if attr.name in ("value_float", "value_int"):
                    return ()
            return None
        if op.startswith("Reduce") and node is not None:
            kept = attribute(node, "keepdims")
            is_whole = attribute(node, "axes") is None and len(node.input) < 2
            return () if is_whole and kept is not None and not kept.i else None
        if op == "Transpose" and node is not None and takes and (inner := self.shape(takes[0])):
            perm = attribute(node, "perm")
            order = range(len(inner))[::-1] if perm is None else perm.ints
            return tuple(inner[axis] for axis in order)
        if op == "MatMul" and len(takes) == 2:
            a, b = (self.shape(each) or () for each in takes)
            return (*a[:-1], b[-1]) if len(a) >= len(b) == 2 else None
        if op not in ELEMENTWISE:
            return None
        if op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"):
            single = bool(takes) and self.is_scalar_like(takes[0])
            return (1,) if single and op != "Squeeze" else () if single else None
        if op in ALIASES:
            return self.shape(takes[0]) if takes else None
        operands = takes[1:] if op in ("Where", PHI) else takes
        shapes = [self.shape(each) for each in operands if each]
        if not shapes or any(shape is None for shape in shapes):
            return None
        rank = max(len(shape) for shape in shapes if shape is not None)
        widest = [shape for shape in shapes if shape is not None and len(shape) == rank]
        return next((shape for shape in widest if size_of(shape) != 1), widest[0])


@lru_cache(maxsize=4096)
def size_of(shape: tuple[int | str | None, ...] | None) -> int | None:
    """Return the number of elements of a shape; None where a dimension is not known."""
    if shape is None:
        return None
    size = 1
    for each in shape:
        if not isinstance(each, int):
            return None
        size *= each
    return size


def _order(scope: Scope) -> Iterable[int]:
    """The numbers of the nodes, each behind those whose values it takes."""
    if scope.is_sorted:
        return range(len(scope.nodes))
    numbers = {id(node): number for number, node in enumerate(scope.nodes)}
    ordered = in_order(scope, scope.nodes, advice="it takes what is computed from its own result")
    return [numbers[id(node)] for node in ordered]


def _captured(scope: Scope) -> list[str]:
    """The names that a subgraph takes from around it, those of subgraphs in it included."""
    names = {name for takes in scope.takes for name in takes} | set(scope.outputs)
    for subgraphs in scope.subgraphs.values():
        for subgraph in subgraphs.values():
            names.update(_captured(subgraph))
    return sorted(name for name in names - scope.names if name)
