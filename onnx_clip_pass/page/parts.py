"""The parts of which pages are made, but for tables, drawings and charts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from onnx_clip_pass.page.markup import Markup, element, joined

__all__ = ["State", "details", "facts", "figures", "notes", "section", "verdict"]

State = Literal["good", "bad", "open"]
"""The colour of a verdict: all is well, something is wrong, something is left to decide."""


def verdict(said: object, more: object = None, *, state: State = "good") -> Markup:
    """The first line of a page: the answer, and in a second line what there is to know of it."""
    return joined(
        [
            element("p", said, class_=f"verdict {state}"),
            element("p", more, class_="more") if more else None,
        ]
    )


def figures(numbers: Mapping[str, object]) -> Markup:
    """Numbers side by side, each under its name."""
    pairs = (
        element("div", element("dt", name), element("dd", value)) for name, value in numbers.items()
    )
    return element("dl", *pairs, class_="figures")


def facts(found: Mapping[str, object]) -> Markup:
    """Names with what belongs to each, below one another; what is None is left out."""
    pairs = (
        joined([element("dt", name), element("dd", value)])
        for name, value in found.items()
        if value is not None
    )
    return element("dl", *pairs, class_="facts")


def notes(lines: Sequence[object], *, state: State = "open") -> Markup:
    """Remarks, one in each line; nothing where there are none."""
    if not lines:
        return Markup()
    return element("ul", *(element("li", line) for line in lines), class_=f"notes {state}")


def section(heading: str, *content: Iterable[object] | object) -> Markup:
    """A part of the page under a heading; nothing where it has no content."""
    if not any(content):
        return Markup()
    name = re.sub(r"\W+", "-", heading.lower()).strip("-")
    return element("section", element("h2", heading), *content, id=name)


def details(summary: object, *content: object, is_open: bool = False) -> Markup:
    """Something that a click opens."""
    return element("details", element("summary", summary), *content, open=is_open)
