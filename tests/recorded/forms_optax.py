"""Record what optax makes of gradients: each of its clips, each called as its pages show.

Needs optax==0.2.8, jax==0.10.2 and numpy; run anywhere. Writes `forms_optax.json` beside itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import forms_inputs as inputs
import jax
import numpy as np
import optax
from parity_inputs import gradients as single_gradients


def updated(
    transform: optax.GradientTransformation,
    gradients: inputs.Tensors,
    parameters: inputs.Tensors | None = None,
) -> dict[str, Any]:
    updates = jax.tree.map(jax.numpy.asarray, gradients)
    params = jax.tree.map(jax.numpy.asarray, parameters)
    clipped, _ = transform.update(updates, transform.init(updates), params)
    return clipped


def transformed(form: str, name: str, setting: str, value: float, on: Any) -> dict[str, Any]:
    """A clip of one number, that needs no parameters."""
    gives = updated(getattr(optax, name)(value), on)
    settings = {"max": value, "min": -value} if setting == "max" else {setting: value}
    return inputs.case("optax", form, f"optax.{name}({value})", settings, on, gives)


def adaptive(
    on: tuple[inputs.Tensors, inputs.Tensors], clipping: float, eps: float, axis: int | None = None
) -> dict[str, Any]:
    gradients, parameters = on
    if axis is not None:  # one axis for all: those that have it
        names = [name for name, x in parameters.items() if x.ndim > axis]
        gradients = {name: gradients[name] for name in names}
        parameters = {name: parameters[name] for name in names}
    gives = updated(optax.adaptive_grad_clip(clipping, eps, axis), gradients, parameters)
    given = "" if axis is None else f", axis={axis}"
    call = f"optax.adaptive_grad_clip({clipping}, eps={eps}{given})"
    axes = {name: unit_axes(x) if axis is None else [axis] for name, x in parameters.items()}
    settings = {"clipping": clipping, "eps": eps, "axes": axes}
    return inputs.case("optax", "adaptive", call, settings, gradients, gives, parameters)


def unit_axes(x: np.ndarray) -> list[int] | None:
    """optax's rule when it is told no axis; None: the whole tensor is one unit."""
    if np.squeeze(x).ndim <= 1:
        return None
    return [0] if x.ndim <= 3 else list(range(x.ndim - 1))


def per_sample(form: str, gradients: inputs.Tensors, clip_norm: float) -> Iterator[dict[str, Any]]:
    yield from samples_and_sum(
        form,
        gradients,
        f"optax.per_example_global_norm_clip(grads, {clip_norm})",
        {"clip_norm": clip_norm},
        lambda grads: optax.per_example_global_norm_clip(grads, clip_norm)[0],
    )


def per_sample_and_layer(
    gradients: inputs.Tensors, clip_norm: float, uniform: bool
) -> Iterator[dict[str, Any]]:
    """By norm, each tensor of each sample by its own; optax derives their thresholds."""
    sizes = {name: x[0].size for name, x in gradients.items()}
    share = {
        name: 1 / len(sizes) if uniform else size / sum(sizes.values())
        for name, size in sizes.items()
    }
    yield from samples_and_sum(
        "per_sample_norm",
        gradients,
        f"optax.per_example_layer_norm_clip(grads, {clip_norm}, uniform={uniform})",
        {
            "global_l2_norm_clip": clip_norm,
            "uniform": uniform,
            "clip_norm": {name: clip_norm * share[name] ** 0.5 for name in gradients},
        },
        lambda grads: optax.per_example_layer_norm_clip(grads, clip_norm, uniform)[0],
    )


def samples_and_sum(
    form: str, gradients: inputs.Tensors, call: str, settings: dict[str, Any], clip: Any
) -> Iterator[dict[str, Any]]:
    """optax gives sums over the batch; a batch of one sample shows that sample, clipped."""
    batches = [jax.numpy.asarray(x) for x in gradients.values()]
    alone = [clip([x[i : i + 1] for x in batches]) for i in range(len(batches[0]))]
    samples = [np.stack(parts) for parts in zip(*alone, strict=True)]
    for kind, out in [("samples", samples), ("sum", clip(batches))]:
        gives = dict(zip(gradients, out, strict=True))
        yield inputs.case("optax", form, call, {**settings, "gives": kind}, gradients, gives)


def cases() -> Iterator[dict[str, Any]]:
    for clip_norm in inputs.CLIP_NORMS:
        for name, x in single_gradients().items():
            yield transformed("norm", "clip_by_global_norm", "clip_norm", clip_norm, {name: x})
    for bound in inputs.BOUNDS:
        yield transformed("value", "clip", "max", bound, inputs.for_values())
    for clip_norm in (*inputs.GLOBAL_NORMS, inputs.UNEVEN_NORM):
        for gradients in inputs.for_global_norm().values():
            yield transformed(
                "global_norm", "clip_by_global_norm", "clip_norm", clip_norm, gradients
            )
    for threshold in inputs.BLOCK_RMS:
        yield transformed("rms", "clip_by_block_rms", "threshold", threshold, single_gradients())
    yield transformed(
        "rms", "clip_by_block_rms", "threshold", 5.0, {"at the threshold": np.float32([5, -5])}
    )
    for clipping in inputs.CLIPPINGS:
        yield adaptive(inputs.for_adaptive(), clipping, 1e-3)
    yield adaptive(inputs.for_adaptive(), 0.1, 0.5)
    for axis in (0, 1):
        yield adaptive(inputs.for_adaptive(), 0.1, 1e-3, axis)
    yield adaptive(inputs.for_tiny_units(), 1e-4, 1e-3)
    samples = inputs.for_samples()
    for clip_norm in inputs.SAMPLE_NORMS:
        yield from per_sample("per_sample_norm", {"weight": samples["weight"]}, clip_norm)
        yield from per_sample("per_sample_global_norm", samples, clip_norm)
        for uniform in (True, False):
            yield from per_sample_and_layer(samples, clip_norm, uniform)
    for clip_norm in (5.0, 13.0):
        yield from per_sample("per_sample_global_norm", inputs.at_the_threshold(), clip_norm)


if __name__ == "__main__":
    versions = {"optax": optax.__version__, "jax": jax.__version__, "numpy": np.__version__}
    inputs.save(__file__, versions, list(cases()))
