"""Arguments of the public functions and of the command line: what was expected, what arrived.

Everything here refuses before anything is done, values by `OnnxClipError` and texts, which have
ways of their own to name what they belong to, by ValueError.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any, TypeGuard, get_args

import numpy as np
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError, shown

__all__ = [
    "as_number",
    "check_choice",
    "check_flags",
    "check_input_name",
    "check_model",
    "check_path",
    "is_text",
    "number_in",
    "whole_in",
]

_NUMBER = re.compile(
    r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)  # what 64 bits hold


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


def check_model(model: object, for_files: str) -> None:
    """Refuse what is no model.

    Args:
        model: what was given.
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
            raise OnnxClipError(f"{name} must be True or False, not {shown(flag)}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is none of the words of a `Literal`."""
    words = get_args(choices)
    if not isinstance(value, str) or value not in words:
        raise OnnxClipError(f"{name} must be one of {', '.join(words)}, not {shown(value)}")


def check_path(name: str, value: object, *, also: str = "") -> None:
    """Refuse what is no path; `also` is what may stand there besides, for the message."""
    if not isinstance(value, str | os.PathLike):
        raise OnnxClipError(f"{name} must be {also}a path, not {shown(value)}")


def check_input_name(name: object) -> None:
    """Refuse a `threshold_input` that cannot be the name of an input; None is for no input."""
    if name is not None and (not is_text(name) or not name):
        raise OnnxClipError(f"threshold_input must be the name of an input, not {shown(name)}")
