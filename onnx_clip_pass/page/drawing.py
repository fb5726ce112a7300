"""Small graphs as SVG, with the colours of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from onnx_clip_pass.page.layering import Place, placed
from onnx_clip_pass.page.markup import Markup, element, joined

__all__ = ["Box", "Drawing"]

_TITLE, _NOTE = 7.3, 6.1  # the space for a letter of either line, in pixels
_SIDE, _TALL, _FLAT = 12.0, 40.0, 28.0
_MARGIN = 3.0
_WIDE = 1500  # what is wider scrolls, since letters would become too small
_MOST = 34  # letters in a line


@dataclass(frozen=True, slots=True)
class Box:
    """A box with a title and a smaller line below it.

    `kind`: "op" is a node, "value" what comes in, "result" what goes out, "many" stands for several
    others.
    """

    title: str
    note: str = ""
    kind: Literal["op", "value", "result", "many"] = "op"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes and arrows between them, by number; `label` says what it shows to whoever cannot see.

    The first box is where the drawing begins.
    """

    boxes: Sequence[Box]
    arrows: Sequence[tuple[int, int]]
    label: str

    def html(self) -> Markup:
        """The drawing as an element that can scroll."""
        sizes = [_size(box) for box in self.boxes]
        found = placed(sizes, self.arrows)
        lines = []
        for (source, target), bends in zip(self.arrows, found.bends, strict=True):
            start, end = found.boxes[source], found.boxes[target]
            lines.append(
                _arrow(
                    Place(start.x + sizes[source][0] / 2, start.y),
                    bends,
                    Place(end.x - sizes[target][0] / 2, end.y),
                )
            )
        boxes = [
            _box(box, size, place)
            for box, size, place in zip(self.boxes, sizes, found.boxes, strict=True)
        ]
        width, height = found.width + 2 * _MARGIN, found.height + 2 * _MARGIN + 4
        svg = element(
            "svg",
            *lines,
            *boxes,
            xmlns="http://www.w3.org/2000/svg",
            class_="shrinks" if width < _WIDE else None,
            role="img",
            aria_label=self.label,
            width=f"{width:.0f}",
            height=f"{height:.0f}",
            viewBox=f"{-_MARGIN:.0f} {-_MARGIN:.0f} {width:.0f} {height:.0f}",
        )
        return element("div", svg, class_="drawing")


def _size(box: Box) -> tuple[float, float]:
    letters = max(len(_cut(box.title)) * _TITLE, len(_cut(box.note)) * _NOTE)
    return letters + 2 * _SIDE, _TALL if box.note else _FLAT


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST * 2 // 3]}…{text[-_MOST // 3 :]}"


def _box(box: Box, size: tuple[float, float], place: Place) -> Markup:
    width, height = size
    x, y = place.x - width / 2, place.y - height / 2
    radius = 4 if box.kind == "op" else min(height / 2, 14)
    frames = [
        element(
            "rect",
            x=f"{x + shift:.1f}",
            y=f"{y + shift:.1f}",
            width=f"{width:.1f}",
            height=f"{height:.1f}",
            rx=radius,
        )
        for shift in ((4, 0) if box.kind == "many" else (0,))
    ]
    middle = place.y if not box.note else place.y - 7
    texts = [element("text", _cut(box.title), x=f"{place.x:.1f}", y=f"{middle + 4:.1f}")]
    if box.note:
        texts.append(
            element(
                "text", _cut(box.note), x=f"{place.x:.1f}", y=f"{place.y + 12:.1f}", class_="sub"
            )
        )
    return element("g", *frames, *texts, class_=f"b {box.kind}")


def _arrow(start: Place, bends: Sequence[Place], end: Place) -> Markup:
    """A smooth line through the bends, level at each of them, and its head."""
    tip = Place(end.x - 5, end.y)
    points = [start, *bends, tip]
    path = f"M{start.x:.1f} {start.y:.1f}"
    for one, other in pairwise(points):
        middle = (one.x + other.x) / 2
        path += f"C{middle:.1f} {one.y:.1f} {middle:.1f} {other.y:.1f} {other.x:.1f} {other.y:.1f}"
    head = f"M{end.x:.1f} {end.y:.1f}l-7 -3.5v7z"
    return joined([element("path", d=path, class_="a"), element("path", d=head, class_="h")])
