"""Record `paddle.nn.ClipGradByNorm`, in dygraph and in a static program.

Needs paddlepaddle==3.3.1 and numpy; run anywhere. Writes `parity_paddle.json` and
`parity_paddle_static.json` beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
from parity_inputs import record

HERE = Path(__file__).parent


def dygraph(gradient: np.ndarray, clip_norm: float) -> np.ndarray:
    """As an optimizer does it: one step of SGD with rate 1 from zeros, negated."""
    parameter = paddle.create_parameter(gradient.shape, "float32")
    parameter.set_value(np.zeros_like(gradient))
    clip = paddle.nn.ClipGradByNorm(clip_norm)
    optimizer = paddle.optimizer.SGD(1.0, parameters=[parameter], grad_clip=clip)
    (parameter * paddle.to_tensor(gradient)).sum().backward()
    optimizer.step()
    return -parameter.numpy()


def static(gradient: np.ndarray, clip_norm: float) -> np.ndarray:
    """The same step in a static program, run once by the executor."""
    main, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(main, startup):
        x = paddle.static.data("x", gradient.shape, "float32")
        zeros = paddle.nn.initializer.Constant(0.0)
        parameter = paddle.create_parameter(gradient.shape, "float32", default_initializer=zeros)
        clip = paddle.nn.ClipGradByNorm(clip_norm)
        optimizer = paddle.optimizer.SGD(1.0, grad_clip=clip)
        optimizer.minimize((parameter * x).sum())
    executor = paddle.static.Executor(paddle.CPUPlace())
    executor.run(startup)
    executor.run(main, feed={"x": gradient})
    new = paddle.static.global_scope().find_var(parameter.name).get_tensor()
    return -np.asarray(new)


def save(name: str, clip: object) -> None:
    recorded = record(clip, framework=f"paddlepaddle {paddle.__version__}", how=clip.__doc__)
    text = json.dumps(recorded, indent=1)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    paddle.set_device("cpu")
    save("parity_paddle", dygraph)
    paddle.enable_static()
    save("parity_paddle_static", static)
