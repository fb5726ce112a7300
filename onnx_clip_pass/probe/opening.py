"""Opening a model for probing: its loss, its feeds, and the harness in which it is run."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index
from onnx_clip_pass.probe.harness import Harness
from onnx_clip_pass.probe.losses import find_loss
from onnx_clip_pass.record import strip_if_clipped
from onnx_clip_pass.runtime import Provider, check_run, make_feeds
from onnx_clip_pass.storage import tensors_of

__all__ = ["open_harness"]


def open_harness(
    model: ModelProto,
    feeds: Mapping[str, NDArray[Any]] | None,
    loss: str | None,
    dims: Mapping[str, int] | None,
    seed: int,
    provider: Provider,
    *,
    data: Collection[str] = (),
    only: bool = False,
    later: Collection[str] = (),
) -> Harness:
    """A model in the harness, as it was before it was clipped; see `probe` for the arguments.

    With `only` the parameters are `data` alone; `later` is what the loss cannot depend on.

    Raises:
        OnnxClipError: the loss is not clear, weights are not loaded, or the model does not run.
    """
    check_run(feeds, dims, seed)
    if any(uses_external_data(tensor) for tensor in tensors_of(model)):
        raise OnnxClipError(
            "the model cannot be run: some of its weights are in files of their own, which are not "
            "loaded; load them with it (onnx.load does), or give the path of the model"
        )
    model = strip_if_clipped(model)
    # An overridable initializer that the caller feeds is fed; all others keep their value.
    fed = make_feeds(
        model, given=feeds, dims=_one_seed(model, feeds or {}) | dict(dims or {}), seed=seed
    )
    index = Index(model)
    name = find_loss(model, index, fed, provider, loss, data if only else (), later)
    harness = Harness(model, fed, name, provider, tuple(data), seed, only)
    for scalar in harness.scalars:
        if scalar not in (feeds or {}):  # a made-up seed could be negative
            fed[scalar] = np.ones_like(fed[scalar])
    return harness


def _one_seed(model: ModelProto, given: Container[str]) -> dict[str, int]:
    """Size 1 for symbols that stand in one input alone, not a given one, beside no size but 1."""
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    symbols = [size for shape in shapes.values() for size in shape if isinstance(size, str)]
    apart = [
        shape
        for name, shape in shapes.items()
        if name not in given and all(isinstance(size, str) or size == 1 for size in shape)
    ]
    lone = [size for shape in apart for size in shape if isinstance(size, str)]
    return dict.fromkeys((each for each in lone if symbols.count(each) == 1), 1)
