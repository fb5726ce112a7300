"""Training steps of any size, each with one thing in it of which there may be many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

__all__ = ["KINDS", "grown"]

_TRAINING, _MICROSOFT, _VENDOR, _LOCAL = (
    "ai.onnx.preview.training", "com.microsoft", "vendor", "local",
)  # fmt: skip
_FLOAT, _HALF, _INT, _BOOL = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL,
)  # fmt: skip
W = [4, 1]


def declare(name: str, shape: list[int], dtype: int = _FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


class Step:
    """A graph in the making; names of values that nobody reads by name are made up."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs = [declare("x", [4, 4]), declare("xt", [4, 4])]
        self.inputs += [declare("d", W), declare("rate", []), declare("b", [])]
        self.outputs: list[ValueInfoProto] = []
        self.constants = [helper.make_tensor("one", _FLOAT, [], [1.0])]
        self.functions: list[Any] = []

    def node(self, op: str, *inputs: str, to: str | list[str] = "", **more: Any) -> str:
        outputs = to if isinstance(to, list) else [to or f"value{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, inputs, outputs, **more))
        return outputs[0]

    def input(self, name: str, shape: list[int] = W, dtype: int = _FLOAT) -> str:
        self.inputs.append(declare(name, shape, dtype))
        return name

    def output(self, name: str, shape: list[int] = W, dtype: int = _FLOAT) -> str:
        self.outputs.append(declare(name, shape, dtype))
        return name

    def gradient(self, weight: str, to: str = "") -> str:
        layer = self.node("Mul", self.node("MatMul", "x", weight), "d")
        return self.node("MatMul", "xt", layer, to=to)

    def descend(self, weight: str, step: str, number: int) -> str:
        scaled = self.node("Mul", "rate", step)
        return self.node("Sub", weight, scaled, to=self.output(f"w{number}_new"))

    def sgd(self, number: int) -> str:
        weight = self.input(f"w{number}")
        return self.descend(weight, self.gradient(weight), number)

    def model(self) -> ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", 17)]
        opsets += [helper.make_opsetid(d, 1) for d in (_TRAINING, _MICROSOFT, _VENDOR, _LOCAL)]
        return helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=8
        )


def sgd(step: Step, count: int) -> None:
    for number in range(count):
        step.sgd(number)


def momentum(step: Step, count: int) -> None:
    for n in range(count):
        weight, moment = step.input(f"w{n}"), step.input(f"m{n}")
        scaled = step.node("Mul", "b", moment)
        new = step.node("Add", scaled, step.gradient(weight), to=step.output(f"m{n}_new"))
        step.descend(weight, new, n)


def averages(step: Step, count: int) -> None:
    share = step.node("Sub", "one", "b")
    for n in range(count):
        average = step.input(f"e{n}")
        step.node("ReduceSum", step.node("MatMul", "x", average), to=step.output(f"t{n}", [1, 1]))
        part = step.node("Mul", share, step.sgd(n))
        kept = step.node("Mul", "b", average)
        step.node("Add", kept, part, to=step.output(f"e{n}_new"))


def half_precision(step: Step, count: int) -> None:
    for n in range(count):
        weight, read = step.input(f"w{n}"), step.input(f"h{n}", W, _HALF)
        gradient = step.gradient(step.node("CastLike", read, "one"))
        new = step.output(f"h{n}_new", W, _HALF)
        step.node("CastLike", step.descend(weight, gradient, n), read, to=new)


def sums_over_runs(step: Step, count: int) -> None:
    for n in range(count):
        weight, buffer = step.input(f"w{n}"), step.input(f"m{n}")
        step.node("Add", buffer, step.gradient(weight), to=step.output(f"m{n}_new"))
        step.descend(weight, buffer, n)


def penalties(step: Step, count: int) -> None:
    loss = "one"
    for n in range(count):
        weight = step.input(f"w{n}")
        square = step.node("ReduceSum", step.node("Mul", weight, weight), keepdims=0)
        term = step.node("ReduceSum", step.node("MatMul", "x", weight), keepdims=0)
        loss = step.node("Add", loss, step.node("Add", square, term))
        decayed = step.node("Add", step.gradient(weight), step.node("Mul", "b", weight))
        step.descend(weight, decayed, n)
    step.node("Identity", loss, to=step.output("loss", []))


