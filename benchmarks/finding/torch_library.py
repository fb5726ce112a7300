"""The optimizers of pytorch-optimizer, each with the options that change its formula.

Options come from the signatures: what an optimizer does not have is not asked of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytorch_optimizer
import torch
from torch_optimizers import Choice, Parameters

RATES = {
    "AdaGO": 0.05,
    "AdaBound": 0.01,
    "DAdaptAdaGrad": 1.0,
    "DAdaptAdam": 1.0,
    "DAdaptAdan": 1.0,
    "DAdaptLion": 1.0,
    "DAdaptSGD": 1.0,
    "LARS": 1.0,
    "Prodigy": 1.0,
}
"""Learning rates that make a step move; the others' are 0.02 or their default, if that is more."""

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "decay": {"weight_decay": 0.1},
    "decay-coupled": {"weight_decay": 0.1, "weight_decouple": False},
    "decay-decoupled": {"weight_decay": 0.1, "weight_decouple": True},
    "maximize": {"maximize": True},
    "amsgrad": {"ams_bound": True},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "rectify": {"rectify": True},
    "centered": {"centered": True, "steps_before_using_centered": 1},
    "cautious": {"cautious": True},
    "foreach": {"foreach": True},
}

NEEDED: dict[str, dict[str, Any]] = {
    "AdaFactor": {"momentum_dtype": torch.float32},
    "BSAM": {"num_data": 8},
    "FlashAdamW": {"quantize": False, "compress_state_dict": False},
    "PNM": {"betas": (0.9, 0.9)},
    "AdaPNM": {"betas": (0.9, 0.999, 0.9)},
    "ROSE": {"compute_dtype": torch.float32, "bf16_sr": False},
    "Ranger": {"k": 3},
    "Ranger21": {"num_iterations": 100},
    "QHAdam": {"nus": (0.7, 0.9)},
    "QHM": {"momentum": 0.9, "nu": 0.7},
    "AdaShift": {"keep_num": 2},
}
"""Options without which there is no optimizer, no float32, or a formula that is another's."""

RANDOM = {"Magma"}
"""Two runs of these differ: there is no result to compare with."""

MATRICES_ONLY = {"SpectralSphere"}
"""Beside these, AdamW takes the biases."""

LISTED_APART = {"AdaGO", "AdaMuon", "Muon", "MuonClip", "NorMuon", "DistributedMuon"}
"""These take matrices and other parameters in groups of their own."""


def choices() -> Iterator[Choice]:
    """Each optimizer that is not torch.optim's with each variant whose options it has."""
    for kind in pytorch_optimizer.optimizer.OPTIMIZER_LIST:
        if kind.__name__ in RANDOM or not kind.__module__.startswith("pytorch_optimizer"):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        for label, options in VARIANTS.items():
            settings = NEEDED.get(kind.__name__, {}) | options
            if not options.keys() <= defaults.keys():
                continue
            if label and all(
                value == NEEDED.get(kind.__name__, {}).get(name, defaults[name])
                for name, value in options.items()
            ):
                continue
            # Where decay can be coupled or not, the variants that say so are enough.
            if label == "decay" and "weight_decouple" in defaults:
                continue
            yield _choice(kind, label, defaults, settings)


def _choice(kind: Any, label: str, defaults: dict[str, Any], settings: dict[str, Any]) -> Choice:
    default = defaults.get("lr", 0.02)
    rate = RATES.get(kind.__name__, max(0.02, default if isinstance(default, float) else 0.02))
    options = {"lr": rate} if "lr" in defaults else {}
    options |= {"foreach": False} if "foreach" in defaults else {}
    options |= settings
    if "momentum" in settings and defaults.get("momentum") == settings["momentum"]:
        settings = {name: value for name, value in settings.items() if name != "momentum"}
    said = ", ".join(f"{name}={value}" for name, value in settings.items())

    def make(parameters: Parameters) -> list[Any]:
        groups: list[Any] = list(parameters.values())
        if kind.__name__ in LISTED_APART:
            groups = [
                {"params": [p for p in groups if p.ndim == 2], "use_muon": True},
                {"params": [p for p in groups if p.ndim != 2], "use_muon": False},
            ]
        if kind.__name__ in MATRICES_ONLY:
            vectors = [p for p in groups if p.ndim != 2]
            others = torch.optim.AdamW(vectors, lr=0.02, foreach=False, capturable=True)
            return [kind([p for p in groups if p.ndim == 2], **options), others]
        if "model" in defaults:
            return [kind(_module(parameters), **options)]
        return [kind(groups, **options)]

    name = f"po-{kind.__name__}" + (f"-{label}" if label else "")
    return Choice(name, kind.__name__, make, said, patched=True)


def _module(parameters: Parameters) -> torch.nn.Module:
    """Return a module with these parameters, for optimizers that want one."""
    module = torch.nn.Module()
    for name, parameter in parameters.items():
        module.register_parameter(name.replace(".", "_"), parameter)
    return module
