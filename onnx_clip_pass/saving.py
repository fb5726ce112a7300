"""Models written to files: the options of it, what may be replaced, what comes along."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.arguments import MOST_NORMS, check_path, model_or_path
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.graph import TensorType
from onnx_clip_pass.graph.spec import DOUBLE, FLOAT
from onnx_clip_pass.options import Option, ProgressOption, checked, described
from onnx_clip_pass.progress import WantsProgress, told
from onnx_clip_pass.record import is_clipped, states_of
from onnx_clip_pass.storage import (
    DataFile,
    ExternalDataMode,
    Structure,
    check_replaceable,
    data_files,
    errors_name,
    file_at,
    holds,
    load_model,
    write_structures,
)

__all__ = [
    "FileOptions",
    "WriteOptions",
    "Writing",
    "beside",
    "check_target",
    "files_along",
    "initial_states",
    "linked",
    "paths_of",
    "places_of",
    "write_model",
]

_Path = str | os.PathLike[str]
_Files = dict[Path, bytes]


class WriteOptions(TypedDict, total=False):
    """The options of writing files and folders."""

    external_data: Annotated[
        ExternalDataMode,
        Option(
            "copy",
            'how data files get into another folder: "copy" or "link" (a hard link).',
            "How weights in files of their own get into another folder: link makes hard links.",
        ),
    ]
    replace: Annotated[
        bool,
        Option(
            False, "allow `target` to be `source`.", "Replace MODEL itself.", spelled="--in-place"
        ),
    ]
    force: Annotated[
        bool,
        Option(
            False,
            "replace a target, or data files of other content, that onnx-clip did not write.",
            "Replace an output without a record of onnx-clip.",
        ),
    ]
    progress: ProgressOption


class FileOptions(WriteOptions, total=False):
    """The options of writing files."""

    trust_data: Annotated[
        bool,
        Option(
            False,
            "use data files, too, to which symbolic links lead out of the model's folder, and take "
            "those along that have hidden names or several names (hard links).",
            "Use weights to which links lead out of the model's folder, and take those along that "
            "have hidden names or several.",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Writing:
    """The options of writing, checked."""

    external_data: ExternalDataMode
    replace: bool
    force: bool
    progress: WantsProgress
    trust_data: bool = False

    @classmethod
    def split(cls, kind: type, options: Mapping[str, Any]) -> tuple[Writing, dict[str, Any]]:
        """Take the options of a kind out of all that are given; return the others, too."""
        own = {name: value for name, value in options.items() if name in described(kind)}
        others = {name: value for name, value in options.items() if name not in own}
        return cls(**checked(kind, own)), others

    def place(self, target: _Path) -> Path:
        """Return the path to write to: the file itself where a link to it is to be replaced."""
        found = Path(target)
        with errors_name(found):
            return found.resolve() if self.replace and found.is_symlink() else found


def paths_of(source: _Path, target: _Path, how: Writing) -> tuple[Path, Path]:
    """Both as paths, see `Writing.place`."""
    check_path("source", source)
    check_path("target", target)
    return Path(source), how.place(target)


def check_target(source: Path | None, target: Path, how: Writing) -> None:
    """Refuse a target that must not be written; no `source` where the model is in memory."""
    with errors_name(target):  # of a name that is too long
        is_there = file_at(target, "model.onnx" if source is None else source.name)
        is_source = is_there and source is not None and target.samefile(source)
    if is_source and not how.replace:
        raise OnnxClipError(
            f"the output {str(target)!r} is the model itself; pass --in-place (in Python: "
            f"replace=True) to replace it"
        )
    if is_there and not is_source:
        check_replaceable(target, partial(holds, is_clipped), force=how.force)


def places_of(files: Iterable[DataFile], target: Path) -> list[Path]:
    """The paths of external data, where it is and where it is to lie beside a target."""
    return [path for file in files for path in (file.path, target.parent / file.location)]


def files_along(structure: Structure, target: Path, how: Writing) -> list[DataFile]:
    """The external data of a model; refused if the target would take its place."""
    if not structure.may_have_external_data:
        return []
    files = data_files(structure.model, structure.source.path.parent, trust=how.trust_data)
    if any(path.resolve() == target.resolve() for path in places_of(files, target)):
        raise OnnxClipError(
            f"the output {str(target)!r} is where the model's external data lies, or is to lie; "
            f"choose another name"
        )
    return files


def linked(
    structure: Structure, target: Path, files: list[DataFile], how: Writing
) -> tuple[str, ...]:
    """Return what to know of data files that are to be, or by now are, hard links."""
    if how.external_data != "link" or _stays(structure, target):
        return ()
    places = {file: target.parent / file.location for file in files}
    links = [
        repr(file.location)
        for file, place in places.items()
        if not place.exists() or place.samefile(file.path)
    ]
    if not links:
        return ()
    names = listed(links)
    return (
        f"{names}: hard links to the data of {str(structure.source.path)!r}, so who writes into "
        f"the one changes the other, and onnx refuses to load it (ONNX Runtime does not); "
        f"--external-data copy (in Python: external_data='copy') makes copies",
    )


def initial_states(model: ModelProto | _Path) -> dict[str, NDArray[Any]]:
    """Return the values of the states of a model's clips before the first step.

    A state is an input that has no default, and an output of the same shape that is its new value.

    Args:
        model: a rewritten model, or a clip alone, or its path.

    Returns:
        An array for each such input, by its name: a history of norms that holds none yet, which is
        inf throughout. {} if no clip has a state.

    Raises:
        OnnxClipError: the file cannot be read, or the model bears a record that is none.

    Example:
        states = initial_states("model.clipped.onnx")
        for batch in batches:
            found = dict(zip(names, session.run(names, batch | states)))
            states = {name: found[f"{name}_new"] for name in states}
    """
    given = model_or_path("model", model)
    if not isinstance(given, ModelProto):
        given = load_model(given, external_data=False)
    kinds = {value.name: TensorType.of(value.type) for value in given.graph.input}
    found = {}
    for name in states_of(given):
        kind = kinds.get(name)
        sizes = [size for size in (kind and kind.shape) or () if isinstance(size, int)]
        is_vector = kind is not None and len(sizes) == 1 and kind.shape == tuple(sizes)
        if kind is None or not is_vector or kind.dtype not in (FLOAT, DOUBLE):
            raise OnnxClipError(
                f"the model says that the input {name!r} is the state of a clip, which it is not; "
                f"rewrite the original again"
            )
        if not 1 < sizes[0] <= MOST_NORMS:
            raise OnnxClipError(
                f"the model says that the input {name!r} is a history of {sizes[0]} norms; "
                f"expected 2 to {MOST_NORMS:,}"
            )
        found[name] = np.full(sizes, np.inf, kind.dtype_name)
    return found


def beside(model: ModelProto, target: Path, taken: Iterable[Path] = (), *, force: bool) -> _Files:
    """The small file that goes with a rewritten model: the first values of its states, if any.

    Refused if something else is there, such as states that a loop has saved. What is `taken`, as by
    external data, is never replaced.
    """
    states = initial_states(model)
    if not states:
        return {}
    path = target.with_name(f"{target.stem}.clip_state.npz")
    # realpath, and not resolve: a link to itself is an error of the latter
    if os.path.realpath(path) in {os.path.realpath(each) for each in taken}:
        raise OnnxClipError(
            f"the states of the clips are to lie in {str(path)!r}, where the model or its external "
            f"data lies, or is to lie; choose another name for the output"
        )
    with errors_name(path):
        if file_at(path, "model.clip_state.npz"):
            check_replaceable(
                path,
                _has_no_norms,
                force=force,
                otherwise="is to hold the first values of the clips' states, and holds others, as "
                "a loop may have saved them",
            )
    data = io.BytesIO()
    try:
        np.savez_compressed(data, **states)  # type: ignore[arg-type]
    except struct.error as error:  # of names longer than 65,535 bytes
        raise OnnxClipError(
            f"the states of the clips cannot be kept in an .npz file: {error}; use a shorter name "
            f"for the group, or shorter names of gradients"
        ) from error
    return {path: data.getvalue()}


def _has_no_norms(path: Path) -> bool:
    """Return whether a file holds histories as they are before the first step, of any clip."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return all(bool(np.all(np.isposinf(found[name]))) for name in found.files)
    except Exception:  # numpy and zipfile have many ways to refuse what is none
        return False


def write_model(
    structure: Structure,
    target: Path,
    files: list[DataFile],
    how: Writing,
    small: _Files | None = None,
) -> None:
    """Write a model, whose source is open, external data that comes along, and small files."""
    with told(how.progress) as progress:
        write_structures(
            {target: structure},
            [] if _stays(structure, target) else files,
            how=how.external_data,
            force=how.force,
            trust=how.trust_data,
            beside=small,
            progress=progress,
        )


def _stays(structure: Structure, target: Path) -> bool:
    """Return whether external data stays where it is."""
    with errors_name(target):
        return target.parent.samefile(structure.source.path.parent)