def clipped_by_global_norm(step: Step, count: int) -> None:
    weights = [step.input(f"w{n}") for n in range(count)]
    gradients = [step.gradient(weight) for weight in weights]
    squares = [step.node("ReduceSumSquare", each, keepdims=0) for each in gradients]
    norm = step.node("Sqrt", step.node("Sum", *squares))
    scale = step.node("Div", "one", step.node("Max", norm, "one"))
    for n, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        step.descend(weight, step.node("Mul", gradient, scale), n)


def one_flat_vector(step: Step, count: int) -> None:
    weights = [step.input(f"w{n}") for n in range(count)]
    step.constants.append(helper.make_tensor("line", _INT, [1], [-1]))
    step.constants.append(helper.make_tensor("shape", _INT, [2], W))
    flat = [step.node("Reshape", step.gradient(weight), "line") for weight in weights]
    whole = step.node("Mul", "rate", step.node("Concat", *flat, axis=0))
    parts = [f"part{n}" for n in range(count)]
    step.node("Split", whole, to=parts, axis=0)
    for n, (weight, part) in enumerate(zip(weights, parts, strict=True)):
        step.descend(weight, step.node("Reshape", part, "shape"), n)


def steps_in_a_row(step: Step, count: int) -> None:
    weight = step.input("w")
    for _ in range(count):
        weight = step.node("Sub", weight, step.node("Mul", "rate", step.gradient(weight)))
    step.node("Identity", weight, to=step.output("w_new"))


def uses_of_one(step: Step, count: int) -> None:
    weight = step.input("w0")
    step.descend(weight, step.node("Sum", *(step.gradient(weight) for _ in range(count))), 0)


def optimizer_alone(step: Step, count: int) -> None:
    for n in range(count):
        weight, moment, gradient = step.input(f"w{n}"), step.input(f"m{n}"), step.input(f"g{n}")
        scaled = step.node("Mul", "b", moment)
        new = step.node("Add", scaled, gradient, to=step.output(f"m{n}_new"))
        step.descend(weight, new, n)


def unknown_optimizers(step: Step, count: int) -> None:
    for n in range(count):
        weight = step.input(f"w{n}")
        new = step.output(f"w{n}_new")
        step.node("Update", "rate", weight, step.gradient(weight), to=new, domain=_VENDOR)


def one_unknown_optimizer(step: Step, count: int) -> None:
    weights = [step.input(f"w{n}") for n in range(count)]
    gradients = [step.gradient(weight) for weight in weights]
    new = [step.output(f"w{n}_new") for n in range(count)]
    step.node("Update", "rate", *weights, *gradients, to=new, domain=_VENDOR)


def one_known_optimizer(step: Step, count: int) -> None:
    weights = [step.input(f"w{n}") for n in range(count)]
    gradients = [step.gradient(weight) for weight in weights]
    moments = [step.input(f"{letter}{n}") for letter in "vh" for n in range(count)]
    new = [step.output(f"{letter}{n}_new") for letter in "wvh" for n in range(count)]
    step.input("t", [], _INT)
    step.node("Adam", "rate", "t", *weights, *gradients, *moments, to=new, domain=_TRAINING)


def one_gradient_operator(step: Step, count: int) -> None:
    weights, loss = [step.input(f"w{n}") for n in range(count)], "one"
    for weight in weights:
        layer = step.node("MatMul", "x", weight)
        loss = step.node("Add", loss, step.node("ReduceSum", layer, keepdims=0))
    made = [step.output(f"d{n}") for n in range(count)]
    names = {"xs": weights, "zs": ["x"], "y": loss}
    step.node("Gradient", *weights, "x", to=made, domain=_TRAINING, **names)


