"""Random training graphs whose gradients are known, because a plan of them is written down first.

A `Plan` is a stack of layers over matrices of shape [2, 2], an update for each parameter, and what
else is done with the gradients. `Plan.write()` writes it as a model. `Plan.write(c, chosen)` writes
the model that the invariants ask for when the chosen gradients are clipped at norm c: the writer
knows of each read whether it belongs to the backward pass, since it wrote it for that purpose. The
clip is written with other operators than the package's, and the package takes no part in it.

The layers, with d the derivative of the loss by a layer's result y and e that by its input:

    dense      y = x @ W     W's gradient is x' @ d; e = d @ W'
    tanh       y = tanh(x)   no parameter; e = d * (1 - y * y)
    bias       y = x + b     b's gradient is the sum of d over rows; e is d
    add        y = x + P     P's gradient is d itself, which goes on down the backward pass
    add two    y = x + P + Q   as add, and two parameters share one gradient
    branch     as dense, but an If computes W's gradient and e
    function   as dense, but a local function computes them
    left out   as function, but the call leaves out the first of its two outputs, e
    captured   as add, and e = d * 2 in a branch of an If that captures the gradient
    loop       as add, and e comes from a Loop that starts from the gradient
    sliced     as add, and e comes from a Slice whose axes are left out

Names are shadowed only where ONNX allows it: a function uses names of the main graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
from node_writer import GraphOrFunction, entitle, function, rename_inputs, typed
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DENSE = ("dense", "branch", "function", "left out")
LAYERS = (*DENSE, "tanh", "bias", "add", "add two", "captured", "loop", "sliced")
UPDATES = ("descent", "momentum", "decay")
REPORTS = ("output", "norm", "norm in a branch", "norm by a function", "listed twice")
PLACES = {"main graph": "", "function": "function local::step", "loop": "Loop[1].body"}
TITLES = ("", "node", "clip/g0/Mul#")  # of nodes: none, or the same in each body, with a number
STYLES = ("{}", "/net/{}", "{} 1", "∂{}?", "{}@GRAD@0", "{}::0")


@dataclass(frozen=True)
class Layer:
    """One layer, how its parameters are updated, and what is reported of its gradient."""

    kind: str
    update: str
    reports: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return {"tanh": 0, "add two": 2}.get(self.kind, 1)


@dataclass(frozen=True)
class Plan:
    """All that a training graph is to be; `place` is where the step stands in the model."""

    layers: tuple[Layer, ...]
    place: str
    opset: int
    style: str
    title: str
    hostile: bool  # other values bear the names that a clip would like to use
    early: bool  # updates stand beside their gradients, not at the end
    held: bool  # parameters are initializers, not inputs
    seed: int

    @property
    def truth(self) -> set[tuple[str, str, str]]:
        """Gradient, parameter and place of each pair."""
        return {(g, p, PLACES[self.place]) for g, p in _Writer(self).written().pairs}

    @property
    def feeds(self) -> dict[str, NDArray[Any]]:
        model, random = self.write(), np.random.default_rng(self.seed)
        shapes = {
            value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        return {
            name: np.array(True) if name == "flag" else np.asarray(random.normal(size=shape))
            for name, shape in shapes.items()
        }

    def write(
        self, clip_norm: float = 0.0, chosen: frozenset[str] = frozenset()
    ) -> onnx.ModelProto:
        """The model; with `chosen` gradients, the one that clips them, outputs in this order."""
        return _Writer(self, clip_norm, chosen).written().model()


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan that begins with a dense layer and ends with tanh.

    So every gradient depends on a product of matrices, and no addition of a parameter stands right
    beside the loss, where it looks like an update of it.
    """
    place = draw(st.sampled_from(list(PLACES)))
    can_repeat = place == "main graph"
    reports = st.lists(st.sampled_from(REPORTS[: 5 if can_repeat else 4]), unique=True, max_size=2)
    layers = st.builds(
        Layer, st.sampled_from(LAYERS), st.sampled_from(UPDATES), reports.map(sorted).map(tuple)
    )
    first = replace(draw(layers), kind=draw(st.sampled_from(DENSE)))
    return Plan(
        layers=(first, *draw(st.lists(layers, max_size=4)), Layer("tanh", "descent", ())),
        place=place,
        opset=draw(st.sampled_from([13, 17, 18, 21])),
        style=draw(st.sampled_from(STYLES)),
        title=draw(st.sampled_from(TITLES)),
        hostile=draw(st.booleans()),
        early=draw(st.booleans()),
        held=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


# -- writing -----------------------------------------------------------------------------------


@dataclass
class _Slope:
    """A derivative: `raw` as the backward pass reads it, `clipped` as everything else does."""

    raw: str
    clipped: str = ""
    parameters: list[tuple[str, str]] = field(default_factory=list)  # and how each is updated
    reports: set[str] = field(default_factory=set)


class _Writer(GraphOrFunction):
    def __init__(self, plan: Plan, clip_norm: float = 0.0, chosen: frozenset[str] = frozenset()):
        super().__init__(plan.style)
        self.plan, self.clip_norm, self.chosen = plan, clip_norm, chosen
        self.carried: list[tuple[str, str, list[int]]] = []  # parameter or state, new value, shape
        self.reported: list[tuple[str, list[int]]] = []
        self.pairs: set[tuple[str, str]] = set()

    def written(self) -> _Writer:
        """Write forward pass, backward pass, updates and reports."""
        plan, taken = self.plan, ["x"]
        for number, layer in enumerate(plan.layers):
            taken.append(self._forward(number, layer, taken[-1]))
        error = self.put("Sub", taken[-1], "t")
        squares = self.put("Mul", error, error)
        loss = self.put("ReduceSum", squares, keepdims=0)
        self.reported.append((loss, []))
        slope, slopes = _Slope(self.put("Add", error, error)), []
        for number in reversed(range(len(plan.layers))):
            layer, x, y = plan.layers[number], taken[number], taken[number + 1]
            gradient, after = self._backward(number, layer, x, y, slope)
            if gradient is not None:
                own = range(layer.parameters)
                gradient.parameters += [(f"p{number}.{i}", layer.update) for i in own]
                gradient.reports |= set(layer.reports)
                slopes += [] if gradient in slopes else [gradient]
            slope = after
            if plan.early:
                slopes = self._use(slopes, keep=slope)
        self._use(slopes)
        return self

    def _forward(self, number: int, layer: Layer, x: str) -> str:
        names = [f"p{number}.{i}" for i in range(layer.parameters)]
        wish = f"clip/{self.gradient_name(number)}/raw" if self.plan.hostile else ""
        if layer.kind in DENSE:
            return self.put("MatMul", x, names[0], out=wish)
        if layer.kind == "tanh":
            return self.put("Tanh", x, out=wish)
        for name in names:
            x = self.put("Add", x, name)
        return x

    def _backward(
        self, number: int, layer: Layer, x: str, y: str, d: _Slope
    ) -> tuple[_Slope | None, _Slope]:
        """The gradient of the layer's parameters (None if it has none), and the slope below."""
        name, parameter = self.gradient_name(number), f"p{number}.0"
        if layer.kind == "dense":
            gradient = self.put("MatMul", self.put("Transpose", x), d.raw, out=name)
            return _Slope(gradient), _Slope(
                self.put("MatMul", d.raw, self.put("Transpose", parameter))
            )
        if layer.kind in ("function", "left out"):
            below = self.fresh() if layer.kind == "function" else ""
            node = helper.make_node("back", [x, d.raw, parameter], [below, name], domain="local")
            self.nodes.append(node)
            below = below or self.put("MatMul", d.raw, self.put("Transpose", parameter))
            return _Slope(name), _Slope(below)
        if layer.kind == "branch":
            below = self.fresh()
            branches = [self.branch_of_dense(x, d.raw, parameter) for _ in range(2)]
            self.choose(branches, (name, below))
            return _Slope(name), _Slope(below)
        if layer.kind == "tanh":
            square = self.put("Mul", y, y)
            falling = self.put("Sub", self.constant(np.array(1.0)), square)
            return None, _Slope(self.put("Mul", d.raw, falling))
        if layer.kind == "bias":
            rows = self.constant(np.array([0]))
            return _Slope(self.put("ReduceSum", d.raw, rows, out=name, keepdims=0)), d
        if layer.kind == "captured":
            below = self.fresh()
            self.choose([self.branch("Add", d.raw, d.raw), self.branch("Neg", d.raw)], (below,))
            return d, _Slope(below)
        if layer.kind == "loop":
            return d, _Slope(self.doubled_by_loop(d.raw))
        if layer.kind == "sliced":
            start, end, step = (self.constant(np.array([n, n])) for n in (0, 2, 1))
            return d, _Slope(self.put("Slice", d.raw, start, end, "", step))
        return d, d  # add, add two

    # -- what is done with gradients -----------------------------------------------------------

    def _use(self, slopes: list[_Slope], keep: _Slope | None = None) -> list[_Slope]:
        """Update and report by all gradients but the one to `keep`: it may gain parameters."""
        for slope in slopes:
            if slope is keep:
                continue
            slope.clipped = self._clip(slope.raw) if slope.raw in self.chosen else slope.raw
            for parameter, update in slope.parameters:
                self.pairs.add((slope.raw, parameter))
                self._update(parameter, update, slope.clipped)
            for report in sorted(slope.reports):
                self._report(report, slope)
        return [slope for slope in slopes if slope is keep]

    def _clip(self, raw: str) -> str:
        """c * g / max(norm, c), with the norm as the root of a sum of squares.

        The names are new ones, so that all others are the same as without a clip.
        """
        names = [f"{raw} {part}" for part in ("c", "squares", "sum", "norm", "bound", "cg", "clip")]
        limit, squares, total, norm, bound, product, result = names
        self.constant(np.array(self.clip_norm), out=limit)
        self.put("Mul", raw, raw, out=squares)
        self.put("ReduceSum", squares, out=total, keepdims=0)
        self.put("Sqrt", total, out=norm)
        self.put("Max", norm, limit, out=bound)
        self.put("Mul", raw, limit, out=product)
        return self.put("Div", product, bound, out=result)

    def _update(self, parameter: str, update: str, gradient: str) -> None:
        shape = self.shape_of(parameter)
        if update == "momentum":
            state, new = f"{parameter}.momentum", self.fresh()
            kept = self.put("Mul", state, "mu")
            self.put("Add", kept, gradient, out=new)
            self.carried.append((state, new, shape))
            gradient = new
        if update == "decay":
            gradient = self.put("Add", gradient, self.put("Mul", parameter, "wd"))
        moved = self.put("Sub", parameter, self.put("Mul", gradient, "lr"))
        self.carried.append((parameter, moved, shape))

    def _report(self, report: str, slope: _Slope) -> None:
        shape = self.shape_of(slope.parameters[0][0])
        if report in ("output", "listed twice"):
            seen = (slope.clipped, shape) in self.reported
            self.reported += [(slope.clipped, shape)] * (
                2 if report == "listed twice" else not seen
            )
            return
        norm = self.fresh()
        if report == "norm":
            self.put("ReduceL2", slope.clipped, out=norm, keepdims=0)
        elif report == "norm by a function":
            self.nodes.append(helper.make_node("length", [slope.clipped], [norm], domain="local"))
        else:
            lengths = [self.branch("ReduceL2", slope.clipped, keepdims=0) for _ in range(2)]
            self.choose(lengths, (norm,))
        self.reported.append((norm, []))

    def gradient_name(self, number: int) -> str:
        return self.plan.style.format(f"g{number}")

    def shape_of(self, parameter: str) -> list[int]:
        number = int(parameter.removeprefix("p").split(".")[0])
        return [2] if self.plan.layers[number].kind == "bias" else [2, 2]

    # -- the model -----------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        plan, main = self.plan, self.nodes
        fixed = [typed("x", [2, 2]), typed("t", [2, 2]), typed("flag", [], TensorProto.BOOL)]
        fixed += [typed(name, []) for name in ("lr", "mu", "wd")]
        kept = [typed(name, shape) for name, _, shape in self.carried]
        new = [typed(name, shape) for _, name, shape in self.carried]
        reports = [typed(name, shape) for name, shape in self.reported]
        opsets = [helper.make_opsetid("", plan.opset), helper.make_opsetid("local", 1)]
        functions = [
            function("back", ["a", "d", "w"], ["e", "g"], opsets,
                      ("Transpose", "a", "t"), ("MatMul", "t d", "g"),
                      ("Transpose", "w", "x"), ("MatMul", "d x", "e")),
            function("length", ["g"], ["n"], opsets, ("ReduceL2", "g", "n")),
        ]  # fmt: skip
        functions[1].node[0].attribute.append(helper.make_attribute("keepdims", 0))
        outputs = [*new, *reports]
        if plan.place == "function":
            inputs, returned = [v.name for v in fixed + kept], [v.name for v in outputs]
            functions.append(helper.make_function("local", "step", inputs, returned, main, opsets))
            for value in outputs:
                value.name = f"step's {value.name}"  # in the main graph
            names = [value.name for value in outputs]
            main = [helper.make_node("step", inputs, names, domain="local")]
        if plan.place == "loop":
            main, outputs = self._two_steps(main, kept, new, reports)
        arrays = np.random.default_rng(plan.seed + 1)
        initializers = [
            numpy_helper.from_array(np.asarray(arrays.normal(size=shape)), name)
            for name, _, shape in self.carried
            if plan.held
        ]
        inputs = fixed if plan.held else fixed + kept
        graph = helper.make_graph(main, "plan", inputs, outputs, initializers)
        used = [function for function in functions if self._calls(function.name)]
        for body in (graph, *used):
            entitle(body.node, plan.title)
        return helper.make_model(graph, opset_imports=opsets, functions=used, ir_version=8)

    def _calls(self, name: str) -> bool:
        return name == "step" or any(node.op_type == name for node in self.nodes)

    def _two_steps(
        self,
        nodes: list[onnx.NodeProto],
        kept: list[onnx.ValueInfoProto],
        new: list[onnx.ValueInfoProto],
        reports: list[onnx.ValueInfoProto],
    ) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]:
        """A Loop that takes the step twice; inside it a parameter goes by another name."""
        inner = {value.name: f"inner {value.name}" for value in kept}
        for node in nodes:
            rename_inputs(node, inner)
        number, going, still = (self.fresh() for _ in range(3))
        goes = [typed(number, [], TensorProto.INT64), typed(going, [], TensorProto.BOOL)]
        carried = [typed(inner[name], shape) for name, _, shape in self.carried]
        nodes = [*nodes, helper.make_node("Identity", [going], [still])]
        results = [typed(still, [], TensorProto.BOOL), *new, *reports]
        body = helper.make_graph(nodes, "step", [*goes, *carried], results)
        outputs = [typed(f"last {n}", shape) for n, _, shape in self.carried]
        outputs += [typed(f"all {at}", [2, *shape]) for at, (_, shape) in enumerate(self.reported)]
        names = [value.name for value in outputs]
        inputs = ["steps", "flag", *(value.name for value in kept)]
        two = helper.make_node("Constant", [], ["steps"], value_int=2)
        loop = helper.make_node("Loop", inputs, names, body=body)
        return [two, loop], outputs
