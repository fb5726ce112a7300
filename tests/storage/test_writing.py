"""Whatever goes wrong while writing: the path holds the old file or the new one, whole."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from bytewise import COUNT, make_step, rewrite

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.storage import moving

KILLS = 60

FORKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bytewise import rewrite
print("ready", flush=True)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        while True:
            rewrite(Path(sys.argv[2]), Path(sys.argv[3]), force=True)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""  # a new interpreter for each kill would take half a second

LOOP = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bytewise import rewrite
print("ready", flush=True)
while True:
    rewrite(Path(sys.argv[2]), Path(sys.argv[3]), force=True)
    print("done", flush=True)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that was there before."""
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "model.onnx"
    path.write_bytes(b"old")
    return path


def assert_untouched(saved: Path, before: bytes, target: Path) -> None:
    assert saved.read_bytes() == before
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def start_loop(source: Path, target: Path, script: str = LOOP) -> subprocess.Popen[str]:
    folder = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, folder, str(source), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def kill_one(forks: subprocess.Popen[str], delay: float) -> None:
    assert forks.stdout is not None
    assert forks.stdin is not None
    print(file=forks.stdin, flush=True)  # asks for one
    child = int(forks.stdout.readline())
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert forks.stdout.readline() == "dead\n"


# -- what must not happen ----------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="kill is an abort at any point only on POSIX")
def test_killed_at_any_moment_the_output_is_absent_or_old_or_new(tmp_path: Path):
    source, target = tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    source.write_bytes(make_step(count=16_000_000).SerializeToString())  # 64 MB
    size = source.stat().st_size
    rewrite(source, target)
    whole = target.stat().st_size
    load = start_loop(source, tmp_path / "load.onnx")
    forks = start_loop(source, target, FORKS)
    rng, leftovers = random.Random(0), 0
    try:
        for turn in range(KILLS):
            if turn % 3 == 0:
                target.unlink()
            kill_one(forks, rng.uniform(0, 0.15))
            if target.exists():
                assert target.stat().st_size == whole
            else:
                assert turn % 3 == 0
                rewrite(source, target)
            temporaries = [path for path in target.parent.iterdir() if path != target]
            leftovers += len(temporaries)
            assert all(path.suffix == ".tmp" for path in temporaries)
            for path in temporaries:
                path.unlink()
            if turn % 10 == 0:
                onnx.load(target)
    finally:
        end(forks)
        end(load)
    assert leftovers  # some kills did hit it while writing
    assert source.stat().st_size == size
    assert onnx.load(source).graph.initializer[0].name == "W"


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=["full", "io", "quota"]
)
def test_a_disk_that_fails_midway_is_an_error_and_nothing_changes(saved, target, monkeypatch, code):
    before = saved.read_bytes()

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(moving, "_copy_block", fail)
    with pytest.raises(OnnxClipError, match=f"{os.strerror(code)}; nothing there has changed"):
        rewrite(saved, target, force=True)
    assert_untouched(saved, before, target)


