"""What only some systems have has another way that gives the same, selected here on any system."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from bytewise import make_step, rewrite

from onnx_clip_pass.storage import Source, locking, moving, sets
from onnx_clip_pass.storage.moving import new_file


@pytest.fixture
def bare(monkeypatch) -> None:
    """A system that can but open, read and write files."""
    for name in ("copy_file_range", "pread", "sendfile"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)


def test_a_model_and_its_data_are_written_the_same(tmp_path: Path, request):
    source, target = tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    onnx.save(make_step(), source, save_as_external_data=True, location="W.bin", size_threshold=0)
    rewrite(source, target)
    expected = [path.read_bytes() for path in (target, target.with_name("W.bin"))]
    request.getfixturevalue("bare")
    rewrite(source, target)
    assert [path.read_bytes() for path in (target, target.with_name("W.bin"))] == expected


def test_parts_of_a_file_are_read_and_copied_in_any_order(tmp_path: Path, bare):
    path = tmp_path / "digits"
    path.write_bytes(b"0123456789")
    with Source(path) as source, new_file(tmp_path / "new", 0o666) as out:
        assert source.at(6, 9) == b"678"
        assert source.at(1, 3) == b"12"
        assert moving.copy_range(source.descriptor, out, 4, 6) == 2
        assert moving.copy_range(source.descriptor, out, 0, 3) == 3
        assert moving.copy_range(source.descriptor, out, 8, 20) == 2  # it ends before
    assert (tmp_path / "new").read_bytes() == b"4501289"


@pytest.mark.parametrize("lacks", ["module", "file system"])
def test_blocks_are_not_shared_where_that_cannot_be(tmp_path: Path, monkeypatch, lacks: str):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    fcntl = None if lacks == "module" else SimpleNamespace(ioctl=refuse)
    monkeypatch.setitem(sys.modules, "fcntl", fcntl)
    with new_file(tmp_path / "new", 0o666) as descriptor:
        assert moving.share_blocks(descriptor, descriptor) is False


def renaming(code: int) -> SimpleNamespace:
    """A C library whose renameat2 fails."""
    return SimpleNamespace(renameat2=lambda *_: ctypes.set_errno(code) or -1)


@pytest.mark.parametrize(
    ("platform", "library"),
    [
        pytest.param("darwin", renaming(0), id="another system"),
        pytest.param("linux", SimpleNamespace(), id="a C library without the call"),
        pytest.param("linux", renaming(errno.ENOSYS), id="an old kernel"),
        pytest.param("linux", renaming(errno.EINVAL), id="a file system without it"),
    ],
)
def test_folders_that_cannot_change_places_stay_where_they_are(
    tmp_path: Path, monkeypatch, platform: str, library: SimpleNamespace
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    assert sets._exchange(tmp_path / "one", tmp_path / "other") is False


def test_another_error_of_an_exchange_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: renaming(errno.EACCES))
    with pytest.raises(PermissionError, match="other"):
        sets._exchange(tmp_path / "one", tmp_path / "other")


def test_a_folder_is_not_opened_where_that_cannot_be(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(moving, "os", SimpleNamespace(name="nt"))  # which cannot open anything
    moving.sync(tmp_path)


@pytest.fixture
def on_windows(monkeypatch) -> tuple[ModuleType, list[tuple[int, int]]]:
    """The module of locks as Windows gets it, and where in a file it locks, and how."""
    calls: list[tuple[int, int]] = []

    def take(descriptor: int, mode: int, count: int) -> None:
        assert count == 1
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        if (at, mode) in calls:
            raise OSError(errno.EACCES, "Permission denied")
        calls.append((at, mode))

    msvcrt = SimpleNamespace(LK_LOCK=1, LK_NBLCK=2, locking=take)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("locking_on_windows", locking.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, calls


@pytest.mark.parametrize(("wait", "mode"), [(True, 1), (False, 2)])
def test_windows_locks_a_byte_behind_all_content(tmp_path: Path, on_windows, wait, mode):
    module, calls = on_windows
    with new_file(tmp_path / "journal", 0o666) as descriptor:
        os.write(descriptor, b"content")
        assert module.lock(descriptor, wait=wait) is True
        assert calls == [(1 << 30, mode)]
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == len(b"content")
        assert module.lock(descriptor, wait=wait) is False  # held
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == len(b"content")
