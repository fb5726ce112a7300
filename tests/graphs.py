"""The models that the tests share, their feeds, what is true of them, and a way to run them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

MODELS = Path(__file__).parent.parent / "models"
SEED = MODELS / "seed" / "train_step.onnx"
HUGE = 1e30  # no gradient of the models comes near, and float32 holds it
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """What the hand-written list `models/gradients.toml` says of one model."""

    file: str
    runtime: str
    gradients: tuple[tuple[str, str], ...]
    graph: str | tuple[str, ...] = ""
    expect: str = ""
    found: str = "by structure or name"
    feeds: bool = True
    checker: bool = True
    slope: bool = True
    asked: str = ""
    loss: str | tuple[str, ...] = ""
    at: tuple[str, ...] = ()
    rows: str | tuple[str, ...] = ""
    still: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return MODELS / self.file

    @property
    def names(self) -> list[str]:
        """The gradient values, each once even if two parameters share it."""
        return list(dict.fromkeys(gradient for gradient, _ in self.gradients))

    @property
    def graphs(self) -> list[str]:
        """Where each gradient lives, in their order; '' is the main graph."""
        if isinstance(self.graph, tuple):
            return list(self.graph)
        return [self.graph] * len(self.gradients)

    def load(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    def load_feeds(self) -> Arrays:
        with np.load(self.path.with_suffix(".inputs.npz")) as archive:
            return dict(archive)


def _entry(row: dict[str, Any]) -> Entry:
    frozen = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
    return Entry(**frozen | {"gradients": tuple((g, p) for g, p in row["gradients"])})


_LISTED = [
    _entry(row)
    for row in tomllib.loads((MODELS / "gradients.toml").read_text(encoding="utf-8"))["model"]
]
ENTRIES = [entry for entry in _LISTED if not entry.file.startswith("optimizers/")]
OPTIMIZERS = [entry for entry in _LISTED if entry.file.startswith("optimizers/")]


def each(which: Callable[[Entry], bool] = lambda entry: True) -> pytest.MarkDecorator:
    """Run a test once for every model `which` picks, as `entry`; its file's name is the id."""
    picked = [pytest.param(e, id=e.file.removesuffix(".onnx")) for e in ENTRIES if which(e)]
    return pytest.mark.parametrize("entry", picked)


def parse(text: str, *, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """A graph, and functions behind it, as a model that imports the domains it names."""
    named = [domain for domain in ("local", "com.microsoft") if f"{domain}." in text]
    imports = [f'"" : {opset}', *(f'"{domain}" : 1' for domain in named)]
    header = f"<ir_version: {ir}, opset_import: [{', '.join(imports)}]>"
    return onnx.parser.parse_model(f"{header} {text}")


def save(path: Path, *nodes: str, inputs: str, outputs: str, opset: int = 17) -> Path:
    """Write a model of these nodes, as text, and give its path."""
    body = "\n".join(nodes)
    onnx.save(parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset=opset), path)
    return path


def run(
    model: onnx.ModelProto | Path,
    feeds: Mapping[str, NDArray[Any]],
    wanted: Sequence[str] | None = None,
    *,
    optimize: bool = False,
) -> Arrays:
    """Run a model on the CPU and return its outputs by name.

    A path serves models whose weights lie beside them. `wanted` may name inner values as well; a
    path gives outputs only. Feeds are copied, for ONNX Runtime's accumulators overwrite the
    buffers they are fed. Unless `optimize` is set nothing is fused: a fusion that a clip happens
    to prevent rounds differently, which would hide what the clip itself does.
    """
    if isinstance(model, onnx.ModelProto) and wanted is not None:
        model = expose(model, wanted)
    session = open_session(model, optimize=optimize)
    names = [o.name for o in session.get_outputs()] if wanted is None else wanted
    if not names:
        return {}  # the runtime would take an empty list for all outputs
    copies = {name: np.array(value) for name, value in feeds.items()}
    found = [np.array(value) for value in session.run(names, copies)]  # a view of `copies` else
    return dict(zip(names, found, strict=True))


def open_session(
    model: onnx.ModelProto | Path, *, optimize: bool, optimized_path: Path | None = None
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; the test is skipped if there is no runtime.

    `optimized_path` is where it leaves what it made of the model.
    """
    ort = pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def expose(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with these values of the main graph among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    return copy


def clip_exactly(x: NDArray[Any], clip_norm: float) -> NDArray[Any]:
    """The formula as the documentation states it, in float64, rounded once to the dtype of `x`."""
    wide = np.asarray(x, np.float64)
    norm = np.sqrt(np.sum(wide * wide))
    return x if norm <= clip_norm else np.asarray(clip_norm * wide / norm, x.dtype)


def acting_norm(gradients: Iterable[NDArray[Any]]) -> float:
    """Half the smallest norm, so that every gradient is clipped.

    Norms below 0.05 are those of gradients that are zero but for rounding (models/README.md).
    """
    norms = [float(np.linalg.norm(np.asarray(g, np.float64))) for g in gradients]
    return 0.5 * min(norm for norm in norms if norm >= 0.05)


def assert_identical(left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]) -> None:
    """Same names, dtypes, shapes and bytes."""
    assert list(left) == list(right)
    for name, value in left.items():
        other = right[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        assert value.tobytes() == other.tobytes(), name
