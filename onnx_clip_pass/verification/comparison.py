"""The subject of a verification: two models, the clips in one of them, and the findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_clip_pass.clips import Numerics
from onnx_clip_pass.graph import Index
from onnx_clip_pass.progress import Progress, TellProgress, silent
from onnx_clip_pass.record import Record
from onnx_clip_pass.verification.report import Verification
from onnx_clip_pass.verification.static.targets import Target
from onnx_clip_pass.verification.static.unrolled import components

__all__ = ["Comparison"]


@dataclass(slots=True)
class Comparison:
    """An original and its rewrite, with their folders, the recorded clips, and what is found.

    `together` are the numbers of the clips that have anything to do with each other.
    """

    before: Index
    before_folder: Path | None
    after: Index
    after_folder: Path | None
    record: Record
    targets: list[Target]
    result: Verification
    progress: TellProgress = silent
    together: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.together = components(
            [(t.clip, t.scope, t.name, t.unrolled_step) for t in self.targets]
        )

    @property
    def numerics(self) -> Numerics:
        """The recorded precision, policy and layout."""
        record: Any = self.record
        return Numerics(record.norm_precision, record.nonfinite, record.layout)

    def note(self, note: str) -> None:
        """Tell something that is no fault, once."""
        if note not in self.result.notes:
            self.result.notes.append(note)

    def tell(self, doing: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """Tell what is done now."""
        self.progress(Progress(doing, done, total, unit))

    def fault(self, number: int, fault: str) -> None:
        """Tell what is wrong with a clip."""
        self.result.gradients[number].faults.append(fault)
