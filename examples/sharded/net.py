"""A small net, and batches for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

STEPS, BATCH = 50, 32


class Net(nn.Module):
    """Two layers, the second of 3 rows: of 4 workers that shard them, one has none."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 36)
        self.down = nn.Linear(36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the net's guess at targets."""
        return self.down(torch.tanh(self.up(x)))


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all runs that are to end at the same parameters."""
    return torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the same inputs and targets in every process."""
    random = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 8, generator=random)
        yield x, torch.sin(x[:, :3])
