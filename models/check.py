"""Check the models in this folder against the list of their gradients, ``gradients.toml``.

Needs onnx, numpy and either onnxruntime or onnxruntime-training: the models of the runtime at
hand are run, the others only read. Where a gradient is a value of the main graph or of a branch
and the loss is a scalar, the gradient is compared with finite differences of the loss.
"""

import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

HERE = Path(__file__).parent
STEP = 1e-3
RUNTIME = "onnxruntime-training" if hasattr(ort, "training") else "onnxruntime"
Arrays = dict[str, np.ndarray]


def named_graph(model: onnx.ModelProto, place: str) -> onnx.GraphProto | onnx.FunctionProto:
    """Find the graph that ``place`` describes in the words of ``gradients.toml``."""
    if place == "main":
        return model.graph
    if match := re.fullmatch(r"training_info\[(\d+)\]\.algorithm", place):
        return model.training_info[int(match[1])].algorithm
    if match := re.fullmatch(r"function (.+)::(.+)", place):
        return next(f for f in model.functions if (f.domain, f.name) == match.groups())
    match = re.fullmatch(r"(then|else|loop) (?:branch|body) of '(.+)'", place)
    if match is None:
        raise ValueError(f"expected a graph, got {place!r}")
    attribute = "body" if match[1] == "loop" else f"{match[1]}_branch"
    node = next(node for node in model.graph.node if node.name == match[2])
    return next(a.g for a in node.attribute if a.name == attribute)


def values(graph: onnx.GraphProto | onnx.FunctionProto) -> set[str]:
    """Return the names of all values the graph defines itself."""
    names = {name for node in graph.node for name in node.output if name}
    if isinstance(graph, onnx.GraphProto):
        names |= {value.name for value in graph.input} | {t.name for t in graph.initializer}
    return names


