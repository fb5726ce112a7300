"""Finding gradients by meaning: the loss moves along a direction v as <gradient, v> says.

Exports from PyTorch and JAX call their gradients `t_9` or `reducesum_out_7`, so that no name
helps. Here the model is run instead. The slopes of the loss by each parameter, along random
directions at two points, are compared with what every value of the parameter's shape says of them.
`search` leads, `slopes` measures, `pairing` judges and states the answer to every doubtful case;
`bench` and `copies` run what must be run; in double precision where ONNX Runtime has the kernels.

What is probed are the float inputs and initializers that the loss depends on and that
`gradients.roles` takes for parameters; `data` adds others by name. Values and parameters are those
of the main graph. At the second point every float input is moved by up to a tenth; scalar inputs
that the loss does not read (a seed, a learning rate) are turned up, which shows what they scale.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.arguments import check_flags, check_path
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.probe.bench import Bench, is_float, one_seed
from onnx_clip_pass.probe.pairing import Undecided
from onnx_clip_pass.probe.search import Probing, Search
from onnx_clip_pass.probe.slopes import Arrays
from onnx_clip_pass.record import strip_if_clipped
from onnx_clip_pass.runtime import Provider, check_run, make_feeds, open_session

__all__ = ["Probing", "Undecided", "probe", "probe_gradients"]

_MOST_BYTES = 1 << 30


def probe_gradients(
    model: ModelProto | str | os.PathLike[str],
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    loss: str | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    inner: bool = False,
    data: Sequence[str] = (),
    provider: Provider = "cpu",
) -> list[Gradient]:
    """The gradients among a model's outputs, recognised by running it.

    Costs about 18 runs of the loss a parameter and two of the model.

    Args:
        model: a training graph that ONNX Runtime can run, or its path. A model that is clipped
            already is probed as it was before.
        feeds: arrays by input name; the others are made up.
        loss: the value whose slopes are taken; by default the one scalar float output.
        dims: sizes of symbolic dimensions.
        seed: of made-up feeds and of the second point.
        inner: look among the values inside the main graph too, not only at its outputs.
        data: inputs to be treated as parameters though they look like data.
        provider: where to run: "cpu" or "cuda".

    Returns:
        One `Gradient` for each that is recognised, with its evidence; an empty list where none is.

    Raises:
        OnnxClipError: the model cannot be read or does not run, the loss is not clear, not scalar,
            not finite or not the same in two runs, or an argument is of another kind or names what
            is not there.

    Example:
        found = probe_gradients("model.onnx", feeds={"x": x, "t": t}, loss="mse_loss")
        clip_gradients(model, clip, gradients={g.name: g.parameter.name for g in found})
    """
    found = probe(
        model, feeds=feeds, loss=loss, dims=dims, seed=seed, inner=inner, data=data,
        provider=provider,
    )  # fmt: skip
    return list(found.gradients)


def probe(
    model: ModelProto | str | os.PathLike[str],
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    loss: str | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    inner: bool = False,
    data: Sequence[str] = (),
    provider: Provider = "cpu",
    most_bytes: int = _MOST_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Probing:
    """Find gradients by finite differences of the loss, and say what could not be decided.

    Costs about 18 runs of the loss a parameter and two of the model.

    Args:
        model: a training graph that ONNX Runtime can run, or its path. A model that is clipped
            already is probed as it was before.
        feeds: arrays by input name; the others are made up, see `runtime.make_feeds`.
        loss: the value whose slopes are taken; by default the one scalar float output.
        dims: sizes of symbolic dimensions.
        seed: of made-up feeds and of the second point.
        inner: look among the values inside the main graph too, not only at its outputs.
        data: inputs to be treated as parameters though they look like data.
        provider: where to run.
        most_bytes: hold at most about this much in values at a time.
        progress: is told how many parameters are measured, and of how many.

    Raises:
        OnnxClipError: the model does not run, the loss is not clear, not scalar, not finite or
            not the same in two runs, or a name is unknown.
    """
    check_flags(inner=inner)
    check_run(feeds, dims, seed)
    if isinstance(data, str) or not hasattr(data, "__iter__"):
        raise OnnxClipError(f"data must be a list of names of inputs, not {data!r}")
    folder = None
    if not isinstance(model, ModelProto):
        check_path("model", model, also="a ModelProto or ")
        folder = Path(model)
        try:
            model = onnx.load(folder)
        except Exception as error:  # protobuf, onnx and the system have many ways to refuse
            raise OnnxClipError(f"cannot read the model {str(folder)!r}: {error}") from error
    model = strip_if_clipped(model)
    fed = make_feeds(model, given=feeds, dims=one_seed(model) | dict(dims or {}), seed=seed)
    # An overridable initializer that the caller feeds is fed; all others keep their value.
    outputs = open_session(model, provider=provider, optimize=False).run(fed)
    name = _find_loss(model, outputs, loss)
    bench = Bench(model, fed, name, provider, tuple(data), seed)
    for knob in bench.knobs:
        if knob not in (feeds or {}):  # a made-up seed could be negative
            fed[knob] = np.ones_like(fed[knob])
    shapes = {
        key: array.shape
        for key, array in outputs.items()
        if is_float(array) and key != name and key not in bench.index.main.inputs
    }
    return Search(bench, shapes, inner, most_bytes, progress).result()


def _find_loss(model: ModelProto, outputs: Arrays, wanted: str | None) -> str:
    main = {name for node in model.graph.node for name in node.output}
    scalars = [name for name, array in outputs.items() if is_float(array) and array.size == 1]
    there = listed([f"{name!r} {list(array.shape)}" for name, array in outputs.items()])
    if wanted is not None:
        if wanted not in main:
            raise OnnxClipError(f"no node computes the loss {wanted!r}; the outputs are: {there}")
        if wanted in outputs and wanted not in scalars:
            raise OnnxClipError(f"the loss {wanted!r} is no float scalar; the outputs are: {there}")
        return wanted
    for chosen in (
        scalars,
        [name for name in scalars if outputs[name].ndim == 0],
        [name for name in scalars if "loss" in name.lower()],
    ):
        if len(chosen) == 1:
            return chosen[0]
    count = "several outputs are" if scalars else "no output is"
    raise OnnxClipError(
        f"which output is the loss? {count} a float scalar; name it with loss= (--loss). "
        f"The outputs are: {there}"
    )
