"""The files in a folder of training artifacts, and whether they can be brought along.

`onnxruntime.training.artifacts.generate_artifacts(…, prefix=p)` writes `<p>training_model.onnx`,
`<p>eval_model.onnx`, `<p>checkpoint` and, if it is given an optimizer, `<p>optimizer_model.onnx`;
on request `<p>nominal_checkpoint` and each model in ORT format too. Whatever else lies in the
folder belongs to it: external data, tokenizers, a README.

A folder is untrusted input: what leads out of it by a symbolic link is refused.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.gradients import accumulator
from onnx_clip_pass.storage import DataFile, unfinished
from onnx_clip_pass.storage.journal import PREFIX

__all__ = ["Layout", "check_training_model", "find_layout"]

_TRAINING, _OPTIMIZER, _EVAL = "training_model.onnx", "optimizer_model.onnx", "eval_model.onnx"
_CHECKPOINTS = ("checkpoint", "nominal_checkpoint")
_RESET = "lazy_reset_grad"


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder of artifacts: names of the models in it, and all that it holds.

    `optimizer` is "" where there is none. `files` are all regular files by their path relative to
    the folder, `folders` the folders in it.
    """

    folder: Path
    prefix: str
    training: str
    optimizer: str
    files: dict[str, DataFile]
    folders: tuple[str, ...]

    def shown(self, name: str) -> str:
        """A file of the folder as errors name it."""
        return repr(str(self.folder / name))

    def in_ort_format(self, name: str) -> str:
        """The same model in ORT format, which the runtime may load instead; "" if not there."""
        converted = name.removesuffix(".onnx") + ".ort"
        return converted if converted in self.files else ""


def find_layout(folder: Path) -> Layout:
    """Look at a folder; no file is opened.

    Raises:
        OnnxClipError: it is no folder of artifacts, its checkpoint is missing, or something in it
            cannot be copied along.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
        training = [name for name in names if name.endswith(_TRAINING)]
        reason = "" if training else unfinished(folder)
        if reason:
            raise OnnxClipError(f"cannot read {str(folder)!r}: {reason}")
        _check_one(folder, training, names)  # before a whole tree is walked in vain
        files, folders, faults = _walk(folder)
    except OSError as error:
        raise OnnxClipError(f"cannot read {str(folder)!r}: {error.strerror}") from error
    prefix = training[0].removesuffix(_TRAINING)
    checkpoints = [prefix + name for name in _CHECKPOINTS]
    if not any(name in files or name in folders for name in checkpoints):
        faults.append(
            f"the checkpoint is missing: expected {checkpoints[0]!r} beside {training[0]!r}, found "
            f"{_some(names)}; put it there, for the training runtime starts from it"
        )
    if faults:
        raise OnnxClipError(f"{str(folder)!r} cannot be taken as training artifacts:", faults)
    optimizer = prefix + _OPTIMIZER
    return Layout(
        folder, prefix, training[0], optimizer if optimizer in files else "", files, tuple(folders)
    )


def _check_one(folder: Path, training: list[str], names: list[str]) -> None:
    if not training:
        raise OnnxClipError(
            f"{str(folder)!r} is a folder, but not one of training artifacts: expected a file "
            f"{_TRAINING}, any prefix before it, as generate_artifacts of onnxruntime-training "
            f"writes it; found {_some(names)}; give the folder that it wrote to, or a model file"
        )
    if len(training) > 1:
        raise OnnxClipError(
            f"{str(folder)!r} holds several sets of training artifacts: {_some(training)}; give "
            f"each a folder of its own"
        )


def check_training_model(model: ModelProto, name: str) -> None:
    """Refuse a training model that is not made as the known versions make it.

    Args:
        model: the training model, not clipped.
        name: what to call it in errors.

    Raises:
        OnnxClipError: it has no accumulators, or not the input that resets them.
    """
    inputs = [value.name for value in model.graph.input]
    if _RESET in inputs and any(node.op_type in accumulator.OPS for node in model.graph.node):
        return
    raise OnnxClipError(
        f"{name} is of another version: onnxruntime-training 1.19 gives a training model the input "
        f"{_RESET!r} and a buffer and an accumulator (InPlaceAccumulatorV2) for each gradient; the "
        f"inputs here are {_some(inputs)}; make the artifacts again with that version, or rewrite "
        f"the file itself as an ordinary model"
    )


def _walk(folder: Path) -> tuple[dict[str, DataFile], list[str], list[str]]:
    """The regular files, the folders, and what is neither or leads out."""
    files: dict[str, DataFile] = {}
    folders: list[str] = []
    faults: list[str] = []
    root = folder.resolve()
    todo = [folder]
    for current in todo:  # grows while it is read
        for entry in sorted(os.scandir(current), key=lambda entry: entry.name):
            path = Path(entry.path)
            name = path.relative_to(folder).as_posix()
            if entry.name.startswith(PREFIX):  # of a run that lives or was killed
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
                todo.append(path)
                continue
            reason = _why_not(path, root)
            if reason:
                faults.append(f"{name!r} {reason}")
            else:
                files[name] = DataFile(name, path, path.stat().st_size)
    return files, folders, faults


def _why_not(path: Path, root: Path) -> str:
    """Return why an entry cannot be copied along; "" if it can."""
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root):
            return (
                "is a symbolic link that leads out of the folder; put the file itself in its place"
            )
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no regular file; move it away"
    except (OSError, RuntimeError):  # a link to nothing, or a loop of them
        return "is a symbolic link that leads nowhere; remove it"
    return ""


def _some(names: list[str]) -> str:
    return listed([repr(name) for name in names])
