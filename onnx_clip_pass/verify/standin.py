"""A stand-in for `probe.deciding.check_slopes`, until that has landed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.probe import _find_loss
from onnx_clip_pass.probe.bench import Bench
from onnx_clip_pass.runtime import Provider, make_feeds, open_session

__all__ = ["SlopeCheck", "check_slopes"]


@dataclass(frozen=True, slots=True)
class SlopeCheck:
    """How a value compares with the slope of the loss by a parameter."""

    gradient: str
    parameter: str
    factor: float
    orthogonal: float
    error: float


def check_slopes(
    model: ModelProto,
    gradients: Mapping[str, str],
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    loss: str | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    provider: Provider = "cpu",
) -> list[SlopeCheck]:
    """Compare values with the slopes of the loss."""
    fed = make_feeds(model, given=feeds, dims=dims, seed=seed)
    if loss is None:
        loss = _find_loss(
            model, open_session(model, provider=provider, optimize=False).run(fed), None
        )
    bench = Bench(model, fed, loss, provider, tuple(gradients.values()), seed)
    point = bench.point(0)
    ((_, values),) = bench.values(list(gradients), [point])
    rng = np.random.default_rng(seed)
    found = []
    for name, parameter in gradients.items():
        if parameter not in bench.parameters:
            raise OnnxClipError(f"the loss does not read {parameter!r}")
        g = np.asarray(values[name], np.float64)
        at = point.feeds[parameter]
        if g.size != at.size:
            raise OnnxClipError(f"{name} has another size than {parameter}")
        g = g.reshape(at.shape)
        size = float(np.linalg.norm(g))
        if size == 0:
            found.append(SlopeCheck(name, parameter, float("nan"), float("nan"), 0.0))
            continue

        def slope(v: NDArray[Any], parameter: str = parameter, at: NDArray[Any] = at) -> float:
            h = (1e-5 if bench.is_double else 1e-2) * max(float(np.linalg.norm(at)), 1e-3)
            up, down = (
                bench.loss_at(point.feeds | {parameter: (at + s * h * v).astype(at.dtype)})
                for s in (1, -1)
            )
            return (up - down) / (2 * h)

        along = slope(g / size)
        beside = []
        for _ in range(2 if g.size > 1 else 0):
            v = rng.normal(size=g.shape)
            v -= np.sum(v * g) * g / size**2
            v /= np.linalg.norm(v)
            beside.append(abs(slope(v)) * np.sqrt(g.size - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = float(np.float64(max(beside, default=0.0)) / np.abs(along))
            factor = float(np.float64(size) / along)
        found.append(SlopeCheck(name, parameter, factor, ratio, 1e-6 if bench.is_double else 1e-2))
    return found
