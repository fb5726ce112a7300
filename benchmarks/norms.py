"""How exact is each way to a norm, and what does it cost beside one ReduceL2?

First the clip as `clip_gradients` emits it, norm and product; then candidates for the norm alone;
then the product with scales of two ranks. Errors are those of the norm, relative, for standard
normal data and for the worst of several constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from harness import Sheet, Values, by_turns, ours, scaled, thread_word
from onnx import parser
from sessions import open_session

from onnx_clip_pass import GradientClipByNorm, clip_gradients

SHAPES: tuple[tuple[int, ...], ...] = (
    (768,),
    (768, 768),
    (3072, 768),
    (30522, 768),
    (4096, 4096),
    (512, 512, 3, 3),
    (16777216,),
)
CONSTANTS = (0.1, 1 / 3, 0.7, 0.98, 1.1, 1.9)


def sheets(*, quick: bool, turns: int, threads: Sequence[int]) -> Iterator[Sheet]:
    """The modes for each shape; the candidates for three."""
    for shape in SHAPES[1:2] if quick else SHAPES:
        yield measure(f"clip of {shape}", modes(shape), "onnx-clip, plain", shape, turns, threads)
    for shape in SHAPES[1:2] if quick else (SHAPES[1], SHAPES[4], SHAPES[6]):
        yield measure(f"norm of {shape}", candidates(shape), "ReduceL2", shape, turns, threads)
    yield products((2048, 512, 1, 1), turns)


def modes(shape: tuple[int, ...]) -> dict[str, onnx.ModelProto]:
    """The whole clip behind an Identity, which the runtime removes."""
    dims = ",".join(map(str, shape))
    model = _parse(f"s (float[{dims}] x) => (float[{dims}] g) {{ g = Identity(x) }}")
    options: dict[str, dict[str, Any]] = {
        "plain": {"norm_precision": "plain"},
        "auto": {},
        "auto, layout x86-64": {"layout": "x86-64"},
        "wide": {"norm_precision": "wide"},
    }
    return {
        f"onnx-clip, {name}": clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"], **own)
        for name, own in options.items()
    }


def candidates(shape: tuple[int, ...]) -> dict[str, onnx.ModelProto]:
    """Ways to the norm alone; rows of the greatest length that divides the size, up to 4096."""
    size = math.prod(shape)
    row = next(d for d in range(4096, 0, -1) if size % d == 0)
    wide = "w = Cast <to = 11>"
    squares = "m = Mul(x, x) q = Reshape(m, s) r = ReduceSum <keepdims = 0> (q, last)"
    norms = "q = Reshape(x, s) r = ReduceL2 <keepdims = 0, axes = [1]> (q)"
    root = "t = ReduceSum <keepdims = 0> ({}) norm = Sqrt(t)"
    length = "norm = ReduceL2 <keepdims = 0> ({})"
    bodies = {
        "ReduceL2": ("float", length.format("x")),
        "MatMul of rows with themselves": (
            "float",
            "a = Reshape(x, across) b = Reshape(x, down) r = MatMul(a, b) " + root.format("r"),
        ),
        "MatMul of rows with their Transpose": (
            "float",
            "a = Reshape(x, across) b = Transpose <perm = [0, 2, 1]> (a) r = MatMul(a, b) "
            + root.format("r"),
        ),
        "Mul, one ReduceSum": ("float", "m = Mul(x, x) " + root.format("m")),
        "Mul, ReduceSum of rows, ReduceSum": ("float", f"{squares} {root.format('r')}"),
        "Mul, ReduceSum of rows, in float64": (
            "double",
            f"{squares} {wide} (r) {root.format('w')}",
        ),
        "ReduceL2 of rows, ReduceL2": ("float", f"{norms} {length.format('r')}"),
        "ReduceL2 of rows, in float64": ("double", f"{norms} {wide} (r) {length.format('w')}"),
        "float64, ReduceL2": ("double", f"{wide} (x) {length.format('w')}"),
        "float64, Mul, ReduceSum of rows, ReduceSum": (
            "double",
            f"{wide} (x) m = Mul(w, w) q = Reshape(m, s) r = ReduceSum <keepdims = 0> (q, last) "
            + root.format("r"),
        ),
    }
    dims = ",".join(map(str, shape))
    held = (
        f"<int64[2] s = {{-1, {row}}}, int64[1] last = {{1}}, "
        f"int64[3] across = {{-1, 1, {row}}}, int64[3] down = {{-1, {row}, 1}}>"
    )
    return {
        name: _parse(f"s (float[{dims}] x) => ({dtype} norm) {held} {{ {body} }}")
        for name, (dtype, body) in bodies.items()
    }


def measure(
    title: str,
    models: dict[str, onnx.ModelProto],
    base: str,
    shape: tuple[int, ...],
    turns: int,
    threads: Sequence[int],
) -> Sheet:
    """Times by turns, each turn long enough to take a while; then errors."""
    normal = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    value = ort.OrtValue.ortvalue_from_numpy(normal)
    times = max(1, min(2000, 4_000_000 // normal.size))
    columns: dict[str, Values] = {}
    for number in threads:
        works = {}
        for name, model in models.items():
            session = open_session(model, number)
            outputs = [session.get_outputs()[0].name]
            works[name] = partial(session.run_with_ort_values, outputs, {"x": value})
        seconds = by_turns(works, turns, times, threads=number)
        columns[f"µs, {thread_word(number)}"] = scaled(seconds, 1e6)
    timed = tuple(columns)
    columns |= {"error, normal data": {}, "error, worst constant": {}}
    for name, model in models.items():
        session = open_session(_with_output(model), 2)
        flat = max(_error(session, np.full(shape, c, np.float32)) for c in CONSTANTS)
        columns["error, normal data"][name] = [_error(session, normal)]
        columns["error, worst constant"][name] = [flat]
    return Sheet(title, base, columns, compared=timed, ours=ours(models))


def products(shape: tuple[int, ...], turns: int) -> Sheet:
    """A tensor with axes of size 1, multiplied by one number."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    ranks = {"scale of rank 0": "", "scale of the tensor's rank": ",".join("1" * len(shape))}
    works = {}
    for name, dims in ranks.items():
        of_x = ",".join(map(str, shape))
        text = f"s (float[{of_x}] x, float[{dims}] s) => (float[{of_x}] y) {{ y = Mul(x, s) }}"
        session = open_session(_parse(text), 1)
        scale = np.full([int(d) for d in dims.split(",") if d], 0.5, np.float32)
        feeds = {n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in {"x": x, "s": scale}.items()}
        works[name] = partial(session.run_with_ort_values, ["y"], feeds)
    columns = {"µs, 1 thread": scaled(by_turns(works, turns), 1e6)}
    base = "scale of the tensor's rank"
    return Sheet(f"product of {shape}", base, columns, compared=("µs, 1 thread",))


def _parse(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


def _with_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the norm, wherever it has it, as its one output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = ["norm", "clip/g/norm"]
    found = next(o for node in model.graph.node for o in node.output if o in names)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=found))
    return copy


def _error(session: ort.InferenceSession, x: np.ndarray) -> float:
    parts = np.array_split(x.ravel(), max(1, x.size // 4_000_000))
    exact = np.sqrt(sum(np.sum(part.astype(np.longdouble) ** 2) for part in parts))
    (norm,) = session.run(None, {"x": x})
    return float(abs(np.longdouble(norm) - exact) / exact)
