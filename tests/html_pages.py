"""Pages for tests: reports without a model, hostile names, and pages as a parser sees them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from html.parser import HTMLParser

from onnx_clip_pass import GradientClipByNorm, GradientClipByValue
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.gradients import Gradient, Parameter
from onnx_clip_pass.record import Uncovered
from onnx_clip_pass.rewrite import Clipped, Report
from onnx_clip_pass.verification.report import GradientCheck, OutputCheck, Verification

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg onload=alert(1)>",
    "'quoted' & amp; &lt;",
    "</style><b>",
    "-->",
    "]]>",
    "javascript:alert(1)",
    "\u202egnp.exe",
    "\u200bunseen\ufeff",
    "\N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED}\N{HEBREW LETTER VAV}",
    "new\nline\tand\0nul",
    "a" * 5000,
    "1,000",
    "scalar",
    "__proto__",
    "constructor",
    " ",
    "",
]
"""Names that anyone can give to a value of a model."""

VOID = {"meta", "input", "br", "wbr", "col", "link"}


def gradient(name: str, shape: tuple[int | str | None, ...] | None = (3, 4)) -> Gradient:
    parameter = Parameter(name, shape, "float32", f"{name}_grad")
    return Gradient(f"{name}_grad", parameter, shape, "float32", f"updates {name} to {name}_new")


def report(names: list[str], clip: Clip | None = None, **more: object) -> Report:
    clip = clip or GradientClipByNorm(1.0)
    return Report(tuple(Clipped(gradient(name), clip) for name in names), **more)  # type: ignore[arg-type]


def many_rows(number: int) -> tuple[Report, Verification]:
    """A report of many gradients and a verification of it, in which two are wrong."""
    chance = random.Random(0)
    norm, value = GradientClipByNorm(1.0), GradientClipByValue(0.5)
    rows, checks = [], []
    for at in range(number):
        kind = "weight" if at % 8 < 4 else "bias"
        name = f"encoder.layers.{at // 8}.attention.{'qkvo'[at % 4]}.{kind}"
        found = gradient(name, (at % 7 + 1, 64) if at % 3 else (at % 11 + 2,))
        clip = None if at % 50 == 12 else value if at % 9 == 0 else norm
        rows.append(Clipped(found, clip, None if clip is None else 1 + (clip is norm)))
        if clip is not None:
            size = 10 ** chance.uniform(-4, 3)
            check = GradientCheck(
                found.name, name, "", clip.label, size, min(size, 1), min(size, 1)
            )
            check.error_ulps, check.allowed_ulps, check.has_run = chance.uniform(0, 3), 12.0, True
            check.acted = check.passed = True
            if at in (11, 1234):
                check.faults.append("element 3 is 0.5, and the formula says 0.25")
            checks.append(check)
    outputs = [OutputCheck("loss", False), OutputCheck("W_new", True)]
    return Report(tuple(rows)), Verification(checks, outputs, notes=["a note"])


def uncovered(name: str) -> Uncovered:
    return Uncovered(name, f"{name}_new", f"{name}_new = Sub({name}, s)", (name, "t"), f"of {name}")


@dataclass
class Seen(HTMLParser):
    """A page as it is parsed: elements with their attributes, text, and what does not nest."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    @classmethod
    def of(cls, text: str) -> Seen:
        seen = cls()
        seen.feed(text)
        seen.close()
        seen.faults += [f"{tag} is never closed" for tag in seen._open]
        return seen

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"{tag} is closed and not open")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}
