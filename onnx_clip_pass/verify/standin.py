"""A stand-in for `probe.deciding.check_slopes`, until that has landed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.probe import _find_loss
from onnx_clip_pass.probe.bench import Bench
from onnx_clip_pass.probe.slopes import Point
from onnx_clip_pass.runtime import Provider, make_feeds, open_session

__all__ = ["SlopeCheck", "check_slopes"]

Array = NDArray[np.float64]
_STEPS = {
    True: (1e-4, 1e-6),
    False: (1e-2, 3e-3, 3e-2),
}  # times the size of what is moved: for float64 and float32
_LEAST = {True: 1e-7, False: 1e-2}  # that the error of a slope is taken for
_TOGETHER = 1e-3
_DIRECTIONS = 2


@dataclass(frozen=True, slots=True)
class SlopeCheck:
    """How a value compares with the slope of the loss by a parameter.

    `factor` is how many times the slope it is, nan if both are zero; `orthogonal` is the part of
    the slope across it, relative to that along it; `error` how far off these may be.
    """

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
    """Compare values with the slopes of the loss: all together, by halves where that fails."""
    if not gradients:
        return []
    fed = make_feeds(model, given=feeds, dims=dims, seed=seed)
    if loss is None:
        outputs = open_session(model, provider=provider, optimize=False).run(fed)
        loss = _find_loss(model, outputs, None)
    bench = Bench(model, fed, loss, provider, tuple(gradients.values()), seed)
    missing = [name for name in gradients.values() if name not in bench.parameters]
    if missing:
        raise OnnxClipError(f"the loss {loss!r} does not read the parameter {missing[0]!r}")
    point = bench.point(0)
    ((_, values),) = bench.values(list(gradients), [point])
    return _Slopes(bench, point, values, seed).checks(gradients)


class _Slopes:
    def __init__(self, bench: Bench, point: Point, values: Mapping[str, Any], seed: int) -> None:
        self._bench, self._point, self._values = bench, point, values
        self._rng = np.random.default_rng(seed)
        self._least = _LEAST[bench.is_double]

    def checks(self, gradients: Mapping[str, str]) -> list[SlopeCheck]:
        together = self._together(gradients)
        if together is not None:
            factor, error = together
            return [SlopeCheck(g, p, factor, 0.0, error) for g, p in gradients.items()]
        if len(gradients) == 1:
            return [self._one(*pair) for pair in gradients.items()]
        pairs, half = list(gradients.items()), len(gradients) // 2
        return self.checks(dict(pairs[:half])) + self.checks(dict(pairs[half:]))

    def _array(self, gradient: str, parameter: str) -> Array:
        shape = self._point.feeds[parameter].shape
        array = np.asarray(self._values[gradient], np.float64)
        if array.size != np.prod(shape):
            raise OnnxClipError(f"{gradient} has another size than {parameter}")
        return array.T if array.shape == shape[::-1] != shape else array.reshape(shape)

    def _together(self, gradients: Mapping[str, str]) -> tuple[float, float] | None:
        """The factor that all have in common, and how far off it may be; None if they have none.

        Along a random direction, to which each gradient contributes alike, the slope must be what
        they say; a second direction tells chance.
        """
        if len(set(gradients.values())) < len(gradients):
            return None  # what is said of one parameter twice cannot be added up
        found = []
        for _ in range(_DIRECTIONS):
            moved: dict[str, Array] = {}
            shares = []
            for gradient, parameter in gradients.items():
                g = self._array(gradient, parameter)
                size = float(np.linalg.norm(g))
                if size == 0 or not np.isfinite(size):
                    return None
                along = g / size + _unit(self._rng, g.shape)
                moved[parameter] = along / size
                shares.append(float(np.sum(g * moved[parameter])))
            slope, error = self._slope(moved)
            said = sum(shares)
            if not error < _TOGETHER * min(map(abs, shares)) or said == 0 or slope == 0:
                return None
            found.append((said / slope, error / abs(slope)))
        (one, first), (other, second) = found
        error = max(first, second, self._least)
        least = 1 / len(gradients)
        return (
            (one, error) if abs(one - other) <= max(_TOGETHER * least, error) * abs(one) else None
        )

    def _one(self, gradient: str, parameter: str) -> SlopeCheck:
        g = self._array(gradient, parameter)
        size = float(np.linalg.norm(g))
        if size == 0 or not np.isfinite(size):
            slopes = [
                self._slope({parameter: _unit(self._rng, g.shape)}) for _ in range(_DIRECTIONS)
            ]
            is_zero = size == 0 and all(abs(slope) <= 2 * error for slope, error in slopes)
            return SlopeCheck(gradient, parameter, np.nan, 0.0 if is_zero else np.inf, self._least)
        along, error = self._slope({parameter: g / size})
        beside: list[float] = []
        for _ in range(_DIRECTIONS if g.size > 1 else 0):
            v = _unit(self._rng, g.shape)
            v -= np.sum(v * g) * g / size**2
            slope, noise = self._slope({parameter: v / np.linalg.norm(v)})
            beside.append(max(abs(slope) - 2 * noise, 0.0) * np.sqrt(g.size - 1))
        if abs(along) <= 2 * error:
            return SlopeCheck(gradient, parameter, np.inf, np.inf, self._least)
        return SlopeCheck(
            gradient,
            parameter,
            size / along,
            float(max(beside, default=0.0) / abs(along)),
            max(error / abs(along), self._least),
        )

    def _slope(self, moved: Mapping[str, Array]) -> tuple[float, float]:
        """The slope along a direction of several parameters, and how far off it may be."""
        feeds = self._point.feeds
        lengths = [
            float(np.linalg.norm(v)) / max(float(np.linalg.norm(feeds[name])), 1e-3)
            for name, v in moved.items()
        ]
        scale = max(max(lengths), 1e-300)
        here = self._bench.loss_at(feeds)
        best = (np.nan, np.inf)
        for step in _STEPS[self._bench.is_double]:
            found = self._slope_at(moved, step / scale, here)
            best = min(best, found, key=lambda each: each[1])
            if best[1] <= self._least * abs(best[0]):
                break
        return best

    def _slope_at(
        self, moved: Mapping[str, Array], step: float, here: float
    ) -> tuple[float, float]:
        """By differences over a step and over half of it, which show curvature and kinks."""
        feeds = self._point.feeds
        sides = []
        for length in (step, step / 2):
            ends = [
                self._bench.loss_at(
                    feeds
                    | {
                        n: (feeds[n] + sign * length * v).astype(feeds[n].dtype)
                        for n, v in moved.items()
                    }
                )
                for sign in (1, -1)
            ]
            sides.append(((ends[0] - here) / length, (here - ends[1]) / length))
        wide, near = (sum(pair) / 2 for pair in sides)
        bends = [right - left for right, left in sides]
        eps = np.finfo(np.float64 if self._bench.is_double else np.float32).eps
        rounding = 8 * float(eps) * abs(here) / step
        return (4 * near - wide) / 3, abs(wide - near) / 3 + abs(
            bends[1] - bends[0] / 2
        ) / 2 + rounding


def _unit(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    drawn = np.asarray(rng.normal(size=shape), np.float64)
    return drawn / (float(np.linalg.norm(drawn)) or 1.0)
