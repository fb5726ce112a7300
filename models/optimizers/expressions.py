"""Training steps written as arithmetic: every operation on a `Value` adds a node to its `Step`.

Values are called `v1`, `v2`, … unless `called` says otherwise, so that no name gives away what a
value is. The data and weights of a step come from a generator seeded by the step's own name: a
step that is added changes no other file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

HERE = Path(__file__).parent
Operand = "Value | float"


class Value:
    """A value of the graph; its name is decided when the step is saved."""

    def __init__(self, step: Step, name: str) -> None:
        self.step, self.name = step, name

    def called(self, name: str) -> Value:
        """Give the value a name of its own."""
        self.name = name
        return self

    def __add__(self, other: Operand) -> Value:
        return self.step.op("Add", self, other)

    def __radd__(self, other: float) -> Value:
        return self.step.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.step.op("Sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return self.step.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.step.op("Mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return self.step.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.step.op("Div", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return self.step.op("Div", other, self)

    def __matmul__(self, other: Value) -> Value:
        return self.step.op("MatMul", self, other)

    def __neg__(self) -> Value:
        return self.step.op("Neg", self)

    def transposed(self) -> Value:
        return self.step.op("Transpose", self, perm=[1, 0])

    def sqrt(self) -> Value:
        return self.step.op("Sqrt", self)

    def sum(self, axis: int | None = None, keep: bool = False, kind: str = "ReduceSum") -> Value:
        """Reduce by `kind` over one axis, or over all."""
        axes = [] if axis is None else [self.step.integers(axis)]
        return self.step.op(kind, self, *axes, keepdims=int(keep))

    def mean(self, axis: int | None = None, keep: bool = False) -> Value:
        return self.sum(axis, keep, "ReduceMean")


class Step:
    """One model in the making: inputs with their feeds, constants, nodes, outputs."""

    def __init__(self, name: str, opset: int = 18) -> None:
        self.name, self.opset = name, opset
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.inputs: dict[Value, np.ndarray] = {}
        self.constants: dict[Value, np.ndarray] = {}
        self.numbers: dict[tuple[str, Any], Value] = {}
        self.outputs: list[tuple[Value, int, list[int]]] = []
        self.nodes: list[tuple[str, list[Value], list[Value], dict[str, Any]]] = []
        self.count = 0

    # -- values ------------------------------------------------------------------------------

    def fresh(self, name: str = "") -> Value:
        self.count += not name
        return Value(self, name or f"v{self.count}")

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.normal(size=shape).astype(np.float32)

    def input(self, name: str, array: Any) -> Value:
        """Declare an input and what it is fed; floats become float32."""
        array = np.asarray(array)
        value = self.fresh(name)
        self.inputs[value] = array.astype(np.float32) if array.dtype == np.float64 else array
        return value

    def noise(self, *shapes: str, at: float = 0.0) -> tuple[Value, ...] | Value:
        """Declare normal inputs, each as 'name 6 3'; `at` moves them, as states of squares are."""
        made = []
        for name, *dims in (shape.split() for shape in shapes):
            array = self.normal(*map(int, dims))
            made.append(self.input(name, abs(array) + at if at else array))
        return tuple(made) if len(made) > 1 else made[0]

    def constant(self, array: Any, name: str = "") -> Value:
        array = np.asarray(array)
        value = Value(self, name or f"k{len(self.constants)}")
        self.constants[value] = array.astype(np.float32) if array.dtype == np.float64 else array
        return value

    def number(self, number: float | bool) -> Value:
        """Return a constant of rank 0, each number once."""
        dtype = np.bool_ if isinstance(number, bool) else np.float32
        key = (dtype.__name__, number)
        if key not in self.numbers:
            self.numbers[key] = self.constant(np.array(number, dtype))
        return self.numbers[key]

    def integers(self, *numbers: int) -> Value:
        key = ("integers", numbers)
        if key not in self.numbers:
            self.numbers[key] = self.constant(np.array(numbers, np.int64))
        return self.numbers[key]

    # -- nodes -------------------------------------------------------------------------------

    def op(self, kind: str, *operands: Operand, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; a number among its operands becomes a constant, `None` is left out.

        The domain of an operator stands before its name: 'vendor::SGD'.
        """
        sources = [
            Value(self, "") if x is None else x if isinstance(x, Value) else self.number(x)
            for x in operands
        ]
        made = [self.fresh() for _ in range(outputs)]
        self.nodes.append((kind, sources, made, attributes))
        return made[0] if outputs == 1 else made

    def branches(
        self,
        condition: Value,
        then: Callable[[], list[Value]],
        otherwise: Callable[[], list[Value]],
        name: str,
    ) -> list[Value]:
        """Add an If; what `then` and `otherwise` add lies in its branches."""
        graphs = []
        for label, body in (("then", then), ("else", otherwise)):
            outside, self.nodes = self.nodes, []
            # a branch may not return a value of the outer graph
            results = [self.op("Identity", value) for value in body()]
            graphs.append((f"{label}_branch", self.nodes, results))
            self.nodes = outside
        made = [self.fresh() for _ in graphs[0][2]]
        self.nodes.append(("If", [condition], made, {"graphs": graphs, "name": name}))
        return made

    # -- the model ---------------------------------------------------------------------------

    def output(self, *values: Value, like: Value | None = None) -> Step:
        """List values as outputs, shaped as an input or constant is; scalars otherwise."""
        held = (self.inputs | self.constants)[like] if like else np.zeros((), np.float32)
        kind = helper.np_dtype_to_tensor_dtype(held.dtype)
        self.outputs += [(value, kind, list(held.shape)) for value in values]
        return self

    def update(self, *pairs: tuple[Value, Value]) -> Step:
        """List the new values of parameters and states, each as (old, new)."""
        for old, new in pairs:
            self.output(new, like=old)
        return self

    def _write(self, nodes: list[Any]) -> list[onnx.NodeProto]:
        written = []
        for kind, sources, made, attributes in nodes:
            domain, _, operator = kind.rpartition("::")
            attributes = dict(attributes)
            for label, inner, results in attributes.pop("graphs", []):
                attributes[label] = helper.make_graph(
                    self._write(inner),
                    label,
                    [],
                    [helper.make_empty_tensor_value_info(result.name) for result in results],
                )
            written.append(
                helper.make_node(
                    operator,
                    [value.name for value in sources],
                    [value.name for value in made],
                    domain=domain,
                    **attributes,
                )
            )
        return written

    def save(self) -> None:
        """Write the model and its feeds; outputs without a name of their own are `out_0`, …"""
        for place, (value, _, _) in enumerate(self.outputs):
            if value.name[0] == "v" and value.name[1:].isdigit():
                value.called(f"out_{place}")
        graph = helper.make_graph(
            self._write(self.nodes),
            self.name,
            [
                helper.make_tensor_value_info(
                    value.name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for value, array in self.inputs.items()
            ],
            [helper.make_tensor_value_info(v.name, kind, dims) for v, kind, dims in self.outputs],
            [numpy_helper.from_array(array, value.name) for value, array in self.constants.items()],
        )
        domains = {kind.rpartition("::")[0] for kind, *_ in self.nodes} - {""}
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        onnx.save(model, HERE / f"{self.name}.onnx")
        np.savez(HERE / f"{self.name}.inputs.npz", **{v.name: a for v, a in self.inputs.items()})


class Net:
    """``tanh(x @ W + b)`` with the mean squared error against ``t``, and its backward pass.

    The gradients are called `d3` (of the weight) and `d5` (of the bias, if there is one), with
    `tag` behind it; other nets of the same step need another tag. `size` is the number of targets,
    `seed` the slope of what is differentiated by the loss.
    """

    def __init__(
        self, step: Step, w: Value | None = None, b: Value | None = None, *,
        x: Value | None = None, t: Value | None = None, bias: bool = False, tag: str = "",
        size: int = 24, seed: Value | None = None,
    ) -> None:  # fmt: skip
        self.x = x if x else step.noise(f"x{tag} 8 6")
        self.t = t if t else step.noise(f"t{tag} 8 3")
        self.w = w if w else step.noise(f"W{tag} 6 3")
        self.b = step.noise(f"b{tag} 3") if bias else b
        z = self.x @ self.w
        h = step.op("Tanh", z + self.b if self.b else z)
        self.error = h - self.t
        self.loss = (self.error * self.error).mean()
        slope = self.error * (2 / size)
        self.dz = (slope * seed if seed else slope) * (1.0 - h * h)
        self.g = (self.x.transposed() @ self.dz).called(f"d3{tag}")
        if self.b:
            self.gb = self.dz.sum(0).called(f"d5{tag}")

    @property
    def pairs(self) -> list[tuple[Value, Value, str]]:
        """Parameter, gradient and a name's tail for each parameter."""
        return [(self.w, self.g, "6 3"), *([(self.b, self.gb, "3")] if self.b else [])]
