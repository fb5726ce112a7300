"""What a run leaves that was killed: named, settled by the next, and nothing but that touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bytewise import rewrite
from replacements import ARTIFACTS, clip, save

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_artifacts
from onnx_clip_pass.artifacts import inspect_artifacts
from onnx_clip_pass.cli import main
from onnx_clip_pass.inspection import inspect_model
from onnx_clip_pass.storage import journal, recover, sets
from onnx_clip_pass.storage.journal import PREFIX, Journal, folder_of
from onnx_clip_pass.verification import verify

TOKEN = 16 * "a"


class KilledError(BaseException):
    """In place of a signal."""


@pytest.fixture
def kill(monkeypatch) -> Callable[[Callable[[], None]], None]:
    """Runs something that dies before its main path takes its place, and cleans nothing up."""

    def die(self: Path, target: Path) -> Path:
        if self.name.endswith(".0.new"):
            raise KilledError
        return replace(self, target)

    replace = Path.replace

    def run(what: Callable[[], None]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", die)
            patched.setattr(Journal, "settle", Journal.close)
            patched.setattr(sets, "_exchange", lambda *_: False)
            with pytest.raises(KilledError):
                what()

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with external data, beside a folder with an older one and its data."""
    save(tmp_path / "older" / "model.onnx", 7, apart=True)
    save(tmp_path / "from" / "model.onnx", 0, apart=True)
    (tmp_path / "out").mkdir()
    clip(tmp_path / "older" / "model.onnx", tmp_path / "out" / "model.onnx")
    return tmp_path / "from" / "model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of training artifacts."""
    shutil.copytree(ARTIFACTS, tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.fixture
def target(source: Path) -> Path:
    return source.parent.parent / "out" / "model.onnx"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_in(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{PREFIX}*"))


# -- what is named -----------------------------------------------------------------------------


def test_every_command_names_a_set_that_is_half_replaced(source, target, kill, capsys):
    kill(lambda: clip(source, target, force=True))
    assert not target.exists()
    named = r"moved '.*model\.onnx' aside to replace it together with .*'w\.bin'.* not finished"
    with pytest.raises(OnnxClipError, match=named):
        inspect_model(target)
    with pytest.raises(OnnxClipError, match=named):
        verify(source, target)
    capsys.readouterr()
    for command in (["inspect"], ["verify", str(source)], ["rewrite", "--dry-run"]):
        assert main([*command, str(target)]) == 2
        assert "run that command again, which first puts back" in capsys.readouterr().err


def test_a_folder_that_is_moved_aside_is_named_and_put_back(folder, kill, capsys):
    out = folder.with_name("out")
    clip_artifacts(folder, out, GradientClipByNorm(3.0))
    before = files(out)
    kill(lambda: clip_artifacts(folder, out, GradientClipByNorm(1.0)))
    assert not out.exists()
    assert main(["inspect", str(out)]) == 2
    assert "moved '" in capsys.readouterr().err
    recover(folder.parent)
    assert files(out) == before
    assert not left_in(folder.parent)


def test_a_folder_in_place_without_its_training_model_is_named_and_put_back(folder, kill):
    clip_artifacts(folder, folder, GradientClipByNorm(3.0), replace=True)
    before = files(folder)

    def again() -> None:
        clip_artifacts(folder, folder, GradientClipByNorm(1.0), at="micro-batch", replace=True)

    kill(again)
    with pytest.raises(OnnxClipError, match=r"training_model\.onnx' aside to replace it together"):
        inspect_artifacts(folder)
    recover(folder)
    assert files(folder) == before
    again()
    assert inspect_artifacts(folder).record is None
    assert inspect_artifacts(folder).training.record is not None


def test_what_is_left_in_a_folder_does_not_come_along_from_it(folder, kill):
    clip_artifacts(folder, folder, GradientClipByNorm(3.0), replace=True)
    kill(lambda: clip_artifacts(folder, folder, GradientClipByNorm(1.0), replace=True))
    assert left_in(folder)
    clip_artifacts(folder, folder.with_name("out"), GradientClipByNorm(1.0))
    assert not left_in(folder.with_name("out"))


# -- what is settled ---------------------------------------------------------------------------


def test_any_run_into_the_folder_puts_back_what_was_there(source, target, kill):
    before = files(target.parent)
    kill(lambda: clip(source, target, force=True))
    save(source.with_name("other.onnx"), 1, apart=False)
    rewrite(source.with_name("other.onnx"), target.with_name("other.onnx"))
    assert not left_in(target.parent)
    found = files(target.parent)
    del found["other.onnx"]
    assert found == before


def test_a_dry_run_settles_nothing(source, target, kill):
    kill(lambda: clip(source, target, force=True))
    before = files(target.parent)
    clip(source, target, force=True, dry_run=True)
    assert files(target.parent) == before


def test_what_somebody_has_written_since_is_not_touched(source, target, kill):
    kill(lambda: clip(source, target, force=True))
    target.write_bytes(b"by hand")
    before = files(target.parent)
    with pytest.raises(OnnxClipError, match=r"written since by somebody else: keep what") as caught:
        clip(source, target, force=True)
    assert "model.onnx', replaced: '" in str(caught.value)
    assert files(target.parent) == before


def test_data_that_somebody_has_written_since_is_not_touched(source, target, kill):
    kill(lambda: clip(source, target, force=True))
    (target.parent / "v.bin").write_bytes(b"by hand")
    before = files(target.parent)
    with pytest.raises(OnnxClipError, match=r"v\.bin', replaced: '"):
        recover(target.parent)
    assert files(target.parent) == before


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing tells whether a process lives")
def test_where_files_cannot_be_locked_the_process_tells_whether_a_run_has_died(
    source, target, kill, monkeypatch
):
    before = files(target.parent)
    monkeypatch.setattr(journal, "lock", lambda *_args, **_options: None)
    kill(lambda: clip(source, target, force=True))
    recover(target.parent)  # this process lives
    assert not target.exists()
    with pytest.raises(OnnxClipError, match="another run of onnx-clip is replacing"):
        clip(source, target, force=True)
    monkeypatch.setattr(os, "kill", _no_such_process)
    recover(target.parent)
    assert files(target.parent) == before


def _no_such_process(*_: object) -> None:
    raise ProcessLookupError


# -- what is not touched -----------------------------------------------------------------------


def test_what_a_run_that_lives_has_made_is_not_touched(source, target):
    with sets.replacing(target) as fresh:
        fresh[target].write_bytes(b"half")
        rewrite(source, target.with_name("other.onnx"), force=True)
        recover(target.parent)
        assert fresh[target].read_bytes() == b"half"
    assert target.read_bytes() == b"half"


def test_two_runs_do_not_replace_one_set_at_once(source, target):
    before = files(target.parent)
    data = target.parent / "v.bin"
    with sets.replacing(target, [data]) as first:
        for path in first.values():
            path.write_bytes(b"half")
        begun = Journal(target.parent, [data, target])
        begun.create()
        for entry in begun.entries:
            entry.fresh.write_bytes(b"other")
        begun.begin()
        with pytest.raises(OnnxClipError, match="another run of onnx-clip is replacing"):
            _replace([target, data], b"second")
        begun.settle()
    assert files(target.parent) == before | {"model.onnx": b"half", "v.bin": b"half"}


def _replace(paths: list[Path], content: bytes) -> None:
    with sets.replacing(paths[0], paths[1:]) as fresh:
        for path in fresh.values():
            path.write_bytes(content)


def _journal(paths: list[str], made: list[str] = ()) -> bytes:
    head = '{"onnx-clip journal": 1, "paths": ' + json.dumps(paths)
    note = json.dumps([[False, [1, 1]] for _ in paths])
    rest = f'"made": {json.dumps(list(made))}, "owner": ["here", 1]}}'
    return f"{head}, {rest}\n{note}\n".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"mine",
        b"{}\n[]\n",
        b'{"onnx-clip journal": 1, "paths": 1, "made": []}\n',
        _journal(["../precious"]),
        _journal(["model.onnx", "link/precious"]),
        _journal(["model.onnx"], made=["../empty"]),
        _journal(["/precious"]),
        _journal(["nul\0"]),
        _journal([]),
        b"[" * 100_000 + b"}\n",
    ],
    ids=["text", "empty", "no list", "above", "link", "made", "absolute", "nul", "none", "nested"],
)
def test_a_journal_that_is_not_ours_moves_and_removes_nothing(source, target, tmp_path, content):
    (tmp_path / "empty").mkdir()
    (target.parent / "link").symlink_to(tmp_path)
    for folder in (tmp_path, target.parent):
        for number in range(2):
            (folder / f"{PREFIX}{TOKEN}.{number}.old").write_bytes(b"planted")
    (tmp_path / "precious").write_bytes(b"precious")
    folder_of(target.parent).mkdir()
    (folder_of(target.parent) / TOKEN).write_bytes(content)
    before = files(tmp_path)
    recover(target.parent)
    assert files(tmp_path) == before
    assert (tmp_path / "empty").is_dir()


