"""Export training steps of JAX with the optimizers of optax, through jax2onnx.

    python export_optax.py FOLDER [--only PATTERN]

Made with Python 3.11, jax 0.10.2, optax 0.2.8, jax2onnx 0.17.1, onnx 1.23.2, onnxruntime 1.32.0:

    pip install jax==0.10.2 optax==0.2.8 jax2onnx==0.17.1 flax==0.12.8 onnxruntime==1.32.0

jax2onnx 0.17.1 gets the gradients of products of two matrices wrong, so that data has rank 3 here.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
from jax2onnx import to_onnx
from optax_optimizers import Choice, choices

VERSIONS = {
    name: importlib.metadata.version(name)
    for name in ("jax", "optax", "jax2onnx", "onnx", "onnxruntime")
}
Tree = Any


class CannotExportError(Exception):
    """Says why a step has no graph."""


def loss_of(parameters: Tree, x: jax.Array, wanted: jax.Array) -> jax.Array:
    """Return the mean squared error of two layers with biases."""
    hidden = jnp.tanh(x @ parameters["first"]["kernel"] + parameters["first"]["bias"])
    error = hidden @ parameters["second"]["kernel"] + parameters["second"]["bias"] - wanted
    return jnp.mean(error * error)


def start() -> tuple[Tree, list[list[jax.Array]]]:
    """Return parameters and three batches."""
    random = np.random.default_rng(7)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    parameters = {
        "first": {"bias": normal(6) * 0.1, "kernel": normal(5, 6) * 0.4},
        "second": {"bias": normal(3) * 0.1, "kernel": normal(6, 3) * 0.4},
    }
    return parameters, [[normal(4, 2, 5), normal(4, 2, 3)] for _ in range(3)]


class Step:
    """A step with its optimizer behind two others, as a function of arrays."""

    def __init__(self, optimizer: optax.GradientTransformation) -> None:
        self.optimizer = optax.with_extra_args_support(optimizer)
        parameters, batches = start()
        state = self.optimizer.init(parameters)
        for batch in batches[:-1]:
            parameters, state, _ = self.of_trees(parameters, state, batch, None)
        self.names = [
            "/".join(str(getattr(key, "key", key)) for key in path)
            for path, _ in jax.tree_util.tree_leaves_with_path(parameters)
        ]
        self.states = [
            "".join(map(str, path)).strip(".")
            for path, _ in jax.tree_util.tree_leaves_with_path(state)
        ]
        self.parameters, self.shape = jax.tree.flatten(parameters)
        leaves, self.state_shape = jax.tree.flatten(state)
        self.state = [jnp.asarray(leaf) for leaf in leaves]
        self.batch = batches[-1]
        self.arguments = [*self.parameters, *self.state, *self.batch]

    def of_trees(
        self, parameters: Tree, state: Tree, batch: list[jax.Array], clip_norm: float | None
    ) -> tuple[Tree, Tree, jax.Array]:
        """Return new parameters, new state and the loss."""
        loss, gradients = jax.value_and_grad(loss_of)(parameters, *batch)
        if clip_norm is not None:
            gradients = jax.tree.map(lambda g: clip_by_norm(g, clip_norm), gradients)
        updates, state = self.optimizer.update(gradients, state, parameters, value=loss)
        return optax.apply_updates(parameters, updates), state, loss

    def __call__(self, *arguments: jax.Array, clip_norm: float | None = None) -> list[jax.Array]:
        """Return new parameters, new states and the loss."""
        first, second = len(self.parameters), len(self.parameters) + len(self.state)
        parameters = jax.tree.unflatten(self.shape, arguments[:first])
        state = jax.tree.unflatten(self.state_shape, arguments[first:second])
        parameters, state, loss = self.of_trees(
            parameters, state, list(arguments[second:]), clip_norm
        )
        return [*jax.tree.leaves(parameters), *jax.tree.leaves(state), loss]

    def gradients(self) -> list[jax.Array]:
        """Return the raw gradients at the arguments."""
        tree = jax.tree.unflatten(self.shape, self.parameters)
        return jax.tree.leaves(jax.grad(loss_of)(tree, *self.batch))


def clip_by_norm(gradient: jax.Array, clip_norm: float) -> jax.Array:
    """Return the gradient itself where its norm is not above the clip norm, else scaled to it."""
    norm = jnp.sqrt(jnp.sum(gradient * gradient))
    return jnp.where(norm <= clip_norm, gradient, gradient * (clip_norm / norm))


def export(choice: Choice, root: Path) -> None:
    """Write a case; raise CannotExportError where the graph does not do what JAX does."""
    step = Step(choice.make())
    gradients = step.gradients()
    clip_norm = float(f"{0.5 * min(float(jnp.linalg.norm(g)) for g in gradients):.3g}")
    plain = list(map(np.asarray, step(*step.arguments)))
    clipped = list(map(np.asarray, step(*step.arguments, clip_norm=clip_norm)))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in step.arguments]
    model = to_onnx(lambda *arguments: tuple(step(*arguments)), inputs=shapes, model_name="step")
    inputs = [
        *({"role": "parameter", "is": name} for name in step.names),
        *({"role": "state", "is": name} for name in step.states),
        *({"role": "data", "is": name} for name in ("x", "wanted")),
    ]
    roles = [described for described in inputs if described["role"] != "data"]
    outputs: list[dict[str, Any]] = [r | {"input": place} for place, r in enumerate(roles)]
    outputs.append({"role": "loss", "is": "loss"})
    if len(model.graph.input) != len(inputs) or len(model.graph.output) != len(outputs):
        raise CannotExportError("the exporter left out inputs or outputs")
    values = (*model.graph.input, *model.graph.output)
    for described, value in zip((*inputs, *outputs), values, strict=True):
        described["name"] = value.name
    folder = root / choice.name
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    feeds = list(map(np.asarray, step.arguments))
    try:
        _compare(model, inputs, outputs, feeds, plain)
    except Exception:
        shutil.rmtree(folder)
        raise
    truth = cases.Truth(
        name=choice.name,
        source="optax",
        optimizer=choice.optimizer,
        options=choice.options,
        architecture="mlp",
        kind="step",
        clip_norm=clip_norm,
        inputs=inputs,
        outputs=outputs,
        versions=VERSIONS,
    )
    raw = {place: np.asarray(gradient) for place, gradient in enumerate(gradients)}
    cases.save(folder, truth, feeds, plain, clipped, raw)


def _compare(
    model: onnx.ModelProto,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    feeds: list[np.ndarray],
    wanted: list[np.ndarray],
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    pairs = zip(inputs, feeds, strict=True)
    got = session.run(None, {i["name"]: feed for i, feed in pairs if i["name"] in names})
    for output, value, expected in zip(outputs, got, wanted, strict=True):
        off = cases.distance(value, expected)
        if off > cases.TOLERANCE:
            said = f"differs from JAX by {off:.1e} in {output['is']}"
            raise CannotExportError(f"the exported graph {said}")


def _reason(error: BaseException) -> str:
    if isinstance(error, CannotExportError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def main(arguments: list[str] | None = None) -> int:
    """Write one folder for each case, and `not_exported.json` with the reasons of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--verbose", action="store_true", help="whole tracebacks")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path = chosen.folder / "not_exported.json"
    reasons = json.loads(path.read_text()) if path.exists() else {}
    done = 0
    for choice in _chosen(choices, chosen.only):
        began = time.perf_counter()
        reasons.pop(choice.name, None)
        try:
            export(choice, chosen.folder)
        except Exception as error:  # whatever a library raises is the reason
            if chosen.verbose:
                raise
            reasons[choice.name] = _reason(error)
            print(f"{choice.name}: not exported: {reasons[choice.name]}", flush=True)
        else:
            done += 1
            print(f"{choice.name}: {time.perf_counter() - began:.1f} s", flush=True)
        path.write_text(json.dumps(reasons, indent=1) + "\n")
    print(f"{done} exported")
    return 0


def _chosen(make: Callable[[], Iterator[Choice]], pattern: str) -> Iterator[Choice]:
    return (choice for choice in make() if fnmatch.fnmatch(choice.name, pattern))


if __name__ == "__main__":
    raise SystemExit(main())
