"""Text that is HTML already, and the one way by which other text becomes it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from onnx_clip_pass.tables import escape_control

__all__ = ["Markup", "element", "joined", "lines", "visible"]

_VOID = frozenset({"br", "col", "input", "link", "meta"})
_SHORT = 1000
"""Letters of a text that is never shortened."""


class Markup(str):
    """Text that is HTML; any other text is escaped before it is joined with it."""

    __slots__ = ()


def visible(text: object) -> str:
    """Text from outside, without the middle where it is very long, and with nothing invisible."""
    found = str(text)
    return found if found.isprintable() and len(found) < _SHORT else escape_control(found)


def joined(parts: Iterable[object]) -> Markup:
    """The parts one after another; what is no `Markup` is escaped."""
    return Markup("".join(map(_markup, parts)))


def lines(texts: Iterable[object]) -> Markup:
    """Texts, each on a line of its own where the style keeps lines."""
    return Markup("\n".join(map(_markup, texts)))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element of HTML or SVG.

    Args:
        name: what it is called.
        *content: what is in it; what is no `Markup` is escaped, and None is nothing.
        **attributes: by name, with "_" for "-" and one behind a name that Python has taken
            (`class_`); True for those without a value, None and False for none.
    """
    said = "".join(
        f" {_spelled(key)}" if value is True else f' {_spelled(key)}="{_markup(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{''.join(map(_markup, content))}</{name}>")


def _spelled(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _markup(part: object) -> str:
    if isinstance(part, Markup):
        return part
    return "" if part is None else escape(visible(part))
