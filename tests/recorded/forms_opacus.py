"""Record what Opacus makes of the gradients of each sample, without noise.

Needs opacus==1.6.0, torch==2.13.0 and numpy; run anywhere. Writes `forms_opacus.json` beside
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import forms_inputs as inputs
import numpy as np
import opacus
import torch
from opacus.optimizers import DPOptimizer, DPPerLayerOptimizer


def summed(kind: type[DPOptimizer], batch: inputs.Tensors, max_grad_norm: Any) -> dict[str, Any]:
    """The sum over the batch of the clipped gradients: what the wrapped optimizer is given."""
    parameters = {name: torch.nn.Parameter(torch.zeros(x.shape[1:])) for name, x in batch.items()}
    for name, parameter in parameters.items():
        parameter.grad_sample = torch.tensor(batch[name])  # where GradSampleModule leaves them
    optimizer = kind(
        torch.optim.SGD(list(parameters.values()), 1.0),
        noise_multiplier=0.0,
        max_grad_norm=max_grad_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    optimizer.pre_step()
    return {name: parameter.grad.numpy() for name, parameter in parameters.items()}


def samples_and_sum(
    form: str, kind: type[DPOptimizer], gradients: inputs.Tensors, max_grad_norm: Any
) -> Iterator[dict[str, Any]]:
    """Opacus gives sums over the batch; a batch of one sample shows that sample, clipped."""
    call = (
        f"opacus.optimizers.{kind.__name__}(optimizer, noise_multiplier=0.0, "
        f'max_grad_norm={max_grad_norm}, expected_batch_size=None, loss_reduction="sum")'
    )
    clip_norm = max_grad_norm
    if isinstance(max_grad_norm, list):
        clip_norm = dict(zip(gradients, max_grad_norm, strict=True))
    size = len(next(iter(gradients.values())))
    alone = [
        summed(kind, {name: x[i : i + 1] for name, x in gradients.items()}, max_grad_norm)
        for i in range(size)
    ]
    samples = {name: np.stack([sample[name] for sample in alone]) for name in gradients}
    for given, out in [("samples", samples), ("sum", summed(kind, gradients, max_grad_norm))]:
        settings = {"clip_norm": clip_norm, "gives": given}
        yield inputs.case("opacus", form, call, settings, gradients, out)


def cases() -> Iterator[dict[str, Any]]:
    samples = inputs.for_samples()
    for clip_norm in inputs.SAMPLE_NORMS:
        yield from samples_and_sum("per_sample_global_norm", DPOptimizer, samples, clip_norm)
    for clip_norm in (5.0, 13.0):
        yield from samples_and_sum(
            "per_sample_global_norm", DPOptimizer, inputs.at_the_threshold(), clip_norm
        )
    for clip_norms in ([0.5, 0.5, 0.5], [5.0, 1.0, 1000.0]):
        yield from samples_and_sum("per_sample_norm", DPPerLayerOptimizer, samples, clip_norms)


if __name__ == "__main__":
    versions = {"opacus": opacus.__version__, "torch": torch.__version__, "numpy": np.__version__}
    inputs.save(__file__, versions, list(cases()))