def test_a_full_disk_is_an_error_and_nothing_changes(saved: Path, tmp_path: Path):
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a small file system, which root may do")
    try:
        saved.write_bytes(make_step(count=10_000).SerializeToString())
        target = folder / "model.onnx"
        target.write_bytes(b"old")
        with pytest.raises(OnnxClipError, match="No space left on device"):
            rewrite(saved, target, force=True)
        assert_untouched(saved, make_step(count=10_000).SerializeToString(), target)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_is_an_error(saved, target, monkeypatch):
    before = saved.read_bytes()

    def refuse(**_: object) -> tuple[int, str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    if hasattr(os, "geteuid") and os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(moving.tempfile, "mkstemp", refuse)
    target.parent.chmod(0o500)
    try:
        with pytest.raises(OnnxClipError, match="Permission denied; nothing there has changed"):
            rewrite(saved, target, force=True)
    finally:
        target.parent.chmod(0o700)
    assert_untouched(saved, before, target)


@pytest.mark.parametrize("size", [0, 100, 3 * COUNT, 9 * COUNT])
def test_a_source_that_changes_size_while_it_is_copied_is_an_error(saved, target, size: int):
    saved.write_bytes(make_step(count=4 * COUNT).SerializeToString())

    def truncate(*_: object) -> None:
        os.truncate(saved, size)

    with pytest.raises(OnnxClipError, match="was changed while it was being read"):
        rewrite(saved, target, force=True, progress=truncate)
    assert_untouched(saved, saved.read_bytes(), target)


def test_a_source_of_the_same_size_with_other_content_is_an_error(saved, target):
    def overwrite(*_: object) -> None:
        saved.write_bytes(saved.read_bytes()[::-1])
        os.utime(saved, (1, 1))

    with pytest.raises(OnnxClipError, match="was changed while it was being read"):
        rewrite(saved, target, force=True, progress=overwrite)
    assert_untouched(saved, saved.read_bytes(), target)


def test_a_source_that_is_replaced_by_a_rename_is_read_to_its_end(saved, target):
    expected = saved.with_name("expected.onnx")
    rewrite(saved, expected)

    def replace(*_: object) -> None:
        new = saved.with_name("new.onnx")
        new.write_bytes(b"new")
        new.replace(saved)

    rewrite(saved, target, force=True, progress=replace)
    assert target.read_bytes() == expected.read_bytes()


def test_an_interrupt_leaves_no_temporary_file(saved, target):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(saved, target, force=True, progress=interrupt)
    assert_untouched(saved, saved.read_bytes(), target)


# -- what must happen --------------------------------------------------------------------------


def test_a_rewrite_in_place_leaves_one_file(saved: Path):
    rewrite(saved, saved, replace=True)
    assert list(saved.parent.iterdir()) == [saved]
    assert any(entry.key == "onnx_clip_pass" for entry in onnx.load(saved).metadata_props)


def test_two_processes_that_write_the_same_output_leave_it_whole(saved: Path, target: Path):
    saved.write_bytes(make_step(count=1_000_000).SerializeToString())
    rewrite(saved, target, force=True)
    expected = target.read_bytes()
    processes = [start_loop(saved, target) for _ in range(2)]
    try:
        for _ in range(50):
            assert target.read_bytes() == expected
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
    finally:
        for process in processes:
            end(process)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755])
def test_permissions_are_those_of_the_source(saved: Path, target: Path, mode: int):
    saved.chmod(mode)
    rewrite(saved, target, force=True)
    assert target.stat().st_mode & 0o777 == mode


def test_progress_ends_at_the_size_of_the_output(saved: Path, target: Path):
    seen: list[tuple[int, int]] = []
    rewrite(saved, target, force=True, progress=lambda *step: seen.append(step))
    assert seen[-1] == 2 * (target.stat().st_size,)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "missing", [["copy_file_range"], ["copy_file_range", "sendfile"]], ids=["sendfile", "read"]
)
def test_other_means_of_copying_give_the_same_bytes(saved, target, monkeypatch, missing):
    rewrite(saved, target, force=True)
    expected = target.read_bytes()
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    rewrite(saved, target, force=True)
    assert target.read_bytes() == expected


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.ENOTSOCK, errno.EINVAL])
def test_what_a_system_cannot_copy_itself_is_read_and_written(saved, target, monkeypatch, code):
    rewrite(saved, target, force=True)
    expected = target.read_bytes()

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    for name in ("copy_file_range", "sendfile"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    rewrite(saved, target, force=True)
    assert target.read_bytes() == expected


def test_an_output_with_a_name_as_long_as_the_system_allows_is_written(saved: Path):
    target = saved.with_name(80 * "模" + ".onnx")  # three bytes each
    rewrite(saved, target)
    assert target.exists()
