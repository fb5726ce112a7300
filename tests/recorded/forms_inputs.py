"""The gradients that `forms_*.py` hand to the libraries, and the one way they write what came out.

All float32. A record is {"made by", "versions", "cases"}; README.md says what a case holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]

CLIP_NORMS = (0.25, 1.0, 100.0)
GLOBAL_NORMS = (0.5, 5.0, 1000.0)
# c * (1 / c) is not 1 in float32 for this one: whoever scales by that changes what is within
UNEVEN_NORM = 41.0
NORM_TYPES = (1.0, 2.0, 3.0, math.inf)
BOUNDS = (0.25, 1.0, 100.0)
BLOCK_RMS = (0.25, 1.0, 100.0)
CLIPPINGS = (0.01, 0.1, 1.0)
SAMPLE_NORMS = (0.5, 5.0, 1000.0)


def normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def for_values() -> Tensors:
    """Beyond both bounds, on them and between, for bounds of 0.25, 1 and 100."""
    rng = np.random.default_rng(11)
    return {
        "on the bounds": np.array([-100, -1, -0.25, 0, 0.25, 1, 100], np.float32),
        "beyond": np.array([-1e30, -101, 101, 1e30], np.float32),
        "next to the bounds": np.nextafter(
            np.array([-1, -1, 1, 1], np.float32), np.array([-2, 0, 0, 2], np.float32)
        ),
        "scalar": np.array(-3, np.float32),
        "matrix": normal(rng, (4, 3)),
        "kernel": normal(rng, (2, 3, 2, 2), 200),
    }


def for_axes() -> list[tuple[str, np.ndarray, list[int]]]:
    """Tensors and the axes to take norms over, slices of every size from 0 to beyond 100."""
    rng = np.random.default_rng(13)
    matrix = normal(rng, (4, 3)) * np.array([[0], [0.1], [1], [200]], np.float32)
    kernel = normal(rng, (2, 3, 2, 2)) * np.array([0.01, 0, 300], np.float32).reshape(3, 1, 1)
    return [
        ("matrix", matrix, [0]),
        ("matrix", matrix, [1]),
        ("matrix", matrix, [0, 1]),
        ("matrix", matrix, [-1]),
        ("kernel", kernel, [1, 2, 3]),
        ("kernel", kernel, [0, 1, 2]),
        ("kernel", kernel, [2, 3]),
    ]


def for_global_norm() -> dict[str, Tensors]:
    """Sets of gradients of mixed sizes, each set clipped as one."""
    rng = np.random.default_rng(17)
    mixed = {
        "kernel": normal(rng, (2, 2, 3, 1), 3),
        "weight": normal(rng, (4, 3)),
        "row": normal(rng, (1, 5), 0.1),
        "bias": normal(rng, (3,), 0.01),
        "one element": normal(rng, (1,)),
        "scalar": normal(rng, ()),
    }
    return {
        "mixed sizes": mixed,
        "within": {name: x * np.float32(0.01) for name, x in mixed.items()},
        # 3, 4 and a threshold of 5: the norm is the threshold, without rounding
        "at the threshold": {"a": np.array([3], np.float32), "b": np.array([[-4]], np.float32)},
        "one of zeros": {"a": np.zeros((2, 2), np.float32), "b": normal(rng, (3,), 30)},
        "all zeros": {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32)},
        "large and tiny": {
            "large": np.array([3e18, -4e18], np.float32),
            "tiny": np.array([1e-30, -1e-30], np.float32),
        },
        "one tensor": {"only": normal(rng, (3, 3), 30)},
    }


def for_groups() -> tuple[Tensors, dict[str, list[str]]]:
    """The mixed set, and who is in which group: `row` is in none and stays as it is."""
    groups = {"first": ["kernel", "bias", "scalar"], "second": ["weight", "one element"]}
    return for_global_norm()["mixed sizes"], groups


def for_adaptive() -> tuple[Tensors, Tensors]:
    """Gradients and their parameters, units of very different size in each tensor."""
    rng = np.random.default_rng(19)
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (),
        "one element": (1,),
        "bias": (5,),
        "matrix": (4, 3),
        "row": (1, 5),
        "column": (5, 1),
        "rank 3": (2, 3, 4),
        "kernel": (2, 3, 2, 2),
        "kernel of one output": (1, 3, 2, 2),
    }

    def uneven(shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        """Normal numbers; slices along the first and the last axis scaled by powers of 10."""
        x = rng.standard_normal(shape)
        if len(shape) > 1:
            first = 10 ** rng.uniform(low, high, (shape[0],) + (1,) * (len(shape) - 1))
            x = x * first * 10 ** rng.uniform(low, high, shape[-1])
        return x.astype(np.float32)

    gradients = {name: uneven(shape, -1.5, 0.5) for name, shape in shapes.items()}
    parameters = {name: uneven(shape, -0.3, 0.3) for name, shape in shapes.items()}
    gradients["zero parameter"] = normal(rng, (3, 2), 1e-3)
    parameters["zero parameter"] = np.zeros((3, 2), np.float32)
    gradients["zero gradient"] = np.zeros((3, 2), np.float32)
    parameters["zero gradient"] = normal(rng, (3, 2))
    # clipping 1: the norm of each unit of both is 5, by rows, by columns or as a whole times 2**.5
    gradients["at the threshold"] = np.array([[3, -4], [4, 3]], np.float32)
    parameters["at the threshold"] = np.array([[4, 3], [-3, 4]], np.float32)
    return gradients, parameters


def for_tiny_units() -> tuple[Tensors, Tensors]:
    """A unit of norm 5e-7, below the 1e-6 that guards quotients: 1e-4 and eps 1e-3 allow 1e-7."""
    gradients = {"next to nothing": np.array([[3e-7, -4e-7]], np.float32)}
    return gradients, {"next to nothing": np.zeros((1, 2), np.float32)}


def for_samples() -> Tensors:
    """Gradients of five samples, the batch axis first; sample 0 is zeros, 1 small, 4 large."""
    rng = np.random.default_rng(23)
    scales = np.array([0, 0.01, 1, 3, 400], np.float32)

    def batch(*shape: int) -> np.ndarray:
        return normal(rng, (5, *shape)) * scales.reshape(5, *(1,) * len(shape))

    return {"weight": batch(4, 3), "bias": batch(3), "kernel": batch(2, 1, 2, 2)}


def at_the_threshold() -> Tensors:
    """Two samples whose norms are 5, and 13 over both gradients of the second."""
    return {
        "a": np.array([[3, 0], [3, 4]], np.float32),
        "b": np.array([[4], [-12]], np.float32),
    }


def numbers(x: Any) -> list[float]:
    """The elements in order, each by the fewest digits that give the same float32."""
    array = np.asarray(x)
    if array.dtype != np.float32:
        raise TypeError(f"expected float32, got {array.dtype}: record what the library computed")
    values = [float(str(element)) for element in array.ravel()]
    if np.array(values, np.float32).tobytes() != array.tobytes():
        raise ValueError(f"{values} would not come back as {array}")
    return values


def tensors(named: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(np.shape(x)), "values": numbers(x)}
        for name, x in named.items()
    ]


def case(
    library: str,
    form: str,
    call: str,
    settings: dict[str, Any],
    gradients: Mapping[str, np.ndarray],
    gives: Mapping[str, Any],
    parameters: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """One call and what came out of it, in the order of the gradients."""
    about = {"library": library, "form": form, "call": call, "settings": settings}
    read = {} if parameters is None else {"parameters": tensors(parameters)}
    out = [{"name": name, "values": numbers(gives[name])} for name in gradients]
    return {**about, "gradients": tensors(gradients), **read, "gives": out}


def order(norm_type: float) -> float | str:
    """A norm's order as JSON can hold it, which has no infinity; float() reads it back."""
    return "inf" if math.isinf(norm_type) else norm_type


def save(script: str, versions: dict[str, str], cases: list[dict[str, Any]]) -> None:
    """Write the record beside its script, a case on each line."""
    path = Path(script)
    head = json.dumps({"made by": path.name, "versions": versions})[:-1]
    lines = ",\n ".join(json.dumps(one, allow_nan=False) for one in cases)
    path.with_suffix(".json").write_text(f'{head}, "cases": [\n {lines}\n]}}\n', encoding="utf-8")
