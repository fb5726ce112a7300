"""Questions about gradients that a run of the model decides: here, or in a process of its own.

`decider` runs it here, as Python asks for. `Apart` is what the command line does unasked: if ONNX
Runtime is there and the weights are not large, another process runs the model, for a limited time.
This module, run as a program, is that process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_clip_pass.arguments import check_flags
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.progress import (
    Progress,
    TellProgress,
    WantsProgress,
    check_progress,
    told,
)
from onnx_clip_pass.rewrite import Decide, Verdict
from onnx_clip_pass.storage import data_files, load_model

__all__ = ["Apart", "decider"]

_MOST_BYTES = 256 << 20
_MOST_SECONDS = 20
_RUNNING = Progress("running the model: the slopes of its loss decide")


def decider(
    probe: bool | Decide, path: Path | None = None, progress: WantsProgress = None
) -> Decide | None:
    """Return what decides questions as `probe` has it; None if nothing is to be run.

    Args:
        probe: whether the model may be run, or what decides instead.
        path: the file of the model, if the model in memory has no weights.
        progress: of the run.
    """
    check_progress(progress)
    if callable(probe):
        return probe
    check_flags(probe=probe)
    return _Here(path, progress) if probe else None


@dataclass(frozen=True, slots=True)
class _Here:
    """Runs the model in this process."""

    path: Path | None
    progress: WantsProgress

    def __call__(
        self, model: ModelProto, questions: Mapping[str, Sequence[str]], loss: str | None
    ) -> Verdict:
        source = model if self.path is None else self.path
        with told(self.progress) as progress:
            progress(_RUNNING)
            if questions:
                return _decide(source, questions, loss)
            return _search(source, loss, progress)


@dataclass(frozen=True, slots=True)
class Apart:
    """Runs a model file in a process of its own, if it may be run unasked."""

    path: Path
    progress: WantsProgress = None

    def __call__(
        self, model: ModelProto, questions: Mapping[str, Sequence[str]], loss: str | None
    ) -> Verdict:
        """Decide questions; no graph is searched unasked.

        Args:
            model: the structure of the file, without its weights.
            questions: candidates in graph order by parameter.
            loss: the output whose slopes decide; by default what alone can be the loss.
        """
        if not questions:
            return Verdict({}, {})
        if importlib.util.find_spec("onnxruntime") is None:
            return _nothing(questions, "that needs ONNX Runtime, which is not installed")
        size = self.path.stat().st_size
        size += sum(file.size for file in data_files(model, self.path.parent, trust=True))
        if size >= _MOST_BYTES:
            return _nothing(
                questions,
                f"the model has {size / 1e6:,.0f} MB, too many to run it unasked; --probe does",
            )
        with told(self.progress) as progress:
            progress(_RUNNING)
            return self._run(questions, loss)

    def _run(self, questions: Mapping[str, Sequence[str]], loss: str | None) -> Verdict:
        wish = json.dumps({"model": str(self.path), "questions": questions, "loss": loss})
        package = str(Path(__file__).resolve().parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__],
                input=wish,
                capture_output=True,
                encoding="utf-8",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"},
                timeout=_MOST_SECONDS,
                check=False,
            )
            verdict = json.loads(done.stdout)
            return Verdict(verdict["gradients"], verdict["reasons"])
        except subprocess.TimeoutExpired:
            why = f"the model took longer than the {_MOST_SECONDS} s for which it is run unasked"
            return _nothing(questions, f"{why}; --probe takes the time that it needs")
        except (OSError, ValueError, KeyError, TypeError):
            return _nothing(questions, "the process that ran the model has failed")


def _nothing(questions: Mapping[str, Sequence[str]], reason: str) -> Verdict:
    return Verdict({}, dict.fromkeys(questions, reason))


def _decide(
    model: ModelProto | Path, questions: Mapping[str, Sequence[str]], loss: str | None
) -> Verdict:
    """Run a model; what stands in the way is the reason."""
    try:
        from onnx_clip_pass.probe.deciding import decide

        found = decide(_loaded(model), questions, loss=loss)
    except OnnxClipError as error:
        return _nothing(questions, str(error))
    return Verdict(
        {name: each.gradient for name, each in found.items() if each.gradient is not None},
        {name: each.reason for name, each in found.items() if each.gradient is None},
    )


def _search(model: ModelProto | Path, loss: str | None, progress: TellProgress) -> Verdict:
    """Run a model of whose gradients the graph tells nothing, and look among its outputs."""
    from onnx_clip_pass.probe import probe

    try:
        found = probe(_loaded(model), loss=loss, progress=progress)
    except OnnxClipError as error:
        return Verdict({}, {"the model as a whole": str(error)})
    return Verdict(
        {each.parameter.name: each.name for each in found.gradients},
        {each.parameter: each.reason for each in found.undecided if each.is_asked},
    )


def _loaded(model: ModelProto | Path) -> ModelProto:
    return model if isinstance(model, ModelProto) else load_model(model)


def _main() -> None:
    """Decide what standard input asks for, and write the verdict to standard output."""
    wish: dict[str, Any] = json.load(sys.stdin)
    verdict = _decide(Path(wish["model"]), wish["questions"], wish["loss"])
    print(json.dumps(verdict._asdict()))


if __name__ == "__main__":
    _main()
