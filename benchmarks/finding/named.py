"""Gradients of a case by their values: what in the graph equals what the framework computed.

With them named, a clip needs no search: its result says if a case is right, whatever is found.
"""

from __future__ import annotations

import cases
import numpy as np
import onnx
from running import run

CLOSE = 1e-4
"""A value of the graph is the gradient if it is so close; a rounding differs, no formula does."""


def gradients_by_value(
    model: onnx.ModelProto, truth: cases.Truth, arrays: dict[str, np.ndarray]
) -> dict[str, str] | None:
    """Return the name of each parameter's gradient, or None if some is no value of the graph.

    The first value that equals it is taken, as what follows may be made of it (Abs of a positive
    gradient); of two parameters with equal gradients, the second takes the second value, if any.
    """
    named = _values(model, truth, arrays)
    found: dict[str, str] = {}
    for place, described in enumerate(truth.inputs):
        if described["role"] != "parameter":
            continue
        wanted = arrays[f"gradient_{place}"]
        close = max(CLOSE, truth.tolerance)
        alike = [n for n, value in named.items() if cases.distance(value, wanted) < close]
        if not alike:  # the same elements in another shape: a sum that kept its dimensions
            alike = [
                name
                for name, value in named.items()
                if value.size == wanted.size
                and cases.distance(value.reshape(wanted.shape), wanted) < close
            ]
        if not alike:
            return None
        free = [name for name in alike if name not in found]
        found[(free or alike)[0]] = described["name"]
    return found


def _values(
    model: onnx.ModelProto, truth: cases.Truth, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return all values that the main graph computes, in its order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [name for node in copy.graph.node for name in node.output if name]
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    got = run(copy, truth, arrays, names, optimize=False)
    return {name: value for name, value in zip(names, got, strict=True) if value is not None}
