"""The choice of the loss, by types and dependencies."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto

from onnx_clip_pass.arguments import is_text
from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.graph import Index, TensorType, ancestors_in
from onnx_clip_pass.probe.copies import cut_down
from onnx_clip_pass.probe.slopes import Arrays
from onnx_clip_pass.runtime import Provider, open_session

__all__ = ["check_loss", "find_loss", "type_of"]


def find_loss(
    model: ModelProto,
    index: Index,
    feeds: Arrays | None,
    provider: Provider,
    wanted: str | None,
    parameters: Collection[str] = (),
    later: Collection[str] = (),
) -> str:
    """The value that is the loss: the wanted one, or the one output that is a float scalar.

    Args:
        model: a training graph.
        index: of it.
        feeds: for outputs whose type nothing tells: these are run; None leaves them out.
        provider: where to run.
        wanted: a name; it must be that of a scalar.
        parameters: on one of them the loss depends, if there are any here.
        later: what the loss does not depend on, such as gradients: a state's new value does.

    Raises:
        OnnxClipError: no value can be the loss, or several can.
    """
    types = {output.name: type_of(index, output.name) for output in model.graph.output}
    is_computed = is_text(wanted) and wanted in index.main.producers
    if is_computed:
        types[str(wanted)] = type_of(index, str(wanted))
    elif (
        wanted is None
        and feeds is not None
        and (
            unknown := [
                name for name, kind in types.items() if not kind.dtype or kind.shape is None
            ]
        )
    ):
        session = open_session(cut_down(model, unknown, {}), provider=provider, optimize=False)
        for name, array in session.run({name: feeds[name] for name in session.inputs}).items():
            types[name] = TensorType(types[name].dtype, array.shape)
    behind = ancestors_in(model.graph.node)
    ranks = {
        name: len(kind.shape)
        for name, kind in types.items()
        if kind.is_floating and kind.shape is not None and all(size == 1 for size in kind.shape)
    }
    there = listed([f"{name!r} {list(kind.shape or ())}" for name, kind in types.items()])
    if wanted is not None:
        if not is_computed:
            raise OnnxClipError(
                f"no node computes the loss {shown(wanted)}; the outputs are: {there}"
            )
        if wanted not in ranks and types[wanted].shape is not None:
            raise OnnxClipError(f"the loss {wanted!r} is no float scalar; there are: {there}")
        return wanted
    what = "a float scalar"
    if parameters:
        what = "a float scalar that depends on the parameters, and not on a gradient"
        ranks = {
            name: rank
            for name, rank in ranks.items()
            if not (sources := behind(name)).isdisjoint(parameters) and sources.isdisjoint(later)
        }
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
        f"The outputs are: {there}"
    )


def check_loss(index: Index, name: str) -> None:
    """Refuse a loss that no node of the main graph computes, or that is declared to be no scalar.

    Raises:
        OnnxClipError: so it is.
    """
    if not is_text(name) or name not in index.main.producers:
        raise OnnxClipError(f"no node computes the loss {shown(name)}")
    kind = type_of(index, name)
    sizes = kind.shape or ()
    if (kind.dtype and not kind.is_floating) or any(s != 1 for s in sizes if isinstance(s, int)):
        raise OnnxClipError(f"the loss {name!r} is no float scalar, but {kind.dtype_name} {sizes}")


def type_of(index: Index, name: str) -> TensorType:
    """The type of a value of the main graph, as far as it is declared or inferred."""
    known = index.main.declared(name) or TensorType()
    if known.dtype and known.shape is not None:
        return known
    inferred = index.inferred(index.main, name)
    shape = known.shape if known.shape is not None else inferred.shape
    return TensorType(known.dtype or inferred.dtype, shape)
