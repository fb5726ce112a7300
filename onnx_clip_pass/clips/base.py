"""What every clip is: a formula on NumPy arrays and the same formula as nodes of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.gradients import Gradient, Parameter
from onnx_clip_pass.graph import Editor, Scope, TensorType
from onnx_clip_pass.selection import NeedClip, check_need_clip, select

__all__ = ["Clip", "Emitter"]


class Clip(ABC):
    """A way of clipping, with the selection of the parameters whose gradients it clips."""

    need_clip: NeedClip

    def __init__(self, need_clip: NeedClip = None) -> None:
        check_need_clip(need_clip)
        self.need_clip = need_clip

    @abstractmethod
    def reference(self, gradient: NDArray[Any]) -> NDArray[Any]:
        """The formula on one gradient, worked out in float64 and rounded once to its dtype."""

    @abstractmethod
    def fault(self, gradient: Gradient, opset: int) -> str | None:
        """Why `emit` cannot serve this gradient at this opset; None if it can."""

    @abstractmethod
    def emit(self, gradient: Gradient, to: Emitter) -> None:
        """Put the formula's nodes between `to.source` and `to.target`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The clip in a few words, for a table."""

    @property
    def is_identity(self) -> bool:
        """Whether the settings are such that nothing is ever clipped."""
        return False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What distinguishes this clip from others of its class, in the types of JSON."""

    def apply(self, gradients: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Clip arrays, by the names of their parameters, as a rewritten graph would.

        Args:
            gradients: parameter name to gradient.

        Returns:
            The same names; what `need_clip` does not pick is handed back as it is.
        """
        parameters = [
            Parameter(name, np.shape(array), str(np.asarray(array).dtype), name)
            for name, array in gradients.items()
        ]
        picked = {parameter.name for parameter in select(parameters, self.need_clip)}
        return {
            name: self.reference(np.asarray(array)) if name in picked else array
            for name, array in gradients.items()
        }

    def __repr__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({words})"


class Emitter:
    """Adds the nodes of one clip, named `clip/<gradient>/<op>`, around a place in a scope."""

    def __init__(
        self,
        editor: Editor,
        scope: Scope,
        position: int,
        label: str,
        source: str,
        target: str,
        dtype: int,
    ) -> None:
        self.source = source
        self.target = target
        self._editor = editor
        self._scope = scope
        self._position = position
        self._label = label
        self._dtype = dtype

    @property
    def opset(self) -> int:
        return self._scope.opset or 0

    def constant(self, value: float) -> str:
        """A rank-0 constant of the gradient's dtype."""
        return self._editor.constant(self._scope, value, self._dtype)

    def axes(self, values: list[int]) -> str:
        """A rank-1 constant of int64, for operators that take their axes as an input."""
        return self._editor.axes(self._scope, values)

    def node(
        self,
        op_type: str,
        inputs: list[str],
        *,
        result: str = "",
        shape: tuple[int | str | None, ...] | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node and declare its result, called `clip/<gradient>/<result>`.

        Without `result` it is the last node of the clip, whose output is `target`.
        """
        output = self._editor.fresh(f"clip/{self._label}/{result}") if result else self.target
        name = f"clip/{self._label}/{op_type}"
        self._editor.insert(
            self._scope, self._position, op_type, inputs, output, name, **attributes
        )
        if result:
            self._editor.declare(self._scope, output, TensorType(self._dtype, shape))
        return output
