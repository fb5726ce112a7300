"""The optimizers of optax of which steps are exported, with the options that change formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from optax import contrib


@dataclass
class Choice:
    """An optimizer with its options."""

    name: str
    optimizer: str
    make: Callable[[], optax.GradientTransformation]
    options: str = ""


def choices() -> Iterator[Choice]:
    """Each optimizer with its variants, then the transformations around others."""
    names = {id(value): name for name, value in (*vars(optax).items(), *vars(contrib).items())}
    for kind, variants in _OPTIMIZERS:
        optimizer = names[id(kind)]
        for label, options in variants.items():
            name = f"{optimizer}-{label}" if label else optimizer
            said = ", ".join(
                f"{key}={value}"
                for key, value in options.items()
                if key != "learning_rate" and not callable(value)
            )
            yield Choice(f"optax-{name}", optimizer, partial(kind, **options), said)
    for name, make in _AROUND.items():
        yield Choice(f"optax-{name}", name, make)


RATE: dict[str, Any] = {"learning_rate": 0.02}
DECAY = {"weight_decay": 0.1}


def _with(**variants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the plain variant and these, each with a learning rate."""
    named = {label.replace("_", "-"): RATE | options for label, options in variants.items()}
    return {"": RATE} | named


_OPTIMIZERS: list[tuple[Callable[..., Any], dict[str, dict[str, Any]]]] = [
    (
        optax.sgd,
        _with(momentum={"momentum": 0.9}, nesterov={"momentum": 0.9, "nesterov": True}),
    ),
    (optax.noisy_sgd, {"": RATE}),
    (optax.adam, _with(nesterov={"nesterov": True}, eps_root={"eps_root": 1e-8})),
    (optax.adamw, _with(decay=DECAY, nesterov={"nesterov": True})),
    (optax.nadam, _with()),
    (optax.nadamw, _with(decay=DECAY)),
    (optax.adamax, _with()),
    (optax.adamaxw, _with(decay=DECAY)),
    (optax.amsgrad, _with()),
    (optax.adabelief, _with()),
    (optax.adadelta, {"": {"learning_rate": 1.0}, "decay": {"learning_rate": 1.0} | DECAY}),
    (optax.adagrad, _with()),
    (
        optax.adafactor,
        _with(min_size={"min_dim_size_to_factor": 2}, decay={"weight_decay_rate": 0.1}),
    ),
    (optax.adan, _with(decay=DECAY)),
    (optax.fromage, _with()),
    (optax.lamb, _with(decay=DECAY)),
    (optax.lars, _with(decay=DECAY, nesterov={"nesterov": True})),
    (optax.lion, _with(decay=DECAY)),
    (optax.novograd, _with(decay=DECAY)),
    (optax.optimistic_gradient_descent, _with()),
    (optax.optimistic_adam_v2, _with()),
    (optax.polyak_sgd, {"": {"max_learning_rate": 0.1}}),
    (optax.radam, _with(nesterov={"nesterov": True})),
    (
        optax.rmsprop,
        _with(
            centered={"centered": True},
            momentum={"momentum": 0.9},
            centered_momentum={"centered": True, "momentum": 0.9},
            nesterov={"momentum": 0.9, "nesterov": True},
            corrected={"bias_correction": True},
        ),
    ),
    (optax.rprop, _with()),
    (optax.sign_sgd, _with()),
    (optax.signum, _with()),
    (optax.sm3, _with()),
    (optax.yogi, _with()),
    (contrib.acprop, _with()),
    (contrib.ademamix, _with()),
    (contrib.simplified_ademamix, _with()),
    (contrib.adopt, _with()),
    (contrib.cocob, {"": {}}),
    (contrib.dadapt_adamw, {"": {}}),
    (contrib.dog, {"": {}}),
    (contrib.dowg, {"": {}}),
    (contrib.galore, _with()),
    (contrib.madgrad, _with()),
    (contrib.momo, _with()),
    (contrib.momo_adam, _with()),
    (contrib.muon, _with()),
    (contrib.prodigy, {"": {"learning_rate": 1.0}}),
    (contrib.schedule_free_adamw, _with(decay=DECAY)),
    (contrib.schedule_free_sgd, _with(decay=DECAY)),
    (contrib.sophia, _with()),
]


def _labels(parameters: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "vector", parameters)


def _matrices(parameters: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim == 2, parameters)


def _decayed_sgd() -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))


_AROUND: dict[str, Callable[[], optax.GradientTransformation]] = {
    "chain-decay-sgd": _decayed_sgd,
    "schedule-adam": lambda: optax.adam(optax.cosine_decay_schedule(0.05, 100)),
    "warmup-sgd": lambda: optax.sgd(optax.linear_schedule(0.0, 0.1, 10), momentum=0.9),
    "inject-adam": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.02),
    "masked-decay": lambda: optax.adamw(0.02, weight_decay=0.1, mask=_matrices),
    "multi-transform": lambda: optax.multi_transform(
        {"matrix": optax.adam(0.02), "vector": optax.sgd(0.1)}, _labels
    ),
    "frozen-vectors": lambda: optax.multi_transform(
        {"matrix": optax.adam(0.02), "vector": optax.set_to_zero()}, _labels
    ),
    "flatten-adam": lambda: optax.flatten(optax.adam(0.02)),
    "centralize-sgd": lambda: optax.chain(optax.centralize(), optax.sgd(0.1)),
    "ema-of-updates": lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1)),
    "global-norm-adam": lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.02)),
    "clip-sgd": lambda: optax.chain(optax.clip(0.05), optax.sgd(0.1)),
    "adaptive-clip-sgd": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
    "normalized-sgd": lambda: optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)),
    "contrib-normalize": lambda: optax.chain(contrib.normalize(), optax.sgd(0.1)),
    "trust-ratio-sgd": lambda: optax.chain(optax.scale_by_trust_ratio(), optax.sgd(0.1)),
    "block-norm": lambda: optax.chain(optax.scale_by_param_block_norm(), optax.sgd(0.1)),
    "zero-nans-adam": lambda: optax.chain(optax.zero_nans(), optax.adam(0.02)),
    "apply-if-finite": lambda: optax.apply_if_finite(optax.adam(0.02), 3),
    "multi-steps": lambda: optax.MultiSteps(optax.adam(0.02), 3).gradient_transformation(),
    "apply-every": lambda: optax.chain(optax.apply_every(3), optax.sgd(0.1)),
    "non-negative": lambda: optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
    "mechanize-sgd": lambda: contrib.mechanize(optax.sgd(0.1)),
    "plateau-adam": lambda: optax.chain(optax.adam(0.02), contrib.reduce_on_plateau()),
    "schedule-free": lambda: contrib.schedule_free(optax.sgd(0.1), 0.1),
}
