"""Names of gradients made from those of their parameters: an affix before or behind the name."""

from __future__ import annotations

import re

__all__ = ["PREFIXES", "SHORT", "SUFFIXES", "is_named_after", "parameter_names"]

_WORDS = ("gradients", "gradient", "grads", "grad", "Grad", "GRAD", "adjoint", "adj")
_SEPARATORS = ("_", ".", "/", "@", ":", "-")

SHORT = "_g"
"""`W_g`: of a value that is computed; an input of that name may as well be the weight of a gate."""

SUFFIXES = (
    *(separator + word for separator in _SEPARATORS for word in (*_WORDS, "grad_out")),
    SHORT,
)
"""`W_grad` (ONNX Runtime), `W.grad` (PyTorch), `W@GRAD` (Paddle), `W/grad`, `W_gradient`, …"""

PREFIXES = (
    *(word + separator for word in (*_WORDS, "d", "g") for separator in _SEPARATORS),
    *(f"d{loss}{separator}d" for loss in ("L", "loss", "Loss") for separator in "_/"),
    "d",
    "∂",
    "∇",
)
"""`adj_W` (onnx-ad), `grad_W`, `grad.W`, `grad/W`, `d_W`, `dW`, `dL_dW`, …; and `grad(W)`."""


def _any_of(words: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, words))


_BEHIND = re.compile(f"(?:{_any_of(SUFFIXES)})$")
_BEFORE = re.compile(f"^(?:{_any_of(PREFIXES)})")
_AROUND = re.compile(rf"^(?:{_any_of((*_WORDS, 'd'))})\((.+)\)$")


def parameter_names(name: str) -> list[str]:
    """The names of which `name` may be the gradient, longest affix first."""
    found = []
    if behind := _BEHIND.search(name):
        found.append(name[: behind.start()])
    if before := _BEFORE.search(name):
        found.append(name[before.end() :])
        if name[0] == "d" and before.end() > 1:
            found.append(name[1:])
    if name.endswith(")") and (around := _AROUND.search(name)):
        found.append(around[1])
    return sorted(filter(None, found), key=len)


def is_named_after(name: str, parameter: str) -> bool:
    """True if `name` is `parameter` with one of the affixes."""
    return parameter in name and parameter in parameter_names(name)
