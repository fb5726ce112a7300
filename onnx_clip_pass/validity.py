"""Attribution of unforeseen errors: to the model, or to this package.

Checking every model before it is read costs more than most rewrites, and ONNX Runtime runs many
that onnx does not know all of (its own operators). So onnx is asked only once an error has come up
that nothing foresaw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, checker
from onnx.shape_inference import infer_shapes

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph.inference import survives_inference

__all__ = ["blaming", "why_invalid"]

_UNFORESEEN = (
    *(ArithmeticError, AssertionError, AttributeError),
    *(LookupError, RecursionError, TypeError, ValueError),
)
_NOT_KNOWN = "No Op registered for"


@contextmanager
def blaming(load: Callable[[], ModelProto], name: str) -> Iterator[None]:
    """Turn an error that nothing foresaw into a refusal, if the model is invalid.

    Args:
        load: gives the model as it was given, for it may be half edited by now.
        name: what to call it.

    Raises:
        OnnxClipError: in place of such an error.
    """
    try:
        yield
    except _UNFORESEEN as error:
        reason = why_invalid(load())
        if not reason:
            raise
        raise OnnxClipError(
            f"{name} is no valid ONNX model, or it is damaged: {reason}; if it is valid, please "
            f"report this ({type(error).__name__}: {error})"
        ) from error


def why_invalid(model: ModelProto) -> str:
    """The reason why onnx refuses a model, in one line; "" if it does not, or cannot tell.

    Elements of tensors are not looked at, as they may lie elsewhere.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    tensors: list[TensorProto] = []
    todo: list[Message] = [copy]
    for message in todo:  # grows while it is read
        if isinstance(message, TensorProto):
            tensors.append(message)
        dtype = getattr(message, "data_type", getattr(message, "elem_type", 0))
        if isinstance(dtype, int) and dtype not in TensorProto.DataType.values():
            return f"{dtype} is no dtype that onnx {onnx.__version__} knows"
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                todo += [value] if isinstance(value, Message) else value
            elif descriptor.type == descriptor.TYPE_STRING and not (
                isinstance(value, str)
                or (not isinstance(value, bytes) and all(isinstance(each, str) for each in value))
            ):
                return f"{descriptor.full_name} is no UTF-8 in it"
    for tensor in tensors:  # what they say of themselves stays, but for dims
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return _told_by(lambda: checker.check_model(copy)) or _told_by(lambda: _infer(model))


def _infer(model: ModelProto) -> None:
    """Raise what inference says against a model, as strictly as it survives."""
    if survives_inference(model):
        infer_shapes(model, check_type=True, strict_mode=True)


def _told_by(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:  # onnx raises several kinds, of messages of many lines
        text = str(error).replace("[ShapeInferenceError] ", "")
        reason = " ".join(text.split("\n==>")[0].split())
        return "" if _NOT_KNOWN in reason else reason.rstrip(".")
    return ""
