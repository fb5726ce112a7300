"""The graphs and functions of a model, with producer, consumers and type of each value.

The nodes of a model live in several graphs: the main graph, the graphs nested in nodes such as
If and Loop, local functions, and the graphs of `training_info`. Scoping follows the ONNX IR
specification (https://onnx.ai/onnx/repo-docs/IR.html): a nested graph sees the names of the
graphs around it, a function sees only its inputs, and a graph of `training_info` sees the main
graph, with which it is joined when it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
)

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph.inference import infer_types
from onnx_clip_pass.graph.subgraphs import attributed, graphs_in, names_by_attribute
from onnx_clip_pass.graph.types import TensorType
from onnx_clip_pass.graph.versions import assume_versions, versions_of

__all__ = [
    "BY_NAME",
    "OUTPUT",
    "Index",
    "Read",
    "Scope",
]

OUTPUT = -1
"""The node number of a `Read` by which a value is a graph output."""
BY_NAME = -1
"""The slot of a `Read` by a string attribute (the Gradient operator names tensors so)."""

_MAX_NESTING = 64
_UNKNOWN = TensorType()


class Read(NamedTuple):
    """One read of a value: input number `slot` of node number `node` of `scope`."""

    scope: Scope
    node: int
    slot: int


@dataclass(eq=False, slots=True, repr=False)
class Scope:
    """One graph, subgraph or function; `path` says where it is, and is empty for the main graph.

    `at` is its place among the scopes of its index. `number` is that of the node of `outer` in
    which it is, OUTPUT if it is in none; `key` is what it is called there.

    What is asked for of every node of a large graph is taken out of protobuf once: `takes` are the
    inputs of each node, `by_op` the numbers of the nodes of each op type, `attributed` those of the
    nodes that have attributes, `special` those of the nodes that run a subgraph or function (an If,
    a call) or name tensors in attributes; `is_sorted` says whether each node comes after those
    whose values it takes. `input_slots` and `output_slots` are the first slots of inputs and
    outputs by name, `reads` the reads of this very scope of its own values, see `_packed`. Equal
    names are one object, and so are equal types (`alike`).
    """

    proto: GraphProto | FunctionProto
    path: str
    outer: Scope | None
    opsets: dict[str, int]
    attributed: set[int]
    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]
    at: int = 0
    number: int = OUTPUT
    key: str = ""
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    types: dict[str, TensorType | TypeProto | None] = field(default_factory=dict)
    subgraphs: dict[int, dict[str, Scope]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    takes: list[tuple[str, ...]] = field(default_factory=list)
    by_op: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    special: set[int] = field(default_factory=set)
    input_slots: dict[str, int] = field(default_factory=dict)
    output_slots: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int | list[int]] = field(default_factory=dict)
    alike: dict[TensorType, TensorType] = field(default_factory=dict)
    is_sorted: bool = True

    @property
    def is_function(self) -> bool:
        return isinstance(self.proto, FunctionProto)

    @property
    def opset(self) -> int | None:
        """The version of the default operator set, imported or assumed; None if that is missing."""
        return self.opsets.get("")

    def lookup(self, name: str) -> Scope | None:
        """The scope, this one or one around it, that defines `name`."""
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.outer
        return scope

    def number_in(self, outer: Scope) -> int:
        """The number of the node of `outer` in which this graph is, at any depth, see above."""
        inner = self
        while inner.outer is not None and inner.outer is not outer:
            inner = inner.outer
        return inner.number if inner.outer is outer else OUTPUT

    def producer(self, name: str) -> NodeProto | None:
        """The node of this very scope that computes `name`."""
        found = self.producers.get(name)
        return None if found is None else self.nodes[found[0]]

    def numbers_of(self, *op_types: str) -> list[int]:
        """The numbers of the nodes of these op types, in order."""
        found = [number for op_type in op_types for number in self.by_op.get(op_type, ())]
        return sorted(found)

    def type_of(self, name: str) -> TensorType | None:
        """The declared type of `name`, here or around here, see `declared`."""
        scope = self.lookup(name)
        return TensorType() if scope is None else scope.declared(name)

    def declared(self, name: str) -> TensorType | None:
        """The type that this very scope declares: None if it is no tensor, unknown if undeclared.

        Types are read when they are asked for: a large graph declares more than anyone wants.
        """
        found = self.types.get(name, _UNKNOWN)
        if isinstance(found, TypeProto):
            found = TensorType.of(found)
            self.types[name] = found = found and self.alike.setdefault(found, found)
        return found

    def __repr__(self) -> str:
        return f"<Scope {self.path or 'main graph'}>"


class Index:
    """Every scope of a model, and every reader of every value. Reads a model, changes nothing."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self.functions: dict[tuple[str, str, str], Scope] = {}
        self._callers: dict[int, list[tuple[Scope, int]]] = defaultdict(list)
        self._texts: dict[str, str] = {}
        self._alike: dict[TensorType, TensorType] = {}
        opsets = versions_of(model.opset_import)
        self.main = self._add_graph(model.graph, "", None, opsets, 0)
        for number, info in enumerate(model.training_info):
            path = f"training_info[{number}]"
            self._add_graph(info.initialization, f"{path}.initialization", None, opsets, 0)
            self._add_graph(info.algorithm, f"{path}.algorithm", self.main, opsets, 0)
        for function in model.functions:
            key = (function.domain, function.name, getattr(function, "overload", ""))
            self.functions[key] = self._add_function(function, opsets)
        self._mark_special()
        graphs = [(scope.opsets, scope.nodes) for scope in self.scopes]
        self.assumed = assume_versions(graphs, self.main.opset, model.ir_version)
        self._texts.clear()
        self._readers = self._index_readers()
        self._inferred: dict[str, dict[str, TensorType]] | None = None

    def function_of(self, node: NodeProto) -> Scope | None:
        """The local function that a node calls, if it is such a call."""
        if not self.functions:
            return None
        return self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))

    def callers_of(self, function: Scope) -> list[tuple[Scope, int]]:
        """The nodes that call a local function: the scope of each, and its number there."""
        return self._callers.get(id(function), [])

    def readers_of(self, scope: Scope, name: str) -> list[Read]:
        """The reads of the value that `scope` defines as `name`, in nested graphs too."""
        own = scope.reads.get(name, ())
        found = [_unpacked(scope, packed) for packed in ([own] if isinstance(own, int) else own)]
        found += self._readers.get((id(scope), name), ())
        return found

    def inferred(self, scope: Scope, name: str) -> TensorType:
        """The type that shape inference finds; all unknown if it finds none or fails."""
        if self._inferred is None:
            try:
                self._inferred = infer_types(self.model)
                for scope in self.scopes:  # what is declared need not be kept again
                    found = self._inferred.get(scope.path, {})
                    for known in found.keys() & scope.types.keys():
                        if found[known] == scope.declared(known):
                            del found[known]
                    found.update(
                        {known: self._alike.setdefault(t, t) for known, t in found.items()}
                    )
            except Exception:  # onnx raises several kinds; a model may be beyond its inference
                self._inferred = {}
        return self._inferred.get(scope.path, {}).get(name) or scope.declared(name) or _UNKNOWN

    def all_names(self) -> set[str]:
        """Every name of a value or node anywhere in the model, also of one that nothing makes."""
        names: set[str] = set()
        for scope in self.scopes:
            names |= scope.names
            names.update(scope.outputs, scope.types)
            names.update(node.name for node in scope.nodes)
            names.update(*scope.takes)
            for number in scope.numbers_of("Gradient"):
                names.update(names_by_attribute(scope.nodes[number]))
        return names

    # -- building ------------------------------------------------------------------------------

    def _add_graph(
        self,
        graph: GraphProto,
        path: str,
        outer: Scope | None,
        opsets: dict[str, int],
        depth: int,
    ) -> Scope:
        scope = Scope(
            proto=graph,
            path=path,
            outer=outer,
            opsets=opsets,
            attributed=attributed(graph),
            nodes=list(graph.node),
            inputs=[value.name for value in graph.input],
            outputs=[value.name for value in graph.output],
        )
        for tensor in graph.initializer:
            scope.initializers[tensor.name] = tensor
            scope.types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
        for sparse in graph.sparse_initializer:
            scope.names.add(sparse.values.name)
            scope.types[sparse.values.name] = TensorType(
                sparse.values.data_type, tuple(sparse.dims)
            )
        scope.names.update(scope.initializers)
        self._fill(scope, depth)
        return scope

    def _add_function(self, function: FunctionProto, opsets: dict[str, int]) -> Scope:
        overload = getattr(function, "overload", "")  # since IR 10
        scope = Scope(
            proto=function,
            path=f"function {function.domain}::{function.name}" + (overload and f":{overload}"),
            outer=None,
            opsets=versions_of(function.opset_import) or opsets,
            attributed=attributed(function),
            nodes=list(function.node),
            inputs=list(function.input),
            outputs=list(function.output),
        )
        self._fill(scope, 0)
        return scope

    def _fill(self, scope: Scope, depth: int) -> None:
        if depth > _MAX_NESTING:
            raise OnnxClipError(
                f"expected graphs nested at most {_MAX_NESTING} deep, but {scope.path!r} is deeper"
            )
        scope.at = len(self.scopes)
        self.scopes.append(scope)
        one = self._texts.setdefault
        scope.alike = self._alike
        scope.inputs[:] = [one(name, name) for name in scope.inputs]
        scope.outputs[:] = [one(name, name) for name in scope.outputs]
        scope.names.update(scope.inputs)
        scope.input_slots = _slots(scope.inputs)
        scope.output_slots = _slots(scope.outputs)
        proto = scope.proto
        declared = [*getattr(proto, "value_info", ())]
        if isinstance(proto, GraphProto):
            declared += [*proto.input, *proto.output]
        for value in declared:
            if (name := value.name) not in scope.initializers:
                scope.types[one(name, name)] = value.type
        scope.takes += [tuple([one(name, name) for name in node.input]) for node in scope.nodes]
        for number, node in enumerate(scope.nodes):
            for slot, name in enumerate(node.output):
                if not name:
                    continue
                if name in scope.producers or name in scope.names:
                    raise _written_twice(scope, number, name)
                scope.producers[one(name, name)] = (number, slot)
            scope.by_op[node.op_type].append(number)
            for key, graph in graphs_in(node) if number in scope.attributed else ():
                path = f"{scope.path}/{node.op_type}[{number}].{key}".lstrip("/")
                subgraph = self._add_graph(graph, path, scope, scope.opsets, depth + 1)
                subgraph.number, subgraph.key = number, key
                scope.subgraphs.setdefault(number, {})[key] = subgraph
                scope.special.add(number)
        scope.names.update(scope.producers)

    def _mark_special(self) -> None:
        called = {name for _, name, _ in self.functions}
        for scope in self.scopes:
            scope.special.update(scope.numbers_of("Gradient"))
            for number in scope.numbers_of(*(op for op in scope.by_op if op in called)):
                if (function := self.function_of(scope.nodes[number])) is not None:
                    scope.special.add(number)
                    self._callers[id(function)].append((scope, number))

    def _index_readers(self) -> dict[tuple[int, str], list[Read]]:
        """Note who reads what: what a scope reads of its own there, the rest is returned."""
        readers: dict[tuple[int, str], list[Read]] = defaultdict(list)
        for scope in self.scopes:
            reads, names = scope.reads, scope.names
            for name, number, slot in _reads_in(scope):
                if name in names:
                    packed = _packed(number, slot)
                    known = reads.setdefault(name, packed)
                    if isinstance(known, list):
                        known.append(packed)
                    elif known != packed:
                        reads[name] = [known, packed]
                    owner, taker = scope, number
                elif name and (around := scope.lookup(name)) is not None:
                    readers[id(around), name].append(Read(scope, number, slot))
                    owner, taker = around, scope.number_in(around)
                else:
                    continue
                made = owner.producers.get(name)
                if made is not None and made[0] >= taker != OUTPUT:
                    owner.is_sorted = False
        return dict(readers)