def test_names_that_are_only_like_ours_are_left_alone(target):
    names = [f"{PREFIX}{TOKEN}.0.new", f"{PREFIX}{TOKEN}", f"{PREFIX}1"]
    for name in names:
        (target.parent / name).write_bytes(b"mine")
    journals = folder_of(target.parent)
    journals.mkdir()
    os.mkfifo(journals / TOKEN)
    (journals / f"{TOKEN[:-1]}b").symlink_to("v.bin")
    (journals / f"{TOKEN[:-1]}c").mkdir()
    (journals / f"{TOKEN}.bak").write_bytes(_journal(["model.onnx"]))
    before = sorted(target.parent.rglob("*"))
    recover(target.parent)
    assert sorted(target.parent.rglob("*")) == before


def test_a_folder_of_journals_that_is_a_link_is_not_followed(target, tmp_path, source, kill):
    kill(lambda: clip(source, target, force=True))
    journals = folder_of(target.parent)
    journals.rename(tmp_path / "planted")
    journals.symlink_to(tmp_path / "planted")
    before = files(tmp_path)
    recover(target.parent)
    with pytest.raises(OnnxClipError, match="Not a directory; nothing there has changed"):
        clip(source, target, force=True)
    assert files(tmp_path) == before


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away"
)
def test_the_journal_of_another_user_is_left_alone(source, target, kill):
    kill(lambda: clip(source, target, force=True))
    (journal,) = folder_of(target.parent).iterdir()
    os.chown(journal, 1234, 1234)
    before = files(target.parent)
    recover(target.parent)
    assert files(target.parent) == before
