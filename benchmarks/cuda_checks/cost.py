"""The price of clipping in a training step, beside PyTorch's on the same device."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from gradient_sets import SETS, Shapes, arrays_of
from harness import by_turns
from onnx import TensorProto, helper

from cuda_checks.outcome import Row, TimeLimit
from cuda_checks.sessions import Provider, device_value, open_inner
from onnx_clip_pass import GradientClipByGlobalNorm, GradientClipByNorm, clip_gradients

__all__ = ["check_cost"]

_TORCH = Path(__file__).with_name("torch_cost.py")
_CLIPS = {
    "by norm, layout cuda": (GradientClipByNorm(1.0), "cuda"),
    "by global norm, layout cuda": (GradientClipByGlobalNorm(1.0), "cuda"),
    "by norm, layout cpu": (GradientClipByNorm(1.0), "cpu"),
    "by global norm, layout cpu": (GradientClipByGlobalNorm(1.0), "cpu"),
}


def check_cost(
    provider: Provider, limit: TimeLimit, *, name: str = "BERT-base", turns: int = 20
) -> Iterator[Row]:
    """A row for each clip of the gradients of a net, in milliseconds of a step, and for PyTorch.

    Ours is the time of a step with the clip less that of the step without, by turns; the arrays are
    on the device before, and stay there. PyTorch clips the same arrays in place.
    """
    shapes = SETS[name]()
    steps = {"without": _step(shapes)}
    names = [f"g{number}" for number in range(len(shapes))]
    for row, (clip, layout) in _CLIPS.items():
        steps[row] = clip_gradients(steps["without"], clip, gradients=names, layout=layout)
    arrays = arrays_of(shapes)
    inputs = [device_value(array, provider) for array in arrays]
    outputs = [device_value(np.zeros_like(array), provider) for array in arrays]
    works = {row: _bound(model, provider, inputs, outputs) for row, model in steps.items()}
    limit.check()
    seconds = by_turns(works, turns)
    elements = sum(map(math.prod, shapes))
    what = f"{name}, {len(shapes)} tensors, {elements / 1e6:.3g} M elements"
    yield Row("cost", f"{what}: step without", "note", _milliseconds(seconds["without"]))
    for row in _CLIPS:
        pairs = zip(seconds[row], seconds["without"], strict=True)
        added = [clipped - plain for clipped, plain in pairs]
        yield Row("cost", f"onnx-clip, {row}", "note", f"adds {_milliseconds(added)}")
    limit.check()
    yield from _torch(provider, name, turns)


def _milliseconds(seconds: list[float]) -> str:
    low, middle, high = (1e3 * of(seconds) for of in (min, median, max))
    return f"{middle:.3g} ms ({low:.3g} to {high:.3g})"


def _step(shapes: Shapes) -> onnx.ModelProto:
    """A gradient `g = -x` for each x, and `new = x - rate * g`."""
    nodes, inputs, outputs = [], [], []
    for number, shape in enumerate(shapes):
        source, gradient, scaled, new = (f"{letter}{number}" for letter in ("x", "g", "u", "new"))
        inputs.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(new, TensorProto.FLOAT, shape))
        nodes += [
            helper.make_node("Neg", [source], [gradient]),
            helper.make_node("Mul", [gradient, "rate"], [scaled]),
            helper.make_node("Sub", [source, scaled], [new]),
        ]
    rate = helper.make_tensor("rate", TensorProto.FLOAT, [], [0.01])
    graph = helper.make_graph(nodes, "step", inputs, outputs, [rate])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _bound(
    model: onnx.ModelProto, provider: Provider, inputs: list[Any], outputs: list[Any]
) -> Callable[[], object]:
    """A step on arrays that are on the device, and leaves its results there."""
    inner = open_inner(model, provider)
    binding = inner.io_binding()
    for number, (source, target) in enumerate(zip(inputs, outputs, strict=True)):
        binding.bind_ortvalue_input(f"x{number}", source)
        binding.bind_ortvalue_output(f"new{number}", target)
    return partial(inner.run_with_iobinding, binding)


def _torch(provider: Provider, name: str, turns: int) -> Iterator[Row]:
    """PyTorch's rows, from a process of its own: its CUDA may be another than ONNX Runtime's."""
    if importlib.util.find_spec("torch") is None:
        yield Row("cost", "PyTorch, clip_grad_norm_", "not run", "PyTorch is not installed")
        return
    command = [sys.executable, str(_TORCH), provider.device, name, str(turns)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Row("cost", "PyTorch, clip_grad_norm_", "not run", said[:300])
        return
    for row, seconds in json.loads(done.stdout.splitlines()[-1]).items():
        yield Row("cost", row, "note", _milliseconds(seconds))
