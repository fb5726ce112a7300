"""Added nodes as they stand around each gradient: those that serve it alone, and shared ones.

One pass over the added nodes in each direction tells which gradients each is computed from, and
which it leads to. So thousands of gradients with one norm in common take no longer than as many
without. The record that names the nodes is not trusted: it may say anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onnx import NodeProto, TensorProto, numpy_helper

from onnx_clip_pass.graph import GraphOrFunction, graphs_in
from onnx_clip_pass.record import OURS, Record

__all__ = ["Around", "Neighbourhood", "constants_of"]

_NONE, _MANY = -1, -2  # gradients that a node is computed from, or leads to, where it is not one


@dataclass(frozen=True, slots=True)
class Around:
    """One gradient and its own nodes; `kind` is the same for those that look the same."""

    gradient: str
    raw: str
    clipped: str | None
    own: list[int]
    kind: object
    whole: Neighbourhood


class Neighbourhood:
    """The added nodes of one graph, and which gradients each of them has to do with."""

    def __init__(self, graph: GraphOrFunction, nodes: list[NodeProto], record: Record) -> None:
        made = {name for node in nodes for name in node.output}
        # Constants of functions and of old models are nodes.
        self.constants = constants_of(graph, nodes, set(record.initializers))
        self.nodes = [node for node in nodes if node.output[:1] and not self._is_constant(node)]
        self.reads = [_reads(node) for node in self.nodes]
        self.producer = {
            name: at for at, node in enumerate(self.nodes) for name in node.output if name
        }
        self.ends: list[tuple[str, str, str | None]] = []
        for new, old in record.renamed.items():
            if new in made:
                self.ends.append((old, old, new))
            elif old in made:
                self.ends.append((old, new, old))
        if record.measures_only:
            read = {name for names in self.reads for name in names}
            gradients = dict.fromkeys(entry.gradient for entry in record.clips)
            self.ends = [(name, name, None) for name in gradients if name in read]
        self.inputs = set(record.inputs)
        self.outputs = {
            m.output: (m.quantity, m.gradients) for m in record.emitted if m.output in self.producer
        }
        self._follow()
        self._join_equal()
        ours = {id(node) for node in nodes}
        self.read_raw = {
            name
            for node in graph.node
            if id(node) not in ours
            for name in node.input
            if name in self.number
        }

    def _is_constant(self, node: NodeProto) -> bool:
        return node.output[0] in self.constants

    def _follow(self) -> None:
        """Find of each node the gradients that it is computed from, and those that it leads to."""
        self.number = number = {raw: at for at, (_, raw, _) in enumerate(self.ends)}
        result = {clipped: at for at, (_, _, clipped) in enumerate(self.ends) if clipped}
        called = {gradient: at for at, (gradient, *_) in enumerate(self.ends)}
        for name, (_, gradients) in self.outputs.items():
            result[name] = called.get(gradients[0], _MANY) if len(gradients) == 1 else _MANY
        self.sources = [_NONE] * len(self.nodes)
        self.targets = [_NONE] * len(self.nodes)
        self.readers: dict[int, list[int]] = defaultdict(list)
        for at, names in enumerate(self.reads):
            for name in names:
                if name in number:
                    self.sources[at] = _both(self.sources[at], number[name])
                elif name in self.producer:
                    before = self.producer[name]
                    self.readers[before].append(at)
                    self.sources[at] = _both(self.sources[at], self.sources[before])
        for at in range(len(self.nodes) - 1, -1, -1):
            for name in self.nodes[at].output:
                if name in result:
                    self.targets[at] = _both(self.targets[at], result[name])
            for after in self.readers[at]:
                self.targets[at] = _both(self.targets[at], self.targets[after])

    def _join_equal(self) -> None:
        """Take shared nodes that do the same with the same values for the first of them."""
        first: dict[object, int] = {}
        stands_for = list(range(len(self.nodes)))
        for at, node in enumerate(self.nodes):
            if not self._is_shared(at):
                continue
            takes = [self.producer.get(name, name) for name in self.reads[at]]
            attributes = tuple(each.SerializeToString() for each in node.attribute)
            stands_for[at] = first.setdefault((node.op_type, *takes, attributes), at)
            if stands_for[at] != at:
                self.readers[stands_for[at]] += self.readers[at]
                self.producer.update((name, stands_for[at]) for name in node.output)
        for at, after in self.readers.items():
            self.readers[at] = list(dict.fromkeys(stands_for[other] for other in after))

    def each(self) -> Iterator[Around]:
        """Return each gradient with its own nodes."""
        own: dict[int, list[int]] = defaultdict(list)
        for at, (source, target) in enumerate(zip(self.sources, self.targets, strict=True)):
            owners = {owner for owner in (source, target) if owner >= 0}
            for owner in owners:
                own[owner].append(at)
        groups = self._groups(own)
        for at, (gradient, raw, clipped) in enumerate(self.ends):
            nodes = own[at]
            local = {node: number for number, node in enumerate(nodes)}
            kind = tuple(
                (
                    self.nodes[node].op_type,
                    tuple(self._slot(name, raw, local, groups) for name in self.reads[node]),
                    tuple(
                        (groups[after], self.nodes[after].op_type)
                        for after in self.readers[node]
                        if after not in local
                    )[:4],
                )
                for node in nodes
            )
            yield Around(gradient, raw, clipped, nodes, (clipped is None, kind), self)

    def _slot(
        self, name: str, raw: str, local: dict[int, int], groups: dict[int, int]
    ) -> tuple[object, ...]:
        """One input of a node, as far as it makes a difference to a drawing."""
        if name == raw:
            return ("raw",)
        if name in self.constants:
            return ("constant", self.constants[name] is None)
        if name in self.inputs:
            return ("input", name)
        at = self.producer.get(name)
        if at is None:
            return ("other",)
        if at in local:
            return ("own", local[at])
        return ("shared", groups[at], self.nodes[at].op_type)

    def _groups(self, own: dict[int, list[int]]) -> dict[int, int]:
        """Shared nodes that lead to the same, each by the first node of where they lead to."""
        private = {at for nodes in own.values() for at in nodes}
        found: dict[int, int] = defaultdict(lambda: -1)
        for at in range(len(self.nodes) - 1, -1, -1):
            if at not in private:
                found[at] = min((found[a] for a in self.readers[at] if a in found), default=at)
        return found

    def shared_by(self, own: Iterable[int], most: int) -> list[int]:
        """The shared nodes that are computed from these, and what no gradient goes into.

        Past `most` of them the search ends.
        """
        found: dict[int, None] = {}
        todo = list(own)
        while todo and len(found) < most:
            at = todo.pop()
            near = [a for a in self.readers[at] if self.sources[at] != _NONE and self._is_shared(a)]
            near += [b for b in self._before(at) if self.sources[b] == _NONE and self._is_shared(b)]
            todo += [other for other in near if other not in found]
            found.update(dict.fromkeys(near))
        return sorted(found)

    def gradients_in(self, at: int) -> set[int]:
        """The gradients that a node is computed from."""
        seen, found = {at}, set()
        todo = [at]
        while todo:
            node = todo.pop()
            if self.sources[node] >= 0:
                found.add(self.sources[node])
                continue
            found.update(self.number[name] for name in self.reads[node] if name in self.number)
            before = [other for other in self._before(node) if other not in seen]
            seen.update(before)
            todo += before
        return found

    def _before(self, at: int) -> list[int]:
        return [self.producer[name] for name in self.reads[at] if name in self.producer]

    def _is_shared(self, at: int) -> bool:
        return self.sources[at] < 0 and self.targets[at] < 0


def _both(one: int, other: int) -> int:
    if one in (_NONE, other):
        return other
    return one if other == _NONE else _MANY


def _reads(node: NodeProto) -> list[str]:
    """The values that a node takes, those that its graphs take from around it behind the others."""
    found = [name for name in node.input if name]
    todo = [graph for _, graph in graphs_in(node)]
    inside: set[str] = set()
    outside: dict[str, None] = {}
    while todo:
        graph = todo.pop()
        inside.update(value.name for value in graph.input)
        inside.update(tensor.name for tensor in graph.initializer)
        for inner in graph.node:
            inside.update(inner.output)
            outside.update(dict.fromkeys(filter(None, inner.input)))
            todo += [graph for _, graph in graphs_in(inner)]
    return found + [name for name in outside if name not in inside]


def constants_of(
    graph: GraphOrFunction, nodes: list[NodeProto], names: set[str]
) -> dict[str, float | None]:
    """The added constants by name: the number of each, None if it is no single float."""
    found: dict[str, float | None] = {}
    for tensor in getattr(graph, "initializer", ()):
        if tensor.name in names and tensor.name.startswith(OURS):
            found[tensor.name] = _number(tensor)
    for node in nodes:
        if node.op_type == "Constant" and node.output:
            tensors = [attr.t for attr in node.attribute if attr.name == "value"]
            found[node.output[0]] = _number(tensors[0]) if tensors else None
        elif node.op_type == "Cast" and node.input and node.input[0] in found and node.output:
            found[node.output[0]] = found[node.input[0]]
    return found


def _number(tensor: TensorProto) -> float | None:
    if tensor.dims or tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    try:
        return float(numpy_helper.to_array(tensor))
    except Exception:  # of a model that anyone has changed: onnx raises several kinds
        return None
