"""How exact is each way to a norm, and what does it cost beside one ReduceL2?

First the clip as `clip_gradients` emits it, norm and product, for plain, auto and wide; then
candidates for the norm alone. Error: of the norm, relative, for standard normal data and for the
worst of several constants. Cost: the best time of all turns over that of plain, for one thread and
for two; medians are of no use on a machine that others load as well.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from harness import CONSOLE, machine, save_json
from onnx import parser
from rich.table import Table

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
CONSTANTS = (0.1, 1 / 3, 0.7, 1.1, 1.9)
THREADS = (1, 2)
LIMIT = 1e-5


def modes(shape: tuple[int, ...]) -> dict[str, onnx.ModelProto]:
    """The whole clip behind an Identity, which the runtime removes."""
    dims = ",".join(map(str, shape))
    model = _parse(f"s (float[{dims}] x) => (float[{dims}] g) {{ g = Identity(x) }}")
    return {
        name: clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"], norm_precision=name)
        for name in ("plain", "auto", "wide")
    }


def candidates(shape: tuple[int, ...]) -> dict[str, onnx.ModelProto]:
    """Ways to the norm alone; rows of the greatest length that divides the size, up to a limit."""
    size = math.prod(shape)
    bodies = {
        "ReduceL2": ("float", "", "norm = ReduceL2 <keepdims = 0> (x)"),
        "Mul, ReduceSum": (
            "float",
            "",
            "m = Mul(x, x) t = ReduceSum <keepdims = 0> (m) norm = Sqrt(t)",
        ),
        "float64": ("double", "", "w = Cast <to = 11> (x) norm = ReduceL2 <keepdims = 0> (w)"),
    }
    first = next(
        at for at in range(len(shape)) if math.prod(shape[at:]) <= 4096 or at == len(shape) - 1
    )
    if first:
        axes = list(range(first, len(shape)))
        bodies["own axes, twice"] = (
            "float",
            "",
            f"r = ReduceL2 <keepdims = 0, axes = {axes}> (x) norm = ReduceL2 <keepdims = 0> (r)",
        )
    for limit in (256, 512, 1024, 4096):
        row = next(d for d in range(limit, 0, -1) if size % d == 0)
        if row in (1, size):
            continue
        held = f"<int64[2] s = {{-1, {row}}}, int64[1] last = {{1}}>"
        sums = (
            "t = ReduceSum <keepdims = 0> (q, last) u = ReduceSum <keepdims = 0> (t) norm = Sqrt(u)"
        )
        rows = "r = ReduceL2 <keepdims = 0, axes = [1]> (q)"
        norms, last = (f"norm = ReduceL2 <keepdims = 0> ({value})" for value in "rw")
        bodies |= {
            f"rows of {row}, twice": (
                "float",
                held,
                f"q = Reshape(x, s) {rows} norm = ReduceL2 <keepdims = 0> (r)",
            ),
            f"rows of {row}, float64": (
                "double",
                held,
                f"q = Reshape(x, s) {rows} w = Cast <to = 11> (r) {last}",
            ),
            f"Mul, ReduceSum of {row}": ("float", held, f"m = Mul(x, x) q = Reshape(m, s) {sums}"),
            f"float64, rows of {row}": (
                "double",
                held,
                f"w = Cast <to = 11> (x) q = Reshape(w, s) {rows} {norms}",
            ),
        }
    dims = ",".join(map(str, shape))
    return {
        name: _parse(f"s (float[{dims}] x) => ({dtype} norm) {held} {{ {body} }}")
        for name, (dtype, held, body) in bodies.items()
    }


def measure(
    models: dict[str, onnx.ModelProto], shape: tuple[int, ...], norm: str, runs: int
) -> dict[str, dict[str, Any]]:
    """Errors, then times by turns; each turn runs every form often enough to take a while."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": {}} for name in models}
    normal = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    flats = [np.float32(value) for value in CONSTANTS]
    for name, model in models.items():
        session = _open(_with_output(model, norm), 2)
        errors = [_error(session, norm, np.full(shape, c), _flat(c, shape)) for c in flats]
        found[name]["normal"] = _error(session, norm, normal, _exact(normal))
        found[name]["constant"] = max(errors)
    times = max(1, min(2000, 2_000_000 // math.prod(shape)))
    value = ort.OrtValue.ortvalue_from_numpy(normal)
    for threads in THREADS:
        sessions = {name: _open(model, threads) for name, model in models.items()}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(runs + 1):
            for name, session in sessions.items():
                outputs = [session.get_outputs()[0].name]
                began = perf_counter()
                for _ in range(times):
                    session.run_with_ort_values(outputs, {"x": value})
                if turn:  # the first warms up
                    seconds[name].append((perf_counter() - began) / times)
        for name in models:
            found[name]["seconds"][threads] = seconds[name]
    return found


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    """Print one table, with the ratios of best times."""
    columns = [f"÷ first, {threads} thread{'s'[: threads - 1]}" for threads in THREADS]
    table = Table("", "error, normal", "constant", "µs", *columns, title=title)
    base = {t: min(seconds) for t, seconds in next(iter(found.values()))["seconds"].items()}
    for name, row in found.items():
        best = {t: min(row["seconds"][t]) for t in THREADS}
        table.add_row(
            name,
            f"{row['normal']:.0e}",
            f"{row['constant']:.0e}",
            " / ".join(f"{1e6 * best[t]:.0f}" for t in THREADS),
            *(f"{best[t] / base[t]:.2f}" for t in THREADS),
        )
    CONSOLE.print(table)


@click.command()
@click.option("--runs", default=21, help="How often each has its turn.")
@click.option("--quick", is_flag=True, help="Small shapes and two runs, to see that it works.")
@click.option("--modes-only", is_flag=True, help="Without the candidates.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="All numbers, in a file."
)
def main(runs: int, quick: bool, modes_only: bool, json_path: Path | None) -> None:
    """Compare ways to compute a norm, in error and cost."""
    shapes, runs = (SHAPES[:2], 2) if quick else (SHAPES, runs)
    about = machine(Path(tempfile.gettempdir())) | {"onnxruntime": ort.__version__}
    CONSOLE.print(f"onnxruntime: {ort.__version__}; each {runs} times, by turns\n")
    results: dict[str, Any] = {}
    for shape in shapes:
        results[f"clip {shape}"] = measure(modes(shape), shape, "clip/g/norm", runs)
        show(f"{shape}: the whole clip", results[f"clip {shape}"])
        if not modes_only:
            results[f"norm {shape}"] = measure(candidates(shape), shape, "norm", runs)
            show(f"{shape}: candidates for the norm", results[f"norm {shape}"])
    save_json(json_path, {"machine": about, "runs": runs, "results": results})
    autos = [found["auto"] for title, found in results.items() if title.startswith("clip")]
    sys.exit(any(max(row["normal"], row["constant"]) > LIMIT for row in autos))


def _parse(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


def _open(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers)


def _with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if all(output.name != name for output in copy.graph.output):
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def _error(session: ort.InferenceSession, name: str, x: np.ndarray, exact: np.longdouble) -> float:
    (norm,) = session.run([name], {"x": x})
    return float(abs(np.longdouble(norm) - exact) / exact)


def _flat(value: np.float32, shape: tuple[int, ...]) -> np.longdouble:
    return np.sqrt(np.longdouble(math.prod(shape))) * np.longdouble(value)


def _exact(x: np.ndarray) -> np.longdouble:
    parts = np.array_split(x.ravel(), max(1, x.size // 4_000_000))
    return np.sqrt(sum(np.sum(part.astype(np.longdouble) ** 2) for part in parts))


if __name__ == "__main__":
    main()
