"""Record Paddle's three clips, each given to an optimizer as its `grad_clip`.

Needs paddlepaddle==3.3.1 and numpy; run anywhere. Writes `forms_paddle.json` beside itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import forms_inputs as inputs
import numpy as np
import paddle
from parity_inputs import gradients as single_gradients

CALL = "paddle.optimizer.SGD(1.0, parameters=model.parameters(), grad_clip=paddle.nn.{})"


def made(gradients: inputs.Tensors) -> tuple[dict[str, Any], Any]:
    """Parameters of zeros, and a loss whose gradients are these."""
    parameters = {}
    loss = paddle.zeros([])
    for name, x in gradients.items():
        zeros = paddle.nn.initializer.Constant(0.0)
        parameters[name] = paddle.create_parameter(x.shape, "float32", default_initializer=zeros)
        loss = loss + (parameters[name] * paddle.to_tensor(x)).sum()
    return parameters, loss


def after_a_step(parameters: dict[str, Any], loss: Any, optimizer: Any) -> dict[str, Any]:
    """What a step of SGD with rate 1 took away: the clipped gradients, as they are."""
    loss.backward()
    optimizer.step()
    return {name: np.float32(0) - parameter.numpy() for name, parameter in parameters.items()}


def clipped(
    form: str,
    clip: str,
    settings: dict[str, Any],
    gradients: inputs.Tensors,
    left_alone: tuple[str, ...] = (),
    **arguments: Any,
) -> dict[str, Any]:
    parameters, loss = made(gradients)
    for name in left_alone:
        parameters[name].need_clip = False  # what ParamAttr(need_clip=False) sets
    grad_clip = getattr(paddle.nn, clip)(**arguments)
    optimizer = paddle.optimizer.SGD(1.0, parameters=list(parameters.values()), grad_clip=grad_clip)
    gives = after_a_step(parameters, loss, optimizer)
    given = ", ".join(f"{name}={value}" for name, value in arguments.items())
    call = CALL.format(f"{clip}({given})")
    if left_alone:
        call += "; ParamAttr(need_clip=False) for " + ", ".join(left_alone)
        settings = {**settings, "left alone": list(left_alone)}
    return inputs.case("paddle", form, call, settings, gradients, gives)


def two_groups(first: float, second: float) -> dict[str, Any]:
    """Two groups of parameters with a clip each, `row` in a third without one."""
    gradients, groups = inputs.for_groups()
    norms = dict(zip(groups, (first, second), strict=True))
    parameters, loss = made(gradients)
    grouped = [
        {
            "params": [parameters[name] for name in names],
            "grad_clip": paddle.nn.ClipGradByGlobalNorm(norms[group], group_name=group),
        }
        for group, names in groups.items()
    ]
    chosen = [name for names in groups.values() for name in names]
    rest = [name for name in gradients if name not in chosen]
    grouped.append({"params": [parameters[name] for name in rest], "grad_clip": None})
    gives = after_a_step(parameters, loss, paddle.optimizer.SGD(1.0, parameters=grouped))
    each = ", ".join(
        f'{{"params": {group}, "grad_clip": '
        f'paddle.nn.ClipGradByGlobalNorm({norm}, group_name="{group}")}}'
        for group, norm in norms.items()
    )
    call = f"paddle.optimizer.SGD(1.0, parameters=[{each}, "
    call += '{"params": rest, "grad_clip": None}])'
    settings = {
        "groups": {name: {"clip_norm": norms[name], "of": of} for name, of in groups.items()},
        "left alone": rest,
    }
    return inputs.case("paddle", "global_norm", call, settings, gradients, gives)


def cases() -> Iterator[dict[str, Any]]:
    for clip_norm in inputs.CLIP_NORMS:
        settings = {"clip_norm": clip_norm, "ord": 2.0}
        for name, x in single_gradients().items():
            gradients = {name: x}
            yield clipped("norm", "ClipGradByNorm", settings, gradients, clip_norm=clip_norm)
    values = inputs.for_values()
    for bound in inputs.BOUNDS:
        settings = {"max": bound, "min": -bound}
        yield clipped("value", "ClipGradByValue", settings, values, max=bound)
    for low, high in [(-0.5, 1.0), (0.25, 1.0), (-100.0, -1.0), (0.0, 1.0)]:
        settings = {"max": high, "min": low}
        yield clipped("value", "ClipGradByValue", settings, values, max=high, min=low)
    for clip_norm in (*inputs.GLOBAL_NORMS, inputs.UNEVEN_NORM):
        settings = {"clip_norm": clip_norm, "ord": 2.0}
        for gradients in inputs.for_global_norm().values():
            yield clipped(
                "global_norm", "ClipGradByGlobalNorm", settings, gradients, clip_norm=clip_norm
            )
    mixed, _ = inputs.for_groups()
    yield clipped(
        "global_norm",
        "ClipGradByGlobalNorm",
        {"clip_norm": 0.5, "ord": 2.0},
        mixed,
        left_alone=("kernel", "row"),
        clip_norm=0.5,
    )
    for first, second in [(0.5, 1.0), (1000.0, 0.5), (1.0, 1.0)]:
        yield two_groups(first, second)


if __name__ == "__main__":
    paddle.set_device("cpu")
    versions = {"paddlepaddle": paddle.__version__, "numpy": np.__version__}
    inputs.save(__file__, versions, list(cases()))
