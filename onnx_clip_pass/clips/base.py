"""The base of clips: a formula on NumPy arrays and the same formula as nodes of a graph."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.clips.emitter import Emitter, Measured, SequenceLoops
from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.clips.settings import Setting, setting
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Gradient, Parameter
from onnx_clip_pass.selection import NeedClip, check_need_clip, select

__all__ = ["DTYPES", "Case", "Clip", "Formula"]

DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
"""The dtypes that a gradient can have."""


@dataclass(frozen=True, slots=True)
class Case:
    """A gradient as an array, to be clipped.

    `parameter` is the array of its parameter, for clips that read it, and `axes` those over which
    one unit of it reaches, None if the clip is to say; `count` says of how many parameters it is
    the gradient; the last dimension of one with `has_seeds` holds one gradient for each seed.
    `history` are the norms so far, for a clip that keeps them, in the unit of the gradient; None
    before the first step.
    """

    gradient: NDArray[Any]
    parameter: NDArray[Any] | None = None
    axes: tuple[int, ...] | None = None
    count: int = 1
    has_seeds: bool = False
    history: NDArray[Any] | None = None


class Clip(ABC):
    """A way of clipping, with the selection of the parameters whose gradients it clips."""

    need_clip: NeedClip
    threshold: float | None
    """The one number that bounds; None if there is no such number."""
    reads_parameter = False
    """True if a formula of it has the parameter in it."""

    @abstractmethod
    def reference(
        self, cases: Sequence[Case], nonfinite: NonFinite = "propagate"
    ) -> list[NDArray[Any]]:
        """The formula on gradients that are clipped together, in float64, each rounded once."""

    @abstractmethod
    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
        """The reason why `emit` cannot serve this gradient at this opset; None if it can."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The clip in a few words, for a table."""

    @property
    @abstractmethod
    def bounds(self) -> str:
        """The words on what is bounded, for a sentence: "each gradient by its own L2 norm"."""

    @abstractmethod
    def scaled(self, factor: float) -> Clip:
        """The same clip with its thresholds multiplied: what it is for gradients so scaled."""

    @abstractmethod
    def with_threshold(self, value: float) -> Clip:
        """The same clip, which has a threshold, with this one."""

    @property
    @abstractmethod
    def is_identity(self) -> bool:
        """Return whether the settings are such that nothing is ever clipped."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that distinguish it from others of its class, in the types of JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The name of its class, and its settings: its form in a record."""
        return {"clip": type(self).__name__, **self.settings()}

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
        states: dict[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Clip arrays, by the names of their parameters, as a rewritten graph would.

        Args:
            gradients: parameter name to gradient, of a floating dtype (bfloat16 by ml_dtypes).
            parameters: parameter name to parameter, for a clip that reads them.
            nonfinite: what becomes of a gradient with nan or inf in it, see `clip_gradients`.
            states: for a clip that keeps a history of norms: the histories by the name of their
                group or parameter, {} at first; brought up to date here. Without it every step is
                the first.

        Returns:
            The same names; what `need_clip` does not pick is returned as it is.

        Raises:
            OnnxClipError: an argument of the wrong type, an array of no floating dtype, a selection
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
        if states is not None and not isinstance(states, dict):
            raise OnnxClipError(
                f"states must be a dict, which is brought up to date, not {type(states).__name__}"
            )
        clipped = dict(gradients)
        for formula in self.formulas:
            found = formula.cases(clipped, parameters or {})
            known = formula.remembering(found, {} if states is None else states)
            arrays = formula.reference(list(known.values()), nonfinite)
            clipped |= dict(zip(known, arrays, strict=True))
        return clipped


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(setting,))
class Formula(Clip):
    """A clip that is one formula.

    Every subclass is a frozen dataclass. Its fields are its settings, each with its description,
    and `need_clip`; all that is known of settings elsewhere follows from that. So give a subclass
    fields, and no `__init__` of its own: copies are made by the fields.
    """

    summary: ClassVar[str]
    """The clip in a few words, for the command line."""
    is_elementwise = False
    """True if it bounds each element by itself."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        check_need_clip(self.need_clip)
        for name, described in self.described().items():
            object.__setattr__(self, name, described.check(name, getattr(self, name)))
        if "threshold" not in self.described():
            limits = [*self._limits().values()]
            object.__setattr__(self, "threshold", limits[0] if len(limits) == 1 else None)

    @classmethod
    def described(cls) -> dict[str, Setting]:
        """The descriptions of its settings, by name."""
        return _described(cls)

    def _limits(self) -> dict[str, float]:
        limits = {n: getattr(self, n) for n, each in self.described().items() if each.is_limit}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def _with(self, changes: Mapping[str, Any]) -> Self:
        made: Any = type(self)
        values = {name: getattr(self, name) for name in self.described()}
        return made(need_clip=self.need_clip, **{**values, **changes})  # type: ignore[no-any-return]

    def scaled(self, factor: float) -> Self:
        return self._with({name: limit * factor for name, limit in self._limits().items()})

    def with_threshold(self, value: float) -> Self:
        (name,) = self._limits()
        return self._with({name: value})

    @property
    def is_identity(self) -> bool:
        limits = self._limits().values()
        return bool(limits) and all(map(math.isinf, limits))

    def settings(self) -> dict[str, Any]:
        return {
            name: each.type.to_json(value)
            for name, each in self.described().items()
            if (value := getattr(self, name)) != each.default or each.is_always_told
        }

    def __repr__(self) -> str:
        given = self.settings()
        for name, value in given.items():  # inf is a number here, and a word in JSON only
            number = getattr(self, name)
            given[name] = number if isinstance(number, float) else value
        if self.need_clip is not None:
            given["need_clip"] = self.need_clip
        words = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"{type(self).__name__}({words})"

    @property
    def formulas(self) -> tuple[Formula, ...]:
        return (self,)

    @property
    def order(self) -> float:
        """The p of the norms that it bounds; inf where it bounds each element."""
        return 2.0

    @property
    def parameter_floor(self) -> float:
        """The norm below which that of a parameter counts as this; 0 if there is none."""
        return 0.0

    @property
    def is_split(self) -> bool:
        """Return whether its norms reach over some of the axes of a gradient, not over all."""
        return False

    @property
    def group(self) -> str | None:
        """The name shared by gradients with one norm in common; None if each is on its own."""
        return None

    def clash(self, one: Gradient, other: Gradient) -> str | None:
        """The reason why these two cannot have their norm in common; None if they can."""
        return None

    @property
    def history_size(self) -> int:
        """The number of norms of earlier steps that its limit follows from; 0 if from none."""
        return 0

    @property
    def scales(self) -> bool:
        """Return whether what it does to an element is to multiply it by a number from 0 to 1."""
        return True

    @abstractmethod
    def norms(self, case: Case) -> NDArray[np.float64]:
        """The norms that it bounds, in float64, to be broadcast with the gradient."""

    def limits(self, case: Case) -> NDArray[np.float64]:
        """The limits of these norms, to be broadcast with them."""
        return np.asarray(math.inf if self.threshold is None else self.threshold)

    def limit_of_large(self, case: Case) -> float:
        """The limit of a norm that is far beyond it; inf if there is none."""
        return math.inf if self.threshold is None else self.threshold

    def acts(self, before: NDArray[Any], after: NDArray[Any]) -> list[bool]:
        """For each of its bounds, whether it has changed the gradient; [] if nothing ever does."""
        return [] if self.is_identity else [before.tobytes() != after.tobytes()]

    @abstractmethod
    def emit(self, members: Sequence[Emitter]) -> Measured | None:
        """Put the formula's nodes between `source` and `target` of each member.

        Sets `measured` of those that ask for it; returns what was measured of all of them together.
        """

    def emit_alone(self, to: Emitter) -> None:
        """Put the formula's nodes in for one gradient."""
        self.emit([to])

    def emit_over(self, loops: SequenceLoops, sequence: str, result: str) -> None:
        """Put in loops that make the sequence `result` of what the formula makes of all tensors."""
        loops.of_each(sequence, result, [self.emit_alone])

    def cases(
        self, gradients: Mapping[str, NDArray[Any]], parameters: Mapping[str, NDArray[Any]]
    ) -> dict[str, Case]:
        """The gradients that `need_clip` picks, by name.

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

    def remembered(
        self, norm: NDArray[np.float64], before: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Return the history behind a step of this norm, the last norm at its end.

        A norm that is not finite does not enter; `before` is the history before the step, None
        before the first one.
        """
        if before is None:
            before = np.full(self.history_size, math.inf)
        return np.append(before[1:], norm.ravel()) if np.isfinite(norm).all() else before

    def remembering(
        self, cases: Mapping[str, Case], states: dict[str, NDArray[Any]]
    ) -> Mapping[str, Case]:
        """The cases with the histories that `states` has of them, which are brought up to date."""
        return cases

    def work_dtype(self, dtype: str, numerics: Numerics) -> int:
        """The dtype in which the clipped gradient is formed; see `Numerics.work_dtype`."""
        return numerics.work_dtype(dtype, self.threshold)


@cache
def _described(formula: type[Formula]) -> dict[str, Setting]:
    own = {each.name: each.metadata for each in fields(formula)}  # type: ignore[arg-type]
    bare = [name for name in own if name != "need_clip" and "setting" not in own[name]]
    if bare:
        raise TypeError(f"{formula.__name__}: describe {', '.join(bare)} by setting(…)")
    return {name: metadata["setting"] for name, metadata in own.items() if metadata}
