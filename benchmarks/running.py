"""What does clipping cost while a graph runs, and what do others take for the same?

Ours is the time of a training step with the clip less that of the step without, by turns: each
gradient is computed by one node and taken by `W - rate * gradient`, or handed out. Others clip the
same arrays in place. The bound: reading all gradients once, and reading and writing them once, as
fast as NumPy does it to one array of their size with as many threads.

Each contestant has a process of its own: ``python running.py NAME SET THREADS TURNS`` prints what
it measured as JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

from gradient_sets import SETS, arrays_of
from harness import Sheet, Values, by_turns, ours, thread_word

CLIP_NORM = 1.0
NOTHING_CLIPPED = 1e9  # in place: multiplies by 1 all the same, and the next turn finds the same
BOUND = "bound"
CLIPS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "onnx-clip, by norm": ("norm", {}, True),
    "onnx-clip, by norm, layout x86-64": ("norm", {"layout": "x86-64"}, True),
    "onnx-clip, by norm, plain": ("norm", {"norm_precision": "plain"}, True),
    "onnx-clip, by norm, wide": ("norm", {"norm_precision": "wide"}, True),
    "onnx-clip, by global norm": ("global", {}, True),
    "onnx-clip, by global norm, layout x86-64": ("global", {"layout": "x86-64"}, True),
    "onnx-clip, by norm, gradients as outputs": ("norm", {}, False),
}
"""The clip, the options, and whether an update takes the gradients; else they are outputs."""


def sheets(
    *, quick: bool, turns: int, threads: Sequence[int], training_python: str | None
) -> Iterator[Sheet]:
    """Each set of gradients, with so many threads each."""
    for name in list(SETS)[: 1 if quick else None]:
        for number in threads:
            yield contest(name, number, turns, training_python)


def contest(name: str, threads: int, turns: int, training_python: str | None) -> Sheet:
    """All contestants, each three times in a fresh process, by turns."""
    times: Values = {}
    failures: dict[str, str] = {}
    for _ in range(3):
        for child in CHILDREN:
            python = training_python if child in NEED_TRAINING else sys.executable
            if python is None:
                continue
            command = [python, __file__, child, name, str(threads), str(turns)]
            done = subprocess.run(
                command, capture_output=True, text=True, env=_environment(child, threads)
            )
            if done.returncode:
                failures[child] = (done.stderr.strip().splitlines() or ["no message"])[-1]
                continue
            for row, seconds in json.loads(done.stdout).items():
                times.setdefault(row, []).extend(1e3 * value for value in seconds)
    shapes = SETS[name]()
    elements = sum(map(math.prod, shapes))
    return Sheet(
        f"{name}: {len(shapes)} tensors, {elements / 1e6:.3g} M elements, {thread_word(threads)}",
        BOUND,
        {"ms": {BOUND: times.pop(BOUND), **times}},
        compared=("ms",),
        ours=ours(times),
        failures=failures,
    )


# -- each in a process of its own --------------------------------------------------------------


def onnx_clip(name: str, threads: int, turns: int) -> Values:
    """Steps with and without each clip; what is handed out goes to the same buffers for all."""
    import numpy as np
    import onnxruntime as ort

    from onnx_clip_pass import GradientClipByGlobalNorm, GradientClipByNorm, clip_gradients

    arrays = arrays_of(SETS[name]())
    buffers = [ort.OrtValue.ortvalue_from_shape_and_type(x.shape, np.float32) for x in arrays]
    names = [f"g{number}" for number in range(len(arrays))]
    kinds = {"norm": GradientClipByNorm, "global": GradientClipByGlobalNorm}
    works: dict[str, Callable[[], object]] = {}
    for updates in (True, False):
        step = _step(arrays, updates=updates)
        models = {f"without, updates={updates}": step}
        for row, (kind, options, is_updated) in CLIPS.items():
            if is_updated == updates:
                clip = kinds[kind](CLIP_NORM)
                models[row] = clip_gradients(step, clip, gradients=names, **options)
        for row, model in models.items():
            session = _session(model, threads)
            binding = session.io_binding()
            for number, (array, buffer) in enumerate(zip(arrays, buffers, strict=True)):
                binding.bind_cpu_input(f"x{number}", array)
                binding.bind_ortvalue_output(f"{'new' if updates else 'g'}{number}", buffer)
            works[row] = partial(session.run_with_iobinding, binding)
    seconds = by_turns(works, turns, times=_times(arrays), threads=threads)
    return {
        row: [
            clipped - plain
            for clipped, plain in zip(
                seconds[row], seconds[f"without, updates={updates}"], strict=True
            )
        ]
        for row, (_, _, updates) in CLIPS.items()
    }


def numpy_in_place(name: str, threads: int, turns: int) -> Values:
    """NumPy, one gradient after another; its dot products use all threads, its products one."""
    import numpy as np

    arrays = [array.ravel() for array in arrays_of(SETS[name]())]

    def clip() -> None:
        for x in arrays:
            scale = min(1.0, NOTHING_CLIPPED / math.sqrt(float(np.dot(x, x))))
            np.multiply(x, np.float32(scale), out=x)

    return by_turns({"NumPy in place": clip}, turns, times=_times(arrays), threads=threads)


def bound(name: str, threads: int, turns: int) -> Values:
    """One array of the size of all gradients: by as many threads, or by one if that is faster."""
    import numpy as np

    arrays = arrays_of(SETS[name]())
    parts = np.array_split(np.concatenate([array.ravel() for array in arrays]), threads)
    one = np.float32(1.0)

    def read(part: Any) -> None:
        np.dot(part, part)

    def read_and_write(part: Any) -> None:
        np.multiply(part, one, out=part)

    def touch(run: Any) -> None:
        list(run(read, parts))
        list(run(read_and_write, parts))

    with ThreadPoolExecutor(threads) as pool:
        works = {"by a pool": partial(touch, pool.map), "by one thread": partial(touch, map)}
        found = by_turns(works, turns, times=_times(arrays), threads=threads)
    return {BOUND: min(found.values(), key=median)}


def torch_in_place(name: str, threads: int, turns: int) -> Values:
    """PyTorch: clip_grad_norm_ for each parameter, and all of them by _foreach functions."""
    import torch

    torch.set_num_threads(threads)
    parameters = []
    for array in arrays_of(SETS[name]()):
        parameters.append(torch.nn.Parameter(torch.zeros(array.shape)))
        parameters[-1].grad = torch.from_numpy(array)
    grads = [parameter.grad for parameter in parameters]

    def each() -> None:
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_(parameter, NOTHING_CLIPPED)

    def foreach() -> None:
        norms = torch.stack(torch._foreach_norm(grads))
        torch._foreach_mul_(grads, list(torch.clamp(NOTHING_CLIPPED / norms, max=1.0).unbind()))

    def together() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, NOTHING_CLIPPED)

    with torch.no_grad():
        works = {
            "PyTorch, clip_grad_norm_ for each": each,
            "PyTorch, _foreach_norm and _foreach_mul_": foreach,
            "PyTorch, clip_grad_norm_ for all (global)": together,
        }
        return by_turns(works, turns, times=_times(grads), threads=threads)


def inplace_clip_grad_norm(name: str, threads: int, turns: int) -> Values:
    """ONNX Runtime training's InplaceClipGradNorm on a sequence, less the sequence alone."""
    from onnx import TensorProto, helper

    arrays = arrays_of(SETS[name]())
    works: dict[str, Callable[[], object]] = {}
    for clips in (False, True):
        names = [f"g{number}" for number in range(len(arrays))]
        inputs = [
            helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, x.shape)
            for n, x in enumerate(arrays)
        ]
        nodes = [helper.make_node("Neg", [f"x{n}"], [f"g{n}"]) for n in range(len(arrays))]
        nodes.append(helper.make_node("SequenceConstruct", names, ["all"]))
        if clips:
            settings = {"domain": "com.microsoft", "max_norm": CLIP_NORM}
            nodes.append(helper.make_node("InplaceClipGradNorm", ["all"], ["clipped"], **settings))
        nodes.append(helper.make_node("SequenceLength", ["clipped" if clips else "all"], ["n"]))
        length = helper.make_tensor_value_info("n", TensorProto.INT64, [])
        graph = helper.make_graph(nodes, "sequence", inputs, [length])
        opsets = [helper.make_opsetid("", 15), helper.make_opsetid("com.microsoft", 1)]
        session = _session(helper.make_model(graph, opset_imports=opsets, ir_version=8), threads)
        binding = session.io_binding()
        for number, array in enumerate(arrays):
            binding.bind_cpu_input(f"x{number}", array)
        binding.bind_output("n")
        works[str(clips)] = partial(session.run_with_iobinding, binding)
    seconds = by_turns(works, turns, times=_times(arrays), threads=threads)
    costs = [b - a for a, b in zip(seconds["False"], seconds["True"], strict=True)]
    return {"InplaceClipGradNorm of onnxruntime-training (global)": costs}


