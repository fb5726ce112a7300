"""The optimizers of which steps are exported, with the options that change their formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim

Parameters = dict[str, torch.nn.Parameter]


@dataclass
class Choice:
    """An optimizer with its options."""

    name: str
    optimizer: str
    make: Callable[[Parameters], list[Any]]
    options: str = ""
    patched: bool = False


def chosen(
    kind: Callable[..., Any], label: str = "", *, patched: bool = False, **options: Any
) -> Choice:
    """Return a choice: the optimizer with these options over all parameters."""
    optimizer = kind.__name__
    name = f"{optimizer}-{label}" if label else optimizer
    said = ", ".join(
        f"{key}={value}"
        for key, value in options.items()
        if key not in ("lr", "capturable") and (key, value) != ("foreach", False)
    )
    if isinstance(options.get("lr"), torch.Tensor):
        said = ", ".join(filter(None, ("learning rate as input", said)))

    def make(parameters: Parameters) -> list[Any]:
        values = {
            key: value.clone() if isinstance(value, torch.Tensor) else value
            for key, value in options.items()
        }
        return [kind(list(parameters.values()), **values)]

    return Choice(name, optimizer, make, said, patched)


def _muon(parameters: Parameters, **options: Any) -> list[Any]:
    matrices = [value for value in parameters.values() if value.ndim == 2]
    others = [value for value in parameters.values() if value.ndim != 2]
    return [
        optim.Muon(matrices, lr=0.02, **options),
        optim.AdamW(others, lr=0.01, foreach=False, capturable=True),
    ]


def _of_torch() -> list[Choice]:
    plain = {"foreach": False}
    captured = {"foreach": False, "capturable": True}
    many = {"foreach": True}
    decay = {"weight_decay": 0.1}
    rate = torch.tensor(0.05)
    return [
        chosen(optim.SGD, lr=0.1, **plain),
        chosen(optim.SGD, "momentum", lr=0.1, momentum=0.9, **plain),
        chosen(optim.SGD, "nesterov", lr=0.1, momentum=0.9, nesterov=True, **plain),
        chosen(optim.SGD, "dampening", lr=0.1, momentum=0.9, dampening=0.5, **plain),
        chosen(optim.SGD, "decay", lr=0.1, **decay, **plain),
        chosen(optim.SGD, "momentum-decay", lr=0.1, momentum=0.9, **decay, **plain),
        chosen(
            optim.SGD,
            "dampening-decay",
            lr=0.1,
            momentum=0.9,
            dampening=0.3,
            **decay,
            **plain,
        ),
        chosen(optim.SGD, "nesterov-decay", lr=0.1, momentum=0.9, nesterov=True, **decay, **plain),
        chosen(optim.SGD, "maximize", lr=0.1, maximize=True, **plain),
        chosen(optim.SGD, "maximize-momentum-decay", lr=0.1, momentum=0.9, maximize=True, **decay),
        chosen(optim.SGD, "foreach-momentum", lr=0.1, momentum=0.9, **many),
        chosen(optim.SGD, "rate-input", patched=True, lr=rate, momentum=0.9, **plain),
        chosen(optim.Adam, lr=0.02, **captured),
        chosen(optim.Adam, "no-capture", patched=True, lr=0.02, **plain),
        chosen(optim.Adam, "decay", lr=0.02, **decay, **captured),
        chosen(optim.Adam, "amsgrad", lr=0.02, amsgrad=True, **captured),
        chosen(optim.Adam, "maximize", lr=0.02, maximize=True, **captured),
        chosen(
            optim.Adam,
            "amsgrad-decay-maximize",
            lr=0.02,
            amsgrad=True,
            maximize=True,
            **decay,
            **captured,
        ),
        chosen(optim.Adam, "decoupled", lr=0.02, decoupled_weight_decay=True, **decay, **captured),
        chosen(optim.Adam, "foreach", lr=0.02, capturable=True, **many),
        chosen(optim.Adam, "rate-input", lr=rate, **captured),
        chosen(optim.AdamW, lr=0.02, **captured),
        chosen(optim.AdamW, "amsgrad", lr=0.02, amsgrad=True, **captured),
        chosen(optim.AdamW, "maximize", lr=0.02, maximize=True, **captured),
        chosen(optim.AdamW, "foreach", lr=0.02, capturable=True, **many),
        chosen(optim.Adamax, lr=0.02, **captured),
        chosen(optim.Adamax, "decay", lr=0.02, **decay, **captured),
        chosen(optim.Adamax, "maximize", lr=0.02, maximize=True, **captured),
        chosen(optim.NAdam, lr=0.02, **captured),
        chosen(optim.NAdam, "decay", lr=0.02, **decay, **captured),
        chosen(optim.NAdam, "decoupled", lr=0.02, decoupled_weight_decay=True, **decay, **captured),
        chosen(optim.RAdam, lr=0.02, **captured),
        chosen(optim.RAdam, "decay", lr=0.02, **decay, **captured),
        chosen(optim.RAdam, "decoupled", lr=0.02, decoupled_weight_decay=True, **decay, **captured),
        chosen(optim.Adadelta, lr=1.0, **captured),
        chosen(optim.Adadelta, "decay", lr=1.0, **decay, **captured),
        chosen(optim.Adadelta, "maximize", lr=1.0, maximize=True, **captured),
        chosen(optim.Adagrad, patched=True, lr=0.05, **plain),
        chosen(optim.Adagrad, "decay", patched=True, lr=0.05, **decay, **plain),
        chosen(optim.Adagrad, "rate-decay", patched=True, lr=0.05, lr_decay=0.1, **plain),
        chosen(optim.Adagrad, "maximize", patched=True, lr=0.05, maximize=True, **plain),
        chosen(optim.RMSprop, lr=0.01, **captured),
        chosen(optim.RMSprop, "centered", lr=0.01, centered=True, **captured),
        chosen(optim.RMSprop, "momentum", lr=0.01, momentum=0.9, **captured),
        chosen(
            optim.RMSprop,
            "centered-momentum-decay",
            lr=0.01,
            centered=True,
            momentum=0.9,
            **decay,
            **captured,
        ),
        chosen(optim.RMSprop, "maximize", lr=0.01, maximize=True, **captured),
        chosen(optim.Rprop, lr=0.01, **captured),
        chosen(optim.ASGD, lr=0.1, t0=1.0, **captured),
        chosen(optim.ASGD, "decay", lr=0.1, t0=1.0, **decay, **captured),
        chosen(optim.Adafactor, lr=0.05, patched=True, **plain),
        chosen(optim.Adafactor, "decay", lr=0.05, patched=True, **decay, **plain),
        Choice("Muon", "Muon", _muon, "AdamW for the biases"),
        Choice(
            "Muon-plain",
            "Muon",
            lambda parameters: _muon(parameters, nesterov=False, weight_decay=0.0),
            "nesterov=False, AdamW for the biases",
        ),
        chosen(optim.SparseAdam, lr=0.02),
        chosen(optim.LBFGS, lr=0.1),
    ]


TORCH_OPTIM = _of_torch()

FOR_ARCHITECTURES = [choice for choice in TORCH_OPTIM if choice.name in ("SGD", "Adam", "AdamW")]
