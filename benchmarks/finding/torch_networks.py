"""Networks of which steps are exported: small, seeded, with losses written out by hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_steps import Data, Network, by_autograd


def mlp() -> Network:
    """Two layers with biases and a mean squared error."""
    random = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    def loss(
        parameters: list[Tensor], buffers: list[Tensor], data: Data
    ) -> tuple[Tensor, list[Tensor]]:
        first, shift, second, shift_2 = parameters
        x, wanted = data
        hidden = torch.tanh(torch.nn.functional.linear(x, first, shift))
        error = torch.nn.functional.linear(hidden, second, shift_2) - wanted
        return (error * error).mean(), []

    parameters = {
        "0.weight": normal(6, 5) * 0.4,
        "0.bias": normal(6) * 0.1,
        "2.weight": normal(3, 6) * 0.4,
        "2.bias": normal(3) * 0.1,
    }
    batches = [[normal(8, 5), normal(8, 3)] for _ in range(3)]
    return Network("mlp", parameters, by_autograd(loss), batches, ["x", "wanted"])
