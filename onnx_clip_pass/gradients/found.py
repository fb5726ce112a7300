"""The result of a finder, inside the package (`Found`) and as the world sees it (`Gradient`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from onnx_clip_pass.graph import Frame, Shape, TensorType, Value

__all__ = ["Found", "Gradient", "Parameter", "Sink", "has_gradient_shape"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """The tensor by which the loss is derived; `need_clip` is asked about it.

    `name` is that of an input or initializer, or of what is made of one. `shape` holds a number, a
    symbol or None for each dimension, and is None where nothing is known; `dtype` is spelt as NumPy
    does, "unknown" where none is declared; `gradient` is the name of the gradient value, "" while
    that is a question.
    """

    name: str
    shape: Shape | None
    dtype: str
    gradient: str


@dataclass(frozen=True, slots=True)
class Gradient:
    """A value of the graph that is the derivative of the loss by `parameter`.

    One value that is the gradient of two parameters is two gradients of the same `name`. `shape`
    and `dtype` are as in `Parameter`. `evidence` says by what it was recognised, `graph` in which
    graph of the model it lives ("" for the main graph), and `has_seeds` whether its last dimension
    holds one gradient for each seed, as onnx-ad lays them out.
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
    `sink` is where the optimizer or accumulator of this parameter consumes the gradient.
    """

    gradient: Value
    parameter: Value | None
    name: str
    evidence: str
    sink: Sink | None = None


def has_gradient_shape(gradient: TensorType, parameter: TensorType) -> bool:
    """Return whether nothing known of the shapes contradicts.

    They are the same, or the gradient has a dimension more for the seeds, or it is packed as
    onnx-ad does by default: one column for each seed, if the parameter is no matrix.
    """
    if gradient.agrees_with(parameter) or gradient.adds_seeds_to(parameter):
        return True
    packed, shape = gradient.shape, parameter.shape
    if packed is None or shape is None or len(packed) != 2 or isinstance(packed[1], int):
        return False
    sizes = [size for size in shape if isinstance(size, int)]
    return len(sizes) == len(shape) and packed[0] == prod(sizes)
