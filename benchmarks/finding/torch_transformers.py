"""Transformers of which steps are exported: GPT-2, BERT and Llama in small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_networks import _batches, cross_entropy, of_module
from torch_steps import Network

WIDTH, HEADS, LENGTH, WORDS = 8, 2, 5, 11


def _attended(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    batch, length, _ = q.shape
    q, k, v = (t.reshape(batch, length, HEADS, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5
    if causal:
        scores = scores + torch.full((length, length), -1e9).triu(1)
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)


class _Gpt(nn.Module):
    """Pre-LayerNorm blocks, a learned position, and the embedding as the last layer too."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "before": nn.LayerNorm(WIDTH),
                    "qkv": nn.Linear(WIDTH, 3 * WIDTH, bias=False),
                    "out": nn.Linear(WIDTH, WIDTH),
                    "between": nn.LayerNorm(WIDTH),
                    "up": nn.Linear(WIDTH, 2 * WIDTH),
                    "down": nn.Linear(2 * WIDTH, WIDTH),
                }
            )
            for _ in range(blocks)
        )
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            q, k, v = block["qkv"](block["before"](x)).chunk(3, -1)
            x = x + block["out"](_attended(q, k, v, causal=True))
            hidden = functional.gelu(block["up"](block["between"](x)), approximate="tanh")
            x = x + block["down"](hidden)
        return self.last(x) @ self.words.weight.T


class _Bert(nn.Module):
    """Post-LayerNorm with separate projections, and a classifier of the first word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        # A bias of keys has gradient zero: softmax does not see it.
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.v, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        x = self.norm_1(x + self.out(_attended(self.q(x), self.k(x), self.v(x), causal=False)))
        x = self.norm_2(x + self.down(functional.gelu(self.up(x))))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class _RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.weight


class _Llama(nn.Module):
    """RMSNorm, rotary positions and a gated layer, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.before, self.between, self.last = _RmsNorm(), _RmsNorm(), _RmsNorm()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 12, bias=False) for _ in range(2))
        self.down = nn.Linear(12, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def _turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(LENGTH)[:, None] / 10 ** (torch.arange(WIDTH // 2) / 2.0)
        first, second = x.chunk(2, -1)
        cos, sin = torch.cos(angles), torch.sin(angles)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        h = self.before(x)
        q, k = self._turned(self.q(h)), self._turned(self.k(h))
        x = x + self.out(_attended(q, k, self.v(h), causal=True))
        h = self.between(x)
        x = x + self.down(functional.silu(self.gate(h)) * self.up(h))
        return self.head(self.last(x))


def gpt() -> Network:
    """GPT-2 with two blocks and tied embeddings."""
    return _of_words("gpt", _Gpt())


def llama() -> Network:
    """One block of Llama."""
    return _of_words("llama", _Llama())


def _of_words(name: str, module: nn.Module) -> Network:
    batches = _batches(
        lambda: [torch.randint(WORDS, (3, LENGTH)), torch.randint(WORDS, (3, LENGTH))]
    )
    return of_module(
        name, module, lambda f, d: cross_entropy(f(d[0]), d[1]), batches, ["tokens", "labels"]
    )


def bert() -> Network:
    """One block of BERT with a classifier."""
    batches = _batches(lambda: [torch.randint(WORDS, (4, LENGTH)), torch.randint(3, (4,))])
    return of_module(
        "bert", _Bert(), lambda f, d: cross_entropy(f(d[0]), d[1]), batches, ["tokens", "labels"]
    )


ARCHITECTURES = (gpt, llama, bert)
