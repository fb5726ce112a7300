"""Factors that all gradients of a step have in common and may have: those of a scaled loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from onnx_clip_pass.graph import Index, ancestors_in
from onnx_clip_pass.graph.spec import ALIASES

__all__ = ["NEAR", "is_near", "seeds_of"]

NEAR = 0.01
"""Factors closer than this are the same: a number of a half precision graph is off by a third."""
_TAIL = ALIASES | {"Div", "Mul", "Neg"}


def is_near(factor: float, other: float, error: float = 0.0) -> bool:
    """Return whether two factors are the same, `error` being how far off the first may be."""
    return abs(factor - other) <= max(NEAR, error) * abs(other)


def seeds_of(
    index: Index,
    feeds: Mapping[str, NDArray[Any]],
    forward: Collection[str],
    factors: Mapping[str, float],
) -> Iterator[float]:
    """The value of the seed of the backward pass, if all gradients are that many times the slope.

    It is the one scalar input of this value that the loss does not read. A learning rate is such
    an input, too, but scales gradients that are finished.

    Args:
        index: the model.
        feeds: of its inputs.
        forward: what the loss is computed from.
        factors: gradients by name, and how many times the slope each is.
    """
    values = list(factors.values())
    if not values or not all(is_near(value, values[0]) for value in values):
        return
    scalars = [
        name
        for name, array in feeds.items()
        if name not in forward
        and array.size == 1
        and array.dtype.kind == "f"
        and is_near(values[0], float(array.reshape(())))
    ]
    if len(scalars) == 1 and not all(_is_rate(index, scalars[0], name) for name in factors):
        yield float(feeds[scalars[0]].reshape(()))


def _is_rate(index: Index, scalar: str, gradient: str) -> bool:
    """Return whether an input scales a value behind the last sum or matrix product before it."""
    return scalar in ancestors_in(index.main.nodes, lambda node: node.op_type in _TAIL)(gradient)
