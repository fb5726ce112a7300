"""Make value-and-gradient graphs with JAX, to run on the stock ONNX Runtime.

Needs jax2onnx 0.17.1, jax, onnx and numpy. `to_onnx` exports `jax.value_and_grad` of a loss. Every
graph gives the loss first and then the gradients in the order of the parameters; inputs are called
`in_0`, `in_1`, … in the order of parameters and data. jax2onnx 0.17.1 gets the gradients of rank-2
matrix products wrong, so that the data here have a leading dimension of one.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import Array
from jax2onnx import to_onnx

HERE = Path(__file__).parent
RNG = np.random.default_rng(31)


def make(
    name: str, loss: Callable[..., Array], parameters: int, *arrays: np.ndarray, opset: int = 23
) -> None:
    """Export one model and its feeds: the first `parameters` arrays are the parameters."""
    step = jax.value_and_grad(loss, argnums=tuple(range(parameters)))
    specs = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays]
    model = to_onnx(
        lambda *args: (lambda value, slopes: (value, *slopes))(*step(*args)),
        inputs=specs,
        model_name=name,
        opset=opset,
    )
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    onnx.save(model, HERE / f"{name}.onnx")
    names = [value.name for value in model.graph.input]
    np.savez(HERE / f"{name}.inputs.npz", **dict(zip(names, arrays, strict=True)))
    print(name, (HERE / f"{name}.onnx").stat().st_size, "bytes")
    print("   parameters", names[:parameters], "data", names[parameters:])
    print("   outputs   ", [value.name for value in model.graph.output])
    check(name, model, step(*arrays), dict(zip(names, arrays, strict=True)))


def check(name: str, model: onnx.ModelProto, expected: tuple, feeds: dict) -> None:
    """Say so if the export does not compute what JAX does."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    value, slopes = expected
    for got, want in zip(session.run(None, feeds), (value, *slopes), strict=True):
        if got.shape != want.shape or not np.allclose(got, want, rtol=1e-3, atol=1e-5):
            print("   DIFFERS from JAX:", name, got.shape, want.shape)


def normal(*shape: int, scale: float = 0.7) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape) * scale, np.float32)


def log_likelihood(logits: Array, targets: Array) -> Array:
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    logs = shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
    return -(logs * targets).sum() / logits.shape[1]


def mlp_mse(w1: Array, b1: Array, w2: Array, b2: Array, x: Array, t: Array) -> Array:
    y = jnp.matmul(jnp.tanh(jnp.matmul(x, w1) + b1), w2) + b2
    return ((y - t) ** 2).mean()


def mlp_cross_entropy(w1: Array, b1: Array, w2: Array, b2: Array, x: Array, t: Array) -> Array:
    return log_likelihood(jnp.matmul(jnp.maximum(jnp.matmul(x, w1) + b1, 0), w2) + b2, t)


def layernorm(w: Array, gain: Array, shift: Array, x: Array, t: Array) -> Array:
    h = jnp.matmul(x, w)
    centred = h - h.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    return ((normed * gain + shift - t) ** 2).mean()


def gated(a: Array, b: Array, c: Array, d: Array, x: Array, t: Array) -> Array:
    """Square weights of one shape, and a scalar."""
    h = jax.nn.sigmoid(jnp.matmul(x, a)) * jnp.tanh(jnp.matmul(x, b))
    return ((d * jnp.matmul(h, c) - t) ** 2).sum()


def main() -> None:
    dense = normal(5, 6), normal(6), normal(6, 3), normal(3)
    x, t = normal(1, 4, 5, scale=1.0), normal(1, 4, 3, scale=1.0)
    make("mlp_mse", mlp_mse, 4, *dense, x, t)
    classes = np.eye(3, dtype=np.float32)[None, [0, 2, 1, 2]]
    make("mlp_relu_cross_entropy", mlp_cross_entropy, 4, *dense, x, classes)
    make("layernorm", layernorm, 3, normal(5, 6), 1 + normal(6, scale=0.2), normal(6), x,
         normal(1, 4, 6, scale=1.0), opset=21)  # fmt: skip
    make("gated", gated, 4, normal(4, 4), normal(4, 4), normal(4, 4), normal(scale=1.0),
         normal(1, 3, 4), normal(1, 3, 4))  # fmt: skip


if __name__ == "__main__":
    main()
