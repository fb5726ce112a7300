"""Training steps of ResNet-50 and BERT-base, exported whole, for `watching.py`.

Needs PyTorch and onnxscript (docs/pytorch.md), and some minutes each: ``python watched_steps.py
NAME FOLDER`` writes step.onnx, states.npz and batch.npz. Weights are as PyTorch makes them, data
are random: time does not ask.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "pytorch"))

from torch_to_onnx import export_step

Tensors = dict[str, Tensor]


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            *_convolution(channels, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, 4 * width, 1),
        )
        self.past = nn.Sequential()
        if channels != 4 * width:
            self.past = nn.Sequential(*_convolution(channels, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.way(x) + self.past(x))


def _convolution(channels: int, wide: int, size: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(channels, wide, size, stride, size // 2, bias=False)
    return [layer, nn.BatchNorm2d(wide)]


def resnet50() -> nn.Module:
    """161 parameters, 25.6 M elements."""
    layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(channels, width, stride))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Bert(nn.Module):
    """BERT-base with a head that predicts words, tied to their embedding."""

    def __init__(self, width: int = 768, layers: int = 12, words: int = 30522) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 12, 4 * width, dropout=0.0, activation="gelu", batch_first=True
            )
            for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return x @ self.words.weight.T


def _class(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(pixels), labels)


def _words(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())


def _resnet_step() -> tuple[nn.Module, Callable[..., Tensor], Tensors]:
    batch = {"pixels": torch.randn(32, 3, 64, 64), "labels": torch.randint(1000, (32,))}
    return resnet50(), _class, batch


def _bert_step() -> tuple[nn.Module, Callable[..., Tensor], Tensors]:
    batch = {name: torch.randint(30522, (8, 64)) for name in ("tokens", "labels")}
    return Bert(), _words, batch


STEPS = {"ResNet-50": _resnet_step, "BERT-base": _bert_step}


def main(name: str, folder: Path) -> None:
    """Write the step and a batch."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    module, loss, batch = STEPS[name]()
    optimizer = torch.optim.SGD(module.train().parameters(), lr=1e-4, momentum=0.9)
    loss(module, **batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    exported = export_step(module, loss, batch, optimizer)
    onnx.save(exported.model, folder / "step.onnx")
    np.savez(folder / "batch.npz", **{key: value.numpy() for key, value in batch.items()})
    np.savez(folder / "states.npz", **exported.state)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
