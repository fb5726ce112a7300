"""Record `clip_grad_norm_` and `clip_grad_value_` of PyTorch.

Needs torch==2.13.0 and numpy; run anywhere. Writes `forms_torch.json` beside itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import forms_inputs as inputs
import numpy as np
import torch
from parity_inputs import gradients as single_gradients

NORM = "torch.nn.utils.clip_grad_norm_"


def clipped(gradients: inputs.Tensors, clip: Callable[[list[Any]], object]) -> dict[str, Any]:
    """What `clip` leaves in the gradients of parameters that have these."""
    parameters = {name: torch.nn.Parameter(torch.zeros(x.shape)) for name, x in gradients.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    clip(list(parameters.values()))
    return {name: parameter.grad.numpy() for name, parameter in parameters.items()}


def by_norm(
    form: str, of: str, gradients: inputs.Tensors, clip_norm: float, norm_type: float
) -> dict[str, Any]:
    gives = clipped(
        gradients,
        lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, clip_norm, norm_type),
    )
    call = f"{NORM}({of}, {clip_norm}, norm_type={norm_type})"
    settings = {"clip_norm": clip_norm, "ord": inputs.order(norm_type)}
    return inputs.case("torch", form, call, settings, gradients, gives)


def by_value(gradients: inputs.Tensors, bound: float) -> dict[str, Any]:
    gives = clipped(gradients, lambda each: torch.nn.utils.clip_grad_value_(each, bound))
    call = f"torch.nn.utils.clip_grad_value_(model.parameters(), {bound})"
    return inputs.case("torch", "value", call, {"max": bound, "min": -bound}, gradients, gives)


def cases() -> Iterator[dict[str, Any]]:
    for norm_type in inputs.NORM_TYPES:
        for clip_norm in inputs.CLIP_NORMS:
            for name, x in single_gradients().items():
                yield by_norm("norm", "parameter", {name: x}, clip_norm, norm_type)
        for clip_norm in (*inputs.GLOBAL_NORMS, inputs.UNEVEN_NORM):
            for gradients in inputs.for_global_norm().values():
                yield by_norm("global_norm", "model.parameters()", gradients, clip_norm, norm_type)
    for bound in inputs.BOUNDS:
        yield by_value(inputs.for_values(), bound)


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    inputs.save(__file__, versions, list(cases()))
