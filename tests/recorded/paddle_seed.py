"""Record what Paddle makes of the seed example, clipped by its own ClipGradByNorm.

Needs paddlepaddle==3.3.1 and numpy. Run from the root of the repository; it reads the feeds of
`models/seed/train_step.onnx` and writes `paddle_seed.json` beside itself. float32 numbers are
written with all the digits they need to come back as they were.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle

HERE = Path(__file__).parent
FEEDS = HERE.parent.parent / "models" / "seed" / "train_step.inputs.npz"
WEIGHT, BIAS = "fc_0.w_0", "fc_0.b_0"
CASES = {
    "weight only": {"clip_norm": 1.0, "clipped": [WEIGHT]},
    "all": {"clip_norm": 1.0, "clipped": [WEIGHT, BIAS]},
    # 1.0 leaves the bias alone, whose gradient has norm 0.27; this clips both
    "all, small clip_norm": {"clip_norm": 0.125, "clipped": [WEIGHT, BIAS]},
    "huge clip_norm": {"clip_norm": 1e30, "clipped": [WEIGHT, BIAS]},
    "no clip": {"clip_norm": None, "clipped": []},
}


def step(clip_norm: float | None, clipped: list[str]) -> dict[str, object]:
    """One step of SGD: the loss, the raw gradients and the new parameters."""
    with np.load(FEEDS) as archive:
        feeds = dict(archive)
    layer = paddle.nn.Linear(2, 3)
    parameters = {WEIGHT: layer.weight, BIAS: layer.bias}
    for name, parameter in parameters.items():
        parameter.set_value(feeds[name])
        parameter.need_clip = name in clipped  # what ParamAttr(need_clip=...) sets
    optimizer = paddle.optimizer.SGD(
        learning_rate=0.1,
        parameters=layer.parameters(),
        grad_clip=None if clip_norm is None else paddle.nn.ClipGradByNorm(clip_norm),
    )
    loss = paddle.nn.functional.relu(layer(paddle.to_tensor(feeds["x"]))).mean()
    loss.backward()
    numbers = {"loss": loss.numpy().tolist()}
    for name, parameter in parameters.items():
        numbers[f"{name}@GRAD"] = parameter.grad.numpy().tolist()
    optimizer.step()
    for name, parameter in parameters.items():
        numbers[f"{name}@NEW"] = parameter.numpy().tolist()
    return numbers


def main() -> None:
    paddle.set_device("cpu")
    cases = {name: case | {"gives": step(**case)} for name, case in CASES.items()}
    recorded = {"paddle": paddle.__version__, "cases": cases}
    (HERE / "paddle_seed.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
