"""What clipping costs while a graph runs, and what else does the same.

Sets of gradients shaped like those of ResNet-50, BERT-base and a small on-device net. Ours: the
time of a graph with the clip less that of the graph without, in turns. Others clip the same arrays
in place. The bound: reading every gradient once, and reading and writing it once, at the bandwidth
that NumPy reaches in the same process.

    python benchmarks/bench_running.py --json running.json
    python benchmarks/bench_running.py --torch OTHER/bin/python   # an environment with PyTorch
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

CLIP_NORM = 1e-3  # every gradient is longer, so every clip acts
Arrays = list[np.ndarray]


def resnet50() -> list[tuple[int, ...]]:
    """161 tensors, 25.6 M elements: convolutions, batch norms, one dense layer."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [
                (width, channels, 1, 1),
                (width, width, 3, 3),
                (4 * width, width, 1, 1),
            ]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def bert_base() -> list[tuple[int, ...]]:
    """199 tensors, 109 M elements: embeddings, twelve layers, a pooler."""
    hidden, wide = 768, 3072
    layer: list[tuple[int, ...]] = [(hidden, hidden), (hidden,)] * 4
    layer += [(hidden,), (hidden,), (wide, hidden), (wide,), (hidden, wide), (hidden,)]
    layer += [(hidden,), (hidden,)]
    embeddings: list[tuple[int, ...]] = [(30522, hidden), (512, hidden), (2, hidden)]
    return [*embeddings, (hidden,), (hidden,), *layer * 12, (hidden, hidden), (hidden,)]


SETS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "on-device": lambda: [(64, 784), (64,), (32, 64), (32,), (10, 32), (10,)],
    "ResNet-50": resnet50,
    "BERT-base": bert_base,
    "2,000 small": lambda: [(16,)] * 2000,
}
OURS = {
    "norm, auto": ("norm", "auto"),
    "norm, plain": ("norm", "plain"),
    "global norm, auto": ("global", "auto"),
}


def gradients(shapes: list[tuple[int, ...]]) -> Arrays:
    """Normal numbers from a fixed seed."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


# -- in a process of its own -------------------------------------------------------------------


def run_ours(shapes: list[tuple[int, ...]], threads: int, turns: int) -> dict[str, Any]:
    """The graph without a clip and with each, by turns."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    from onnx_clip_pass import GradientClipByGlobalNorm, GradientClipByNorm, clip_gradients

    nodes, inputs, outputs = [], [], []
    for number, shape in enumerate(shapes):
        inputs.append(helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"g{number}", TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("Neg", [f"x{number}"], [f"g{number}"]))
    graph = helper.make_graph(nodes, "gradients", inputs, outputs)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    names = [output.name for output in outputs]
    arrays = gradients(shapes)

    def session(model: onnx.ModelProto) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        start = perf_counter()
        made = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        created = perf_counter() - start
        binding = made.io_binding()
        for number, array in enumerate(arrays):
            binding.bind_cpu_input(f"x{number}", array)
            out = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, np.float32)
            binding.bind_ortvalue_output(f"g{number}", out)
        return made, binding, created, len(model.graph.node)

    clips = {"norm": GradientClipByNorm, "global": GradientClipByGlobalNorm}
    sessions = {"unclipped": session(model)}
    for name, (kind, precision) in OURS.items():
        clipped = clip_gradients(
            model, clips[kind](CLIP_NORM), gradients=names, norm_precision=precision
        )
        sessions[name] = session(clipped)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(turns + 1):
        for name, (made, binding, *_) in sessions.items():
            start = perf_counter()
            made.run_with_iobinding(binding)
            times[name].append(perf_counter() - start)
    plain = times.pop("unclipped")[1:]
    costs = {
        name: [with_clip - without for with_clip, without in zip(each[1:], plain, strict=True)]
        for name, each in times.items()
    }
    facts = {name: {"created": made[2], "nodes": made[3]} for name, made in sessions.items()}
    return {"costs": costs, "sessions": facts, "unclipped": plain}


def run_numpy(shapes: list[tuple[int, ...]], threads: int, turns: int) -> dict[str, Any]:
    """NumPy in place, and the bound: the same memory touched as seldom as it can be."""
    arrays = [array.ravel() for array in gradients(shapes)]
    large = np.ones(1 << 26, np.float32)

    def clip() -> None:
        for x in arrays:
            norm = math.sqrt(float(np.dot(x, x)))
            np.multiply(x, np.float32(min(1.0, CLIP_NORM / norm)), out=x)

    def seconds(work: Callable[[], object]) -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    times = []
    for _ in range(turns + 1):
        for x in arrays:
            x.fill(1.0)
        times.append(seconds(clip))
    one = np.float32(1.0)
    reading = min(seconds(lambda: np.dot(large, large)) for _ in range(5)) / large.size
    writing = (
        min(seconds(lambda: np.multiply(large, one, out=large)) for _ in range(5)) / large.size
    )
    size = sum(x.size for x in arrays)
    return {"costs": {"NumPy in place": times[1:]}, "bound": size * (reading + writing)}


