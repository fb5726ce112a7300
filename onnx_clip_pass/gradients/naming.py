"""How tools name a gradient after its parameter: an affix before or behind the name."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["AFFIXED", "PREFIXES", "SUFFIXES", "is_named_after", "parameter_names"]

_WORDS = ("grad", "gradient", "gradients", "grads", "Grad", "GRAD", "adj", "adjoint", "d")

SUFFIXES = tuple(
    separator + word for separator in ("_", ".", "/", "@", ":", "-") for word in _WORDS[:-1]
)
"""`W_grad` (ONNX Runtime), `W.grad` (PyTorch), `W@GRAD` (Paddle), `W/grad`, `W_gradient`, …"""

PREFIXES = (
    *(word + separator for word in (*_WORDS, "g") for separator in ("_", ".", "/", ":", "-")),
    "d",
    "∂",
    "∇",
)
"""`adj_W` (onnx-ad), `grad_W`, `grad.W`, `grad/W`, `d_W`, `dW`, …; `grad(W)` is known as well."""


AFFIXED = re.compile(
    rf"^(?:{'|'.join(map(re.escape, PREFIXES))})|(?:{'|'.join(map(re.escape, SUFFIXES))})$|\)$"
)
"""Matches every name that has an affix; there are few in a large graph."""


def parameter_names(name: str) -> Iterator[str]:
    """The names of which `name` may be the gradient, longest affix first."""
    found = {name.removesuffix(suffix) for suffix in SUFFIXES}
    found |= {name.removeprefix(prefix) for prefix in PREFIXES}
    if name.endswith(")"):
        found |= {name[:-1].removeprefix(f"{word}(") for word in _WORDS} - {name[:-1]}
    found -= {name, ""}
    yield from sorted(found, key=len)


def is_named_after(name: str, parameter: str) -> bool:
    """Whether `name` is `parameter` with one of the affixes."""
    return parameter in name and parameter in parameter_names(name)
