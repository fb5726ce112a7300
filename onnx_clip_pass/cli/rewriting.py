"""The commands that write models: rewrite and strip."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clip_pass.artifacts import ClipStage, strip_artifacts
from onnx_clip_pass.cli.clipping import ClipOptions, GradientOptions, clip_options
from onnx_clip_pass.cli.finding import FindOptions
from onnx_clip_pass.cli.folders import AT, rewrite_folder
from onnx_clip_pass.cli.helping import Command
from onnx_clip_pass.cli.options import (
    OUTPUT,
    PATH,
    given_options,
    json_option,
    options_of,
    refuse,
    take_options,
)
from onnx_clip_pass.cli.pages import PageOptions
from onnx_clip_pass.cli.probing import ProbeOptions, with_evidence
from onnx_clip_pass.cli.several import Facts, each_model
from onnx_clip_pass.cli.showing import record_facts, report_facts, tell_rewrite, tell_undone
from onnx_clip_pass.cli.targets import is_folder, targets_of
from onnx_clip_pass.cli.verifying import RunOptions, slopes_option, tell_verification
from onnx_clip_pass.cli.words import doing, say, volume_options
from onnx_clip_pass.errors import OnnxClipWarning
from onnx_clip_pass.files import clip_gradients_file, strip_file
from onnx_clip_pass.rewrite import ClipOrRules, Report
from onnx_clip_pass.saving import FileOptions

if TYPE_CHECKING:
    from onnx_clip_pass.verification import Verification

__all__ = ["rewrite", "strip"]

_NO_TRUST = (
    "--trust-data is for a model file: what leads out of a folder of training artifacts is never "
    "used"
)


@click.command(cls=Command)
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    help="Where to write: a file, or a folder. [default: MODEL.clipped.onnx]",
)
@clip_options
@GradientOptions.declare
@FindOptions.declare
@AT
@options_of(FileOptions)
@click.option(
    "--verify", "verifies", is_flag=True, help="Then run both models and compare: see verify."
)
@slopes_option
@ProbeOptions.declare
@RunOptions.declare
@click.option("--dry-run", is_flag=True, help="Show what would be clipped, write nothing.")
@PageOptions.declare
@json_option
@volume_options
def rewrite(
    models: tuple[Path, ...], output: str | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Clip the gradients of each MODEL: each by its own norm, unless --clip says otherwise.

    MODEL is a file, or a folder of ONNX Runtime's training artifacts, which is rewritten as one.

    Every parameter that MODEL trains is clipped, or left out by --need-clip, --skip or a rule. If
    the gradient of another one is not known for sure, nothing is written, unless --partial accepts
    that it stays unclipped.

    \b
    Examples:
      onnx-clip rewrite model.onnx                # writes model.clipped.onnx
      onnx-clip rewrite model.onnx --dry-run      # shows what it would clip
      onnx-clip rewrite model.onnx -o out.onnx --clip-norm 0.5 --skip '*.bias'
      onnx-clip rewrite model.onnx --clip global-norm         # as PyTorch clips
      onnx-clip rewrite model.onnx --rules clip.toml --verify
      onnx-clip rewrite model.onnx --threshold-input clip_norm --emit norm
      onnx-clip rewrite model.onnx --gradient t_9 --gradient view_1
      onnx-clip rewrite model.onnx --probe --feeds inputs.npz --loss mse_loss
      onnx-clip rewrite *.onnx -o clipped/        # each under its own name
      onnx-clip rewrite artifacts/ -o clipped/    # of ONNX Runtime training
    """
    work = _Rewriting.of(models, output, dry_run=dry_run, as_json=as_json, options=options)
    targets = targets_of(models, output, "clipped", replaces=work.replaces)
    places = dict(zip(models, targets, strict=True))
    each_model(
        models,
        lambda model: work.on(model, places[model]),
        as_json=as_json,
        is_wrong=lambda facts: not facts.get("verification", {"ok": True})["ok"],
    )


