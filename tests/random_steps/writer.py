"""Writing a training step node by node: names, numbers, dtypes, and bodies of branches and calls.

A value is known by its name; the writer keeps its shape and dtype. What is written while `body` is
open lands in a branch of an If or in a local function instead of the main graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Shape = tuple[int, ...]
DOMAIN = "local"


@dataclass(frozen=True)
class Number:
    """A number of the step: where it stands in the model, and what it is."""

    value: float
    kind: str  # "constant" (a node), "initializer", "input", or "value" of the graph
    name: str
    shape: Shape = ()

    @property
    def fixed(self) -> bool:
        """Whether the model says what it is."""
        return self.kind in ("constant", "initializer")


@dataclass
class _Body:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    cast: dict[tuple[str, int], str] = field(default_factory=dict)


class Writer:
    """The model that is being written; `dtype` is that of parameters, data and gradients."""

    def __init__(self, draw: Random, dtype: int, opset: int, style: str) -> None:
        self.draw, self.dtype, self.opset, self.style = draw, dtype, opset, style
        self.working = dtype  # the dtype in which arithmetic is being written
        self.names = Random(draw.random())  # apart, so that names do not change other draws
        self.scalars: tuple[Shape, ...] = ((),)  # shapes that a number may have
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, int] = {}
        self.feeds: dict[str, Array] = {}
        self.held: dict[str, Array] = {}  # initializers
        self.outputs: list[str] = []
        self.functions: list[onnx.FunctionProto] = []
        self.formals: dict[str, str] = {}  # of functions, and what they are called with
        self._bodies = [_Body()]
        self._taken: set[str] = set()

    # -- drawing -------------------------------------------------------------------------------

    def maybe(self, share: float) -> bool:
        return self.draw.random() < share

    # -- names and values ----------------------------------------------------------------------

    def fresh(self, hint: str = "") -> str:
        """A name that is not taken: meaningless, or `hint` where names are to mean something."""
        if self.style == "meaningful" and hint:
            name, number = hint, 1
            while name in self._taken:
                number += 1
                name = f"{hint}_{number}"
        else:
            form = "/step 1/{}:0" if self.style == "odd" else "v{}"
            name = form.format(self.names.randrange(10**4))
            while name in self._taken:
                name = form.format(self.names.randrange(10**5))
        self._taken.add(name)
        return name

    def know(self, name: str, shape: Shape, dtype: int) -> str:
        self.shapes[name], self.dtypes[name] = shape, dtype
        return name

    def put(
        self,
        op: str,
        *inputs: str,
        hint: str = "",
        shape: Shape | None = None,
        dtype: int | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node and return its output, which has the shape of all inputs broadcast."""
        out = self.fresh(hint)
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        if shape is None:
            shape = np.broadcast_shapes(*(self.shapes[name] for name in inputs))
        return self.know(out, tuple(shape), self.dtypes[inputs[-1]] if dtype is None else dtype)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return self._bodies[-1].nodes

    def array(self, value: Array, dtype: int) -> Array:
        return np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(dtype))

    def feed(self, value: Array, hint: str, *, dtype: int | None = None, held: bool = False) -> str:
        """An input of the graph, with an initializer as well if it is `held`."""
        dtype = self.dtype if dtype is None else dtype
        name = self.know(self.fresh(hint), np.shape(value), dtype)
        self.feeds[name] = self.array(value, dtype)
        if held:
            self.held[name] = self.feeds[name]
        return name

    def constant(
        self, value: Array | float, hint: str = "", *, dtype: int | None = None, kind: str = ""
    ) -> str:
        """A constant in the working dtype: a node or an initializer."""
        dtype = self.working if dtype is None else dtype
        array = self.array(np.asarray(value), dtype)
        if (kind or self.draw.choice(("constant", "initializer"))) == "initializer":
            name = self.know(self.fresh(hint), array.shape, dtype)
            self.held[name] = array
            return name
        tensor = numpy_helper.from_array(array)
        out = self.fresh(hint)
        self.nodes.append(helper.make_node("Constant", [], [out], value=tensor))
        return self.know(out, array.shape, dtype)

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values), dtype=TensorProto.INT64)

    # -- numbers -------------------------------------------------------------------------------

    def number(self, value: float, hint: str, *kinds: str, plain: bool = False) -> Number:
        """A setting of the step; `plain` ones are of shape [] whatever others are."""
        kind = self.draw.choice(kinds or ("constant", "initializer", "input"))
        shape = () if plain else self.draw.choice(self.scalars)
        array = np.full(shape, value)
        if kind == "input":
            name = self.feed(array, hint)
        elif kind == "initializer":
            name = self.constant(array, hint, dtype=self.dtype, kind=kind)
        else:
            name = hint
        return Number(value, kind, name, shape)

    def use(self, number: Number | str | float) -> str:
        """The name under which a number can be read here, in the working dtype."""
        if isinstance(number, str):
            return self.cast(number)
        if not isinstance(number, Number):
            return self.constant(number)
        if number.kind == "constant":
            return self.constant(np.full(number.shape, number.value), number.name)
        return self.cast(number.name)

    def cast(self, name: str, dtype: int | None = None) -> str:
        """The value in the working dtype."""
        dtype = self.working if dtype is None else dtype
        if self.dtypes[name] == dtype:
            return name
        known = self._bodies[-1].cast
        if (name, dtype) not in known:
            known[name, dtype] = self.put("Cast", name, to=dtype, dtype=dtype)
        return known[name, dtype]

    def low(self, name: str) -> str:
        """A cast of a value of the model's dtype to the working one, even if they are the same."""
        return self.put("Cast", name, to=self.working, dtype=self.working)

    def high(self, name: str) -> str:
        """A cast back."""
        return self.put("Cast", name, to=self.dtype, dtype=self.dtype)

    # -- layout and reductions -----------------------------------------------------------------

    def transpose(self, x: str) -> str:
        return self.put("Transpose", x, perm=[1, 0], shape=self.shapes[x][::-1])

    def matmul(self, a: str, b: str, hint: str = "") -> str:
        shape = (self.shapes[a][0], self.shapes[b][1])
        return self.put("MatMul", a, b, shape=shape, hint=hint)

    def reshape(self, x: str, shape: Shape, hint: str = "") -> str:
        return self.put(
            "Reshape", x, self.integers(*shape), shape=shape, dtype=self.dtypes[x], hint=hint
        )

    def reduce(self, op: str, x: str, axes: Sequence[int] | None = None, *, keep: bool) -> str:
        """ReduceSum and its kind over some axes or all, as the opset spells it."""
        rank = len(self.shapes[x])
        gone = range(rank) if axes is None else axes
        shape = tuple(
            1 if axis in gone else size
            for axis, size in enumerate(self.shapes[x])
            if keep or axis not in gone
        )
        dtype = self.dtypes[x]
        if axes is None:
            return self.put(op, x, keepdims=int(keep), shape=shape, dtype=dtype)
        as_input = self.opset >= 18 or (op == "ReduceSum" and self.opset >= 13)
        if as_input:
            return self.put(
                op, x, self.integers(*axes), keepdims=int(keep), shape=shape, dtype=dtype
            )
        return self.put(op, x, axes=list(axes), keepdims=int(keep), shape=shape, dtype=dtype)

    # -- bodies --------------------------------------------------------------------------------

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect nodes apart from those around them."""
        self._bodies.append(_Body())
        try:
            yield self._bodies[-1].nodes
        finally:
            self._bodies.pop()

    def typed(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.dtypes[name], self.shapes[name])

    def choose(
        self,
        flag: str,
        branches: Sequence[tuple[list[onnx.NodeProto], list[str]]],
    ) -> list[str]:
        """An If; each branch is its nodes and the values that it returns."""
        results = branches[0][1]
        outs = [self.know(self.fresh(), self.shapes[r], self.dtypes[r]) for r in results]
        then_branch, else_branch = (
            helper.make_graph(nodes, "branch", [], [self.typed(name) for name in given])
            for nodes, given in branches
        )
        self.nodes.append(
            helper.make_node("If", [flag], outs, then_branch=then_branch, else_branch=else_branch)
        )
        return outs

    def call(self, nodes: list[onnx.NodeProto], results: list[str]) -> list[str]:
        """A local function of these nodes and a call of it."""
        reads = outer_names(nodes)
        renamed = {name: self.fresh() for name in reads}
        self.formals.update({formal: name for name, formal in renamed.items()})
        for node in nodes:
            rename(node, renamed)
        outs = [self.know(self.fresh(), self.shapes[r], self.dtypes[r]) for r in results]
        title = f"step{len(self.functions)}"
        self.functions.append(
            helper.make_function(DOMAIN, title, list(renamed.values()), results, nodes, self.opsets)
        )
        self.nodes.append(helper.make_node(title, reads, outs, domain=DOMAIN))
        return outs

    @property
    def opsets(self) -> list[onnx.OperatorSetIdProto]:
        return [helper.make_opsetid("", self.opset), helper.make_opsetid(DOMAIN, 1)]

    def model(self) -> onnx.ModelProto:
        """The model, with inputs, outputs and nodes in a drawn order."""
        nodes = shuffled(self.nodes, self.draw)
        read = {*outer_names(nodes), *self.outputs}
        inputs = [name for name in self.feeds if name in read]
        held = {name: array for name, array in self.held.items() if name in read}
        self.feeds = {name: self.feeds[name] for name in inputs}
        outputs = list(self.outputs)
        self.draw.shuffle(inputs)
        self.draw.shuffle(outputs)
        graph = helper.make_graph(
            nodes,
            "step",
            [self.typed(name) for name in inputs],
            [self.typed(name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in held.items()],
        )
        opsets = self.opsets if self.functions else self.opsets[:1]
        return helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=8
        )


def outer_names(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The names that nodes read and do not make, in the order in which they are read first."""
    made: set[str] = set()
    read: dict[str, None] = {}
    for node in nodes:
        for name in _reads(node):
            if name and name not in made:
                read.setdefault(name)
        made.update(node.output)
    return list(read)


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, in the graphs nested in it too."""
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            made = {out for inner in attribute.g.node for out in inner.output}
            names += [name for name in outer_names(attribute.g.node) if name not in made]
    return names


def rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Rename what a node reads, in the graphs nested in it too."""
    for slot, name in enumerate(node.input):
        node.input[slot] = names.get(name, name)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            rename(inner, names)


def shuffled(nodes: Sequence[onnx.NodeProto], draw: Random) -> list[onnx.NodeProto]:
    """The nodes in another order in which each still stands behind what it reads."""
    producers = {name: at for at, node in enumerate(nodes) for name in node.output}
    waits = [{producers[name] for name in _reads(node) if name in producers} for node in nodes]
    readers: dict[int, list[int]] = {}
    for at, wait in enumerate(waits):
        for producer in wait:
            readers.setdefault(producer, []).append(at)
    ready, order = [at for at, wait in enumerate(waits) if not wait], []
    while ready:
        at = ready.pop(draw.randrange(len(ready)))
        order.append(nodes[at])
        for reader in readers.get(at, []):
            waits[reader].discard(at)
            if not waits[reader]:
                ready.append(reader)
    return order
