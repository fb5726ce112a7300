"""Finding gradients by meaning: the loss moves along a direction v as <gradient, v> says.

Exports from PyTorch and JAX call their gradients `t_9` or `reducesum_out_7`, so that no name
helps. Here the model is run instead. `search` moves each parameter, compares the slope of the loss
with what every value of its shape says of it, and lets `trial` try what fits, all parameters at
once; `pairing` states the answer to every doubtful case. Where candidates are known, `deciding`
asks for these alone. `harness` and `copies` run what must be run; in double precision as far as
ONNX Runtime has the kernels, with what hides differences (zeros, rates of one) changed.

What is probed are the float inputs and initializers that the loss depends on and that
`gradients.roles` takes for parameters; `data` adds others by name. Values and parameters are those
of the main graph.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from onnx import ModelProto

from onnx_clip_pass.arguments import check_flags, model_or_path
from onnx_clip_pass.errors import OnnxClipError, shown, warn
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.options import checked, takes_options
from onnx_clip_pass.probe.harness import Harness
from onnx_clip_pass.probe.opening import open_harness
from onnx_clip_pass.probe.pairing import Undecided
from onnx_clip_pass.probe.search import Probing, Search
from onnx_clip_pass.progress import told
from onnx_clip_pass.runtime import RunOptions
from onnx_clip_pass.storage import load_model

__all__ = ["Harness", "Probing", "Undecided", "probe", "probe_gradients"]

_MOST_BYTES = 1 << 30


@takes_options(RunOptions)
def probe_gradients(
    model: ModelProto | str | os.PathLike[str],
    *,
    loss: str | None = None,
    inner: bool = False,
    data: Sequence[str] = (),
    **options: Unpack[RunOptions],
) -> list[Gradient]:
    """The gradients among a model's outputs, recognised by running it.

    Costs a run of the loss a parameter, more where it is noisy, and some dozens for all.

    Args:
        model: a training graph that ONNX Runtime can run, or its path. A model that is clipped
            already is probed as it was before.
        loss: the value whose slopes are taken; by default the one scalar float output.
        inner: look among the values inside the main graph too, not only at its outputs.
        data: inputs to be treated as parameters though they look like data.
        **options: see `RunOptions` in `onnx_clip_pass.runtime`.

    Returns:
        One `Gradient` for each that is recognised, with its evidence; an empty list where none is.

    Raises:
        OnnxClipError: the model cannot be read or does not run, the loss is not clear, not scalar,
            not finite or not the same in two runs, or an argument is of the wrong type or names
            what is not there.

    Warns:
        OnnxClipWarning: the gradient of something that may be a parameter is not recognized.

    Example:
        found = probe_gradients("model.onnx", feeds={"x": x, "t": t}, loss="mse_loss")
        clip_gradients(model, clip, gradients={g.name: g.parameter.name for g in found})
    """
    found = probe(model, loss=loss, inner=inner, data=data, **options)
    warn(
        f"no gradient is known for {each.parameter!r}: {each.reason}"
        for each in found.undecided
        if not each.is_data
    )
    return list(found.gradients)


def probe(
    model: ModelProto | str | os.PathLike[str],
    *,
    loss: str | None = None,
    inner: bool = False,
    data: Sequence[str] = (),
    most_bytes: int = _MOST_BYTES,
    **options: Unpack[RunOptions],
) -> Probing:
    """Find gradients as `probe_gradients` does, and say what could not be decided.

    It holds at most about `most_bytes` in values at a time.
    """
    check_flags(inner=inner)
    how: Any = checked(RunOptions, options)
    if isinstance(data, str) or not hasattr(data, "__iter__"):
        raise OnnxClipError(f"data must be a list of names of inputs, not {shown(data)}")
    source = model_or_path("model", model)
    if isinstance(source, Path):
        source = load_model(source)
    with np.errstate(all="ignore"), told(how["progress"]) as progress:
        harness = open_harness(
            source, how["feeds"], loss, how["dims"], how["seed"], how["provider"], data=tuple(data)
        )
        return Search(harness, inner, most_bytes, progress).result()
