"""The page on a result, whatever it is the result of."""

from __future__ import annotations

import os
from pathlib import Path

from onnx_clip_pass.artifacts import ArtifactsInspection
from onnx_clip_pass.artifacts.layout import find_layout
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.inspection import Inspection
from onnx_clip_pass.monitoring import Norms
from onnx_clip_pass.plans import Plan
from onnx_clip_pass.reports.inserted import Inserted, inserted_in_file
from onnx_clip_pass.reports.inspecting import inspection_page
from onnx_clip_pass.reports.rewriting import rewrite_page
from onnx_clip_pass.reports.verifying import verification_page
from onnx_clip_pass.reports.watching import norms_page
from onnx_clip_pass.reports.writing import write_page
from onnx_clip_pass.verification.report import Verification

__all__ = ["Result", "page_of", "write_html"]

Result = Plan | Verification | Inspection | ArtifactsInspection | Norms
"""The results of which there is a page."""


def write_html(result: Result, target: str | os.PathLike[str]) -> None:
    """Write a result as one page for a browser, which loads nothing else, as `--html` does.

    Args:
        result: of `plan_clips`, `verify`, `inspect_model`, `inspect_artifacts` or `watch`.
        target: where to write; a page of onnx-clip is replaced, and nothing else.

    Raises:
        OnnxClipError: there is no page of this, or it cannot be written.
    """
    write_page(target, page_of(result))


def page_of(result: Result) -> str:
    """Return the page on a result, with the nodes of a clip where its model is in a file."""
    if isinstance(result, Plan):
        return rewrite_page(_name(result.source, "the model"), None, result.report)
    if isinstance(result, Verification):
        return verification_page(
            _name(result.original, "the original model"),
            _name(result.rewritten, "the rewritten model"),
            result,
            inserted=_inserted(result.rewritten),
        )
    if isinstance(result, Inspection):
        name = _name(result.source, "the model")
        return inspection_page(name, result, inserted=_inserted(result.source))
    if isinstance(result, ArtifactsInspection):
        layout = find_layout(result.folder)
        clipped = layout.training if result.record is None else layout.optimizer
        return inspection_page(
            str(result.folder),
            result.training,
            inserted=inserted_in_file(result.folder / clipped),
            at_step=result.record,
            changed=result.changed,
        )
    if isinstance(result, Norms):
        return norms_page(result)
    raise OnnxClipError(
        f"there is a page of what plan_clips, verify, inspect_model, inspect_artifacts and watch "
        f"give, not of {shown(result)}"
    )


def _name(path: Path | None, otherwise: str) -> str:
    return otherwise if path is None else str(path)


def _inserted(path: Path | None) -> Inserted:
    return Inserted() if path is None else inserted_in_file(path)
