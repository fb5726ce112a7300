"""What a finder finds, inside the package (`Found`) and as the world sees it (`Gradient`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from onnx_clip_pass.graph import Frame, Shape, Value

__all__ = ["Found", "Gradient", "Parameter"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a gradient is the derivative of the loss by; what `need_clip` is asked about.

    `shape` holds a number, a symbol or None for each dimension, and is None where nothing is
    known; `dtype` is spelt as NumPy does; `gradient` is the name of the gradient value.
    """

    name: str
    shape: Shape | None
    dtype: str
    gradient: str


@dataclass(frozen=True, slots=True)
class Gradient:
    """A value of the graph that is the derivative of the loss by `parameter`.

    One value that is the gradient of two parameters is two gradients of the same name.
    `evidence` says by what it was recognised, `graph` in which body of the model it lives (""
    for the main graph), and `has_seeds` whether its last dimension holds one gradient for each
    seed, as onnx-ad lays them out.
    """

    name: str
    parameter: Parameter
    shape: Shape | None
    dtype: str
    evidence: str
    graph: str = ""
    has_seeds: bool = False


class Sink(NamedTuple):
    """Input number `slot` of node number `node` of `frame`."""

    frame: Frame
    node: int
    slot: int


class Found(NamedTuple):
    """A gradient value and its parameter, as one kind of evidence shows them.

    `parameter` is None where nothing in the graph tells the parameter; `name` then stands in.
    `sink` is where the optimizer or accumulator of this parameter takes the gradient up.
    """

    gradient: Value
    parameter: Value | None
    name: str
    evidence: str
    sink: Sink | None = None