def open_session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def make_runner(
    model: onnx.ModelProto, changed: Arrays, wanted: list[str]
) -> Callable[[Arrays], list[np.ndarray]]:
    """Return a function running the model, with the values in ``changed`` as inputs.

    These may be inputs, initializers or inner values; what computed an inner value goes on doing
    so under another name.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    kept = [t for t in exposed.graph.initializer if t.name not in changed]
    del exposed.graph.initializer[:]
    exposed.graph.initializer.extend(kept)
    for node in exposed.graph.node:
        node.output[:] = [f"{name}/computed" if name in changed else name for name in node.output]
    inputs = {value.name for value in exposed.graph.input}
    for name, value in changed.items():
        if name not in inputs:
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            exposed.graph.input.append(
                onnx.helper.make_tensor_value_info(name, kind, list(value.shape))
            )
    outputs = {value.name for value in exposed.graph.output}
    for name in dict.fromkeys(wanted):
        if name not in outputs:
            exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(exposed)

    def run(feeds: Arrays) -> list[np.ndarray]:
        # ONNX Runtime's accumulators write into the arrays they are fed.
        return session.run(wanted, {key: value.copy() for key, value in feeds.items()})

    return run


def inlined(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    """Return the model with the branch ``place`` in the stead of its If, whatever the condition."""
    match = re.fullmatch(r"(?:then|else) branch of '(.+)'", place)
    if match is None:
        return model
    branch = named_graph(model, place)
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    del flat.graph.node[:]
    for node in model.graph.node:
        if node.name != match[1]:
            flat.graph.node.append(node)
            continue
        flat.graph.node.extend(branch.node)
        for inner, outer in zip(branch.output, node.output, strict=True):
            flat.graph.node.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    return flat


def as_list(value: str | list[str], length: int) -> list[str]:
    """Repeat what the list of gradients says once for all of them."""
    return [value] * length if isinstance(value, str) else value


def slopes(model: onnx.ModelProto, feeds: Arrays, entry: dict[str, Any]) -> Iterator[str]:
    """Compare every gradient with finite differences along itself and along noise."""
    pairs = entry["gradients"]
    count = len(pairs)
    losses = as_list(entry.get("loss", model.graph.output[0].name), count)
    held = as_list(entry.get("at", [parameter for _, parameter in pairs]), count)
    rows = as_list(entry.get("rows", ""), count)
    places = as_list(entry.get("graph", "main"), count)
    rng = np.random.default_rng(0)
    for (gradient, _), loss, parameter, index, place in zip(
        pairs, losses, held, rows, places, strict=True
    ):
        flat = inlined(model, place)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in flat.graph.initializer}
        known = constants | feeds
        still = [parameter, *entry.get("still", [])]
        wanted = [loss, gradient, *still, *([index] if index else [])]
        asked = [name for name in dict.fromkeys(wanted) if name not in known]
        found = known | dict(zip(asked, make_runner(flat, {}, asked)(feeds), strict=True))
        if found[loss].shape != ():
            return
        value = found[parameter]
        raw = found[gradient].astype(np.float64)
        if index:  # one row of the gradient for each index, which may come twice
            dense = np.zeros(value.shape)
            np.add.at(dense, found[index].reshape(-1), raw.reshape(-1, *value.shape[1:]))
            raw = dense
        if raw.size != value.size:
            yield f"{gradient} has {raw.size} elements, {parameter} {value.size}"
            continue
        raw = raw.reshape(value.shape)
        norm = float(np.linalg.norm(raw))
        if norm < 0.05:
            yield f"note: the norm of {gradient} is only {norm:.2g}"
        changed = {name: found[name] for name in still}
        run = make_runner(flat, changed, [loss])
        # half precision cannot tell weights apart that are a small step from each other
        step = STEP if value.dtype != np.float16 else 32 * STEP
        for direction in (raw, rng.normal(size=value.shape)):
            unit = np.asarray(direction / max(np.linalg.norm(direction), 1e-12))
            ends = [
                run(feeds | changed | {parameter: np.asarray(value + s * unit, value.dtype)})[0]
                for s in (step, -step)
            ]
            measured = (float(ends[0]) - float(ends[1])) / (2 * step)
            expected = float(np.sum(raw * unit))
            if not math.isclose(measured, expected, rel_tol=0.03, abs_tol=0.01 * norm + 1e-3):
                yield f"{gradient}: slope is {measured:.5g}, gradient says {expected:.5g}"


def faults(entry: dict[str, Any]) -> Iterator[str]:
    """Name everything about one model that its entry does not say."""
    path = HERE / entry["file"]
    model = onnx.load(path, load_external_data=False)
    try:
        onnx.checker.check_model(str(path))
        passed = True
    except onnx.checker.ValidationError:
        passed = False
    if passed != entry.get("checker", True):
        yield f"onnx.checker {'accepts' if passed else 'refuses'} the model"
    pairs = entry["gradients"]
    if bool(pairs) == (entry.get("expect") == "no gradients"):
        yield "gradients and expect contradict each other"
    if not entry.get("asked", "a reason"):
        yield "asked gives no reason"
    places = as_list(entry.get("graph", "main"), len(pairs))
    missing = [
        f"{place} has no value {name!r}"
        for (gradient, parameter), where in zip(pairs, places, strict=True)
        for name, place in ((gradient, where), (parameter, "main"))
        if name not in values(named_graph(model, place))
    ]
    yield from missing
    if missing or not entry.get("feeds", True):
        return
    with np.load(path.with_suffix(".inputs.npz")) as archive:
        feeds = {name: archive[name] for name in archive.files}
    initialized = {t.name for t in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    if hungry := inputs - initialized - set(feeds):
        yield f"no feeds for {sorted(hungry)}"
        return
    if entry["runtime"] != RUNTIME:
        return
    open_session(path).run(None, {name: value.copy() for name, value in feeds.items()})
    flat = all(place == "main" or "branch of" in place for place in places)
    if pairs and flat and entry.get("slope", True):
        yield from slopes(onnx.load(path), feeds, entry)


def main() -> int:
    entries = tomllib.loads((HERE / "gradients.toml").read_text(encoding="utf-8"))["model"]
    listed = [entry["file"] for entry in entries]
    present = {path.relative_to(HERE).as_posix() for path in HERE.rglob("*.onnx")}
    wrong = [f"{name}: listed, not there" for name in sorted(set(listed) - present)]
    wrong += [f"{name}: there, not listed" for name in sorted(present - set(listed))]
    wrong += [
        f"{name}: listed twice" for name in sorted({n for n in listed if listed.count(n) > 1})
    ]
    for entry in entries:
        if entry["file"] in present:
            wrong += [f"{entry['file']}: {fault}" for fault in faults(entry)]
    print(*wrong, sep="\n")
    print(f"{len(entries)} models read, those for {RUNTIME} run")
    return int(any(": note: " not in line for line in wrong))


if __name__ == "__main__":
    sys.exit(main())