def _written_twice(scope: Scope, number: int, name: str) -> OnnxClipError:
    """The error for a value that two of a graph make, so that no one knows which is read."""
    made = scope.producers.get(name)
    if made is not None:
        other = f"node {made[0]}, {scope.nodes[made[0]].op_type}"
    else:
        other = "an initializer" if name in scope.initializers else "an input"
    where = scope.path or "the main graph"
    return OnnxClipError(
        f"expected values that are made once, but {name!r} of {where} is made by node {number}, "
        f"{scope.nodes[number].op_type}, and is the name of {other} as well; give one of them "
        f"another name"
    )


def _packed(number: int, slot: int) -> int:
    """A read in its scope as one number: a large graph has many, mostly lone ones."""
    return number + 1 << 32 | slot + 1


def _unpacked(scope: Scope, packed: int) -> Read:
    return Read(scope, (packed >> 32) - 1, (packed & (1 << 32) - 1) - 1)


def _slots(names: list[str]) -> dict[str, int]:
    """The first slot of each name."""
    return {name: slot for slot, name in reversed([*enumerate(names)])}


def _reads_in(scope: Scope) -> Iterator[tuple[str, int, int]]:
    """The name, node number and slot of every read."""
    for number, inputs in enumerate(scope.takes):
        for slot, name in enumerate(inputs):
            yield name, number, slot
    for number in scope.special:
        for name in names_by_attribute(scope.nodes[number]):
            yield name, number, BY_NAME
    for slot, name in enumerate(scope.outputs):
        yield name, OUTPUT, slot
