"""Tensors of an onnx_ir model, and small ones in their place while it is converted."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import onnx_ir as ir
from onnx import ModelProto, TensorProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.rewrite import Decide, Verdict
from onnx_clip_pass.storage import tensors_of

__all__ = ["StandIns", "graphs_of"]

_LARGE = 1 << 9
"""Bytes from which a tensor stays behind, as in files. Shapes, axes and scalars are below."""
_LOCATION = f"onnx-clip stand-in {secrets.token_hex(16)}"
"""The beginning of the names of files that are not there, drawn anew so that no model has it."""

_Tensor = ir.TensorProtocol | None
_Exchange = Callable[[_Tensor, ir.Value | None], _Tensor]


class StandIns:
    """The tensors of one model, and their stand-ins.

    A stand-in is a tensor in a file that is not there; the offset is the number of what it stands
    for.
    """

    def __init__(self) -> None:
        self._location = f"{_LOCATION} {secrets.token_hex(16)}"
        self._tensors: list[_Tensor] = []

    @property
    def are_left(self) -> bool:
        """Return whether some of the tensors are stand-ins themselves, of another conversion."""
        return any(
            isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(_LOCATION)
            for tensor in self._tensors
        )

    @contextmanager
    def instead_of_tensors(self, model: ir.Model) -> Iterator[None]:
        """Take large tensors, those in files and those to come out of a model for a while."""
        undoing: list[Callable[[], None]] = []
        try:
            _exchange(model, self._take, undoing)
            yield
        finally:
            for undo in reversed(undoing):
                undo()

    def put_back(self, model: ir.Model) -> None:
        """Put the tensors into a model that was made of the one without them."""
        _exchange(model, self._give, [])

    def filled(self, decide: Decide) -> Decide:
        """The same, handed a copy of the model that has the elements of its tensors."""

        def decide_filled(
            model: ModelProto, questions: Mapping[str, Sequence[str]], loss: str | None
        ) -> Verdict:
            copy = ModelProto()
            copy.CopyFrom(model)
            for proto in tensors_of(copy):
                if proto.data_location == TensorProto.EXTERNAL:
                    self._fill(proto)
            return decide(copy, questions, loss)

        return decide_filled

    def _take(self, tensor: _Tensor, value: ir.Value | None) -> _Tensor:
        if tensor is not None and not _stays_behind(tensor):
            return tensor
        self._tensors.append(tensor)
        known = value if tensor is None else tensor
        assert known is not None
        assert known.dtype is not None
        assert known.shape is not None
        return ir.ExternalTensor(
            self._location,
            offset=len(self._tensors) - 1,
            length=None,
            dtype=known.dtype,
            shape=ir.Shape(known.shape.numpy()),
            name=known.name or "",
        )

    def _give(self, tensor: _Tensor, _: ir.Value | None) -> _Tensor:
        if not isinstance(tensor, ir.ExternalTensor) or tensor.location != self._location:
            return tensor
        assert tensor.offset is not None
        return self._tensors[tensor.offset]

    def _fill(self, proto: TensorProto) -> None:
        number = next(int(entry.value) for entry in proto.external_data if entry.key == "offset")
        tensor = self._tensors[number]
        if tensor is None:
            raise OnnxClipError(
                f"the model cannot be run: initializer {proto.name!r} has no tensor yet; give it "
                f"one (const_value)"
            )
        proto.ClearField("external_data")
        proto.ClearField("data_location")
        proto.raw_data = tensor.tobytes()


def graphs_of(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """All graphs and functions of a model, with the graphs inside them."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _stays_behind(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, ir.ExternalTensor):
        return True  # a ModelProto tells where it lies, but not beside which model
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _LARGE


def _exchange(model: ir.Model, exchange: _Exchange, undoing: list[Callable[[], None]]) -> None:
    """Exchange the tensors of a model, wherever they are.

    Args:
        model: the model.
        exchange: takes a tensor, and of an initializer its value, and gives what is to be there.
        undoing: takes what undoes each exchange.
    """
    for graph in graphs_of(model):
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            tensor = exchange(value.const_value, value)
            if tensor is not value.const_value:
                undoing.append(partial(setattr, value, "const_value", value.const_value))
                value.const_value = tensor
        held = [graph.attributes] if isinstance(graph, ir.Function) else []
        for attributes in (*held, *(node.attributes for node in graph)):
            for name, attribute in attributes.items():
                other = _exchanged(attribute, exchange)
                if other is not attribute:
                    undoing.append(partial(attributes.__setitem__, name, attribute))
                    attributes[name] = other


def _exchanged(attribute: ir.Attr, exchange: _Exchange) -> ir.Attr:
    if attribute.is_ref() or attribute.value is None:
        return attribute
    if attribute.type == ir.AttributeType.TENSOR:
        tensors = [attribute.value]
    elif attribute.type == ir.AttributeType.TENSORS:
        tensors = list(attribute.value)
    else:
        return attribute
    others = [exchange(tensor, None) for tensor in tensors]
    if all(other is tensor for other, tensor in zip(others, tensors, strict=True)):
        return attribute
    value = others[0] if attribute.type == ir.AttributeType.TENSOR else others
    return ir.Attr(attribute.name, attribute.type, value, doc_string=attribute.doc_string)
