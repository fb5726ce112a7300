"""The files of a run: norms as they come, states now and then, and going on from both."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.arguments import check_path
from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.monitoring.norms import read_norms
from onnx_clip_pass.monitoring.recording import (
    Head,
    Row,
    csv_writer,
    cut_to_steps,
    is_csv,
    lines_writer,
)
from onnx_clip_pass.monitoring.stepping import Run
from onnx_clip_pass.runtime import load_feeds
from onnx_clip_pass.storage import check_replaceable, errors_name, file_at, recover
from onnx_clip_pass.storage.reading import open_regular
from onnx_clip_pass.storage.sets import replacing

__all__ = [
    "Keeper",
    "Recorder",
    "check_names",
    "check_places",
    "left_behind",
    "recorder",
    "save_states",
    "steps_before",
]

_Path = str | os.PathLike[str]
_MARK = "onnx-clip: states after %d steps"
_MARKED = re.compile(rb"onnx-clip: states after (\d{1,18}) steps")
_LONGEST_NAME = 65_000  # an archive counts its bytes in 16 bits


def check_places(
    to: _Path | None, states: _Path | None, read: Iterable[object], *, resume: bool, force: bool
) -> None:
    """Refuse places for norms and states that cannot be written or where something else is.

    What a run that was killed has left half written beside the states is put in order first.
    Before the run: what it has learned in hours should not be lost to a name.

    Args:
        to: where norms are to be written; None if they are not.
        states: likewise, for states.
        read: what the run reads; what is no path is passed over.
        resume: both are there, and are gone on with.
        force: replace what is there.
    """
    taken = set[str | bytes]()
    for each in read:
        if isinstance(each, str | os.PathLike):
            with suppress(ValueError):  # a NUL, which whoever reads it refuses
                taken.add(os.path.realpath(each))
    for name, place in (("to", to), ("states", states)):
        if place is None:
            continue
        check_path(name, place)
        if isinstance(os.fspath(place), bytes):
            raise OnnxClipError(f"{name} must be a path of text, not {place!r}")
        target = Path(place)
        if name == "states":
            recover(target.parent)
        with errors_name(target):
            is_there = file_at(target, "states.npz" if name == "states" else "norms.jsonl")
        if os.path.realpath(target) in taken:
            raise OnnxClipError(
                f"{str(target)!r} is another file of this run, too: give {name} another name"
            )
        taken.add(os.path.realpath(target))
        if is_there and name == "states" and not resume:
            check_replaceable(
                target,
                lambda path: steps_before(path) is not None,
                force=force,
                otherwise="exists and has no states of onnx-clip",
            )


def check_names(states: Iterable[str]) -> None:
    """Refuse to keep states by names under which an archive would not give them back."""
    odd = [name for name in states if "\0" in name or len(name.encode()) > _LONGEST_NAME]
    if odd:
        raise OnnxClipError(
            f"states cannot be written (states, --states): an .npz file holds no arrays with a NUL "
            f"in their names or of more than {_LONGEST_NAME} bytes, such as "
            f"{listed([*map(repr, odd)])}"
        )


def save_states(path: Path, arrays: Mapping[str, NDArray[Any]], steps: int) -> None:
    """Write arrays by name as an .npz file, the whole of it or nothing.

    That they are those after so many steps is said in the comment of the archive, where no name of
    an array can be in its way.

    Raises:
        OnnxClipError: it cannot be written.
    """
    try:
        with (
            replacing(path) as fresh,
            zipfile.ZipFile(fresh[path], "w", allowZip64=True) as archive,
        ):
            archive.comment = (_MARK % steps).encode()
            for name, array in arrays.items():
                plain = array
                if array.dtype.name == "bfloat16":  # which NumPy would read as two bytes
                    plain = array.view(np.uint16)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, plain, allow_pickle=False)
    except (ValueError, struct.error) as error:  # of names that an archive cannot hold
        raise OnnxClipError(f"cannot write the states {str(path)!r}: {error}") from error


def steps_before(path: Path) -> int | None:
    """The number of steps after which states were written; None if they were not by `watch`."""
    with open_regular(path, "the states ") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = _MARKED.fullmatch(archive.comment)
        except (zipfile.BadZipFile, OSError, ValueError):
            return None
    return None if found is None else int(found[1])


def left_behind(
    head: Head, to: _Path | None, states: _Path | None, *, has_states: bool
) -> tuple[Mapping[str, NDArray[Any]], Sequence[Row], list[str]]:
    """The states and rows of an earlier run of the same, and what is to be known of them.

    Rows of steps whose states were not written are left out: a run that is killed leaves them.
    """
    if to is None or is_csv(to) or (states is None and has_states):
        raise OnnxClipError(
            "to resume say where the run before has left its norms (-o; in Python: to), as JSON "
            "lines, and its states, if it carries any (--states; in Python: states)"
        )
    norms = read_norms(to)
    if replace(norms.head, model=head.model) != head:
        raise OnnxClipError(
            f"{os.fspath(to)!r} has norms of other gradients, other states are carried, or a step "
            f"takes other batches: it cannot be gone on with"
        )
    if not has_states or states is None or not (count := len(norms)):
        return {}, norms.rows, []
    if not Path(states).exists():
        raise OnnxClipError(
            f"there are no states {os.fspath(states)!r}: a run that is killed before it writes any "
            f"(states_every, --states-every) leaves none; begin again (force, --force)"
        )
    steps = steps_before(Path(states))
    if steps is not None and steps > count:
        raise OnnxClipError(
            f"{os.fspath(states)!r} has the states after {steps} steps, but {os.fspath(to)!r} only "
            f"{count} steps: they are not of one run"
        )
    if steps is None or steps == count:
        return load_feeds(states), norms.rows, []
    again = f"step {steps} was" if steps == count - 1 else f"steps {steps} to {count - 1} were"
    note = (
        f"{again} run again: {os.fspath(states)!r} had the states before, as a run leaves them "
        f"that is killed"
    )
    return load_feeds(states), norms.rows[:steps], [note]


@dataclass(frozen=True)
class Recorder:
    """The file of norms, if there is one: `write` writes a row, `sync` forces all to the disk."""

    write: Callable[[Row], None]
    sync: Callable[[], None]


class Keeper:
    """Writes the states of a run that lives, and never such whose norms could be lost before."""

    def __init__(self, path: Path | None, run: Run, recorder: Recorder, every: int | None) -> None:
        self._path = path
        self._run = run
        self._recorder = recorder
        self._every = every
        self._saved = run.done

    def save_if_due(self) -> None:
        """Write the states if as many steps have been run since they were written."""
        if self._every is not None and self._run.done - self._saved >= self._every:
            self.save()

    def save(self) -> None:
        """Write the states, if any step has been run since they were written."""
        if self._path is None or self._run.done == self._saved:
            return
        if states := self._run.states():
            self._recorder.sync()
            save_states(self._path, states, self._run.done)
            self._saved = self._run.done


@contextmanager
def recorder(to: _Path | None, head: Head, done: int | None, *, force: bool) -> Iterator[Recorder]:
    """The file of norms, opened; it is closed at the end.

    Args:
        to: the file.
        head: what is measured.
        done: the number of steps in it that are gone on from; None to begin.
        force: replace it.
    """
    if to is None:
        yield Recorder(lambda row: None, lambda: None)
        return
    is_on = done is not None
    mode = "a" if is_on else ("w" if force else "x")
    try:
        if done is not None:
            cut_to_steps(Path(to), done)
        file = Path(to).open(mode, encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except FileExistsError as error:
        raise OnnxClipError(
            f"{os.fspath(to)!r} is there already; pass --force (in Python: force=True) to replace "
            f"it, or --resume (resume=True) to go on with the run that it is of"
        ) from error
    except OSError as error:
        raise OnnxClipError(f"cannot write {os.fspath(to)!r}: {error.strerror}") from error
    with file:
        write = (
            csv_writer(file, head) if is_csv(to) else lines_writer(file, None if is_on else head)
        )
        yield Recorder(write, lambda: os.fsync(file.fileno()))
