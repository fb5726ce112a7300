"""The original as something to take slopes of: its loss, what that is computed from, its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Editor, Index, TensorType, ancestors_in
from onnx_clip_pass.probe.copies import cut_down
from onnx_clip_pass.probe.losses import check_loss, find_loss
from onnx_clip_pass.runtime import Arrays, Provider, open_session
from onnx_clip_pass.storage import tensors_of
from onnx_clip_pass.verification.running.memory import free_memory

__all__ = ["Forward"]

_MOST_WEIGHTS = 256_000_000  # bytes
_OF_WEIGHTS = 8
"""Times the bytes of weights and inputs: two copies of the model, one of them in double precision,
what serializing these takes, and what the runtime makes of them."""


@dataclass(slots=True)
class Forward:
    """A model, its feeds, and the name of its loss, or None for the one scalar output.

    `sources` are the values that the loss is computed from, itself included, once it is prepared.
    """

    model: ModelProto
    folder: Path | None
    feeds: Arrays
    provider: Provider
    loss: str | None
    index: Index = field(init=False)
    sources: frozenset[str] = field(init=False, default=frozenset())
    _ancestors: Callable[[str], frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.index = Index(self.model)
        self._ancestors = ancestors_in(self.index.main.nodes)

    def check_loss(self) -> None:
        """Refuse a loss that is named and is none.

        Raises:
            OnnxClipError: no node computes it, or it is no scalar.
        """
        if self.loss is not None:
            check_loss(self.index, self.loss)
            shape = self.run([self.loss])[self.loss].shape
            if math.prod(shape) != 1:
                raise OnnxClipError(f"the loss {self.loss!r} is no scalar, but has shape {shape}")

    def prepare(
        self, gradients: Collection[str], parameters: Collection[str], *, of_any_size: bool
    ) -> None:
        """Load the weights and find the loss.

        Raises:
            OnnxClipError: the weights are too large, there is too little memory, or which output
                is the loss is not clear.
        """
        self._refuse_large(of_any_size=of_any_size)
        if self.folder is not None:
            model = ModelProto()
            model.CopyFrom(self.model)
            load_external_data_for_model(model, str(self.folder))
            self.model, self.folder = model, None
            self.index = Index(model)
        if self.loss is None:
            self.loss = self._declared_loss(gradients, parameters)
        self.sources = self.sources_of(self.loss)

    def _declared_loss(self, gradients: Collection[str], parameters: Collection[str]) -> str:
        """The scalar output that depends on the parameters, or on any tensor if on none of these.

        No gradient leads to it. What is recorded as a parameter may be unknown, or another copy.
        """
        main = self.index.main
        roots = dict.fromkeys([*main.inputs, *main.initializers])
        tensors = [
            root for root in roots if not (main.declared(root) or TensorType()).is_scalar_like
        ]
        find = partial(find_loss, self.model, self.index, None, self.provider, None)
        try:
            return find(set(parameters), set(gradients))
        except OnnxClipError:
            return find(set(tensors), set(gradients))

    def sources_of(self, name: str) -> frozenset[str]:
        """All values of the main graph that a value is computed from, itself included."""
        return self._ancestors(name)

    def is_root(self, name: str) -> bool:
        """Return whether a value is an input or initializer of the main graph."""
        return name in self.index.main.input_slots or name in self.index.main.initializers

    def with_copies(self, roots: Sequence[str]) -> tuple[ModelProto, dict[str, str]]:
        """The model with an Identity of each of these inputs and initializers; its names."""
        if not roots:
            return self.model, {}
        model, fresh = ModelProto(), Editor(self.index).fresh
        model.CopyFrom(self.model)
        names = {root: fresh(f"{root}/copy") for root in roots}
        for root, name in names.items():
            model.graph.node.append(helper.make_node("Identity", [root], [name]))
        return model, names

    def run(self, names: Sequence[str]) -> Arrays:
        """Values of the main graph, whether a node makes them or they are given."""
        main = self.index.main
        found = {name: self.feeds[name] for name in names if name in self.feeds}
        for name in names:
            if name not in found and name in main.initializers:
                tensor = main.initializers[name]
                found[name] = numpy_helper.to_array(tensor, str(self.folder or ""))
        made = [name for name in dict.fromkeys(names) if name in main.producers]
        if made:
            cut = cut_down(self.model, made, {})
            session = open_session(cut, provider=self.provider, optimize=False, folder=self.folder)
            needed = {value.name for value in cut.graph.input} & self.feeds.keys()
            found |= session.run({name: self.feeds[name] for name in needed})
        return found

    def numbers(self, names: Sequence[str]) -> dict[str, float]:
        """Those of these values that are numbers."""
        return {
            name: float(np.asarray(array, np.float64).reshape(()))
            for name, array in self.run(names).items()
            if array.size == 1
        }

    def _refuse_large(self, *, of_any_size: bool) -> None:
        size = sum(
            math.prod(t.dims) * int(helper.tensor_dtype_to_np_dtype(t.data_type).itemsize)
            for t in tensors_of(self.model)
        )
        size += sum(array.nbytes for array in self.feeds.values())
        if size > _MOST_WEIGHTS and not of_any_size:
            raise OnnxClipError(
                f"weights and inputs are {size / 1e6:.0f} MB, which are more than "
                f"{_MOST_WEIGHTS / 1e6:.0f}; slopes='strict' (--slopes strict) checks it"
            )
        free = free_memory()
        if free is not None and _OF_WEIGHTS * size > free:
            raise OnnxClipError(
                f"that takes {_OF_WEIGHTS * size / 1e9:.1f} GB of free memory ({_OF_WEIGHTS} times "
                f"weights and inputs), but there are {free / 1e9:.1f} GB"
            )