CHILDREN: dict[str, Callable[[str, int, int], Values]] = {
    "bound": bound,
    "NumPy": numpy_in_place,
    "onnx-clip": onnx_clip,
    "PyTorch": torch_in_place,
    "InplaceClipGradNorm": inplace_clip_grad_norm,
}
NEED_TRAINING = ("PyTorch", "InplaceClipGradNorm")


def _step(arrays: list[Any], *, updates: bool) -> Any:
    """`g = -x` for each array; with `updates` taken by `new = x - rate * g`, else handed out."""
    from onnx import TensorProto, helper

    nodes, inputs, outputs = [], [], []
    for n, array in enumerate(arrays):
        inputs.append(helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, array.shape))
        nodes.append(helper.make_node("Neg", [f"x{n}"], [f"g{n}"]))
        if updates:
            nodes.append(helper.make_node("Mul", [f"g{n}", "rate"], [f"u{n}"]))
            nodes.append(helper.make_node("Sub", [f"x{n}", f"u{n}"], [f"new{n}"]))
        name = f"new{n}" if updates else f"g{n}"
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    rate = helper.make_tensor("rate", TensorProto.FLOAT, [], [0.01])
    graph = helper.make_graph(nodes, "step", inputs, outputs, [rate])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _session(model: Any, threads: int) -> Any:
    """A session as ONNX Runtime makes it by default, but for the number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _times(arrays: list[Any]) -> int:
    """How often in each turn, so that a turn takes a while."""
    return max(1, 4_000_000 // sum(math.prod(array.shape) for array in arrays))


def _environment(child: str, threads: int) -> dict[str, str]:
    """So many threads for each library; the bound has its own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | dict.fromkeys(names, "1" if child == "bound" else str(threads))


if __name__ == "__main__":
    child, chosen, threads, turns = sys.argv[1:]
    print(json.dumps(CHILDREN[child](chosen, int(threads), int(turns))))