@dataclass(frozen=True)
class _Rewriting:
    """The rewrite of each model; `written` are arguments for files and folders alike."""

    clip: ClipOrRules
    written: dict[str, Any]
    at: ClipStage | None
    finding: FindOptions
    probing: ProbeOptions
    run: RunOptions
    page: PageOptions
    slopes: str
    verifies: bool
    as_json: bool

    @classmethod
    def of(
        cls,
        models: Sequence[Path],
        output: str | None,
        *,
        dry_run: bool,
        as_json: bool,
        options: dict[str, Any],
    ) -> _Rewriting:
        """Take it out of the options of `rewrite`; refused if they do not go together."""
        how = take_options(FileOptions, options)
        at, slopes, verifies = (options.pop(name) for name in ("at", "slopes", "verifies"))
        probing, named = ProbeOptions.take(options), GradientOptions.take(options)
        page = PageOptions.take(options)
        is_chosen, has_folder = output is not None, any(map(is_folder, models))
        refuse(
            {
                "--in-place and --output exclude each other": is_chosen and how["replace"],
                "--verify needs both models: not with --in-place or --dry-run": verifies
                and (how["replace"] or dry_run),
                "--slopes says how to verify: add --verify": given_options("slopes")
                and not verifies,
                "--probe finds the gradients: not with --gradient or --map": probing.probes
                and named.given,
                "--at is for a folder of training artifacts: give that, not a file": at is not None
                and not has_folder,
                _NO_TRUST: how["trust_data"] and has_folder,
                "--html is for one model: name one": page.html and len(models) > 1,
            }
        )
        finding, run = FindOptions.take(options), RunOptions.take(options)
        finding.refuse_with(*["--probe"] * probing.probes, *named.given)
        clipping = ClipOptions.of(options)
        clip = clipping.clips()
        if not (probing.probes or verifies):
            run.refuse_without("--verify", "--probe")
        written = {
            "gradients": named.read(),
            "dry_run": dry_run,
            **how,
            **clipping.arguments,
        }
        return cls(clip, written, at, finding, probing, run, page, slopes, verifies, as_json)

    @property
    def replaces(self) -> bool:
        """Return whether each model itself is replaced."""
        return bool(self.written["replace"])

    def on(self, model: Path, target: Path) -> Iterator[Facts]:
        """Rewrite a model and tell of it."""
        self.page.check(model, target)
        return (self._folder if is_folder(model) else self._file)(model, target)

    def _folder(self, model: Path, target: Path) -> Iterator[Facts]:
        written = {name: value for name, value in self.written.items() if name != "trust_data"}
        yield rewrite_folder(
            model, target, self.clip, at=self.at, probes=self.probing.probes,
            verifies=self.verifies, as_json=self.as_json, page=self.page, **written,
        )  # fmt: skip

    def _file(self, model: Path, target: Path) -> Iterator[Facts]:
        if self.verifies:
            self.run.preflight(model)  # what cannot be run is not written either
        options = dict(self.written)
        probed = self.probing.gradients(model, self.run) if self.probing.probes else None
        if probed is not None:
            options["gradients"] = {each.name: each.parameter.name for each in probed}
        with doing(f"finding the gradients of {model.name}") as progress:
            options |= {"progress": progress, **self.finding.arguments(model, progress)}
            report = clip_gradients_file(model, target, self.clip, **options)
        if probed is not None:
            report = with_evidence(report, probed)
        written = None if options["dry_run"] else target
        tell_rewrite(model, written, report, as_json=self.as_json)
        yield {"output": None if written is None else str(written)} | report_facts(report)
        found = None
        if self.verifies:
            found = self.run.verify(model, target, slopes=self.slopes, loss=self.probing.loss)
            told = tell_verification(found, as_json=self.as_json, is_result=False)
            yield {"verification": told}
        self.page.write(lambda: _page(model, written, report, found))


def _page(model: Path, target: Path | None, report: Report, verified: Verification | None) -> str:
    from onnx_clip_pass.reports import rewrite_page

    written = None if target is None else str(target)
    return rewrite_page(str(model), written, report, verified=verified)


@click.command(cls=Command)
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    help="Where to write: a file, or a folder. [default: MODEL.stripped.onnx]",
)
@options_of(FileOptions)
@click.option("--dry-run", is_flag=True, help="Show what would be undone, write nothing.")
@json_option
@volume_options
def strip(
    models: tuple[Path, ...], output: str | None, dry_run: bool, as_json: bool, **how: Any
) -> None:
    """Undo a rewrite: write each MODEL, a file or a folder, as it was before it was clipped.

    \b
    Examples:
      onnx-clip strip model.clipped.onnx          # writes ….stripped.onnx
      onnx-clip strip model.clipped.onnx -o model.onnx
      onnx-clip strip *.clipped.onnx -o plain/ --dry-run
      onnx-clip strip clipped/ --in-place         # of ONNX Runtime training
    """
    refuse(
        {
            "--in-place and --output exclude each other": how["replace"] and output is not None,
            _NO_TRUST: how["trust_data"] and any(map(is_folder, models)),
        }
    )
    targets = targets_of(models, output, "stripped", replaces=how["replace"])
    places = dict(zip(models, targets, strict=True))

    def on(model: Path) -> Iterator[Facts]:
        target, undo = places[model], strip_artifacts if is_folder(model) else strip_file
        options = {k: v for k, v in how.items() if k != "trust_data" or not is_folder(model)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OnnxClipWarning)
            with doing(f"reading {model.name}") as progress:
                records = undo(model, target, dry_run=dry_run, progress=progress, **options)
        for each in caught:
            say(f"note: {each.message}")
        tell_undone(model, None if dry_run else target, records, as_json=as_json)
        yield {
            "output": None if dry_run else str(target),
            "undone": [record_facts(record) for record in records],
        }

    each_model(models, on, as_json=as_json)
