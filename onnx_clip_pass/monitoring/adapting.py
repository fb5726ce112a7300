"""Thresholds that follow the norms seen so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import as_number, is_text, is_whole
from onnx_clip_pass.errors import OnnxClipError, shown

__all__ = ["AutoClip", "ZClip", "check_count", "check_percentile", "percentile_of"]

_MOST = 2**31 - 1  # what a deque can hold everywhere


@dataclass
class AutoClip:
    r"""A percentile of the norms seen so far, or of the last ones, this one included.

    .. math:: c_t = f \cdot \text{percentile}_p(\lVert g_1 \rVert, \dots, \lVert g_t \rVert)

    linear between two norms, as `numpy.percentile` has it. A norm that is not finite does not
    enter. Before the first norm the threshold is inf: nothing is clipped. With `history` it is a
    moving percentile; `threshold`, read before `update`, is that of the norms before this one.

    Args:
        percentile: p, 0 to 100.
        history: how many norms count, the last ones; None for all, as in the paper.
        factor: f, positive; 1 in the paper. A percentile alone clips its share of all steps, also
            where nothing is wrong; twice the median clips what is out of the ordinary.

    Example:
        >>> clip = AutoClip(percentile=50)
        >>> [clip.update(norm) for norm in (4.0, 1.0, 2.0)]
        [4.0, 2.5, 2.0]

    Raises:
        OnnxClipError: `percentile` is no number from 0 to 100, `history` no whole number, or
            `factor` not positive.

    References:
        Seetharaman, Wichern, Pardo, Le Roux: AutoClip: Adaptive Gradient Clipping for Source
        Separation Networks, 2020, https://arxiv.org/abs/2007.14469
    """

    percentile: float = 10.0
    history: int | None = None
    factor: float = 1.0
    _norms: deque[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_percentile(self.percentile)
        _check_positive("factor", self.factor)
        self.percentile, self.factor = as_number(self.percentile), as_number(self.factor)
        if self.history is not None:
            check_count("history", self.history, 1)
            self.history = int(self.history)
        self._norms = deque(maxlen=self.history)

    @property
    def threshold(self) -> float:
        """The threshold for the next gradient, as far as it is known: that of the norms so far."""
        if not self._norms:
            return math.inf
        return self.factor * float(np.percentile(np.array(self._norms), self.percentile))

    def update(self, norm: float) -> float:
        """Take in the `norm` of a gradient, and return the threshold for it.

        Raises:
            OnnxClipError: it is not one number; nan and inf are.
        """
        norm = _norm(norm)
        if math.isfinite(norm):
            self._norms.append(norm)
        return self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in the types of JSON."""
        return {
            "adapts": "autoclip",
            "percentile": self.percentile,
            "history": self.history,
            "factor": self.factor,
            "norms": list(self._norms),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return what `to_dict` has kept, from the `fields` that it gave.

        Raises:
            OnnxClipError: they are not those, or have been changed to what none can have.
        """
        own = _checked(fields, "autoclip", {"percentile", "history", "factor", "norms"})
        made = cls(own["percentile"], own["history"], own["factor"])
        made._norms.extend(_kept(own["norms"]))
        return made


@dataclass
class ZClip:
    r"""Clip norms that are outliers against their own moving mean and variance.

    .. math:: z_t = \frac{\lVert g_t \rVert - \mu}{\sigma}, \qquad
              c_t = \mu + \frac{z_{thres}^2}{z_t}\,\sigma \ \text{ if } z_t > z_{thres},
              \ \text{ else } \lVert g_t \rVert

    with :math:`\mu` and :math:`\sigma^2` the exponential moving averages of the (clipped) norms and
    of their squared differences from the new mean, decayed by `alpha`, begun with the mean and the
    variance of the first `warmup` norms, during which nothing is clipped: the threshold is inf. A
    norm that is not finite gives mu and changes nothing. The score is taken with sigma + `eps`.

    Args:
        z: the largest z-score that is left alone.
        alpha: the decay of the averages, 0 to below 1.
        warmup: so many norms come first.
        eps: what is added to sigma; positive.

    Raises:
        OnnxClipError: a setting is beyond these bounds.

    Example:
        >>> clip = ZClip(z=2.0, warmup=2)
        >>> [clip.update(norm) for norm in (1.0, 3.0)], clip.threshold
        ([inf, inf], 4.0)
        >>> round(clip.update(10.0), 4)  # z is 8: the mean 2 and 2 * 2 / 8 times a deviation of 1
        2.5

    References:
        Kumar, Owen, Chowdhury, Güra: ZClip: Adaptive Spike Mitigation for LLM Pre-Training, 2025,
        https://arxiv.org/abs/2504.02507, as its published code has it with adaptive scaling and no
        max_grad_norm
    """

    z: float = 2.5
    alpha: float = 0.97
    warmup: int = 25
    eps: float = 1e-6
    _first: list[float] = field(init=False, repr=False, default_factory=list)
    _mean: float | None = field(init=False, repr=False, default=None)
    _variance: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        _check_positive("z", self.z)
        if not 0 <= as_number(self.alpha) < 1:
            raise OnnxClipError(f"alpha must be a number from 0 to below 1, not {self.alpha!r}")
        check_count("warmup", self.warmup, 1)
        _check_positive("eps", self.eps)
        self.z, self.alpha, self.eps = map(as_number, (self.z, self.alpha, self.eps))
        self.warmup = int(self.warmup)

    @property
    def threshold(self) -> float:
        """The largest norm that is left alone next; inf during the warm-up."""
        if self._mean is None:
            return math.inf
        return self._mean + self.z * math.sqrt(self._variance)

    def update(self, norm: float) -> float:
        """Take in the `norm` of a gradient, and return the threshold for it.

        Raises:
            OnnxClipError: it is not one number; nan and inf are.
        """
        norm = _norm(norm)
        if self._mean is None:
            if math.isfinite(norm):
                self._first.append(norm)
            if len(self._first) >= self.warmup:
                self._mean = float(np.mean(self._first))
                with np.errstate(over="ignore"):  # inf, and then nothing is clipped
                    self._variance = float(np.var(self._first))
                self._first = []
            return math.inf
        if not math.isfinite(norm):
            return self._mean
        deviation = math.sqrt(self._variance)
        score = (norm - self._mean) / (deviation + self.eps)
        limit = self._mean + self.z**2 / score * deviation if score > self.z else norm
        self._mean = self.alpha * self._mean + (1 - self.alpha) * limit
        off = limit - self._mean  # no power, which raises where it is beyond a float
        self._variance = self.alpha * self._variance + (1 - self.alpha) * off * off
        return limit

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in the types of JSON."""
        return {
            "adapts": "zclip",
            "z": self.z,
            "alpha": self.alpha,
            "warmup": self.warmup,
            "eps": self.eps,
            "first": list(self._first),
            "mean": self._mean,
            "variance": self._variance,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return what `to_dict` has kept, from the `fields` that it gave.

        Raises:
            OnnxClipError: they are not those, or have been changed to what none can have.
        """
        own = _checked(
            fields, "zclip", {"z", "alpha", "warmup", "eps", "first", "mean", "variance"}
        )
        made = cls(own["z"], own["alpha"], own["warmup"], own["eps"])
        made._first = _kept(own["first"])
        made._mean = None if own["mean"] is None else _kept([own["mean"]])[0]
        made._variance = _kept([own["variance"]])[0]
        return made


def percentile_of(values: NDArray[np.float64], q: float) -> float:
    """A percentile of the finite ones among values; nan if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, q)) if len(finite) else math.nan


