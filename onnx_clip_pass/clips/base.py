"""What every clip is: a formula on NumPy arrays and the same formula as nodes of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.clips.numerics import NonFinite, Numerics
from onnx_clip_pass.gradients import Gradient, Parameter
from onnx_clip_pass.graph import Editor, Scope, Shape, TensorType
from onnx_clip_pass.kernels import Need
from onnx_clip_pass.selection import NeedClip, check_need_clip, select

__all__ = ["Clip", "Emitter"]

_FIRST_AXES_AS_INPUT = 18


class Clip(ABC):
    """A way of clipping, with the selection of the parameters whose gradients it clips."""

    need_clip: NeedClip

    def __init__(self, need_clip: NeedClip = None) -> None:
        check_need_clip(need_clip)
        self.need_clip = need_clip

    @abstractmethod
    def reference(self, gradient: NDArray[Any], nonfinite: NonFinite = "propagate") -> NDArray[Any]:
        """The formula on one gradient, worked out in float64 and rounded once to its dtype."""

    @abstractmethod
    def fault(self, gradient: Gradient, opset: int, numerics: Numerics) -> str | None:
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

    def apply(
        self, gradients: Mapping[str, NDArray[Any]], *, nonfinite: NonFinite = "propagate"
    ) -> dict[str, NDArray[Any]]:
        """Clip arrays, by the names of their parameters, as a rewritten graph would.

        Args:
            gradients: parameter name to gradient, of a floating dtype (bfloat16 by ml_dtypes).
            nonfinite: what becomes of a gradient with nan or inf in it, see `clip_gradients`.

        Returns:
            The same names; what `need_clip` does not pick is handed back as it is.
        """
        parameters = [
            Parameter(name, np.shape(array), str(np.asarray(array).dtype), name)
            for name, array in gradients.items()
        ]
        picked = {parameter.name for parameter in select(parameters, self.need_clip)}
        return {
            name: self.reference(np.asarray(array), nonfinite) if name in picked else array
            for name, array in gradients.items()
        }

    def __repr__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({words})"


class Emitter:
    """Adds the nodes of one clip, named `clip/<gradient>/<op>`, at one place of a scope.

    The clip reads `source`, of dtype `dtype`; its last node's output is the clipped gradient.
    `needs` collects what kernels the nodes need.
    """

    def __init__(
        self,
        editor: Editor,
        scope: Scope,
        position: int,
        label: str,
        source: str,
        target: str,
        dtype: int,
        numerics: Numerics,
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.opset = scope.opset or 0
        self.numerics = numerics
        self.needs: set[Need] = set()
        self._target = target
        self._editor = editor
        self._scope = scope
        self._position = position
        self._label = label

    def constant(self, value: float, dtype: int) -> str:
        """A rank-0 constant."""
        return self._editor.constant(self._scope, value, dtype)

    def node(
        self,
        op_type: str,
        inputs: list[str],
        *,
        result: str,
        dtype: int,
        shape: Shape | None = (),
        takes: int | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node and declare its result.

        Args:
            op_type: an operator of the default domain.
            inputs: what it reads.
            result: its output is called `clip/<gradient>/<result>`; "" makes it the clip's last
                node, whose output is the clipped gradient.
            dtype: of the result.
            shape: of the result.
            takes: the dtype of what it reads, if that is another.
            attributes: of the node.
        """
        output = self._editor.fresh(f"clip/{self._label}/{result}") if result else self._target
        name = f"clip/{self._label}/{op_type}"
        self._editor.insert(
            self._scope, self._position, op_type, inputs, output, name, **attributes
        )
        if result:
            self._editor.declare(self._scope, output, TensorType(dtype, shape))
        dtypes = (takes or dtype,) if takes in (None, dtype) else (takes or dtype, dtype)
        self.needs.add(_need(op_type, self.opset, dtypes))
        return output

    def cast(self, value: str, takes: int, dtype: int, *, result: str, shape: Shape | None) -> str:
        """The value as another dtype; itself if it has that already."""
        if takes == dtype:
            return value
        return self.node(
            "Cast", [value], result=result, dtype=dtype, shape=shape, takes=takes, to=dtype
        )

    def reduce(
        self,
        op_type: str,
        value: str,
        axes: list[int] | None,
        *,
        result: str,
        dtype: int,
        shape: Shape,
        keepdims: int,
    ) -> str:
        """A reduction over `axes`, or all of them; axes are an attribute before opset 18."""
        inputs, attributes = [value], {"keepdims": keepdims}
        if axes is not None and self.opset < _FIRST_AXES_AS_INPUT:
            attributes["axes"] = axes  # type: ignore[assignment]
        elif axes is not None:
            inputs.append(self._editor.integers(self._scope, "axes", axes))
        return self.node(op_type, inputs, result=result, dtype=dtype, shape=shape, **attributes)

    def rows(self, value: str, length: int, *, dtype: int) -> str:
        """The elements of a tensor as a matrix of rows of this length."""
        shape = self._editor.integers(self._scope, "shape", [-1, length])
        return self.node(
            "Reshape", [value, shape], result="rows", dtype=dtype, shape=(None, length)
        )


@cache
def _need(op_type: str, opset: int, dtypes: tuple[int, ...]) -> Need:
    return Need(op_type, opset, tuple(TensorType(dtype).dtype_name for dtype in dtypes))
