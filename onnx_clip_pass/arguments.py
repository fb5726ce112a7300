"""Arguments of the public functions and of the command line: what was expected, what arrived.

Everything here refuses before anything is done, values by `OnnxClipError` and texts, which have
ways of their own to name what they belong to, by ValueError.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, TypeGuard, get_args

import numpy as np
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError, shown

__all__ = [
    "MOST_NORMS",
    "as_number",
    "check_choice",
    "check_flags",
    "check_input_name",
    "check_model",
    "check_path",
    "is_text",
    "is_whole",
    "model_or_path",
    "number_in",
    "whole_in",
]

MOST_NORMS = 1 << 20
"""The norms that a history can hold: more would take 20 ms and more a step."""

_NUMBER = re.compile(
    r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)  # what 64 bits hold


def is_whole(value: Any, least: int, most: float = math.inf) -> bool:
    """Return whether a value is a whole number within these bounds, NumPy's too; a bool is none."""
    is_one = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_one and least <= int(value) <= most


def as_number(value: Any) -> float:
    """A value as a float; nan if it is no number. Text is none, though `float` would read it."""
    if isinstance(value, str | bytes | bool | np.bool_):
        return math.nan
    try:
        return math.nan if np.ndim(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def number_in(text: str) -> float:
    """The number that a text is, wherever people write one: 2, 0.5, 1e-3, inf.

    Raises:
        ValueError: it is none, or more than a float holds, which would be inf without a word.
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"expected a number such as 0.5 or inf, not {shown(text)}")
    number = float(text)
    if math.isinf(number) and "n" not in text.lower():
        raise ValueError(f"{shown(text)} is more than a float holds; for no bound say inf")
    return number


def whole_in(text: str) -> int:
    """The whole number that a text is.

    Raises:
        ValueError: it is none, or has more than 18 digits.
    """
    text = text.strip()
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"expected a whole number of at most 18 digits, not {shown(text)}")
    return int(text)


def is_text(value: object) -> TypeGuard[str]:
    """Return whether this is a text that a model can hold as a name.

    A path or an argument that is no UTF-8 reaches Python as halves of characters.
    """
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_OF_OTHERS = {
    "onnx_ir": "ir.to_proto(model) makes one; or use the pass ClipGradients of "
    "onnx_clip_pass.adapters.onnx_ir, which takes it as it is",
    "onnx_graphsurgeon": "gs.export_onnx(graph) makes one; gs.import_onnx takes the result back",
    "torch": "the model_proto of what torch.onnx.export(…, dynamo=True) gives is one",
    "onnxscript": "its to_model_proto() makes one",
    "onnx.onnx_ml_pb2": "onnx.helper.make_model(graph) makes one of a graph",
    "onnx_clip_pass.plans": "its apply() makes one",
    "builtins.bytes": "onnx.load_model_from_string(data) makes one",
}
"""The way to a `ModelProto` from what others call a model, by its module, or that and its name."""


def check_model(model: object, for_files: str) -> None:
    """Refuse what is no model.

    Args:
        model: what was given.
        for_files: what to use where a model lies in a file.
    """
    if not isinstance(model, ModelProto):
        raise OnnxClipError(
            f"expected a ModelProto, not {_kind_of(model)}; "
            f"{_way_from(model) or f'for a file there is {for_files}'}"
        )


def model_or_path(name: str, given: object) -> ModelProto | Path:
    """A model as it is, or the path to one; refused if it is neither.

    Args:
        name: what to call it in the error.
        given: what was given.
    """
    if isinstance(given, ModelProto):
        return given
    if not isinstance(given, str | os.PathLike):
        way = _way_from(given)
        what = shown(given) if not way else _kind_of(given)
        raise OnnxClipError(
            f"{name} must be a ModelProto or a path, not {what}" + (f"; {way}" if way else "")
        )
    return Path(given)


def _kind_of(given: object) -> str:
    """The type of a thing by its full name; that of what is built in alone."""
    kind = type(given)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _way_from(given: object) -> str:
    """The way from what another package calls a model to a `ModelProto`; "" if none is known."""
    for kind in type(given).__mro__:
        names = (
            kind.__module__.split(".")[0],
            kind.__module__,
            f"{kind.__module__}.{kind.__name__}",
        )
        for name in names:
            if name in _OF_OTHERS:
                return _OF_OTHERS[name]
    return ""


def check_flags(**flags: object) -> None:
    """Refuse flags, by their names, that are neither true nor false: arrays, texts, numbers."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise OnnxClipError(f"{name} must be True or False, not {shown(flag)}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is none of the words of a `Literal`."""
    words = get_args(choices)
    if not isinstance(value, str) or value not in words:
        raise OnnxClipError(f"{name} must be one of {', '.join(words)}, not {shown(value)}")


def check_path(name: str, value: object) -> None:
    """Refuse what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise OnnxClipError(f"{name} must be a path, not {shown(value)}")


def check_input_name(name: object) -> None:
    """Refuse a `threshold_input` that cannot be the name of an input; None is for no input."""
    if name is not None and (not is_text(name) or not name):
        raise OnnxClipError(f"threshold_input must be the name of an input, not {shown(name)}")
