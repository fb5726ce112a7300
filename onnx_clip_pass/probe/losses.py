"""Which value is the loss, told by what depends on what rather than by running the model."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.graph import Index, TensorType
from onnx_clip_pass.probe.copies import ancestors_in

__all__ = ["check_loss", "declared_loss", "pick_loss"]


def declared_loss(
    model: ModelProto, index: Index, parameters: Iterable[str], later: Iterable[str]
) -> str:
    """The output that is the loss, among those declared or inferred to be float scalars.

    It is computed from the parameters, and from nothing that is computed only `later`, such as
    a gradient: so the new value of a scalar state is none.

    Raises:
        OnnxClipError: none is, or several are.
    """
    types = {output.name: _type_of(index, output.name) for output in model.graph.output}
    behind = ancestors_in(model.graph)
    parameters, later = set(parameters), set(later)
    scalars = {
        name: len(kind.shape)
        for name, kind in types.items()
        if kind.is_floating and kind.shape is not None and all(size == 1 for size in kind.shape)
    }
    fitting = {
        name: rank
        for name, rank in scalars.items()
        if not (sources := behind(name)).isdisjoint(parameters) and sources.isdisjoint(later)
    }
    there = [f"{name!r} {list(kind.shape or ())}" for name, kind in types.items()]
    return pick_loss(fitting, there, "a float scalar that depends on the parameters")


def check_loss(index: Index, name: str) -> None:
    """Refuse a loss that no node of the main graph computes, or that is declared to be no scalar.

    Raises:
        OnnxClipError: so it is.
    """
    if name not in index.main.producers:
        raise OnnxClipError(f"no node computes the loss {name!r}")
    kind = _type_of(index, name)
    sizes = kind.shape or ()
    if (kind.dtype and not kind.is_floating) or any(s != 1 for s in sizes if isinstance(s, int)):
        raise OnnxClipError(f"the loss {name!r} is no float scalar, but {kind.dtype_name} {sizes}")


def pick_loss(ranks: dict[str, int], there: list[str], what: str = "a float scalar") -> str:
    """The one of the float scalars that must be the loss: the only one, of rank 0, or so called.

    Raises:
        OnnxClipError: there is none, or no telling.
    """
    for chosen in (
        list(ranks),
        [name for name, rank in ranks.items() if rank == 0],
        [name for name in ranks if "loss" in name.lower()],
    ):
        if len(chosen) == 1:
            return chosen[0]
    count = "several outputs are" if ranks else "no output is"
    raise OnnxClipError(
        f"which output is the loss? {count} {what}; name it with loss= (--loss). "
        f"The outputs are: {listed(there)}"
    )


def _type_of(index: Index, name: str) -> TensorType:
    known = index.main.declared(name) or TensorType()
    if known.dtype and known.shape is not None:
        return known
    inferred = index.inferred(index.main, name)
    shape = known.shape if known.shape is not None else inferred.shape
    return TensorType(known.dtype or inferred.dtype, shape)
