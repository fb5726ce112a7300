"""The results of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.views import View, Viewed

__all__ = ["GradientCheck", "OutputCheck", "Verification"]

_HEADINGS = ("gradient", "clip", "raw norm", "clipped", "expected", "error (ulps)", "verdict")


@dataclass(slots=True)
class GradientCheck:
    """One clipped gradient; norms are L2, as fed, and the largest where there are several.

    `error_ulps` is the largest distance of an element from the formula, in units in its last place;
    `has_run` tells whether the models came to compute it, `acted` and `passed` whether the clip was
    seen shortening and letting pass.
    """

    gradient: str
    parameter: str
    graph: str
    clip: str
    raw_norm: float = float("nan")
    clipped_norm: float = float("nan")
    expected_norm: float = float("nan")
    error_ulps: float = 0.0
    allowed_ulps: float = 0.0
    has_run: bool = False
    acted: bool = False
    passed: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The finding in a word or two."""
        if not self.has_run:
            return "not run"
        if self.faults:
            return "wrong"
        return "right" if self.acted else "right, never acted"

    def cells(self) -> tuple[str, ...]:
        """Return it as a row of the table of a verification."""
        norms = (self.raw_norm, self.clipped_norm, self.expected_norm)
        return (
            self.gradient,
            self.clip,
            *(f"{norm:.4g}" if self.has_run else "-" for norm in norms),
            f"{self.error_ulps:.3g} of {self.allowed_ulps:.3g}" if self.has_run else "-",
            self.verdict,
        )


@dataclass(slots=True)
class OutputCheck:
    """One output; `behind_clip` tells whether a clipped gradient leads to it.

    `quantity` is what it measures of gradients, for an output that the rewrite has added.
    """

    name: str
    behind_clip: bool
    quantity: str = ""
    is_deterministic: bool = True
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True, repr=False)
class Verification(Viewed):
    """All findings on a rewritten model; true where everything agrees.

    `gradients` and `outputs` are what was compared; `faults` belong to none of them, `notes` are no
    faults. `original` and `rewritten` are the paths of the models; None of those in memory.
    """

    gradients: list[GradientCheck]
    outputs: list[OutputCheck]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    original: Path | None = None
    rewritten: Path | None = None

    @property
    def ok(self) -> bool:
        """True if everything agrees."""
        found = [row.faults for row in self.gradients] + [row.faults for row in self.outputs]
        return not self.faults and not any(found)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def rows(self) -> list[GradientCheck]:
        """The clipped gradients, as `Report` and `Plan` have rows."""
        return self.gradients

    @property
    def wrong(self) -> list[str]:
        """Every fault in words, with the gradient or the output that it belongs to."""
        found = [*self.faults]
        found += [f"gradient {row.gradient}: {f}" for row in self.gradients for f in row.faults]
        found += [f"output {row.name}: {fault}" for row in self.outputs for fault in row.faults]
        return found

    def view(self) -> View:
        name = "the rewritten model" if self.rewritten is None else str(self.rewritten)
        faults = tuple(self.wrong)
        verdict = (
            f"right: {name} is what its original and the formula say"
            if self.ok
            else f"WRONG: {name} is not what its original and the formula say"
        )
        gradients = counted(len(self.gradients), "clipped gradient")
        outputs = counted(len(self.outputs), "output")
        return View(
            f"{verdict}: {gradients} and {outputs} compared, {counted(len(faults), 'fault')}",
            Table(_HEADINGS, tuple(row.cells() for row in self.gradients)),
            tuple(self.notes),
            faults,
        )
