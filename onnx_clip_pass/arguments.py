"""Arguments of the public functions, checked: what was expected, and what arrived instead.

Everything here refuses by `OnnxClipError` before anything is done.
"""

from __future__ import annotations

import math
import os
from typing import Any, get_args

import numpy as np
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError

__all__ = [
    "as_number",
    "check_choice",
    "check_flags",
    "check_input_name",
    "check_model",
    "check_path",
]


def as_number(value: Any) -> float:
    """A value as a float; nan if it is no number. Text is none, though `float` would read it."""
    if isinstance(value, str | bytes | bool | np.bool_):
        return math.nan
    try:
        return math.nan if np.ndim(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_model(model: object, for_files: str) -> None:
    """Refuse what is no model.

    Args:
        model: what was handed in.
        for_files: what to use where a model lies in a file.
    """
    if not isinstance(model, ModelProto):
        raise OnnxClipError(
            f"expected a ModelProto, not {type(model).__name__}; for a file there is {for_files}"
        )


def check_flags(**flags: object) -> None:
    """Refuse flags, by their names, that are neither true nor false: arrays, texts, numbers."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise OnnxClipError(f"{name} must be True or False, not {flag!r}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is none of the words of a `Literal`."""
    words = get_args(choices)
    if not isinstance(value, str) or value not in words:
        raise OnnxClipError(f"{name} must be one of {', '.join(words)}, not {value!r}")


def check_path(name: str, value: object, *, also: str = "") -> None:
    """Refuse what is no path; `also` is what may stand there besides, for the message."""
    if not isinstance(value, str | os.PathLike):
        raise OnnxClipError(f"{name} must be {also}a path, not {value!r}")


def check_input_name(name: object) -> None:
    """Refuse a `threshold_input` that cannot be the name of an input; None is for no input."""
    if name is not None and (not isinstance(name, str) or not name):
        raise OnnxClipError(f"threshold_input must be the name of an input, not {name!r}")
