"""From a loss of JAX to an ONNX graph of the gradients, or of a whole training step with optax.

Meant to be copied: it needs jax, jax2onnx and optax, and nothing of onnx-clip. docs/jax.md has
examples, and what jax2onnx does not export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import onnx
import optax
from jax2onnx import to_onnx

Tree = Any
Shapes = Mapping[str, Sequence[int | str]]
"""The shapes of the batch by its names: numbers, and letters for axes of any size."""


@dataclass(frozen=True)
class Exported:
    """A graph, and the values that its first run is fed beside the batch.

    `state` has parameters and the optimizer's state by the names of their inputs, which are their
    places in the trees. What a run makes of each is an output of that name and ".new".
    """

    model: onnx.ModelProto
    state: dict[str, np.ndarray]

    def tree(self, state: Mapping[str, np.ndarray], like: Tree) -> Tree:
        """Return a tree of the parameters again, with the leaves that are in `state`."""
        return jax.tree.map_with_path(lambda path, _: state[_name(path)], like)


def export_gradients(loss: Callable[..., jax.Array], parameters: Tree, batch: Shapes) -> Exported:
    """Return the graph of a loss and its gradients, `W.grad` for each leaf `W` of the parameters.

    `loss(parameters, **batch)` is what is differentiated; the batch is float32.
    """
    names = _names(parameters)

    def function(*leaves: jax.Array) -> list[jax.Array]:
        tree, data = _unflatten(parameters, leaves, batch)
        value, gradients = jax.value_and_grad(loss)(tree, **data)
        return [value, *jax.tree.leaves(gradients)]

    return _export(function, parameters, batch, [f"{name}.grad" for name in names])


def export_step(
    loss: Callable[..., jax.Array],
    parameters: Tree,
    batch: Shapes,
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
) -> Exported:
    """Return the graph of a training step: the loss, new parameters and the optimizer's new state.

    The leaves of the optimizer's state are called `state/0/mu/W` and so on.
    """
    whole = {**parameters, "state": state}
    if "state" in parameters:
        raise ValueError("a parameter is called 'state', as the optimizer's state is: rename it")

    def function(*leaves: jax.Array) -> list[jax.Array]:
        tree, data = _unflatten(whole, leaves, batch)
        old = tree.pop("state")
        value, gradients = jax.value_and_grad(loss)(tree, **data)
        updates, new = optimizer.update(gradients, old, tree)
        return [value, *jax.tree.leaves({**optax.apply_updates(tree, updates), "state": new})]

    return _export(function, whole, batch, [f"{name}.new" for name in _names(whole)])


def _export(
    function: Callable[..., list[jax.Array]], tree: Tree, batch: Shapes, results: list[str]
) -> Exported:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    names = _names(tree)
    if clash := {*batch, "loss"} & {*names}:
        raise ValueError(f"names of the batch clash with those of parameters: {sorted(clash)}")
    model = to_onnx(
        lambda *arguments: tuple(function(*arguments)),
        inputs=[
            *(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
            *map(tuple, batch.values()),
        ],
        input_names=[*names, *batch],
        output_names=["loss", *results],
    )
    return Exported(model, dict(zip(names, leaves, strict=True)))


def _unflatten(
    like: Tree, leaves: Sequence[jax.Array], batch: Shapes
) -> tuple[Tree, dict[str, jax.Array]]:
    count = len(leaves) - len(batch)
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves[:count])
    return tree, dict(zip(batch, leaves[count:], strict=True))


def _names(tree: Tree) -> list[str]:
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
