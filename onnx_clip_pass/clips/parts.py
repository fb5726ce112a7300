"""Norms of tensors of which several workers have a part each, as nodes: the seam between them.

A norm is a sum over elements, or the largest of them, until its root is taken, and so is all else
that a clip asks of a whole tensor: how many elements there are, and whether all are finite. Each
worker works that out for its part; what passes through here is added up over all of them, and what
comes out is that of the whole tensor. Where no workers are told of, it passes unchanged.
"""

from __future__ import annotations

import math

from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.tape import Over, Tensor

__all__ = [
    "emit_share",
    "emit_total",
    "emit_whole",
    "emit_whole_largest",
    "emit_whole_least",
    "is_spread",
]


def emit_share(to: Emitter, part: Tensor, ord: float = 1.0) -> Tensor:
    """The part of one worker as it counts where several have the same: divided by their number.

    `part` is a sum, or for a power other than 1, 2 and inf the norm.
    """
    replicas = None if to.workers is None or ord == math.inf else to.workers.replicas(to)
    if replicas is None:
        return part
    if ord not in (1, 2):
        replicas = to.op("Pow", replicas, 1.0 / ord, result="root of replicas")
    return to.op("Div", part, to.cast(replicas, part.dtype, result="replicas"), result="share")


def is_spread(to: Emitter, over: Over) -> bool:
    """Return whether several workers have norms of this gradient, each of them the whole of its."""
    return to.workers is not None and not to.workers.share(over)


def emit_whole(to: Emitter, part: Tensor, ord: float, over: Over) -> Tensor:
    """The power that `emit_norm` gives, of the whole tensor, from that of this worker's part.

    The largest of all goes with a sum of what is 0, or nan where a part has nan: all-reduces by
    maximum may ignore nan.
    """
    workers = to.workers
    if workers is None or not workers.share(over):
        return part
    word = f"L{ord:g}"
    if ord == math.inf:
        nothing = to.op("Min", part, 0.0, result="zero or nan")
        largest = workers.largest(to, part, word)
        return to.op("Max", largest, workers.total(to, nothing, f"{word} nan"), result="whole")
    if ord in (1, 2):
        return workers.total(to, part, word)
    powers = workers.total(to, to.op("Pow", part, ord, result="power of part"), word)
    return to.op("Pow", powers, 1.0 / ord, result="whole")


def emit_total(to: Emitter, part: Tensor, over: Over, what: str) -> Tensor:
    """The sum over all workers of a number of this worker's part, which is called `what`."""
    if to.workers is None or not to.workers.share(over):
        return part
    return to.workers.total(to, part, what)


def emit_whole_largest(to: Emitter, part: Tensor, over: Over, what: str = "largest") -> Tensor:
    """The largest number of a tensor from that of this worker's part, where none is nan."""
    if to.workers is None or not to.workers.share(over):
        return part
    return to.workers.largest(to, part, what)


def emit_whole_least(to: Emitter, part: Tensor, over: Over) -> Tensor:
    """The least number of a tensor from that of this worker's part, where none is nan."""
    if to.workers is None or not to.workers.share(over):
        return part
    largest = emit_whole_largest(to, to.op("Neg", part, result="negative"), over, "least")
    return to.op("Neg", largest, result="least of all")
