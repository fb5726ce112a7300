"""The dtype of a value where a model does not declare it: that of what it is computed from."""

from __future__ import annotations

from onnx import NodeProto

from onnx_clip_pass.graph.flow import Flow, Value
from onnx_clip_pass.graph.spec import FLOAT, INT64, NOT_FLOATING, TRAINING_DOMAIN
from onnx_clip_pass.graph.types import TensorType

__all__ = ["dtype_of"]

_HANDING_ON = ("", "ai.onnx", TRAINING_DOMAIN)


def dtype_of(flow: Flow, value: Value) -> int:
    """The dtype of a floating value: declared, or of what it is computed from; 0 if unknown.

    All operators of the default domain but Cast and the like (see `_stated_dtype`) hand on
    the dtype of their floating inputs, CastLike that of its second; so does Gradient.
    """
    seen = {value}
    todo = [value]
    for at in todo:  # grows while it is read
        known = at.type
        if known is not None and known.dtype:
            if known.is_floating:
                return known.dtype
            continue
        node = at.node
        if node is not None:
            if node.domain not in _HANDING_ON and not flow.inside(at):
                continue
            stated = _stated_dtype(node)
            if stated is not None:
                if TensorType(stated).is_floating:
                    return stated
                continue
        for source, read in flow.sources(at):
            if node is not None and node.op_type == "CastLike" and read.slot == 0:
                continue
            if source not in seen:
                seen.add(source)
                todo.append(source)
    return 0


def _stated_dtype(node: NodeProto) -> int | None:
    """The dtype that an operator gives its result whatever it reads; None if it gives none."""
    if node.op_type in NOT_FLOATING:
        return INT64
    if node.op_type == "Cast":
        return next((attr.i for attr in node.attribute if attr.name == "to"), 0)
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return None
    for attr in node.attribute:
        if attr.name == "value":
            return int(attr.t.data_type)
        if attr.name in ("value_int", "value_ints", "value_string", "value_strings"):
            return INT64
    return FLOAT
