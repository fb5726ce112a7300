"""Whatever goes wrong while writing: the path holds the old file or the new one, whole."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from bytewise import COUNT, make_step, rewrite

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, extract_clip_file
from onnx_clip_pass.inspection import inspect_model
from onnx_clip_pass.progress import Progress
from onnx_clip_pass.storage import Source, moving
from onnx_clip_pass.storage.journal import PREFIX

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
    began = time.monotonic()
    rewrite(source, target)
    took = time.monotonic() - began  # on a busy machine a kill has to come later, too
    whole = target.stat().st_size
    load = start_loop(source, tmp_path / "load.onnx")
    forks = start_loop(source, target, FORKS)
    rng, leftovers = random.Random(0), 0
    try:
        for turn in range(KILLS):
            if turn % 3 == 0:
                target.unlink()
            kill_one(forks, rng.uniform(0, 2 * took))
            if target.exists():
                assert target.stat().st_size == whole
            else:
                assert turn % 3 == 0
                rewrite(source, target)
            temporaries = [path for path in target.parent.iterdir() if path != target]
            leftovers += len(temporaries)
            assert all(path.name.startswith(PREFIX) for path in temporaries)
            rewrite(source, target, force=True)
            assert list(target.parent.iterdir()) == [target]
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

    real = os.open

    def refuse(path: str, flags: int, *mode: int, **options: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode, **options)

    if hasattr(os, "geteuid") and os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(os, "open", refuse)
    target.parent.chmod(0o500)
    try:
        with pytest.raises(OnnxClipError, match="Permission denied; nothing there has changed"):
            rewrite(saved, target, force=True)
    finally:
        target.parent.chmod(0o700)
    assert_untouched(saved, before, target)


def test_of_a_link_that_is_the_output_the_link_is_replaced(saved: Path, tmp_path: Path):
    other, link = tmp_path / "other.onnx", tmp_path / "link.onnx"
    other.write_bytes(b"other")
    link.symlink_to(other)
    rewrite(saved, link, force=True)
    assert other.read_bytes() == b"other"
    assert not link.is_symlink()
    link.unlink()
    link.symlink_to(saved)
    rewrite(saved, link, replace=True)
    assert link.is_symlink()
    assert inspect_model(saved).record is not None


def test_a_folder_that_takes_no_folders_is_an_error(saved, target, monkeypatch):
    """As /proc does, and a folder that has been removed under a process that is in it."""
    before = saved.read_bytes()
    real = os.mkdir

    def refuse(path: Path, *mode: int, **options: int) -> None:
        if Path(path).parent == target.parent:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        real(path, *mode, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OnnxClipError, match="No such file or directory; nothing there has changed"):
        rewrite(saved, target, force=True)
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


@pytest.mark.parametrize("stamp", ["kept", "set back"])
def test_a_source_of_the_same_size_and_time_with_other_content_is_an_error(saved, target, stamp):
    status = saved.stat()

    def overwrite(*_: object) -> None:
        with saved.open("r+b") as file:
            file.write(bytes(10))
        os.utime(saved, ns=(status.st_atime_ns, status.st_mtime_ns - (stamp == "set back")))

    with pytest.raises(OnnxClipError, match="was changed while it was being read"):
        rewrite(saved, target, force=True, progress=overwrite)
    assert_untouched(saved, saved.read_bytes(), target)


def test_a_source_that_is_replaced_by_a_rename_is_an_error(saved, target):
    def replace(*_: object) -> None:
        new = saved.with_name("new.onnx")
        new.write_bytes(b"new")
        new.replace(saved)

    with pytest.raises(OnnxClipError, match="was changed while it was being read"):
        rewrite(saved, target, force=True, progress=replace)
    assert_untouched(saved, b"new", target)


def test_a_source_that_changes_while_its_structure_is_read_is_an_error(saved, monkeypatch):
    real = Source.at

    def overwrite(source: Source, start: int, end: int) -> bytes:
        with saved.open("r+b") as file:
            file.write(saved.read_bytes()[:1])
        return real(source, start, end)

    monkeypatch.setattr(Source, "at", overwrite)
    with pytest.raises(OnnxClipError, match="was changed while it was being read"):
        inspect_model(saved)


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


posix = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@posix
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755, 0o666])
def test_a_new_file_has_the_permissions_of_the_source_but_to_run_it(saved: Path, umask, mode: int):
    saved.chmod(mode)
    target = saved.with_name("new.onnx")
    rewrite(saved, target)
    assert target.stat().st_mode & 0o7777 == mode & 0o666 & ~umask


@posix
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o440, 0o755, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(saved: Path, target: Path, umask, mode: int):
    saved.chmod(0o664)
    target.chmod(mode)
    rewrite(saved, target, force=True)
    assert target.stat().st_mode & 0o7777 == mode
    saved.chmod(mode)
    rewrite(saved, saved, replace=True)
    assert saved.stat().st_mode & 0o7777 == mode


@posix
def test_an_extracted_clip_obeys_the_umask_and_keeps_the_permissions_of_what_it_replaces(
    saved: Path, umask
):
    def extract() -> None:
        extract_clip_file(saved, clip, GradientClipByNorm(1.0), gradients={"W_grad": "W"})

    clip = saved.with_name("clip.onnx")
    extract()
    assert clip.stat().st_mode & 0o7777 == 0o640
    clip.chmod(0o600)
    extract()
    assert clip.stat().st_mode & 0o7777 == 0o600


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away"
)
def test_a_file_that_is_replaced_keeps_its_owner(saved: Path, target: Path):
    os.chown(target, 1234, 4321)
    target.chmod(0o640)
    rewrite(saved, target, force=True)
    status = target.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 4321, 0o640)


@posix
def test_rights_of_a_group_are_not_given_to_another(saved: Path, target: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    real = Path.lstat

    def of_others(path: Path) -> os.stat_result:
        status = real(path)
        if path != target:
            return status
        fields = list(status)
        fields[5] += 1  # st_gid
        return os.stat_result(fields)

    target.chmod(0o664)
    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr(Path, "lstat", of_others)
    rewrite(saved, target, force=True)
    assert target.stat().st_mode & 0o777 == 0o604


def test_progress_ends_at_the_size_of_the_output(saved: Path, target: Path):
    seen: list[Progress] = []
    rewrite(saved, target, force=True, progress=seen.append)
    size = target.stat().st_size
    assert seen[-1] == Progress(f"writing {target.name}", size, size, "bytes")
    assert [each.done for each in seen] == sorted(each.done for each in seen)


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
