"""Cases that a single line of storage decides: mutants of it went unnoticed without them."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.storage import journal, locking, messages, open_model, structure
from onnx_clip_pass.storage.journal import PREFIX, Journal, folder_of
from onnx_clip_pass.storage.locking import lock
from onnx_clip_pass.storage.messages import check_messages

# -- a journal ---------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path) -> Journal:
    """A journal of a main file that was there, an old one beside it, and one that is new."""
    targets = [tmp_path / name for name in ("main", "old", "new")]
    for target in targets[:2]:
        target.write_text("before")
    made = Journal(tmp_path, targets)
    made.create()
    for entry in made.entries:
        entry.fresh.write_text("after")
    made.begin()
    return made


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_replacement_that_is_not_committed_is_undone(tmp_path: Path, begun: Journal, moved: int):
    for entry in begun.entries[1 : 1 + moved]:
        if entry.had:
            entry.target.replace(entry.old)
        entry.fresh.replace(entry.target)
    assert not begun.settle()
    assert contents(tmp_path) == {"main": "before", "old": "before"}


def test_a_replacement_whose_main_file_is_in_place_is_finished(tmp_path: Path, begun: Journal):
    for entry in reversed(begun.entries):
        if entry.had:
            entry.target.replace(entry.old)
        entry.fresh.replace(entry.target)
    assert begun.settle()
    assert contents(tmp_path) == {"main": "after", "old": "after", "new": "after"}


def test_a_new_journal_waits_for_one_who_looks_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = Journal(tmp_path, [tmp_path / "main"])
    timers: list[threading.Timer] = []

    def lock_late(descriptor: int, *, wait: bool) -> bool | None:
        other = os.open(made.path, os.O_RDWR)
        assert lock(other, wait=False)
        timers.append(threading.Timer(0.05, os.close, [other]))
        timers[0].start()
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(journal, "lock", lock_late)
    made.create()
    timers[0].join()
    third = os.open(made.path, os.O_RDWR)
    assert lock(third, wait=False) is False
    os.close(third)
    made.settle()
    assert not list(tmp_path.glob(f"{PREFIX}*"))


# -- messages, counted -------------------------------------------------------------------------


def of_nodes(count: int, *, version: int = 8, first: bytes = b"") -> bytes:
    """A model of empty nodes, which take two bytes each, behind the bytes of a first one."""
    nodes = first + b"\x0a\x00" * count
    model = onnx.ModelProto(ir_version=version).SerializeToString()
    return model + b"\x3a" + bytes([len(nodes)]) + nodes


MISREAD = struct.unpack("<f", b"\x0a\x7f\0\0")[0]
"""A number whose bytes, read as a field, would be one of 127 bytes."""


def node_with(value: float) -> bytes:
    node = helper.make_node("A", [], [], b=value).SerializeToString()
    return b"\x0a" + bytes([len(node)]) + node


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda count: of_nodes(count), 10),
        (lambda count: of_nodes(count, version=128), 10),  # whose first byte is 128
        (lambda count: of_nodes(count - 1, first=node_with(MISREAD)), 10),
    ],
    ids=["nodes", "a number of two bytes", "a float"],
)
def test_as_many_nodes_as_there_may_be_are_taken_and_one_more_is_not(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[int], bytes], most: int
):
    monkeypatch.setitem(messages._MOST, "NodeProto", most)
    check_messages(make(most), "it")
    with pytest.raises(OnnxClipError, match="it holds more than 750,000 nodes"):
        check_messages(make(most + 1), "it")


# -- what is read ------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model of four tensors of 400 bytes, one after another, none of which is large by itself."""
    graph = helper.make_graph([], "g", [], [])
    for name in "abcd":
        graph.initializer.append(helper.make_tensor(name, 1, [100], b"\0" * 400, raw=True))
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    return path


def test_what_the_system_gives_in_pieces_is_joined(small: Path, monkeypatch: pytest.MonkeyPatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda d, count, at: pread(d, min(count, 7), at))
    with open_model(small) as opened:
        assert opened.model == onnx.load(small)


def test_all_that_is_kept_of_a_model_counts_for_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two functions of 4,000 bytes."""
    model = helper.make_model(helper.make_graph([], "g", [], []))
    for name in "ab":
        model.functions.add(name=name, domain="d", doc_string="-" * 4000)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(structure, "_MAX_STRUCTURE", 9000)
    with open_model(path) as opened:
        assert opened.model == model
    monkeypatch.setattr(structure, "_MAX_STRUCTURE", 7000)
    with pytest.raises(OnnxClipError, match="without its weights the model still has more than"):
        open_model(path).__enter__()


# -- other systems -----------------------------------------------------------------------------


def test_where_users_have_no_number_journals_have_a_folder_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(os, "geteuid", raising=False)
    assert folder_of(tmp_path).name == f"{PREFIX}0.journals"


@pytest.mark.parametrize(
    ("number", "answer"), [(errno.EWOULDBLOCK, False), (errno.ENOSYS, None), (errno.ENOLCK, None)]
)
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(
    monkeypatch: pytest.MonkeyPatch, number: int, answer: bool | None
):
    def fail(descriptor: int, *, wait: bool) -> None:
        raise OSError(number, "")

    monkeypatch.setattr(locking, "_take", fail)
    assert lock(0, wait=False) is answer


def test_without_flags_that_other_systems_have_a_model_is_opened(
    small: Path, monkeypatch: pytest.MonkeyPatch
):
    for flag in ("O_BINARY", "O_NONBLOCK"):
        monkeypatch.delattr(os, flag, raising=False)
    with open_model(small) as opened:
        assert opened.model == onnx.load(small)


def test_where_text_and_bytes_differ_a_journal_is_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    binary, flags = 1 << 30, []
    plainly = os.open

    def open_(path: Path, given: int, mode: int = 0o777) -> int:
        flags.append(given & binary)
        return plainly(path, given & ~binary, mode)

    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", open_)
    made = Journal(tmp_path, [tmp_path / "main"])
    made.create()
    assert Journal(tmp_path, [], made.token).read()
    assert flags == [binary, binary]
    made.settle()
