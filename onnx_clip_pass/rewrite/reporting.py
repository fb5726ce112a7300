"""What is said of a rewrite: to its caller, and in the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_clip_pass._version import __version__
from onnx_clip_pass.clips import Clip, Numerics
from onnx_clip_pass.gradients import Gradient, Survey
from onnx_clip_pass.graph import Editor
from onnx_clip_pass.kernels import Need, missing
from onnx_clip_pass.record import Record, digest_of
from onnx_clip_pass.rewrite.planning import Edit
from onnx_clip_pass.rewrite.selecting import Chosen

__all__ = ["Clipped", "Report", "lacking_kernels", "notes_on", "record_of"]


@dataclass(frozen=True, slots=True)
class Clipped:
    """A gradient and what was done to it: `clip` is None if it was left alone."""

    gradient: Gradient
    clip: Clip | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a rewrite did: every gradient found, in graph order, and what a user should know."""

    rows: tuple[Clipped, ...]
    warnings: tuple[str, ...] = ()
    replaced: bool = False

    @property
    def clipped(self) -> tuple[Clipped, ...]:
        """The gradients that are clipped."""
        return tuple(row for row in self.rows if row.clip is not None)


def record_of(
    editor: Editor, edits: list[Edit], rows: tuple[Clipped, ...], numerics: Numerics
) -> Record:
    """The note to leave in the model."""
    clips: list[dict[str, Any]] = [
        {
            "gradient": row.gradient.name,
            "parameter": row.gradient.parameter.name,
            "graph": row.gradient.graph,
            "clip": type(row.clip).__name__,
            **row.clip.settings(),
        }
        for row in rows
        if row.clip is not None
    ]
    return Record(
        version=__version__,
        clips=clips,
        norm_precision=numerics.norm_precision,
        nonfinite=numerics.nonfinite,
        renamed=dict(edit.renamed for edit in edits),
        nodes=[node.name for node in editor.added.nodes],
        initializers=[tensor.name for tensor in editor.added.initializers],
        values=editor.added.values,
        digest=digest_of([*editor.added.nodes, *editor.added.initializers]),
    )


def lacking_kernels(needs: set[Need]) -> list[str]:
    """A warning for each provider that has no kernel for some of the needs."""
    warnings = []
    for provider in ("CPU", "CUDA"):
        lacking = [
            f"{need.op_type} ({' to '.join(need.dtypes)}, opset {need.opset})"
            for need in missing(provider, needs)
        ]
        if lacking:
            warnings.append(
                f"ONNX Runtime's {provider} provider has no kernel for {', '.join(lacking)}: such "
                f"nodes run elsewhere, or not at all"
            )
    return warnings


def notes_on(seen: Survey, sightings: Chosen) -> list[str]:
    """What a user should know of the gradients, clipped or left alone."""
    warnings = []
    if any(clip and seen.is_accumulated(sighting.value) for sighting, clip in sightings):
        warnings.append(
            "accumulators follow the gradients: each micro-batch is clipped before it is added, "
            "not their sum"
        )
    dismissed = [s for s in seen.of_data if all(s is not taken for taken, _ in sightings)]
    warnings += [
        f"{sighting.gradient.name} is left alone as the gradient of data "
        f"({sighting.gradient.evidence}); if that is wrong, name it in need_clip, with '*' for all "
        f"the others"
        for sighting in dismissed[:3]
    ]
    if len(dismissed) > 3:
        warnings.append(f"so are {len(dismissed) - 3} more")
    return warnings
