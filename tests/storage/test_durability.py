"""What is forced to disk, and when: new content before it takes a place, folders after that."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from onnx_clip_pass.storage import sets
from onnx_clip_pass.storage.journal import PREFIX
from onnx_clip_pass.storage.sets import replacing

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="a folder cannot be opened there, so not forced to disk either"
)

BEGUN = ["sync journals/one", "sync journals", "sync ."]


class Disk:
    """Notes what is forced to disk and what is moved in a folder, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._folder = folder
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._moving(getattr(os, name)))
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._syncing)

    def _moving(self, move):
        def noted(source, target):
            self.calls.append(f"move {self._named(source)} to {self._named(target)}")
            move(source, target)

        return noted

    def _syncing(self, descriptor: int) -> None:
        one = os.fstat(descriptor)
        paths = [self._folder, *self._folder.rglob("*")]
        (path,) = [path for path in paths if os.path.samestat(path.lstat(), one)]
        self.calls.append(f"sync {self._named(path)}")
        self._sync(descriptor)

    def _named(self, path: Path) -> str:
        """A path without the token that is drawn anew for each run."""
        name = Path(path).relative_to(self._folder).as_posix()
        name = re.sub(r"journals/\w+", "journals/one", name)
        return re.sub(rf"{re.escape(PREFIX)}(\w+\.)?(?=\d|journals)", "", name)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def test_what_replaces_nothing_is_not_forced_to_disk(tmp_path: Path, disk: Disk):
    with replacing(tmp_path / "m.onnx") as fresh:
        fresh[tmp_path / "m.onnx"].write_bytes(b"new")
    assert disk.calls == ["move 0.new to m.onnx"]


def test_a_file_is_on_disk_before_it_replaces_another_and_its_name_after_that(
    tmp_path: Path, disk: Disk
):
    (tmp_path / "m.onnx").write_bytes(b"old")
    with replacing(tmp_path / "m.onnx") as fresh:
        fresh[tmp_path / "m.onnx"].write_bytes(b"new")
    assert disk.calls == ["sync 0.new", "move 0.new to m.onnx", "sync ."]


def test_of_several_files_each_state_is_on_disk_before_the_next(tmp_path: Path, disk: Disk):
    """Journal, then the main file aside, then the others, then the main one."""
    main, data = tmp_path / "m.onnx", tmp_path / "m.data"
    for path in (main, data):
        path.write_bytes(b"old")
    with replacing(main, [data]) as fresh:
        for path in fresh.values():
            path.write_bytes(b"new")
    assert disk.calls == [
        "sync 0.new",
        "sync 1.new",
        *BEGUN,
        "move m.onnx to 0.old",
        "sync .",
        "move m.data to 1.old",
        "move 1.new to m.data",
        "sync .",
        "move 0.new to m.onnx",
        "sync .",
    ]


def test_of_a_folder_all_that_is_in_it_is_on_disk_before_it_replaces_another(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sets, "_exchange", lambda one, other: False)  # as where no system can
    target = tmp_path / "out"
    (target / "sub").mkdir(parents=True)
    (target / "sub" / "a").write_bytes(b"old")
    with replacing(target) as fresh:
        (fresh[target] / "sub").mkdir(parents=True)
        (fresh[target] / "sub" / "a").write_bytes(b"new")
    assert disk.calls == [
        "sync 0.new/sub/a",
        "sync 0.new/sub",
        "sync 0.new",
        *BEGUN,
        "move out to 0.old",
        "sync .",
        "move 0.new to out",
        "sync .",
    ]