def check_percentile(value: object) -> None:
    """Refuse what is no number from 0 to 100."""
    if not 0 <= as_number(value) <= 100:
        raise OnnxClipError(f"percentile must be a number from 0 to 100, not {shown(value)}")


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or one below the least."""
    if not is_whole(value, least, _MOST):
        raise OnnxClipError(
            f"{name} must be a whole number, {least} or more and below 2 ** 31, not {shown(value)}"
        )


def _check_positive(name: str, value: object) -> None:
    if not 0 < as_number(value) < math.inf:
        raise OnnxClipError(f"{name} must be a positive number, not {shown(value)}")


def _norm(value: object) -> float:
    """The norm that a caller gives, which may be nan or inf."""
    number = as_number(value)
    is_nan = isinstance(value, float | np.floating | np.ndarray) and not np.ndim(value)
    if math.isnan(number) and not is_nan:
        raise OnnxClipError(f"a norm must be one number, not {shown(value)}")
    return number


def _kept(norms: object) -> list[float]:
    """Norms, or what follows from them, that `to_dict` has kept: finite and none below 0."""
    if not isinstance(norms, list) or not all(0 <= as_number(each) < math.inf for each in norms):
        raise OnnxClipError(f"expected finite norms as to_dict keeps them, not {shown(norms)}")
    return [as_number(each) for each in norms]


def _checked(fields: object, adapts: str, names: set[str]) -> Mapping[str, Any]:
    if isinstance(fields, Mapping) and names <= fields.keys():
        made: Mapping[str, Any] = fields
        if is_text(made.get("adapts")) and made["adapts"] == adapts:
            return made
    raise OnnxClipError(
        f"expected what to_dict gives, with {', '.join(sorted(names | {'adapts'}))}, not "
        f"{shown(fields)}"
    )
