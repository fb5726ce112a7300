"""Rules, and the bounds and choices in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnx_clip_pass.arguments import as_number, check_input_name
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.clips.base import DTYPES
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients import OptimizerOps, Parameter
from onnx_clip_pass.gradients.optimizer import NO_OPS
from onnx_clip_pass.selection import NeedClip, check_need_clip

__all__ = ["Bounds", "ClipChoice", "Rule", "Rules"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Conditions on a parameter besides its name: dtypes, and bounds that are included.

    Of a parameter whose shape is not known no rank and no number of elements is within bounds; one
    with unknown sizes has at least the elements that the known ones make.

    Args:
        dtypes: as NumPy spells them, such as "float16"; none for all.
        min_rank: the fewest axes.
        max_rank: the most axes; inf for no bound.
        min_elements: the fewest elements.
        max_elements: the most elements; inf for no bound.

    Raises:
        OnnxClipError: a dtype is none of floating numbers, or a bound no number, 0 or more.
    """

    dtypes: tuple[str, ...] = ()
    min_rank: int = 0
    max_rank: float = math.inf
    min_elements: int = 0
    max_elements: float = math.inf

    def __post_init__(self) -> None:
        dtypes: object = self.dtypes
        if not isinstance(dtypes, tuple) or not all(
            isinstance(dtype, str) and dtype in DTYPES for dtype in dtypes
        ):
            raise OnnxClipError(
                f"dtypes must be a tuple of {', '.join(sorted(DTYPES))}, not {shown(self.dtypes)}"
            )
        for name in ("min_rank", "max_rank", "min_elements", "max_elements"):
            if not as_number(getattr(self, name)) >= 0:
                value = shown(getattr(self, name))
                raise OnnxClipError(f"{name} must be a number, 0 or more, not {value}")

    def hold(self, parameter: Parameter) -> bool:
        """Return whether a `parameter` is within all of them."""
        if self.dtypes and parameter.dtype not in self.dtypes:
            return False
        shape = parameter.shape
        if shape is None:
            return self == Bounds(self.dtypes)
        if not self.min_rank <= len(shape) <= self.max_rank:
            return False
        sizes = [size for size in shape if isinstance(size, int)]
        is_known = len(sizes) == len(shape)
        elements = math.prod(sizes)
        if elements < self.min_elements:
            return False
        return self.max_elements == math.inf or (is_known and elements <= self.max_elements)


@dataclass(frozen=True)
class Rule:
    """A selection, and the clip for the gradients that no rule before it has taken.

    Args:
        need_clip: which parameters: a predicate on `Parameter`, a pattern, a list of patterns, or
            None for all that are left.
        clip: what to do; None to leave them alone.
        threshold_input: the name of an input of the graph that becomes the clip's threshold.
        bounds: what the parameters must be like besides.
        where: where the rule stands, for messages: "clip.toml, rule 3".

    Raises:
        OnnxClipError: the selection is none, `clip` is no clip, or has a `need_clip` of its own, or
            another argument is of the wrong kind.
    """

    need_clip: NeedClip
    clip: Clip | None
    threshold_input: str | None = None
    bounds: Bounds = Bounds()
    where: str = ""

    def __post_init__(self) -> None:
        check_need_clip(self.need_clip)
        check_input_name(self.threshold_input)
        if not isinstance(self.bounds, Bounds):
            raise OnnxClipError(f"bounds must be a Bounds, not {shown(self.bounds)}")
        if self.clip is None:
            return
        if not isinstance(self.clip, Clip):
            raise OnnxClipError(
                f"expected a clip such as GradientClipByNorm(1.0), or None to leave alone, not "
                f"{shown(self.clip)}"
            )
        if any(formula.need_clip is not None for formula in self.clip.formulas):
            raise OnnxClipError(
                f"say need_clip in the rule, not in its clip {self.clip!r} as well: the rule alone "
                f"decides which gradients it takes"
            )


class Rules(list[Rule]):
    """A list of rules, with the optimizers that their file tells of, see `OptimizerOps`."""

    def __init__(self, rules: Iterable[Rule] = (), optimizer_ops: OptimizerOps = NO_OPS) -> None:
        super().__init__(rules)
        self.optimizer_ops = optimizer_ops


@dataclass(frozen=True, eq=False)
class ClipChoice:
    """The clip of a gradient; `rule` is the number of the rule that says so, from 1."""

    clip: Clip
    threshold_input: str | None = None
    rule: int | None = None
