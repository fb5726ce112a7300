"""The places to write to, as `-o` and `--in-place` say it, or beside the models."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import click

from onnx_clip_pass.errors import OnnxClipError

__all__ = ["is_folder", "target_of", "targets_of"]

_DEVICES = re.compile(r"/dev(/fd)?|/proc(/.*)?")
"""Folders of devices and streams; /dev/shm is none."""


def is_folder(path: str | Path) -> bool:
    """Return whether it is a folder; a name that no file can have is none."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long


def targets_of(
    models: Sequence[Path], output: str | None, word: str, *, replaces: bool
) -> list[Path]:
    """The path to write each model to.

    Args:
        models: files, or folders of training artifacts.
        output: what `-o` says: a file, or a folder for all of them, in which they keep their names.
        word: what stands in the name of an output beside its model: model.WORD.onnx.
        replaces: whether each model itself is replaced.

    Raises:
        OnnxClipError: `output` cannot be written, or is no folder and the models are several.
        click.UsageError: two models would be written to one place, of which the last would win.
    """
    if replaces:
        _refuse_same(models, models)
        return list(models)
    if output is not None and models[1:] and not is_folder(output):
        raise OnnxClipError(
            f"several models are written into a folder, and there is no folder {output!r}: make it "
            f"first, or leave --output out, and each is written beside itself"
        )
    targets = []
    for model in models:
        stage = model if model.name not in ("", "..") else model.resolve()
        suffix = "" if is_folder(model) else ".onnx"
        beside = stage.with_name(f"{stage.name.removesuffix(suffix)}.{word}{suffix}")
        if output is not None and models[1:]:
            targets.append(target_of(os.path.join(output, stage.name), model, beside))  # noqa: PTH118
        else:
            targets.append(target_of(output, model, beside))
    _refuse_same(models, targets)
    return targets


def target_of(output: str | None, model: Path, beside: Path, name: str | None = None) -> Path:
    """The path to write one model to.

    Args:
        output: what `-o` says; a folder is one to write into, if the model is a file.
        model: what is read.
        beside: where to write if `output` does not say.
        name: that of the file in a folder, if not that of the model.

    Raises:
        OnnxClipError: there is no such folder, or it is one of devices.
    """
    target = beside if output is None else Path(output)
    if output is not None and os.path.exists(model) and not is_folder(model):  # noqa: PTH110
        if is_folder(output):
            target = Path(output) / (name or model.name)
        elif output.endswith(("/", os.sep)):  # which a Path forgets
            raise OnnxClipError(f"there is no folder {output!r} to write into: make it first")
    parent = os.path.realpath(target.parent)
    if _DEVICES.fullmatch(parent):
        raise OnnxClipError(
            f"cannot write {str(target)!r}: {parent!r} holds devices, and a model is written to a "
            f"file, which is there whole or not at all; name one with --output"
        )
    return target


def _refuse_same(models: Sequence[Path], targets: Sequence[Path]) -> None:
    taken: dict[str, Path] = {}
    for model, target in zip(models, targets, strict=True):
        place = os.path.realpath(target)
        if place in taken:
            is_one = os.path.realpath(model) == os.path.realpath(taken[place])
            way_out = "name it once" if is_one else "give one of them alone, with --output"
            raise click.UsageError(
                f"{str(taken[place])!r} and {str(model)!r} would both be written to "
                f"{str(target)!r}: {way_out}"
            )
        taken[place] = model
