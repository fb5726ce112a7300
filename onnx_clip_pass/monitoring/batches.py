"""Batches that a step is run over: files, folders, patterns of them, or arrays of the caller's."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.runtime import load_feeds
from onnx_clip_pass.storage.reading import open_regular

__all__ = ["Batch", "Batches", "batches_of"]

_Path = str | os.PathLike[str]
Feeds = _Path | Mapping[str, Any] | Iterable[Any]
"""A path, a pattern, one batch, or any iterable of batches or paths."""


class Batch(NamedTuple):
    """Arrays by input name, and where they come from, for messages."""

    where: str
    arrays: Mapping[str, NDArray[Any]]


class Batches:
    """Batches in order, again from the first where there are more steps than batches.

    `count` is how many there are; None where that shows only as they come.
    """

    def __init__(self, source: Iterable[Any], count: int | None) -> None:
        self.count = count
        self._source = source

    def __iter__(self) -> Iterator[Batch]:
        for turn in count():
            number = 0
            for each in self._source:
                yield _batch(each, number)
                number += 1
            is_used_up = turn > 0 and number == 0
            if number == 0 and not is_used_up:
                raise OnnxClipError("expected batches to run the step over, but there is none")
            if is_used_up or iter(self._source) is self._source:
                return  # a generator, which gives nothing twice


def batches_of(feeds: Feeds) -> Batches:
    """The batches of whatever a caller names.

    Args:
        feeds: an .npz file, which is one batch, arrays by input name; a folder of such files, in
            the order of their names; a folder of .npy files, which are the inputs of one batch; a
            pattern for files (`batches/*.npz`); a mapping of names to arrays; or any iterable of
            these files or mappings.

    Raises:
        OnnxClipError: there is no such file, or nothing in the folder.
    """
    if isinstance(feeds, Mapping):
        return Batches([feeds], 1)
    if isinstance(feeds, str | os.PathLike):
        found = _files(os.fspath(feeds))
        return Batches(found, len(found))
    if not isinstance(feeds, Iterable):
        raise OnnxClipError(
            f"feeds must be a path, a pattern, a mapping of input names to arrays or an iterable "
            f"of these, not {shown(feeds)}"
        )
    return Batches(feeds, len(feeds) if isinstance(feeds, Sized) else None)


def _files(path: str) -> list[Any]:
    named = Path(path)
    if named.is_dir():
        found = sorted(each for each in named.iterdir() if each.suffix in (".npz", ".npy"))
        kinds = {each.suffix for each in found}
        if kinds == {".npy"}:
            return [Batch(path, {each.stem: _array(each) for each in found})]
        if kinds == {".npz"}:
            return list(found)
        what = "both .npz and .npy files" if kinds else "neither .npz nor .npy files"
        raise OnnxClipError(
            f"expected a folder of .npz files, each a batch, or of .npy files, each an input, but "
            f"{path!r} has {what}"
        )
    if named.exists():
        return [named]
    found = [Path(each) for each in sorted(glob.glob(path))]  # noqa: PTH207 - relative or not
    if not found:
        raise OnnxClipError(f"no batches: there is no file {path!r}, and none that this matches")
    return list(found)


def _batch(each: Any, number: int) -> Batch:
    if isinstance(each, Batch):
        return each
    if isinstance(each, str | os.PathLike):
        return Batch(os.fspath(each), load_feeds(each))
    if isinstance(each, Mapping):
        return Batch(f"batch {number}", each)
    raise OnnxClipError(
        f"batch {number}: expected a mapping of input names to arrays or the path of an .npz "
        f"file, not {shown(each)}"
    )


def _array(path: Path) -> NDArray[Any]:
    with open_regular(path, "the feeds ") as file:
        try:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except (ValueError, OSError, EOFError) as error:
            raise OnnxClipError(f"cannot read the feeds {str(path)!r}: {error}") from error
