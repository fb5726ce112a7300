"""What every clip is: a formula on NumPy arrays and the same formula as nodes of a graph."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import as_number, check_choice
from onnx_clip_pass.clips.emitter import Emitter, Measured
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.found import Gradient, Parameter
from onnx_clip_pass.selection import NeedClip, check_need_clip, select

__all__ = ["DTYPES", "Case", "Clip", "Formula", "plain", "positive"]

DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
"""The dtypes that a gradient can have."""


@dataclass(frozen=True, slots=True)
class Case:
    """A gradient as an array, to be clipped.

    `parameter` is the array of its parameter, for clips that read it, and `axes` those over which
    one unit of it reaches, None if the clip is to say; `count` says of how many parameters it is
    the gradient; the last dimension of one with `has_seeds` holds one gradient for each seed.
    """

    gradient: NDArray[Any]
    parameter: NDArray[Any] | None = None
    axes: tuple[int, ...] | None = None
    count: int = 1
    has_seeds: bool = False


class Clip(ABC):
    """A way of clipping, with the selection of the parameters whose gradients it clips."""

    need_clip: NeedClip
    reads_parameter = False
    """Whether a formula of it has the parameter in it."""

    def __init__(self, need_clip: NeedClip = None) -> None:
        check_need_clip(need_clip)
        self.need_clip = need_clip

    @abstractmethod
    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        """The formula on gradients that are clipped together, in float64, each rounded once."""

    @abstractmethod
    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        """Why `emit` cannot serve this gradient at this opset; None if it can."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The clip in a few words, for a table."""

    @property
    @abstractmethod
    def bounds(self) -> str:
        """What is bounded, for a sentence: "each gradient by its own L2 norm"."""

    @property
    @abstractmethod
    def threshold(self) -> float | None:
        """The one number that bounds; None if there is no such number."""

    @abstractmethod
    def scaled(self, factor: float) -> Clip:
        """The same clip with its thresholds multiplied: what it is for gradients so scaled."""

    @property
    def is_identity(self) -> bool:
        """Whether the settings are such that nothing is ever clipped."""
        return self.threshold == math.inf

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What distinguishes this clip from others of its class, in the types of JSON."""

    @property
    @abstractmethod
    def formulas(self) -> tuple[Formula, ...]:
        """The formulas that are applied one after another."""

    def apply(
        self,
        gradients: Mapping[str, NDArray[Any]],
        *,
        parameters: Mapping[str, NDArray[Any]] | None = None,
        nonfinite: NonFinite = "propagate",
    ) -> dict[str, NDArray[Any]]:
        """Clip arrays, by the names of their parameters, as a rewritten graph would.

        Args:
            gradients: parameter name to gradient, of a floating dtype (bfloat16 by ml_dtypes).
            parameters: parameter name to parameter, for a clip that reads them.
            nonfinite: what becomes of a gradient with nan or inf in it, see `clip_gradients`.

        Returns:
            The same names; what `need_clip` does not pick is handed back as it is.

        Raises:
            OnnxClipError: an argument of another kind, an array of no floating dtype, a selection
                that matches nothing, a parameter that is needed and not given or of another shape,
                or gradients that cannot be clipped together.
        """
        check_choice("nonfinite", nonfinite, NonFinite)
        if not isinstance(gradients, Mapping):
            raise OnnxClipError(
                f"expected a mapping of parameter names to gradients, not "
                f"{type(gradients).__name__}"
            )
        if parameters is not None and not isinstance(parameters, Mapping):
            raise OnnxClipError(
                f"parameters must be a mapping of names to arrays, not {type(parameters).__name__}"
            )
        clipped = dict(gradients)
        for formula in self.formulas:
            cases = formula.cases(clipped, parameters or {})
            arrays = formula.reference(list(cases.values()), nonfinite)
            clipped |= dict(zip(cases, arrays, strict=True))
        return clipped

    def __repr__(self) -> str:
        words = ", ".join(f"{name}={self._typed(name)}" for name in self.settings())
        return f"{type(self).__name__}({words})"

    def _typed(self, name: str) -> str:
        """A setting as one types it: inf is a number here, and a word in JSON only."""
        number = getattr(self, name)
        return repr(number if isinstance(number, float) else self.settings()[name])


class Formula(Clip):
    """A clip that is one formula."""

    @property
    def formulas(self) -> tuple[Formula, ...]:
        return (self,)

    @property
    def group(self) -> str | None:
        """What the gradients with a norm in common share; None if each is clipped on its own."""
        return None

    def clash(self, one: Gradient, other: Gradient) -> str | None:
        """Why these two cannot have their norm in common; None if they can."""
        return None

    @property
    def scales(self) -> bool:
        """Whether what it does to an element is to multiply it by a number from 0 to 1."""
        return True

    @abstractmethod
    def emit(self, members: Sequence[Emitter]) -> Measured | None:
        """Put the formula's nodes between `source` and `target` of each member.

        Sets `measured` of those that watch; returns what was measured of all of them together.
        """

    def cases(
        self, gradients: Mapping[str, NDArray[Any]], parameters: Mapping[str, NDArray[Any]]
    ) -> dict[str, Case]:
        """What `need_clip` picks, to be clipped, by name.

        Raises:
            OnnxClipError: what `apply` refuses of them.
        """
        arrays = {name: np.asarray(array) for name, array in gradients.items()}
        known = [
            Parameter(name, array.shape, str(array.dtype), name) for name, array in arrays.items()
        ]
        picked = [parameter.name for parameter in select(known, self.need_clip)]
        for name in picked:
            if str(arrays[name].dtype) not in DTYPES:
                raise OnnxClipError(
                    f"expected a floating array for {name!r}, but it is {arrays[name].dtype}"
                )
        if not self.reads_parameter:
            return {name: Case(arrays[name]) for name in picked}
        if missing := set(picked) - set(parameters):
            raise OnnxClipError(
                f"{type(self).__name__} compares gradients with their parameters: pass "
                f"parameters={{name: array}}, which lacks {', '.join(map(repr, sorted(missing)))}"
            )
        own = {name: np.asarray(parameters[name]) for name in picked}
        faults = [
            f"{name!r}: the gradient has shape {list(arrays[name].shape)}, and the parameter "
            f"{list(parameter.shape)}"
            for name, parameter in own.items()
            if parameter.shape != arrays[name].shape
        ]
        if faults:
            raise OnnxClipError("expected each parameter in the shape of its gradient:", faults)
        return {name: Case(arrays[name], parameter) for name, parameter in own.items()}

    def work_dtype(self, dtype: str, numerics: Numerics) -> int:
        """The dtype in which the clipped gradient is formed; see `Numerics.work_dtype`."""
        return numerics.work_dtype(dtype, self.threshold)


def positive(name: str, value: object, *, why: str = "") -> float:
    """The value as a positive number, inf included; refused by its name if it is none."""
    number = as_number(value)
    if not number > 0:
        raise OnnxClipError(f"{name} must be a positive number{why}, not {shown(value)}")
    return number


def plain(number: float) -> float | str:
    """A number in the types of JSON, which has no inf and no -inf."""
    return str(number) if math.isinf(number) else number
