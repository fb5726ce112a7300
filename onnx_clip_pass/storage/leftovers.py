"""The leftovers of earlier runs: found by their journals, settled, or reported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from onnx_clip_pass.errors import OnnxClipError, listed
from onnx_clip_pass.storage.journal import Journal, journals_in

__all__ = ["check_alone", "recover", "unfinished"]


def recover(*folders: Path) -> None:
    """Settle what runs that have died left in folders, one after another.

    Raises:
        OnnxClipError: something cannot be put in order.
    """
    for journal in (journal for folder in folders for journal in _ours(folder)):
        if not journal.lock():  # its run lives
            continue
        try:
            journal.settle()
        except OSError as error:
            raise OnnxClipError(
                f"what a run of onnx-clip left in {str(journal.root)!r} when it was killed cannot "
                f"be put in order ({error.strerror}: {error.filename!r}); try again"
            ) from error


def check_alone(mine: Journal) -> None:
    """Refuse to go on beside another run that replaces the same files; `mine` has begun.

    Of two runs that come here at once, each has begun before it looks: at least one sees the other.
    """
    for other in _ours(mine.root):
        if other.token != mine.token and other.is_begun and mine.overlaps(other):
            raise OnnxClipError(
                f"another run of onnx-clip is replacing {str(mine.entries[0].target)!r} at this "
                f"moment, as {str(other.path)!r} says; nothing there has changed by this one; try "
                f"again when that is done"
            )


def unfinished(path: Path) -> str:
    """The reason why something is not there that a run of onnx-clip was replacing; "" if none was.

    Args:
        path: a file or folder that is missing, or a folder from which a model is.
    """
    names = {path.name}
    roots = {path.parent: None, path: None}
    with suppress(OSError, RuntimeError):
        names.add(path.resolve().name)
        roots[path.resolve().parent] = None
    for journal in (each for root in roots for each in _ours(root) if each.entries):
        main, *others = journal.entries
        if os.path.lexists(main.target) or not os.path.lexists(main.old):
            continue
        if journal.root == path or main.target.name in names:
            beside = [repr(entry.target.name) for entry in others]
            return (
                f"a run of onnx-clip has moved {str(main.target)!r} aside to replace it"
                + (f" together with {listed(beside)}" if beside else "")
                + " and has not finished; if it was killed, run that command again, which first "
                "puts back what was there"
            )
    return ""


def _ours(folder: Path) -> Iterator[Journal]:
    """The journals of this user's runs into a folder, each open for as long as it is looked at.

    Raises:
        OnnxClipError: one cannot be read, so that nothing tells what is to be undone.
    """
    for journal in journals_in(folder):
        try:
            if _is_ours(journal):
                yield journal
        finally:
            journal.close()


def _is_ours(journal: Journal) -> bool:
    try:
        return journal.read()
    except (FileNotFoundError, PermissionError):  # gone meanwhile, or somebody else's
        return False
    except OSError as error:
        raise OnnxClipError(
            f"cannot read {str(journal.path)!r}, where a run of onnx-clip notes what it does: "
            f"{error.strerror}; nothing there has changed by this one"
        ) from error
