"""Networks of which steps are exported: small, seeded, with losses written out by hand.

The exporter of PyTorch 2.13 makes the gradient of its cross entropy too large by the batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch_steps import Data, Network, by_autograd

Loss = Callable[[Callable[..., Any], Data], Tensor]


def of_module(
    name: str, module: nn.Module, loss: Loss, batches: list[Data], data: list[str], *notes: str
) -> Network:
    """Return the network of a module: its buffers are carried where a step changes them."""
    buffers = {key: value.detach() for key, value in module.named_buffers()}

    def value(
        parameters: list[Tensor], carried: list[Tensor], batch: Data
    ) -> tuple[Tensor, list[Tensor]]:
        named = dict(zip(weights, parameters, strict=True))
        # Layers write into their buffers.
        own = {key: old.clone() for key, old in zip(buffers, carried, strict=True)}

        def call(*arguments: Any) -> Any:
            return functional_call(module, (named, own), arguments)

        result = loss(call, batch)
        return result, list(own.values())

    weights = {key: value.detach() for key, value in module.named_parameters()}
    return Network(name, weights, by_autograd(value), batches, data, buffers, list(notes))


def _batches(make: Callable[[], Data], seed: int = 3) -> list[Data]:
    torch.manual_seed(seed)
    return [make() for _ in range(3)]


def squared(got: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error."""
    error = got - wanted
    return (error * error).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of log-sum-exp less the label's logit."""
    chosen = (labels[..., None] == torch.arange(logits.shape[-1])).to(logits.dtype)
    return (torch.logsumexp(logits, -1) - (logits * chosen).sum(-1)).mean()


def of_pair(
    name: str, module: nn.Module, x: tuple[int, ...], y: tuple[int, ...], seed: int = 3
) -> Network:
    """Return the network of a module with one float input and a mean squared error."""
    batches = _batches(lambda: [torch.randn(*x), torch.randn(*y)], seed)
    return of_module(name, module, lambda f, d: squared(f(d[0]), d[1]), batches, ["x", "wanted"])


def mlp(seed: int = 3) -> Network:
    """Two layers with biases."""
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4 if parameter.ndim == 2 else 0.1)
    return of_pair("mlp", module, (8, 5), (8, 3), seed)


class _LastOfRnn(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def lstm() -> Network:
    """An LSTM: its two biases have one gradient."""
    return of_pair("lstm", _LastOfRnn(nn.LSTM), (3, 4, 4), (3, 2))


def gru() -> Network:
    """A GRU."""
    return of_pair("gru", _LastOfRnn(nn.GRU), (3, 4, 4), (3, 2))


def cnn() -> Network:
    """Convolutions with BatchNorm, whose statistics are carried."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 2),
    )
    return of_pair("cnn", module, (4, 2, 6, 6), (4, 2))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.way, self.norm_2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        sum_ = functional.relu(self.norm(self.conv(x)) + self.norm_2(self.way(x)))
        return self.head(sum_.mean((2, 3)))


def resnet() -> Network:
    """Two BatchNorms whose sum goes on: their biases have one gradient."""
    return of_pair("resnet", _Residual(), (4, 3, 5, 5), (4, 2))


def batchnorm_mlp() -> Network:
    """BatchNorm between two linear layers, the first without a bias."""
    module = nn.Sequential(
        nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    )
    return of_pair("batchnorm-mlp", module, (8, 5), (8, 3))


def layernorm() -> Network:
    """LayerNorm between two linear layers."""
    module = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))
    return of_pair("layernorm", module, (8, 5), (8, 3))


def deep() -> Network:
    """Five layers of one size, so that shapes tell nothing."""
    layers: list[nn.Module] = []
    for _ in range(5):
        layers += [nn.Linear(4, 4), nn.SiLU()]
    return of_pair("deep", nn.Sequential(*layers), (8, 4), (8, 4))


def one_example() -> Network:
    """A batch of one and an output of one element: the error is a number."""
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    return of_pair("one-example", module, (1, 4), (1, 1))


class _Lora(nn.Module):
    """A frozen layer with a low-rank addition, which a gate of one element scales."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("base", torch.randn(4, 5))
        self.down = nn.Parameter(torch.randn(2, 5))
        self.up = nn.Parameter(torch.randn(4, 2))
        self.gate = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.base.T + self.gate * (x @ self.down.T @ self.up.T)


def lora() -> Network:
    """LoRA with a parameter of one element."""
    torch.manual_seed(5)
    return of_pair("lora", _Lora(), (8, 5), (8, 4))


class _TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6) * 0.4)
        self.shift, self.back = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.T + self.shift) @ self.weight + self.back


def tied() -> Network:
    """An autoencoder with one matrix for both ways."""
    return of_pair("tied", _TiedAutoencoder(), (8, 6), (8, 6))


class _WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.direction, self.size = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.ones(4, 1))
        self.log_scale = nn.Parameter(torch.randn(4) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        norm = (self.direction * self.direction).sum(1, keepdim=True).sqrt()
        return (x @ (self.size * self.direction / norm).T) * torch.exp(self.log_scale)


def weight_norm() -> Network:
    """Weights from a direction and a size, and scales kept as logarithms."""
    return of_pair("weight-norm", _WeightNorm(), (8, 5), (8, 4))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=True)[0]


def attention() -> Network:
    """Multi-head attention."""
    torch.manual_seed(4)
    return of_pair("attention", _Attention(), (2, 5, 4), (2, 5, 4))


def embedding() -> Network:
    """The mean of embeddings, and a linear classifier."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens).mean(1))

    batches = _batches(lambda: [torch.randint(11, (6, 5)), torch.randint(3, (6,))])
    return of_module(
        "embedding", Bag(), lambda f, d: cross_entropy(f(d[0]), d[1]), batches, ["tokens", "labels"]
    )


ARCHITECTURES = (
    lstm,
    gru,
    cnn,
    resnet,
    batchnorm_mlp,
    layernorm,
    deep,
    one_example,
    lora,
    tied,
    weight_norm,
    attention,
    embedding,
)
