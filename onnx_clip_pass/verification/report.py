"""The results of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["GradientCheck", "OutputCheck", "Verification"]


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


@dataclass(slots=True)
class Verification:
    """All findings; `faults` are those that belong to no gradient and no output."""

    gradients: list[GradientCheck]
    outputs: list[OutputCheck]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if everything agrees."""
        found = [row.faults for row in self.gradients] + [row.faults for row in self.outputs]
        return not self.faults and not any(found)
