"""Make value-and-gradient graphs with PyTorch, to run on the stock ONNX Runtime.

Needs PyTorch 2.13, onnx, onnxscript and numpy. `make_fx` traces `torch.func.grad_and_value` of a
loss, `torch.onnx.export(dynamo=True)` exports the trace. Every graph gives the loss first and then
the gradients in the order of the parameters, under whatever names the exporter chooses.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

HERE = Path(__file__).parent
Parameters = dict[str, Tensor]


class Step(torch.nn.Module):
    """A traced step whose parameters are inputs, or the module's own."""

    def __init__(
        self, step: Callable[..., tuple[Tensor, ...]], own: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__()
        self.step = step
        self.names = list(own or ())
        for name, value in (own or {}).items():
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self.step(*(getattr(self, name) for name in self.names), *args)


def make(
    name: str,
    loss: Callable[..., Tensor],
    parameters: Parameters,
    data: tuple[Tensor, ...],
    *,
    opset: int,
    as_inputs: bool = False,
    optimize: bool = True,
    extra: Callable[[Parameters, Parameters], tuple[Tensor, ...]] | None = None,
) -> None:
    """Export one model and its feeds; `extra` makes outputs of parameters and gradients."""

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        held = dict(zip(parameters, args[: len(parameters)], strict=True))
        rest = args[len(parameters) :]
        gradients, value = torch.func.grad_and_value(lambda p: loss(p, *rest))(held)
        return value, *gradients.values(), *(extra(held, gradients) if extra else ())

    traced = make_fx(step)(*parameters.values(), *data)
    module = Step(traced, None if as_inputs else parameters)
    args = (*parameters.values(), *data) if as_inputs else data
    program = torch.onnx.export(
        module, args, dynamo=True, opset_version=opset, verbose=False, optimize=optimize
    )
    model = program.model_proto
    for node in model.graph.node:  # stack traces with the paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.doc_string = ""
    onnx.save(model, HERE / f"{name}.onnx")
    names = [value.name for value in model.graph.input]
    feeds = {key: value.numpy() for key, value in zip(names, args, strict=True)}
    np.savez(HERE / f"{name}.inputs.npz", **feeds)
    print(name, (HERE / f"{name}.onnx").stat().st_size, "bytes")
    print("   parameters", names[: len(parameters)] if as_inputs else list(parameters))
    print("   outputs   ", [value.name for value in model.graph.output])


def normal(*shape: int, scale: float = 0.7) -> Tensor:
    return torch.randn(*shape) * scale


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Written by hand: PyTorch 2.13 exports the gradients of F.cross_entropy too large."""
    picked = (labels[:, None] == torch.arange(logits.shape[-1])).to(logits.dtype)
    return -(torch.log_softmax(logits, -1) * picked).sum() / labels.shape[0]


def mlp(p: Parameters, x: Tensor) -> Tensor:
    return functional.linear(torch.tanh(functional.linear(x, p["w1"], p["b1"])), p["w2"], p["b2"])


def mlp_mse(p: Parameters, x: Tensor, t: Tensor) -> Tensor:
    return ((mlp(p, x) - t) ** 2).mean()


def mlp_relu_cross_entropy(p: Parameters, x: Tensor, labels: Tensor) -> Tensor:
    hidden = torch.relu(functional.linear(x, p["w1"], p["b1"]))
    return cross_entropy(functional.linear(hidden, p["w2"], p["b2"]), labels)


def builtin_cross_entropy(p: Parameters, x: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(mlp(p, x), labels)


def attention(p: Parameters, x: Tensor, t: Tensor) -> Tensor:
    """A block of pre-norm attention with one head."""
    mean = x.mean(-1, keepdim=True)
    normed = (x - mean) * torch.rsqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
    h = normed * p["gain"] + p["shift"]
    q, k, v = (h @ p[name] for name in ("wq", "wk", "wv"))
    weights = torch.softmax(q @ k.transpose(-1, -2) / x.shape[-1] ** 0.5, -1)
    y = x + (weights @ v) @ p["wo"]
    return ((y - t) ** 2).mean()


def embedding(p: Parameters, ids: Tensor, labels: Tensor) -> Tensor:
    pooled = functional.embedding(ids, p["table"]).mean(1)
    return cross_entropy(functional.linear(functional.gelu(pooled), p["w"], p["b"]), labels)


def cnn(p: Parameters, x: Tensor, labels: Tensor) -> Tensor:
    """A convolution as unfold and matmul, since its backward pass has no ONNX translation."""
    columns = x.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(x.shape[0], -1, 9)
    maps = torch.sigmoid(columns @ p["kernel"] + p["bias"]).mean(1)
    return cross_entropy(maps @ p["w"], labels)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(11)
    dense = {"w1": normal(6, 5), "b1": normal(6), "w2": normal(3, 6), "b2": normal(3)}
    x, t = normal(4, 5, scale=1.0), normal(4, 3, scale=1.0)
    labels = torch.tensor([0, 2, 1, 2])
    make("mlp_mse", mlp_mse, dense, (x, t), opset=20, as_inputs=True)
    make("mlp_relu_cross_entropy", mlp_relu_cross_entropy, dense, (x, labels), opset=18,
         optimize=False)  # fmt: skip
    make("builtin_cross_entropy", builtin_cross_entropy, dense, (x, labels), opset=18)
    square = {name: normal(6, 6, scale=0.4) for name in ("wq", "wk", "wv", "wo")}
    norm = {"gain": 1 + normal(6, scale=0.2), "shift": normal(6)}
    make("attention", attention, norm | square, (normal(2, 4, 6), normal(2, 4, 6)), opset=20)
    words = {"table": normal(9, 4), "w": normal(3, 4), "b": normal(3)}
    ids = torch.tensor([[1, 2, 2], [0, 5, 8], [7, 7, 7], [3, 1, 4]])
    make("embedding", embedding, words, (ids, labels), opset=20, as_inputs=True)
    maps = {"kernel": normal(9, 4), "bias": normal(4), "w": normal(4, 3)}
    make("cnn_unfolded", cnn, maps, (normal(4, 1, 5, 5, scale=1.0), labels), opset=18)

    def lookalikes(p: Parameters, g: Parameters) -> tuple[Tensor, ...]:
        """Updated parameters, a first moment, and the squares that a second one averages."""
        updates = tuple(p[name] - 0.1 * g[name] for name in p)
        return *updates, *(0.1 * g[name] for name in p), *(g[name] ** 2 for name in p)

    make("mlp_with_lookalikes", mlp_mse, dense, (x, t), opset=20, as_inputs=True, extra=lookalikes)


if __name__ == "__main__":
    main()
