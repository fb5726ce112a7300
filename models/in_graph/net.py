"""The net of these models, its data and its backward pass, and what writes a model around it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

HERE = Path(__file__).parent
RNG = np.random.default_rng(11)
DATA = "float[N,4] x, float[N,3] t"
PARAMETERS = "float[4,3] W, float[3] b"
UPDATED = "float loss, float[4,3] W_new, float[3] b_new"
CONSTANTS = {"one": 1.0, "seed": 1.0, "lr": 0.1}


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


X, T, W, B = normal(6, 4), normal(6, 3), normal(4, 3), normal(3)


def backward(
    grad_w: str,
    grad_b: str,
    *,
    x: str = "x",
    t: str = "t",
    w: str = "W",
    b: str = "b",
    loss: str = "loss",
    seed: str = "seed",
    tag: str = "",
) -> str:
    """Return the forward and backward pass; ``tag`` keeps the names of several passes apart."""
    return f"""
        z{tag} = Gemm ({x}, {w}, {b})
        h{tag} = Tanh (z{tag})
        error{tag} = Sub (h{tag}, {t})
        square{tag} = Mul (error{tag}, error{tag})
        {loss} = ReduceMean <keepdims = 0> (square{tag})
        size{tag} = Size (square{tag})
        count{tag} = Cast <to = 1> (size{tag})
        twice{tag} = Add (error{tag}, error{tag})
        mean{tag} = Div (twice{tag}, count{tag})
        h_grad{tag} = Mul (mean{tag}, {seed})
        hh{tag} = Mul (h{tag}, h{tag})
        slope{tag} = Sub (one, hh{tag})
        z_grad{tag} = Mul (h_grad{tag}, slope{tag})
        "{grad_w}" = Gemm <transA = 1> ({x}, z_grad{tag})
        "{grad_b}" = ReduceSum <keepdims = 0> (z_grad{tag}, rows)
    """


def descend(parameter: str, direction: str, updated: str = "", rate: str = "lr") -> str:
    """Return ``updated = parameter - rate * direction``."""
    return f"""
        "{parameter}_step" = Mul ({rate}, "{direction}")
        "{updated or parameter + "_new"}" = Sub ({parameter}, "{parameter}_step")
    """


def build(
    name: str,
    body: str,
    *,
    outputs: str = UPDATED,
    inputs: str = f"{DATA}, {PARAMETERS}",
    feeds: Mapping[str, np.ndarray] | None = None,
    initializers: Mapping[str, np.ndarray | float] | None = None,
    opset: int = 17,
) -> None:
    """Parse the model, add the constants it uses, save it and its feeds."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> {name} ({inputs}) => ({outputs}) {{{body}}}'
    )
    used = {source for node in model.graph.node for source in node.input}
    constants = CONSTANTS | {"rows": np.array([0])} | dict(initializers or {})
    for key, value in constants.items():
        if key in used:
            array = np.array(value, np.float32) if isinstance(value, float) else value
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    known = {"x": X, "t": T, "W": W, "b": B} | dict(feeds or {})
    needed = {value.name: known[value.name] for value in model.graph.input}
    onnx.save(model, HERE / f"{name}.onnx")
    np.savez(HERE / f"{name}.inputs.npz", **needed)
