"""Record `tf.clip_by_norm`, `tf.clip_by_value` and `tf.clip_by_global_norm`, run eagerly.

Needs tensorflow-cpu==2.21.0 and numpy; run anywhere. Writes `forms_tensorflow.json` beside itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import forms_inputs as inputs
import numpy as np
import tensorflow as tf
from parity_inputs import gradients as single_gradients


def by_norm(name: str, x: np.ndarray, clip_norm: float, axes: list[int] | None) -> dict[str, Any]:
    given = "" if axes is None else f", axes={axes}"
    return inputs.case(
        "tensorflow",
        "norm",
        f"tf.clip_by_norm(grad, {clip_norm}{given})",
        {"clip_norm": clip_norm, "ord": 2.0, "axes": axes},
        {name: x},
        {name: tf.clip_by_norm(tf.constant(x), clip_norm, axes).numpy()},
    )


def by_value(low: float, high: float) -> dict[str, Any]:
    gradients = inputs.for_values()
    gives = {
        name: tf.clip_by_value(tf.constant(x), low, high).numpy() for name, x in gradients.items()
    }
    call = f"[tf.clip_by_value(grad, {low}, {high}) for grad in grads]"
    return inputs.case("tensorflow", "value", call, {"max": high, "min": low}, gradients, gives)


def by_global_norm(gradients: inputs.Tensors, clip_norm: float) -> dict[str, Any]:
    grads = [tf.constant(x) for x in gradients.values()]
    out, _ = tf.clip_by_global_norm(grads, clip_norm)
    gives = {name: one.numpy() for name, one in zip(gradients, out, strict=True)}
    call = f"tf.clip_by_global_norm(grads, {clip_norm})"
    settings = {"clip_norm": clip_norm, "ord": 2.0}
    return inputs.case("tensorflow", "global_norm", call, settings, gradients, gives)


def cases() -> Iterator[dict[str, Any]]:
    for clip_norm in inputs.CLIP_NORMS:
        for name, x in single_gradients().items():
            yield by_norm(name, x, clip_norm, None)
        for name, x, axes in inputs.for_axes():
            yield by_norm(name, x, clip_norm, axes)
    for bound in inputs.BOUNDS:
        yield by_value(-bound, bound)
    for low, high in [(-0.5, 1.0), (0.25, 1.0), (-100.0, -1.0), (0.0, 1.0)]:
        yield by_value(low, high)
    for clip_norm in (*inputs.GLOBAL_NORMS, inputs.UNEVEN_NORM):
        for gradients in inputs.for_global_norm().values():
            yield by_global_norm(gradients, clip_norm)


if __name__ == "__main__":
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__}
    inputs.save(__file__, versions, list(cases()))
