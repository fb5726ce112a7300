"""Make training steps whose gradients live in branches, loop bodies and local functions.

Needs onnx and numpy; runs on the stock ONNX Runtime. The net is ``x @ W + b`` with the mean
squared error against ``t``, its backward pass written by hand. The models differ in the graph
that holds the gradients and in the graph that updates the parameters.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

HERE = Path(__file__).parent
RNG = np.random.default_rng(31)
X, T = (RNG.normal(size=(6, n)).astype(np.float32) for n in (4, 3))
W, B = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 3), (3,)))
INPUTS = "float[N,4] x, float[N,3] t, float[4,3] W, float[3] b"
OUTPUTS = "float loss, float[4,3] W_new, float[3] b_new"
GRADIENTS = "float loss_then, float[4,3] W_grad_then, float[3] b_grad_then"
NOTHING = "float loss_else, float[4,3] W_grad_else, float[3] b_grad_else"


def backward(
    x: str = "x", t: str = "t", w: str = "W", b: str = "b", tag: str = "", loss: str = "loss"
) -> str:
    """Return the forward and backward pass, with the rows to reduce as a local constant."""
    return f"""
        rows{tag} = Constant <value_ints = [0]> ()
        y{tag} = Gemm ({x}, {w}, {b})
        error{tag} = Sub (y{tag}, {t})
        square{tag} = Mul (error{tag}, error{tag})
        {loss} = ReduceMean <keepdims = 0> (square{tag})
        size{tag} = Size (square{tag})
        count{tag} = CastLike (size{tag}, error{tag})
        twice{tag} = Add (error{tag}, error{tag})
        y_grad{tag} = Div (twice{tag}, count{tag})
        {w}_grad{tag} = Gemm <transA = 1> ({x}, y_grad{tag})
        {b}_grad{tag} = ReduceSum <keepdims = 0> (y_grad{tag}, rows{tag})
    """


def descend(
    parameter: str, gradient: str = "", updated: str = "", rate: str = "lr", tag: str = ""
) -> str:
    """Return ``updated = parameter - rate * gradient``."""
    return f"""
        {parameter}_step{tag} = Mul ({rate}, {gradient or parameter + "_grad"})
        {updated or parameter + "_new"} = Sub ({parameter}, {parameter}_step{tag})
    """


def build(
    name: str,
    body: str,
    *,
    inputs: str = INPUTS,
    outputs: str = OUTPUTS,
    functions: str = "",
    feeds: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Parse the model, add the learning rate, save it and its feeds."""
    domains = '"" : 18, "train" : 1' if functions else '"" : 18'
    model = onnx.parser.parse_model(
        f"<ir_version: 8, opset_import: [{domains}]> {name} ({inputs}) => ({outputs})"
        f"<float lr = {{0.1}}> {{{body}}} {functions}"
    )
    known = {"x": X, "t": T, "W": W, "b": B} | dict(feeds or {})
    onnx.save(model, HERE / f"{name}.onnx")
    needed = {value.name: known[value.name] for value in model.graph.input}
    np.savez(HERE / f"{name}.inputs.npz", **needed)


def function(name: str, inputs: str, outputs: str, body: str) -> str:
    """Return the text of a function of the domain ``train``."""
    return f"""
        <domain: "train", opset_import: ["" : 18, "train" : 1]>
        {name} ({inputs}) => ({outputs}) {{{body}}}
    """


def branches() -> None:
    """Build steps around an If."""
    zeros = """
        W_grad_else = Sub (W, W)
        b_grad_else = Sub (b, b)
        loss_else = ReduceSum <keepdims = 0> (b_grad_else)
    """
    learn = {"learn": np.array(True)}
    build(
        "if_gives_gradients",
        f"""
        [If_learn] loss, W_grad, b_grad = If (learn) <
            then_branch = then_graph () => ({GRADIENTS}) {{
                {backward(tag="_then", loss="loss_then")}
            }},
            else_branch = else_graph () => ({NOTHING}) {{{zeros}}}
        >
        """
        + descend("W")
        + descend("b"),
        inputs=f"{INPUTS}, bool learn",
        feeds=learn,
    )
    updated = "float loss_then, float[4,3] W_then, float[3] b_then"
    kept = "float loss_else, float[4,3] W_else, float[3] b_else"
    build(
        "if_updates_inside",
        f"""
        [If_learn] loss, W_new, b_new = If (learn) <
            then_branch = then_graph () => ({updated}) {{
                {backward(tag="_then", loss="loss_then")}
                {descend("W", "W_grad_then", "W_then")}
                {descend("b", "b_grad_then", "b_then")}
            }},
            else_branch = else_graph () => ({kept}) {{
                W_else = Identity (W)
                b_else = Identity (b)
                difference = Sub (b, b)
                loss_else = ReduceSum <keepdims = 0> (difference)
            }}
        >
        """,
        inputs=f"{INPUTS}, bool learn",
        feeds=learn,
    )
    build(
        "if_captures_gradients",
        backward()
        + f"""
        [If_learn] W_new, b_new = If (learn) <
            then_branch = then_graph () => (float[4,3] W_then, float[3] b_then) {{
                {descend("W", updated="W_then")}
                {descend("b", updated="b_then")}
            }},
            else_branch = else_graph () => (float[4,3] W_else, float[3] b_else) {{
                W_else = Identity (W)
                b_else = Identity (b)
            }}
        >
        """,
        inputs=f"{INPUTS}, bool learn",
        feeds=learn,
    )


