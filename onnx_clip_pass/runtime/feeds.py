"""Feeds for the inputs of a model: read from files, or made up."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnx_clip_pass.arguments import is_whole
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.graph import Flow, Index, Scope, TensorType, Use, Value, uses
from onnx_clip_pass.graph.spec import ALIASES
from onnx_clip_pass.runtime.session import Arrays
from onnx_clip_pass.storage.reading import open_regular

__all__ = ["check_run", "load_feeds", "make_feeds"]


def load_feeds(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> Mapping[str, NDArray[Any]]:
    """Arrays by input name from one or several .npz files; of equal names the last one counts.

    An array is unpacked when it is asked for: what the model has no input for stays packed.

    Raises:
        OnnxClipError: a file cannot be read or is no .npz of plain arrays.
    """
    feeds = _Packed()
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        with _archive(Path(path)) as archive:
            feeds.places.update(dict.fromkeys(archive.files, Path(path)))
    return feeds


class _Packed(Mapping[str, NDArray[Any]]):
    """Arrays in .npz files, each read when it is asked for; `places` says where each lies."""

    def __init__(self) -> None:
        self.places: dict[str, Path] = {}
        self._read: Arrays = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            with _archive(self.places[name]) as archive:
                member = f"{name}.npy"  # by `name` alone "x.npy" would be what is called "x"
                self._read[name] = archive[member if member in archive else name]
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@contextmanager
def _archive(path: Path) -> Iterator[Any]:
    """An .npz file; whatever is wrong with it is refused, also by what is done with it."""
    with open_regular(path, "the feeds ") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("no archive")
            file.seek(0)
            with np.load(file) as archive:
                yield archive
        except OSError as error:
            reason = error.strerror or error
            raise OnnxClipError(f"cannot read the feeds {str(path)!r}: {reason}") from error
        except Exception as error:  # zipfile, numpy and pickle have many ways to refuse
            raise OnnxClipError(
                f"expected feeds as an .npz file of arrays named like the model's inputs, as "
                f"numpy.savez writes it, but {str(path)!r} is not: {error}"
            ) from error


def make_feeds(
    model: ModelProto,
    *,
    given: Mapping[str, NDArray[Any]] | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Arrays:
    """An array for every input that is no initializer: the given one, or one that is made up.

    Made-up values come from a seeded generator. Floats are normal with a standard deviation of
    0.5, made positive where they are scalars, variances or on their way to a square root; bools
    are true; integers are indices as far as the table or the number of classes they select from
    can be seen, else 0 or 1, and scalar ones 1.

    Args:
        model: a model; weights need not be loaded.
        given: arrays by input name.
        dims: sizes of symbolic dimensions. Those that neither this nor a given array tells are 2.
        seed: of the generator.

    Raises:
        OnnxClipError: an argument is of the wrong kind. Or, all at once: a given name or symbol is
            not there, a given array has another dtype or shape than its input, or an input is a
            sequence, a map, a string or too large.
    """
    check_run(given, dims, seed)
    given, dims = given or {}, dims or {}
    builder = _FeedBuilder(model, given, dims, seed)
    feeds: Arrays = {}
    faults = list(builder.faults)
    for value in model.graph.input:
        if value.name in given:
            feeds[value.name] = np.asarray(given[value.name])
        elif value.name not in builder.initialized:
            try:
                feeds[value.name] = builder.make(value)
            except OnnxClipError as error:
                faults.append(str(error))
    if faults:
        raise OnnxClipError("cannot feed this model:", faults)
    return feeds


def check_run(feeds: Any, dims: Any, seed: Any) -> None:
    """Refuse feeds, sizes of dimensions and a seed of the wrong type.

    Raises:
        OnnxClipError: what was expected, and what arrived.
    """
    if feeds is not None and not isinstance(feeds, Mapping):
        raise OnnxClipError(
            f"feeds must be a mapping of input names to arrays, not {shown(feeds)}; an .npz file "
            f"is read by numpy.load"
        )
    if dims is not None and not isinstance(dims, Mapping):
        raise OnnxClipError(f"dims must be a mapping of names to sizes, not {shown(dims)}")
    sizes = [(f"the dimension {name!r}", size) for name, size in (dims or {}).items()]
    for what, number in (*sizes, ("seed", seed)):
        if not is_whole(number, 0):
            raise OnnxClipError(f"{what} must be a whole number, 0 or more, not {shown(number)}")


_SCALING = {"Add", "Div", "Identity", "Mul", "Sum", "Unsqueeze"}
_LABELS = {
    "NegativeLogLikelihoodLoss",
    "SoftmaxCrossEntropyLoss",
    "SoftmaxCrossEntropyLossInternal",
}
_UNKNOWN_SIZE = 2
_SPREAD = 0.5
_TRIPS = 2
_MOST_ELEMENTS = 1 << 30  # 8 GB while they are made


class _FeedBuilder:
    """Makes up arrays for the inputs of one model; `faults` are those of what was given."""

    def __init__(
        self,
        model: ModelProto,
        given: Mapping[str, NDArray[Any]],
        dims: Mapping[str, int],
        seed: int,
    ) -> None:
        self._index = Index(model)
        self._flow = Flow(self._index)
        self._rng = np.random.default_rng(seed)
        self._sizes = dict(dims)
        self.initialized = set(self._index.main.initializers)
        self.initialized |= {sparse.values.name for sparse in model.graph.sparse_initializer}
        inputs = {value.name: value for value in model.graph.input}
        self.faults = [
            f"no input is called {name!r}; the inputs are {listed([*map(repr, inputs)])}"
            for name in given
            if name not in inputs
        ]
        symbols = {d.dim_param for v in inputs.values() for d in v.type.tensor_type.shape.dim}
        symbols.discard("")
        self.faults += [
            f"no dimension of an input is called {name!r}; there are "
            f"{listed(sorted(map(repr, symbols)))}"
            for name in dims
            if name not in symbols
        ]
        for name in given:
            if name in inputs:
                self._compare(inputs[name], np.asarray(given[name]))

    def _compare(self, value: ValueInfoProto, array: NDArray[Any]) -> None:
        """Learn sizes of symbols from a given array, and note where it does not fit."""
        kind = TensorType.of(value.type)
        if kind is None:
            self.faults.append(f"input {value.name!r} is a sequence or a map: feeds are arrays")
            return
        if kind.dtype and str(array.dtype) not in (kind.dtype_name, "object", "uint16"):
            self.faults.append(
                f"input {value.name!r}: expected {kind.dtype_name}, but the feed is {array.dtype}"
            )
        if kind.shape is None:
            return
        fits = len(kind.shape) == array.ndim
        for wanted, size in zip(kind.shape, array.shape, strict=False):
            expected = self._sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            fits = fits and expected in (None, size)
        if not fits:
            wanted_shape = ", ".join(
                str(d if d is not None else "?")
                + (f"={self._sizes[d]}" if d in self._sizes else "")
                if isinstance(d, str) or d is None
                else str(d)
                for d in kind.shape
            )
            self.faults.append(
                f"input {value.name!r}: expected the shape [{wanted_shape}], but the feed has "
                f"{list(array.shape)}"
            )

    def make(self, value: ValueInfoProto) -> NDArray[Any]:
        kind = TensorType.of(value.type)
        if kind is None or kind.dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
            what = value.type.WhichOneof("value") or "type that is not declared"
            raise OnnxClipError(
                f"input {value.name!r} is a {what.removesuffix('_type')}"
                f"{'' if kind is None else ' of strings or of unknown elements'}: only tensors of "
                f"numbers and bools can be made up"
            )
        shape = tuple(
            dim if isinstance(dim, int) else self._sizes.get(dim or "", _UNKNOWN_SIZE)
            for dim in kind.shape or ()
        )
        dtype = helper.tensor_dtype_to_np_dtype(kind.dtype)
        if math.prod(shape) > _MOST_ELEMENTS:
            raise OnnxClipError(
                f"input {value.name!r} would have the shape {list(shape)}, which is too large to "
                f"be made up; give it as a feed, or smaller dims (--dim)"
            )
        if kind.dtype == TensorProto.BOOL:
            return np.ones(shape, np.bool_)
        if np.issubdtype(dtype, np.integer):
            return self._whole_numbers(value.name, shape).astype(dtype)
        floats = self._rng.normal(scale=_SPREAD, size=shape)
        if not shape or self._must_be_positive(value.name):
            floats = np.abs(floats) + 1e-3
        return np.asarray(floats).astype(dtype)

    def _whole_numbers(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        bound, trips = self._bound(name)
        if trips:
            return np.full(shape, _TRIPS)
        if bound is None and not shape:
            return np.ones(shape, np.int64)
        return np.asarray(self._rng.integers(0, bound or 2, size=shape))

    def _bound(self, name: str) -> tuple[int | None, bool]:
        """The number of things that an integer selects from; whether it counts iterations."""
        bounds: list[int] = []
        for frame, node, slot in self._uses(name, ALIASES):
            scope = frame.scope
            if node.op_type == "Loop" and slot == 0:
                return None, True
            if node.op_type in ("Gather", "GatherElements") and slot == 1:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                bounds += self._size(scope, node.input[0], axis)
            elif node.op_type in _LABELS and slot == 1:
                bounds += self._size(scope, node.input[0], 1)
            elif node.op_type == "OneHot" and slot == 0:
                depth = scope.lookup(node.input[1])
                tensor = depth.initializers.get(node.input[1]) if depth else None
                if tensor is not None:
                    bounds += _numbers_of(tensor)
        return min((b for b in bounds if b > 0), default=None), False

    def _must_be_positive(self, name: str) -> bool:
        return any(
            node.op_type == "Sqrt" or (node.op_type == "BatchNormalization" and slot == 4)
            for _, node, slot in self._uses(name, _SCALING)
        )

    def _uses(self, name: str, through: set[str]) -> Iterator[Use]:
        return uses(self._flow, Value(self._flow.main, name), through, by_any_slot=True)

    def _size(self, scope: Scope, name: str, axis: int) -> list[int]:
        kind = scope.type_of(name)
        if kind is None or kind.shape is None:
            kind = self._index.inferred(scope.lookup(name) or scope, name)
        if kind.shape is None or not -len(kind.shape) <= axis < len(kind.shape):
            return []
        size = kind.shape[axis]
        if isinstance(size, str):
            size = self._sizes.get(size, _UNKNOWN_SIZE)
        return [size] if size is not None else []


def _numbers_of(tensor: TensorProto) -> list[int]:
    if tensor.int64_data:
        return list(tensor.int64_data)
    if tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        return [int(number) for number in np.frombuffer(tensor.raw_data, "<i8")]
    return []
