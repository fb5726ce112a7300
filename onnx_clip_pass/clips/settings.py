"""A setting of a clip, described once.

From its description follow its check, its form in a record and in a `clip.toml`, and its option on
the command line.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any

from onnx_clip_pass.arguments import as_number, check_flags, is_text, is_whole
from onnx_clip_pass.errors import OnnxClipError, shown

__all__ = [
    "AXES",
    "FLAG",
    "LIMIT",
    "NAME",
    "ORDER",
    "Count",
    "Number",
    "Percent",
    "Setting",
    "setting",
]

_HIGHEST_AXIS = 1 << 31


class SettingType(ABC):
    """A type of settings: which values it takes, in Python, in JSON and in TOML."""

    @abstractmethod
    def check(self, name: str, value: Any) -> Any:
        """Return the value as a clip holds it; one that cannot be meant is refused by its name."""

    def toml_fault(self, value: object) -> str:
        """The fault of a value in a TOML file that Python would take; "" if there is none."""
        return ""

    def to_json(self, value: Any) -> Any:
        """Return a value that a clip holds, in the types of JSON."""
        return value

    def from_json(self, value: Any) -> Any:
        """Return the value of which this is the form in JSON or TOML."""
        return value


@dataclass(frozen=True)
class Number(SettingType):
    """A number, inf included; `words` is what a refusal adds to "a positive number"."""

    words: str = ""
    is_positive: bool = True

    def check(self, name: str, value: Any) -> float:
        number = as_number(value)
        if math.isnan(number) or (self.is_positive and number <= 0):
            what = "a positive number" if self.is_positive else "a number"
            raise OnnxClipError(f"{name} must be {what}{self.words}, not {shown(value)}")
        return number

    def toml_fault(self, value: object) -> str:
        is_one = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_one or value == "inf" else "must be a number"

    def to_json(self, value: float) -> float | str:
        return str(value) if math.isinf(value) else value  # JSON has no inf and no -inf

    def from_json(self, value: Any) -> Any:
        return float(value) if value in ("inf", "-inf") else value


class Percent(SettingType):
    """A percentage from 0 to below 100."""

    def check(self, name: str, value: Any) -> float:
        number = as_number(value)
        if not 0 <= number < 100:
            raise OnnxClipError(f"{name} must be a number from 0 to below 100, not {shown(value)}")
        return number

    def toml_fault(self, value: object) -> str:
        is_one = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_one else "must be a number"


@dataclass(frozen=True)
class Count(SettingType):
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def check(self, name: str, value: Any) -> int:
        if not is_whole(value, self.least, self.most):
            raise OnnxClipError(
                f"{name} must be a whole number from {self.least} to {self.most:,}, not "
                f"{shown(value)}"
            )
        return int(value)

    def toml_fault(self, value: object) -> str:
        is_one = isinstance(value, int) and not isinstance(value, bool)
        return "" if is_one else "must be a whole number"


class Flag(SettingType):
    """True or False."""

    def check(self, name: str, value: Any) -> bool:
        check_flags(**{name: value})
        return bool(value)

    def toml_fault(self, value: object) -> str:
        return "" if isinstance(value, bool) else "must be true or false"


class Name(SettingType):
    """A name, not empty."""

    def check(self, name: str, value: Any) -> str:
        if not is_text(value) or not value:
            raise OnnxClipError(f"{name} must be a name, not {shown(value)}")
        return value


class Axes(SettingType):
    """Axes, one or more, each once: a tuple of integers."""

    def check(self, name: str, value: Any) -> tuple[int, ...]:
        found: object = [value] if isinstance(value, int) else value
        if (
            not isinstance(found, Sequence)
            or not found
            or any(type(axis) is not int or abs(axis) > _HIGHEST_AXIS for axis in found)
        ):
            raise OnnxClipError(f"{name} must be integers, one or more, not {shown(value)}")
        if len(set(found)) < len(found):
            raise OnnxClipError(
                f"{name} must be integers, each once, but one is named twice: {value!r}"
            )
        return tuple(found)

    def to_json(self, value: tuple[int, ...]) -> list[int]:
        return list(value)


LIMIT = Number(", or inf for no clipping")
ORDER = Number(" or inf, as 1, 2 or inf")
FLAG, NAME, AXES = Flag(), Name(), Axes()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The description of a setting.

    Args:
        type: which values there are.
        help: it, in a few words, for the command line.
        is_limit: whether it bounds gradients, in their own unit: with them it is scaled, and one
            that a clip has alone is its threshold.
        is_always_told: whether a record says it where it is the default, too.
        option_default: what it is on the command line where it has no default and is not said.
        default: what it is where it is not said; MISSING if it must be.
    """

    type: SettingType
    help: str
    is_limit: bool = False
    is_always_told: bool = False
    option_default: float | None = None
    default: Any

    @property
    def is_needed(self) -> bool:
        """Return whether it has no default."""
        return self.default is MISSING

    def check(self, name: str, value: Any) -> Any:
        """Return the value as a clip holds it; None stays None where it is the default."""
        return None if value is None and self.default is None else self.type.check(name, value)


def setting(type: SettingType, help: str, *, default: Any = MISSING, **more: Any) -> Any:
    """Return a field of a clip, with the `Setting` that these arguments describe."""
    described = Setting(type=type, help=help, default=default, **more)
    return field(default=default, metadata={"setting": described})