def loops() -> None:
    """Build steps around Loop and Scan."""
    carried = "int64 i, bool go, float loss_in, float[4,3] W_in, float[3] b_in"
    results = "bool go_on, float loss_out, float[4,3] W_out, float[3] b_out"
    build(
        "loop_steps",
        f"""
        zero = Constant <value_float = 0.0> ()
        always = Constant <value = bool {{1}}> ()
        [Loop_steps] loss, W_new, b_new = Loop (steps, always, zero, W, b) <
            body = body_graph ({carried}) => ({results}) {{
                go_on = Identity (go)
                {backward(w="W_in", b="b_in", loss="loss_out")}
                {descend("W_in", updated="W_out")}
                {descend("b_in", updated="b_out")}
            }}
        >
        """,
        inputs=f"{INPUTS}, int64 steps",
        feeds={"steps": np.array(3)},
    )
    carried = "float loss_in, float[4,3] W_in, float[3] b_in, float[N,4] x_i, float[N,3] t_i"
    results = "float loss_out, float[4,3] W_out, float[3] b_out"
    build(
        "scan_micro_batches",
        f"""
        zero = Constant <value_float = 0.0> ()
        W_zero = Sub (W, W)
        b_zero = Sub (b, b)
        [Scan_batches] loss_sum, W_sum, b_sum = Scan (zero, W_zero, b_zero, xs, ts) <
            num_scan_inputs = 2,
            body = body_graph ({carried}) => ({results}) {{
                {backward(x="x_i", t="t_i", tag="_i", loss="loss_i")}
                loss_out = Add (loss_in, loss_i)
                W_out = Add (W_in, W_grad_i)
                b_out = Add (b_in, b_grad_i)
            }}
        >
        two = Constant <value_float = 2.0> ()
        loss = Div (loss_sum, two)
        W_grad = Div (W_sum, two)
        b_grad = Div (b_sum, two)
        """
        + descend("W")
        + descend("b"),
        inputs="float[2,N,4] xs, float[2,N,3] ts, float[4,3] W, float[3] b",
        feeds={"xs": X.reshape(2, 3, 4), "ts": T.reshape(2, 3, 3)},
    )


def functions() -> None:
    """Build steps around local functions."""
    build(
        "function_gives_gradients",
        "[call] loss, W_grad, b_grad = train.value_and_grad (x, t, W, b)"
        + descend("W")
        + descend("b"),
        functions=function(
            "value_and_grad",
            "x, t, weight, bias",
            "loss, weight_grad, bias_grad",
            backward(w="weight", b="bias"),
        ),
    )
    build(
        "function_whole_step",
        "[call] loss, W_new, b_new = train.step (x, t, W, b, lr)",
        functions=function(
            "step",
            "x, t, weight, bias, rate",
            "loss, weight_new, bias_new",
            backward(w="weight", b="bias")
            + descend("weight", rate="rate")
            + descend("bias", rate="rate"),
        ),
    )
    build(
        "function_updates",
        backward()
        + """
        [update_W] W_new = train.sgd (W, W_grad, lr)
        [update_b] b_new = train.sgd (b, b_grad, lr)
        """,
        functions=function(
            "sgd",
            "parameter, gradient, rate",
            "updated",
            "step = Mul (rate, gradient)  updated = Sub (parameter, step)",
        ),
    )
    build(
        "function_called_twice",
        """
        [first] loss_0, W_1, b_1 = train.step (x, t, W, b, lr)
        [second] loss, W_new, b_new = train.step (x, t, W_1, b_1, lr)
        """,
        functions=function(
            "step",
            "x, t, weight, bias, rate",
            "loss, weight_new, bias_new",
            backward(w="weight", b="bias")
            + descend("weight", rate="rate")
            + descend("bias", rate="rate"),
        ),
    )


def main() -> None:
    branches()
    loops()
    functions()


if __name__ == "__main__":
    main()