def run_torch(shapes: list[tuple[int, ...]], threads: int, turns: int) -> dict[str, Any]:
    """PyTorch: clip_grad_norm_ for each parameter, and _foreach_norm with _foreach_mul_."""
    import torch

    torch.set_num_threads(threads)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter, array in zip(parameters, gradients(shapes), strict=True):
        parameter.grad = torch.from_numpy(array.copy())
    grads = [parameter.grad for parameter in parameters]

    def each() -> None:
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_(parameter, CLIP_NORM)

    def foreach() -> None:
        norms = torch.stack(torch._foreach_norm(grads))
        scales = torch.clamp(CLIP_NORM / norms, max=1.0)
        torch._foreach_mul_(grads, list(scales.unbind()))

    times: dict[str, list[float]] = {"clip_grad_norm_": [], "_foreach_norm, _foreach_mul_": []}
    for _ in range(turns + 1):
        for name, work in zip(times, (each, foreach), strict=True):
            for grad in grads:
                grad.fill_(1.0)
            start = perf_counter()
            with torch.no_grad():
                work()
            times[name].append(perf_counter() - start)
    return {"costs": {name: each[1:] for name, each in times.items()}, "torch": torch.__version__}


def run_inplace(shapes: list[tuple[int, ...]], threads: int, turns: int) -> dict[str, Any]:
    """ONNX Runtime's InplaceClipGradNorm over a sequence, less the sequence alone."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    def session(clips: bool) -> Any:
        names = [f"g{number}" for number in range(len(shapes))]
        inputs = [
            helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, shape)
            for n, shape in enumerate(shapes)
        ]
        nodes = [helper.make_node("Neg", [f"x{n}"], [f"g{n}"]) for n in range(len(shapes))]
        nodes.append(helper.make_node("SequenceConstruct", names, ["all"]))
        if clips:
            clip = helper.make_node(
                "InplaceClipGradNorm", ["all"], ["clipped"], domain="com.microsoft",
                max_norm=CLIP_NORM,
            )  # fmt: skip
            nodes.append(clip)
        nodes.append(helper.make_node("SequenceLength", ["clipped" if clips else "all"], ["n"]))
        out = helper.make_tensor_value_info("n", TensorProto.INT64, [])
        graph = helper.make_graph(nodes, "sequence", inputs, [out])
        opsets = [helper.make_opsetid("", 15), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        made = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = made.io_binding()
        for number, array in enumerate(arrays):
            binding.bind_cpu_input(f"x{number}", array)
        binding.bind_output("n")
        return made, binding

    arrays = gradients(shapes)
    sessions = [session(False), session(True)]
    times: list[list[float]] = [[], []]
    for _ in range(turns + 1):
        for (made, binding), taken in zip(sessions, times, strict=True):
            start = perf_counter()
            made.run_with_iobinding(binding)
            taken.append(perf_counter() - start)
    costs = [b - a for a, b in zip(times[0][1:], times[1][1:], strict=True)]
    return {"costs": {"InplaceClipGradNorm (global)": costs}}


CHILDREN = {"ours": run_ours, "numpy": run_numpy, "torch": run_torch, "inplace": run_inplace}


# -- the contest -------------------------------------------------------------------------------


def main() -> int:
    """Run all, print a table, and keep every measurement if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each, by turns")
    parser.add_argument(
        "--torch", default=sys.executable, help="a Python with PyTorch and onnxruntime-training"
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, name, threads = options.child
        print(json.dumps(CHILDREN[kind](SETS[name](), int(threads), options.turns)))
        return 0
    from harness import CONSOLE, machine, save_json
    from rich.table import Table

    facts = machine(Path.cwd())
    found = []
    for name in options.sets:
        for threads in options.threads:
            row = _contest(name, threads, options)
            found.append(row)
            table = Table("contestant", "ms, median (min to max)", "÷ bound", title=row["title"])
            for contestant, times in row["costs"].items():
                spread = f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
                table.add_row(contestant, spread, f"{median(times) / row['bound']:.2f}")
            CONSOLE.print(table)
            for form, made in row["sessions"].items():
                CONSOLE.print(
                    f"  {form}: {made['nodes']} nodes, session in {made['created']:.3f} s",
                    highlight=False,
                )
    if options.json:
        save_json(Path(options.json), {"machine": facts, "running": found})
    return 0


def _contest(name: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    costs: dict[str, list[float]] = {}
    bounds, sessions = [], {}
    for _ in range(options.rounds):
        for kind in CHILDREN:
            python = options.torch if kind in ("torch", "inplace") else sys.executable
            command = [python, __file__, "--turns", str(options.turns)]
            done = subprocess.run(
                [*command, "--child", kind, name, str(threads)],
                capture_output=True,
                text=True,
                env=_environment(threads),
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                print(f"{kind} fails: {' '.join(last)}", file=sys.stderr)
                continue
            result = json.loads(done.stdout)
            for contestant, times in result["costs"].items():
                costs.setdefault(contestant, []).extend(1000 * t for t in times)
            if "bound" in result:
                bounds.append(1000 * result["bound"])
            sessions = result.get("sessions", sessions)
    shapes = SETS[name]()
    size = sum(math.prod(shape) for shape in shapes)
    bound = min(bounds)
    what = f"{len(shapes)} tensors, {size / 1e6:.1f} M elements, {threads} thread"
    title = f"{name}: {what}{'s' if threads > 1 else ''}, bound {bound:.2f} ms"
    return {
        "title": title, "set": name, "threads": threads, "bound": bound, "costs": costs,
        "sessions": sessions,
    }  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    import os

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads))


if __name__ == "__main__":
    sys.exit(main())
