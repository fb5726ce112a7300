"""Record `timm.utils.adaptive_clip_grad`, which clips each unit by its parameter's norm.

Needs timm==1.0.31, torch==2.13.0 and numpy; run anywhere. Writes `forms_timm.json` beside itself.
timm's file `utils/agc.py` is loaded on its own: the package would import torchvision, whose wheels
need CUDA's libraries, and the clip needs torch alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forms_inputs as inputs
import numpy as np
import torch


def agc() -> Any:
    """The module timm.utils.agc, without the rest of timm."""
    package = importlib.util.find_spec("timm")
    file = Path(package.origin).parent / "utils" / "agc.py"
    spec = importlib.util.spec_from_file_location("timm_agc", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


adaptive_clip_grad = agc().adaptive_clip_grad


def by_units(
    on: tuple[inputs.Tensors, inputs.Tensors], clipping: float, eps: float, norm_type: float
) -> dict[str, Any]:
    gradients, values = on
    parameters = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in values.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    adaptive_clip_grad(list(parameters.values()), clipping, eps=eps, norm_type=norm_type)
    gives = {name: parameter.grad.numpy() for name, parameter in parameters.items()}
    call = (
        "timm.utils.adaptive_clip_grad(model.parameters(), "
        f"clip_factor={clipping}, eps={eps}, norm_type={norm_type})"
    )
    # timm's rule: the first axis counts the units of whatever has two axes or more
    axes = {name: list(range(1, x.ndim)) if x.ndim > 1 else None for name, x in values.items()}
    settings = {"clipping": clipping, "eps": eps, "ord": inputs.order(norm_type), "axes": axes}
    return inputs.case("timm", "adaptive", call, settings, gradients, gives, values)


def cases() -> Iterator[dict[str, Any]]:
    for clipping in inputs.CLIPPINGS:
        yield by_units(inputs.for_adaptive(), clipping, 1e-3, 2.0)
    yield by_units(inputs.for_adaptive(), 0.1, 0.5, 2.0)
    for norm_type in (1.0, float("inf")):
        yield by_units(inputs.for_adaptive(), 0.1, 1e-3, norm_type)
    yield by_units(inputs.for_tiny_units(), 1e-4, 1e-3, 2.0)


if __name__ == "__main__":
    versions = {
        "timm": importlib.metadata.version("timm"),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    inputs.save(__file__, versions, list(cases()))
