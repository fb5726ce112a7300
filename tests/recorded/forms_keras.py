"""Record what a Keras optimizer makes of `clipnorm`, `clipvalue` and `global_clipnorm`.

Needs keras==3.15.1, tensorflow-cpu==2.21.0 (its backend) and numpy; run anywhere. Writes
`forms_keras.json` beside itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import forms_inputs as inputs
import keras
import numpy as np
import tensorflow as tf
from parity_inputs import gradients as single_gradients


def after_a_step(
    form: str, argument: str, value: float, settings: dict[str, Any], gradients: inputs.Tensors
) -> dict[str, Any]:
    """What a step of SGD with rate 1 takes away from zeros: the clipped gradients, as they are."""
    variables = [keras.Variable(np.zeros_like(x)) for x in gradients.values()]
    optimizer = keras.optimizers.SGD(1.0, **{argument: value})
    optimizer.apply([tf.constant(x) for x in gradients.values()], variables)
    gives = {
        name: np.float32(0) - variable.numpy()
        for name, variable in zip(gradients, variables, strict=True)
    }
    call = f"keras.optimizers.SGD(1.0, {argument}={value})"
    return inputs.case("keras", form, call, settings, gradients, gives)


def cases() -> Iterator[dict[str, Any]]:
    for clip_norm in inputs.CLIP_NORMS:
        settings = {"clip_norm": clip_norm, "ord": 2.0}
        yield after_a_step("norm", "clipnorm", clip_norm, settings, single_gradients())
    for bound in inputs.BOUNDS:
        settings = {"max": bound, "min": -bound}
        yield after_a_step("value", "clipvalue", bound, settings, inputs.for_values())
    for clip_norm in (*inputs.GLOBAL_NORMS, inputs.UNEVEN_NORM):
        settings = {"clip_norm": clip_norm, "ord": 2.0}
        for gradients in inputs.for_global_norm().values():
            yield after_a_step("global_norm", "global_clipnorm", clip_norm, settings, gradients)


if __name__ == "__main__":
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    inputs.save(__file__, versions, list(cases()))