def accumulators(step: Step, count: int) -> None:
    step.input("reset", [1], _BOOL)
    for n in range(count):
        gradient = step.gradient(step.input(f"w{n}"))
        buffer = step.input(f"w{n}_grad.accumulation.buffer")
        done = step.output(f"done{n}", [1], _BOOL)
        op = "InPlaceAccumulatorV2"
        step.node(op, buffer, gradient, "reset", to=done, domain=_MICROSOFT)


def names_alone(step: Step, count: int) -> None:
    for n in range(count):
        step.gradient(step.input(f"w{n}"), to=step.output(f"w{n}_grad"))


def names_of_what_is_left_over(step: Step, count: int) -> None:
    end = "d"
    for n in range(count):
        end = step.node("Add", end, step.gradient(step.input(f"w{n}"), to=f"w{n}_grad"))
    step.node("Neg", "d", to=step.output("y"))


def names_in_a_sum(step: Step, count: int) -> None:
    end = "d"
    for n in range(count):
        end = step.node("Add", end, step.gradient(step.input(f"w{n}"), to=f"w{n}_grad"))
    step.node("Transpose", end, to=step.output("y", [1, 4]))


def functions(step: Step, count: int) -> None:
    opset = [helper.make_opsetid("", 17)]
    for n in range(count):
        inner = Step()
        inner.gradient("w", to="g")
        inputs = ["x", "xt", "d", "w"]
        made = helper.make_function(_LOCAL, f"f{n}", inputs, ["g"], inner.nodes, opset)
        step.functions.append(made)
        weight = step.input(f"w{n}")
        step.descend(weight, step.node(f"f{n}", "x", "xt", "d", weight, domain=_LOCAL), n)


def _inside(count: int) -> Step:
    inner = Step()
    sgd(inner, count)
    return inner


def a_large_function(step: Step, count: int) -> None:
    inner = _inside(count)
    opset = [helper.make_opsetid("", 17)]
    names = [value.name for value in inner.inputs], [value.name for value in inner.outputs]
    step.functions.append(helper.make_function(_LOCAL, "f", *names, inner.nodes, opset))
    step.inputs, step.outputs = inner.inputs, inner.outputs
    step.node("f", *names[0], to=names[1], domain=_LOCAL)


def a_loop_of_many_states(step: Step, count: int) -> None:
    inner = _inside(count)
    states = inner.inputs[5:]
    inner.node("Identity", "go", to="go_on")
    inputs = [declare("i", [], _INT), declare("go", [], _BOOL), *states]
    outputs = [declare("go_on", [], _BOOL), *inner.outputs]
    body = helper.make_graph(inner.nodes, "body", inputs, outputs)
    step.input("trips", [], _INT)
    begins = [step.input(f"{state.name}_0") for state in states]
    ends = [step.output(f"{state.name}_end") for state in states]
    step.node("Loop", "trips", "", *begins, to=ends, body=body)


def branches(step: Step, count: int) -> None:
    step.input("flag", [], _BOOL)
    for n in range(count):
        weight = step.input(f"w{n}")
        then, otherwise = Step(), Step()
        then.descend(weight, step.gradient(weight), n)
        otherwise.node("Identity", weight, to=otherwise.output(f"w{n}_old"))
        step.node(
            "If", "flag", to=step.output(f"w{n}_end"),
            then_branch=helper.make_graph(then.nodes, "then", [], then.outputs),
            else_branch=helper.make_graph(otherwise.nodes, "else", [], otherwise.outputs),
        )  # fmt: skip


KINDS: dict[str, Callable[[Step, int], None]] = {
    made.__name__: made
    for made in (
        sgd, momentum, averages, half_precision, sums_over_runs, penalties,
        clipped_by_global_norm, one_flat_vector, steps_in_a_row, uses_of_one, optimizer_alone,
        unknown_optimizers, one_unknown_optimizer, one_known_optimizer, one_gradient_operator,
        accumulators, names_alone, names_of_what_is_left_over, names_in_a_sum, functions,
        a_large_function, a_loop_of_many_states, branches,
    )
}  # fmt: skip
"""What a step may have many of, by name."""


def grown(kind: str, count: int) -> ModelProto:
    """A step with so many of a kind."""
    step = Step()
    KINDS[kind](step, count)
    return step.model()
