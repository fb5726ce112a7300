"""The commands on a folder of ONNX Runtime's training artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click

from onnx_clip_pass.artifacts import (
    ClipStage,
    clip_artifacts,
    inspect_artifacts,
)
from onnx_clip_pass.artifacts.layout import find_layout
from onnx_clip_pass.cli.pages import PageOptions
from onnx_clip_pass.cli.several import Facts
from onnx_clip_pass.cli.showing import (
    gradient_facts,
    record_facts,
    report_facts,
    show_view,
    tell_rewrite,
)
from onnx_clip_pass.cli.words import doing, is_quiet, say
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.record import is_clipped
from onnx_clip_pass.rewrite import ClipOrRules, Report
from onnx_clip_pass.storage import holds

__all__ = [
    "AT",
    "inspect_folder",
    "refuse_at_step",
    "refuse_to_verify",
    "rewrite_folder",
]

AT = click.option(
    "--at",
    type=click.Choice(["step", "micro-batch"]),
    help="For a folder of training artifacts: clip once all micro-batches of a step are added up, "
    "as PyTorch and Paddle do, or each before it is added.  [default: step]",
)

_WHEN = {
    "step": "when the micro-batches of a step are added up, as in PyTorch and Paddle (--at step; "
    "the other place is --at micro-batch)",
    "micro-batch": "of each micro-batch before it is added up (--at micro-batch; if a step has "
    "one, the same as --at step)",
}


def rewrite_folder(
    folder: Path,
    target: Path,
    clip: ClipOrRules,
    *,
    at: ClipStage | None,
    probes: bool,
    verifies: bool,
    as_json: bool,
    page: PageOptions,
    **options: Any,
) -> dict[str, Any]:
    """Rewrite a folder and tell of it.

    Args:
        folder: of artifacts.
        target: where to write.
        clip: what to do, or rules.
        at: where, as far as the user says it.
        probes: whether the user wants gradients to be probed for.
        verifies: whether the user wants the rewrite to be verified.
        as_json: whether the report goes to standard output as JSON, which the caller prints.
        page: the page that is wanted.
        options: of `clip_artifacts`.

    Returns:
        The report in the types of JSON.
    """
    if probes:
        raise OnnxClipError(
            f"{str(folder)!r} is a folder of training artifacts, whose gradients are known by "
            f"their accumulators: leave --probe out"
        )
    if verifies:
        refuse_to_verify(folder, target)
    stage: ClipStage = at or "step"
    with doing(f"finding the gradients of {folder.name}") as progress:
        report = clip_artifacts(folder, target, clip, at=stage, progress=progress, **options)
    is_written = not options["dry_run"]
    tell_rewrite(
        folder,
        target if is_written else None,
        report,
        as_json=as_json,
        what="folder",
        count="all gradients" if stage == "step" else "",
        when=f" {_WHEN[stage]}",
    )
    output = str(target) if is_written else None
    page.write(lambda: _page(folder, output, report, stage))
    return {"output": output, "at": stage} | report_facts(report)


def _page(folder: Path, output: str | None, report: Report, stage: ClipStage) -> str:
    from onnx_clip_pass.reports import rewrite_page

    return rewrite_page(str(folder), output, report, when=f", {_WHEN[stage]}")


_AT_STEP = (
    "the optimizer model, which takes a sequence that only training makes; there is nothing to run "
    "it on"
)


def refuse_to_verify(folder: Path, rewritten: Path) -> NoReturn:
    """Say what of a folder can be verified, and how.

    Raises:
        OnnxClipError: always.
    """
    name = find_layout(folder).training
    raise OnnxClipError(
        f"{str(folder)!r} is a folder: only its training model can be verified, rewritten with "
        f"--at micro-batch, in an environment with onnxruntime-training: onnx-clip verify "
        f"{folder / name} {rewritten / name}. At the step the clip is in {_AT_STEP}"
    )


def refuse_at_step(rewritten: Path) -> None:
    """Refuse to verify a model of a folder that is clipped at the step.

    Raises:
        OnnxClipError: its clip is in the optimizer model.
    """
    try:
        layout = find_layout(rewritten.parent)
    except OnnxClipError:
        return
    places = [layout.folder / name for name in (layout.training, layout.optimizer) if name]
    if any(path.name == rewritten.name for path in places) and layout.optimizer:
        is_clipped_before, is_clipped_at_step = (holds(is_clipped, path) for path in places)
        if is_clipped_at_step and not is_clipped_before:
            raise OnnxClipError(
                f"to verify a clip, rewrite the folder with --at micro-batch: that of "
                f"{str(layout.folder)!r} is at the step, in {_AT_STEP}"
            )


def inspect_folder(folder: Path, *, page: PageOptions, as_json: bool) -> Facts:
    """Show a folder's gradients, its optimizer, and what is clipped already; return that."""
    with doing(f"finding the gradients of {folder.name}"):
        found = inspect_artifacts(folder)
    training, step = found.training, found.record
    changed = list(filter(None, (training.changed, found.changed)))
    for reason in changed:
        say(f"changed since: {folder}: {reason}", is_result=not as_json)
    if not as_json and not is_quiet():
        show_view(found.view())
    page.write_on(found)
    return {
        "folder": str(folder),
        "gradients": [gradient_facts(gradient) for gradient in training.gradients],
        "reason": "\n".join(changed) or training.reason or None,
        "changed": bool(changed),
        "optimizer": found.optimizer or None,
        "micro-batch": record_facts(training.record),
        "step": record_facts(step),
    }
