"""Clipping by a percentile of the norms seen so far, which the graph itself carries: AutoClip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import MOST_NORMS
from onnx_clip_pass.clips.base import Case
from onnx_clip_pass.clips.emitter import Emitter
from onnx_clip_pass.clips.numerics import Numerics
from onnx_clip_pass.clips.settings import FLAG, NAME, Count, Number, Percent, setting
from onnx_clip_pass.clips.tape import ALL, Tensor
from onnx_clip_pass.clips.together import DEFAULT_GROUP, TogetherClip
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.found import Gradient
from onnx_clip_pass.graph.spec import BOOL, DOUBLE, INT64
from onnx_clip_pass.selection import NeedClip

__all__ = ["GradientClipByPercentile"]

_FIRST_OPSET = 12


class GradientClipByPercentile(TogetherClip):
    r"""Limit the norm of all gradients of a group by a percentile of its own history: AutoClip.

    .. math:: N_t = \Big(\sum_k \lVert x_k \rVert_2^2\Big)^{1/2}, \qquad
              c_t = f \cdot \text{percentile}_p(N_{t-h+1}, \dots, N_t), \qquad
              out_k = \begin{cases} x_k & N_t \le c_t \\ c_t \, x_k / N_t & \text{otherwise}
              \end{cases}

    with p = `percentile`, linear between two norms as `numpy.percentile` has it, h = `history` and
    f = `factor`. The norm of the step itself counts, as in the paper. While there are no more than
    h steps this is the paper's formula, which has no h, and f = 1. A norm that is nan or inf does
    not enter the history; before the first that is finite nothing is clipped. Half precision is
    clipped in float32 and rounded once.

    The history is a state: an input of shape [h] in the dtype of the norm (float32, or float64
    where it is computed so), the last norm at its end, inf where there was none yet; and an output
    of the same shape that is its new value. The input has no default: a loop that forgot to carry
    it would never clip. `initial_states` gives its first value. Norms are kept without the loss
    scale.

    Args:
        percentile: p, from 0 to below 100, at which nothing would be clipped.
        history: h, the number of norms that are kept, from 2 to 1,048,576. With 1,000 a norm costs
            ONNX Runtime's CPU provider some 50 us a step, with 100,000 some 10 ms.
        factor: f, positive. A percentile alone clips its share of all steps, also where nothing is
            wrong; twice the median (percentile 50, factor 2) clips what is out of the ordinary.
        per_gradient: each gradient has a norm and a history of its own.
        need_clip: which parameters, see `GradientClipByNorm`; the others do not count.
        group_name: gradients clipped under the same name have norm and history in common.

    Raises:
        OnnxClipError: a setting is beyond these bounds, or `need_clip` is no selection.

    Example:
        >>> import numpy as np
        >>> clip, states = GradientClipByPercentile(50.0), {}
        >>> for norm in (4.0, 1.0, 2.0, 8.0):
        ...     print(clip.apply({"w": np.array([norm])}, states=states))
        {'w': array([4.])}
        {'w': array([1.])}
        {'w': array([2.])}
        {'w': array([3.])}

    References:
        Seetharaman, Wichern, Pardo, Le Roux: AutoClip: Adaptive Gradient Clipping for Source
        Separation Networks, 2020, https://arxiv.org/abs/2007.14469
    """

    has_norm_for_each_seed = False
    summary = "all gradients by a percentile of the norms so far, which the graph carries"

    percentile: float = setting(
        Percent(), "of the norms so far that is let through.", default=10.0, is_always_told=True
    )
    history: int = setting(
        Count(2, MOST_NORMS), "the last norms that count.", default=1000, is_always_told=True
    )
    factor: float = setting(Number(), "times this.", default=1.0)
    per_gradient: bool = setting(FLAG, "a norm and a history for each gradient.", default=False)
    need_clip: NeedClip = None
    group_name: str = setting(NAME, "the group.", default=DEFAULT_GROUP, is_always_told=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor == math.inf:
            raise OnnxClipError("factor must be a positive number, not inf: it would clip nothing")
        if self.per_gradient and self.group_name != DEFAULT_GROUP:
            raise OnnxClipError(
                f"per_gradient has no groups: leave out group_name={self.group_name!r}, or it"
            )

    @property
    def history_size(self) -> int:
        return self.history

    @property
    def group(self) -> str | None:
        return None if self.per_gradient else self.group_name

    @property
    def label(self) -> str:
        norm = "norm" if self.per_gradient else "global norm"
        group = "" if self.group in (None, DEFAULT_GROUP) else f" ({self.group_name})"
        times = "" if self.factor == 1 else f"{self.factor:g} * "
        return f"{norm} <= {times}{self.percentile:g}th percentile of {self.history}{group}"

    @property
    def bounds(self) -> str:
        what = "each gradient by its own L2 norm"
        if self.group is not None:
            what = f"all gradients of group {self.group!r} by one L2 norm of all together"
        times = "" if self.factor == 1 else f"{self.factor:g} times "
        percentile = f"the {self.percentile:g}th percentile of the last {self.history} of it"
        return f"{what} and {times}{percentile}"

    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        if opset < _FIRST_OPSET:
            return f"a percentile needs opset {_FIRST_OPSET} or later, not {opset}"
        if gradient.has_seeds and (gradient.shape is None or gradient.shape[-1] != 1):
            return "a history is one of one norm, and each seed of several has a norm of its own"
        if gradient.graph:
            return (
                f"its history would be a state of the main graph, and it is in {gradient.graph}: "
                f"clip it by a number"
            )
        return super().fault(gradient, opset, numerics)

    def limits(self, case: Case) -> NDArray[np.float64]:
        return np.zeros(())  # unknown for one of a group: nothing is within it

    def limit_of_large(self, case: Case) -> float:
        if case.history is None or not np.isfinite(case.history).any():
            return math.inf
        largest = np.max(case.history, where=np.isfinite(case.history), initial=0.0)
        return float(self.limit(np.asarray(largest), [case]))

    def limit(self, total: NDArray[np.float64], cases: Sequence[Case]) -> NDArray[np.float64]:
        seen = self.remembered(total, cases[0].history)
        finite = seen[np.isfinite(seen)]
        if not len(finite):
            return np.asarray(math.inf)
        return np.asarray(self.factor * np.percentile(finite, self.percentile))

    def remembering(
        self, cases: Mapping[str, Case], states: dict[str, NDArray[Any]]
    ) -> Mapping[str, Case]:
        groups = {name: [name] for name in cases}
        if self.group is not None:
            groups = {self.group: [*cases]} if cases else {}
        found: dict[str, Case] = {}
        known = {n: self._checked(n, states[n]) for n in groups if n in states}  # all, or none
        for label, names in groups.items():
            before = known.get(label)
            own = {name: replace(cases[name], history=before) for name in names}
            states[label] = self.remembered(self.total([*own.values()]), before)
            found |= own
        return found

    def _checked(self, label: str, history: object) -> NDArray[np.float64]:
        try:
            array = np.asarray(history)
        except ValueError:  # of rows of several lengths
            array = np.zeros(0)
        is_one = array.shape == (self.history,) and array.dtype.kind == "f"
        if not is_one or not (array >= 0).all():
            raise OnnxClipError(
                f"expected the last {self.history} norms of {label!r} as its state, floating "
                f"numbers as this clip has made them, not {shown(history)}"
            )
        return array.astype(np.float64)

    def emit_scale(self, at: Emitter, total: Tensor) -> Tensor:
        """The norms that were seen, as a shift register, and the percentile of what is finite."""
        norm, size = at.unscaled(total), self.history
        before = at.state("norms", norm.dtype, size)
        is_finite = at.op("Less", norm, math.inf, result="is finite", dtype=BOOL)
        shifted = at.concat([at.cut(before, 1, size), at.unsqueeze(norm, (0,))], result="shifted")
        norms = at.op("Where", is_finite, shifted, before, result="norms so far")
        at.carry(before, norms)
        seen = at.op("Less", norms, math.inf, result="seen", dtype=BOOL)
        count = at.reduce("ReduceSum", at.cast(seen, DOUBLE, result="ones"), ALL, result="count")
        # in float64, as numpy has it: what is whole must stay whole
        last = at.op("Max", at.op("Sub", count, 1.0, result="below"), 0.0, result="last")
        place = at.op("Mul", last, self.percentile / 100, result="place")
        low = at.cast(place, INT64, result="low")
        floor = at.cast(low, DOUBLE, result="floor")
        above = at.op("Min", at.op("Add", floor, 1.0, result="next"), last, result="above")
        high = at.cast(above, INT64, result="high")
        ranked = at.smallest(norms, self._ranks(at, above))
        ends = [
            at.cast(at.gather(ranked, index), DOUBLE, result="end in float64")
            for index in (low, high)
        ]
        part = at.op("Sub", place, floor, result="part")
        step = at.op("Mul", at.op("Sub", ends[1], ends[0], result="gap"), part, result="step")
        limit = at.op("Add", ends[0], step, result="percentile")
        if self.factor != 1:
            limit = at.op("Mul", limit, self.factor, result="times")
        limit = at.cast(limit, norm.dtype, result="limit")
        within = at.op("LessOrEqual", norm, limit, result="is within", dtype=BOOL)
        ratio = at.op("Div", limit, norm, result="ratio")
        scale = at.op("Where", within, 1.0, ratio, result="scale")
        if at.numerics.nonfinite != "propagate":
            return scale
        # before any norm is finite this one is not, which the other policies see to
        is_first = at.op("Less", count, 1.0, result="is first", dtype=BOOL)
        return at.op("Where", is_first, 1.0, scale, result="scale if limited")

    def _ranks(self, at: Emitter, above: Tensor) -> Tensor | int:
        """The number of the smallest norms that are put in order: those that are needed.

        On CUDA it is all of them: their number would have to come back from the device.
        """
        if at.numerics.layout == "cuda":
            return self.history
        return at.cast(at.op("Add", above, 1.0, result="needed"), INT64, result="ranks")
