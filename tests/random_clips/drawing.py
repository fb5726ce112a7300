"""Random clips of random gradients: all that one run is made of, drawn from its seed.

What is drawn stays within what docs/numerics.md promises: norms are in the range of the dtype that
they are computed in, thresholds are such that factors are normal numbers.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from single import DTYPES, NEWEST_OPSET

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
)
from onnx_clip_pass.clips import Clip
from random_clips.exact import Gradient, Stage
from random_clips.nesting import NESTS

__all__ = ["OPTIMIZATIONS", "Drawn", "drawn"]

Array = NDArray[Any]
OPTIMIZATIONS = ("off", "basic", "extended", "all")
_SIZES = (0, 1, 1, 2, 2, 3, 5, 7, 8, 16, 17, 31, 64, 97, 127, 256, 1021, 2053, 4099, 8209, 65536)
_MOST = 70_000
_FORMS = ("norm", "norm", "norm", "global", "global", "value", "rms", "adaptive", "chain")
_HELD = {"float16": (1e-6, 6e4), "bfloat16": (1e-36, 1e38), "float32": (1e-36, 1e38)}


@dataclass(frozen=True)
class Drawn:
    """One run: gradients, a clip and its options, and where and how the model runs."""

    seed: int
    gradients: list[Gradient]
    declared: list[Any]
    stages: list[Stage]
    clip: Clip
    options: dict[str, Any]
    nests: tuple[str, ...]
    opset: int
    ir_version: int
    optimization: str
    loss_scale: float = 1.0
    fed: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """All of it in a line, for who looks into a fault."""
        kinds = [
            f"{g.array.dtype}{list(g.array.shape)}{' of seeds' * g.has_seeds} as {declared}"
            for g, declared in zip(self.gradients, self.declared, strict=True)
        ]
        return (
            f"seed {self.seed}: {self.clip!r} {self.options} {self.fed or ''} of "
            f"{'; '.join(kinds)} in {'/'.join(self.nests) or 'the main graph'}, opset "
            f"{self.opset}, IR {self.ir_version}, optimization {self.optimization}"
        )


def drawn(seed: int, newest_opset: int = NEWEST_OPSET) -> Drawn:
    """The run of this seed; the same on every machine that has these opsets."""
    return _Drawing(seed, newest_opset).draw()


class _Drawing:
    def __init__(self, seed: int, newest_opset: int) -> None:
        self.seed, self.newest = seed, newest_opset
        self.random, self.numpy = random.Random(seed), np.random.default_rng(seed)

    def often(self, share: float) -> bool:
        return self.random.random() < share

    def draw(self) -> Drawn:
        pick = self.random.choice
        form = pick(_FORMS)
        self.precision = pick(("auto", "auto", "plain", "wide"))
        self.nonfinite = pick(("propagate", "propagate", "zero", "keep"))
        self.ord = pick((2.0, 2.0, 2.0, 1.0, math.inf, 3.0, 0.5)) if form != "adaptive" else 2.0
        opset = pick(range(7, self.newest + 1))
        self.has_few_opsets = opset < 13
        depth = pick((0, 0, 0, 1, 1, 2))
        nests = tuple(pick(NESTS) for _ in range(depth))
        if opset < 9:  # Scan is another, and no Constant holds integers
            nests = tuple(nest for nest in nests if nest not in ("scan", "loop"))
        is_seen = "function" not in nests  # what the main graph has
        is_split = form in ("norm", "global") and self.often(0.4)
        per_sample = is_split and (form == "global" or self.often(0.5))
        has_seeds = not is_split and not nests and form != "adaptive" and self.often(0.1)
        count = pick((1, 2, 3)) if form == "global" else pick((1, 1, 2))
        shapes = self.shapes(count, form, per_sample=per_sample, is_split=is_split)
        if has_seeds:
            shapes = [(*shape[-2:], pick((1, 2, 3))) for shape in shapes]
            shapes = [(*shape[:-1], shapes[0][-1]) for shape in shapes]
        dtypes = self.dtypes(count, opset, nests)
        axes = self.axes(shapes) if form == "adaptive" or (is_split and not per_sample) else None
        is_exact = is_split or has_seeds or form == "adaptive" or "scan" in nests
        declared = [self.declared(shape, is_ranked=is_exact) for shape in shapes]
        self.layout = pick(("cpu", "cpu", "x86-64", "cuda"))
        limit, in_float64 = self.limit(dtypes)
        arrays = [
            self.array(shape, dtype, self.norm(dtypes, limit, in_float64))
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        gradients = [Gradient(array, has_seeds=has_seeds) for array in arrays]
        clip, stages = self.clip(form, limit, axes, per_sample=per_sample, in_float64=in_float64)
        if form == "adaptive":
            gradients = [
                Gradient(a, np.asarray(self.numpy.normal(size=a.shape)).astype(a.dtype))
                for a in arrays
            ]
        options: dict[str, Any] = {
            "norm_precision": self.precision,
            "nonfinite": self.nonfinite,
            "layout": self.layout,
        }
        fed: dict[str, float] = {}
        if is_seen and form not in ("chain",) and stages[0].low is None and self.often(0.2):
            options["threshold_input"] = "limit"
            if self.often(0.7):
                fed["limit"] = limit * pick((0.5, 2.0, 3.0))
                stages = [_with(stages[0], limit=fed["limit"])]
        scale = 1.0
        if self.often(0.2) and form != "adaptive" and not in_float64:
            scale = pick((0.5, 8.0, 1024.0))
            stages = [_with(s, limit=s.limit * scale, low=s.low and s.low * scale) for s in stages]
            is_named = is_seen and self.often(0.5)
            options["loss_scale"] = "scale" if is_named else scale
            if is_named:
                fed["scale"] = scale
        if not nests and self.often(0.3):
            options["emit"] = ("norm", "clipped") if form != "chain" else ("norm",)
        return Drawn(
            self.seed, gradients, declared, stages, clip, options, nests, opset,
            self.ir_version(opset, nests, options), pick(OPTIMIZATIONS), scale, fed,
        )  # fmt: skip

    def ir_version(self, opset: int, nests: tuple[str, ...], options: dict[str, Any]) -> int:
        least = 8 if "function" in nests else 4 if "threshold_input" in options else 3
        if opset > 20:
            return 10
        return max(least, self.random.choice((3, 4, 8, 10)))

    def shapes(
        self, count: int, form: str, *, per_sample: bool, is_split: bool
    ) -> list[tuple[int, ...]]:
        samples = self.random.choice((0, 1, 2, 2, 3, 3, 5, 8))
        found = []
        least = 1 if is_split or form == "adaptive" else 0
        for _ in range(count):
            while True:
                rank = self.random.choice(range(least, 5))
                shape = tuple(self.random.choice(_SIZES) for _ in range(rank))
                if per_sample:
                    shape = (samples, *shape[1:])
                if math.prod(filter(None, shape)) <= _MOST:  # of no elements too, norms may be many
                    break
            found.append(shape)
        return found

    def dtypes(self, count: int, opset: int, nests: tuple[str, ...]) -> list[str]:
        names = ["float32"] * 4 + ["float64", "float16"]
        if opset >= 13 and not nests:  # ONNX Runtime has no Loop and If of bfloat16
            names.append("bfloat16")
        return [self.random.choice(names) for _ in range(count)]

    def axes(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        rank = min(map(len, shapes))
        axes = self.random.sample(range(rank), self.random.randint(1, rank))
        return tuple(axis - rank if rank == max(map(len, shapes)) and self.often(0.3) else axis
                     for axis in axes)  # fmt: skip

    def declared(self, shape: tuple[int, ...], *, is_ranked: bool) -> Any:
        if not is_ranked and self.often(0.08):
            return None
        says = self.random.choice((1.0, 1.0, 0.6))
        return tuple(d if self.often(says) else self.random.choice((f"d{d}", None)) for d in shape)

    def limit(self, dtypes: list[str]) -> tuple[float, bool]:
        """A threshold, and whether it is one near which float32 fails."""
        power = self.random.uniform(-6, 5)
        if self.often(0.15) and "float16" not in dtypes:
            power = self.random.choice((-1, 1)) * self.random.uniform(13, 30)
        return 10.0**power, not 2.0**-40 <= 10.0**power <= 2.0**40

    def norm(self, dtypes: list[str], limit: float, in_float64: bool) -> float:
        """About the norm of a gradient: around the threshold, or anywhere in the range."""
        least, most = 1e-140, 1e140
        for dtype in dtypes:
            low, high = _HELD.get(dtype, (1e-140, 1e140))
            if dtype != "float64" and not in_float64 and self.precision != "wide":
                high = min(high, 1e18, limit * 1e30)
                if self.precision == "plain" and self.ord == 3:
                    high, low = min(high, 1e11), max(low, 1e-6)
            least, most = max(least, low), min(most, high)
        if self.often(0.75):
            return min(max(limit * 10 ** self.random.uniform(-0.7, 2), least), most)
        return 10 ** self.random.uniform(math.log10(least), math.log10(most))

    def array(self, shape: tuple[int, ...], dtype: str, norm: float) -> Array:
        """A gradient of about this norm."""
        kind, normal = self.random.randrange(6), self.numpy.standard_normal(shape)
        x = np.asarray(normal)
        if kind == 1:
            x = np.full(shape, self.random.choice((0.1, 1 / 3, 1.0)))
        elif kind == 2 and x.size:  # beside 1, squares below 2 ** -24 vanish
            x = np.full(shape, 2.0**-12.001)
            x.flat[self.random.randrange(x.size)] = 1
        elif kind == 3:  # of very different magnitudes
            x = np.asarray(normal * 10.0 ** self.numpy.uniform(-6, 0, shape))
        elif kind == 4:  # mostly zeros, of either sign
            x = np.asarray(np.where(self.numpy.random(shape) < 0.1, normal, np.copysign(0, normal)))
        ord = self.ord if self.ord >= 1 else 1.0
        length = np.linalg.norm(x.ravel(), ord) if x.size else 0.0
        top = float(np.finfo(np.float32).max if dtype == "bfloat16" else
                    np.finfo(DTYPES[dtype]).max) / 2  # fmt: skip
        if self.ord < 1:  # that norm is far longer
            norm /= max(1, x.size)
        x = np.asarray(np.clip(x * (norm / length) if length else x, -top, top))
        x = x.astype(DTYPES[dtype])
        if self.often(0.12) and x.size:
            for _ in range(self.random.choice((1, 1, 3))):
                x.flat[self.random.randrange(x.size)] = self.random.choice(
                    (np.nan, np.inf, -np.inf)
                )
        return x

    def clip(
        self, form: str, limit: float, axes: tuple[int, ...] | None, *, per_sample: bool,
        in_float64: bool,
    ) -> tuple[Clip, list[Stage]]:  # fmt: skip
        if form == "chain":
            pairs = [
                self.clip(one, limit * self.random.choice((0.3, 1.0, 2.0)), None,
                          per_sample=False, in_float64=in_float64)
                for one in self.random.sample(["norm", "value", "rms", "global"], 2)
            ]  # fmt: skip
            return Chain(*(clip for clip, _ in pairs)), [s for _, own in pairs for s in own]
        low = None
        if form == "value" and self.often(0.5):
            low = -limit * self.random.choice((0.5, 2.0))
        ord = self.ord if form in ("norm", "global") else 2.0
        is_plain = self.layout == "cuda" and self.precision == "auto" and ord in (1, 2)
        stage = Stage(
            form, limit, ord, axes, per_sample, low,
            precision="plain" if is_plain else self.precision,  # on a CPU it is so exact there
            nonfinite=self.nonfinite, in_float64=in_float64 or self.precision == "wide",
        )  # fmt: skip
        if form == "norm":
            clip = GradientClipByNorm(limit, ord=ord, axes=axes, per_sample=per_sample)
        elif form == "global":
            clip = GradientClipByGlobalNorm(limit, ord=ord, per_sample=per_sample)
        elif form == "value":
            clip = GradientClipByValue(limit, low)
        elif form == "rms":
            clip = GradientClipByRMS(limit)
        else:
            clip = AdaptiveGradientClip(limit, axes=axes)
        return clip, [stage]


def _with(stage: Stage, **changes: Any) -> Stage:
    return Stage(**{**stage.__dict__, **changes})
