"""The folder that is written: whole or not at all, and never at the cost of what is not ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest
from sequences import ARTIFACTS, SGD, folder_files

from onnx_clip_pass.cli import main
from onnx_clip_pass.storage import sets, writing
from onnx_clip_pass.storage.journal import Journal

OPTIMIZER = "optimizer_model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS / SGD, place)
    return place


@pytest.fixture
def out(folder: Path) -> Path:
    return folder.with_name("out")


def rewrite(folder: Path, out: Path, *more: str) -> int:
    return main(["rewrite", str(folder), "-o", str(out), *more])


# -- what is there already ---------------------------------------------------------------------


def test_what_onnx_clip_wrote_is_replaced(folder, out):
    assert rewrite(folder, out, "--at", "micro-batch") == 0
    assert rewrite(folder, out, "--clip-norm", "2") == 0
    fresh = folder.with_name("fresh")
    assert rewrite(folder, fresh, "--clip-norm", "2") == 0
    assert folder_files(out) == folder_files(fresh)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["artifacts", "fresh", "out"]


def test_an_empty_folder_is_taken(folder, out):
    out.mkdir()
    assert rewrite(folder, out) == 0
    assert sorted(folder_files(out)) == sorted(folder_files(folder))


def test_a_link_to_a_folder_stays_a_link(folder, out):
    real = folder.with_name("real")
    assert rewrite(folder, real) == 0
    out.symlink_to(real)
    assert rewrite(folder, out, "--clip-norm", "2") == 0
    assert out.is_symlink()
    assert folder_files(real) == folder_files(out)


def test_artifacts_that_onnx_clip_did_not_write_need_force(folder, out, capsys):
    shutil.copytree(folder, out)
    before = folder_files(out)
    assert rewrite(folder, out) == 2
    assert "bears no record of onnx-clip; pass --force" in capsys.readouterr().err
    assert folder_files(out) == before
    assert rewrite(folder, out, "--force") == 0
    assert folder_files(out) != before


def test_a_checkpoint_that_has_been_trained_since_needs_force(folder, out, capsys):
    assert rewrite(folder, out) == 0
    (out / "checkpoint").write_bytes(b"hours of training")
    assert rewrite(folder, out) == 2
    assert "checkpoint' is not that of the artifacts any more" in capsys.readouterr().err
    assert (out / "checkpoint").read_bytes() == b"hours of training"
    assert rewrite(folder, out, "--force") == 0
    assert (out / "checkpoint").read_bytes() == (folder / "checkpoint").read_bytes()


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "forced"])
def test_a_file_that_the_artifacts_have_not_is_never_removed(folder, out, capsys, force):
    assert rewrite(folder, out) == 0
    (out / "logs").mkdir()
    (out / "logs" / "epoch_9").write_bytes(b"precious")
    before = folder_files(out)
    assert rewrite(folder, out, *force) == 2
    assert "holds 'logs/epoch_9'" in capsys.readouterr().err
    assert folder_files(out) == before


def test_a_file_in_the_way(folder, out, capsys):
    out.write_bytes(b"a file")
    assert rewrite(folder, out, "--force") == 2
    assert "is no folder" in capsys.readouterr().err
    assert out.read_bytes() == b"a file"


IMPOSSIBLE = {
    "artifacts": "pass --in-place",
    "artifacts/clipped": "one lies within the other",
    ".": "one lies within the other",
    "artifacts/../artifacts/x": "one lies within the other",
    "none/out": "there is no folder",
    "x" * 300: "File name too long",
}


@pytest.mark.parametrize(("target", "expected"), IMPOSSIBLE.items(), ids=IMPOSSIBLE)
def test_outputs_that_cannot_be(target, expected, folder, capsys):
    before = folder_files(folder.parent)
    assert rewrite(folder, folder.parent / target) == 2
    assert expected in capsys.readouterr().err
    assert folder_files(folder.parent) == before


# -- faults while it is written ----------------------------------------------------------------


def _assert_nothing_happened(folder: Path, before: dict[str, bytes]) -> None:
    assert folder_files(folder.parent) == before
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("what", ["copy_external_data", "_write_pieces"])
def test_a_full_disk_leaves_everything_as_it_was(folder, out, capsys, monkeypatch, what, is_there):
    if is_there:
        assert rewrite(folder, out) == 0
    before = folder_files(folder.parent)

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, what, fail)
    assert rewrite(folder, out, "--clip-norm", "2") == 2
    assert "No space left on device; nothing there has changed" in capsys.readouterr().err
    _assert_nothing_happened(folder, before)


def test_an_interrupt_leaves_everything_as_it_was(folder, out, monkeypatch):
    before = folder_files(folder.parent)

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_write_pieces", interrupt)
    assert rewrite(folder, out) == 130
    _assert_nothing_happened(folder, before)


def _no_exchange(monkeypatch) -> None:
    monkeypatch.setattr(sets, "_exchange", lambda *_: False)


@pytest.mark.parametrize("failing", ["rename", "replace"])
def test_a_rename_that_fails_leaves_the_old_folder(folder, out, capsys, monkeypatch, failing):
    assert rewrite(folder, out) == 0
    before = folder_files(folder.parent)
    _no_exchange(monkeypatch)
    real, calls = getattr(Path, failing), []

    def fail_once(self, target):
        calls.append(self)
        if len(calls) == 1:
            raise OSError(16, "Device or resource busy")
        return real(self, target)

    monkeypatch.setattr(Path, failing, fail_once)
    assert rewrite(folder, out, "--clip-norm", "2") == 2
    assert "Device or resource busy; nothing there has changed" in capsys.readouterr().err
    _assert_nothing_happened(folder, before)


def test_a_folder_that_vanishes_before_it_is_replaced_is_written(folder, out, monkeypatch):
    assert rewrite(folder, out) == 0
    real = sets._exchange

    def remove_first(one, other):
        shutil.rmtree(other)
        return real(one, other)

    monkeypatch.setattr(sets, "_exchange", remove_first)
    assert rewrite(folder, out, "--clip-norm", "2") == 0
    assert sorted(folder_files(out)) == sorted(folder_files(folder))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["artifacts", "out"]


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchanged", "moved"])
def test_what_appears_in_the_old_folder_meanwhile_is_kept(
    folder, out, capsys, monkeypatch, exchanges
):
    assert rewrite(folder, out) == 0
    if not exchanges:
        _no_exchange(monkeypatch)
    begin = Journal.begin

    def write_then_begin(self):
        (out / "late").write_bytes(b"late")
        begin(self)

    monkeypatch.setattr(Journal, "begin", write_then_begin)
    assert rewrite(folder, out, "--clip-norm", "2") == 2
    assert "something appeared in the old folder" in capsys.readouterr().err
    (kept,) = folder.parent.glob(".onnx-clip-*")
    assert folder_files(kept) == {"late": b"late"}
    assert sorted(folder_files(out)) == sorted(folder_files(folder))


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_folder_has_the_permissions_of_what_it_replaces_or_of_the_artifacts(folder, out):
    folder.chmod(0o750)
    assert rewrite(folder, out) == 0
    assert out.stat().st_mode & 0o777 == 0o750
    out.chmod(0o700)
    assert rewrite(folder, out, "--clip-norm", "2") == 0
    assert out.stat().st_mode & 0o777 == 0o700


# -- hostile folders ---------------------------------------------------------------------------


def test_links_that_lead_out_of_the_folder_or_nowhere_are_refused_all_at_once(folder, out, capsys):
    secret = folder.with_name("secret")
    secret.write_bytes(b"secret")
    (folder / "a").symlink_to(secret)
    (folder / "b").symlink_to("/etc")
    (folder / "c").symlink_to("missing")
    (folder / "d").symlink_to("d")
    os.mkfifo(folder / "e")
    (folder / "f").symlink_to(".")
    assert rewrite(folder, out) == 2
    err = capsys.readouterr().err
    for name in ("'a' is a symbolic link that leads out", "'b' is a symbolic link that leads out",
                 "'c' is a symbolic link that leads nowhere", "'d' is a symbolic link that leads",
                 "'e' is no regular file", "'f' is no regular file"):  # fmt: skip
        assert name in err
    assert not out.exists()


def test_a_checkpoint_that_leads_out_is_not_read(folder, out, capsys):
    secret = folder.with_name("secret")
    secret.write_bytes(b"secret")
    (folder / "checkpoint").unlink()
    (folder / "checkpoint").symlink_to(secret)
    assert rewrite(folder, out) == 2
    assert "'checkpoint' is a symbolic link that leads out" in capsys.readouterr().err


def test_a_link_within_the_folder_comes_along_as_the_file_it_leads_to(folder, out):
    (folder / "blobs").mkdir()
    (folder / "checkpoint").rename(folder / "blobs" / "1f")
    (folder / "checkpoint").symlink_to("blobs/1f")
    (folder / OPTIMIZER).rename(folder / "blobs" / "2f")
    (folder / OPTIMIZER).symlink_to("blobs/2f")
    assert rewrite(folder, out) == 0
    assert not (out / "checkpoint").is_symlink()
    assert (out / "checkpoint").read_bytes() == (folder / "blobs" / "1f").read_bytes()
    assert (out / "blobs" / "2f").read_bytes() == (folder / "blobs" / "2f").read_bytes()
    assert (out / OPTIMIZER).read_bytes() != (folder / OPTIMIZER).read_bytes()


def test_names_that_would_steer_a_terminal_come_along_and_are_shown_as_text(folder, capsys):
    name = "\x1b[31m\n..\\x"
    (folder / name).write_bytes(b"odd")
    odd = folder.with_name("\x1b]0;title\x07")
    folder.rename(odd)
    target = odd.with_name("\x1b[2J")
    assert rewrite(odd, target) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert (target / name).read_bytes() == b"odd"
    assert rewrite(odd, odd / "x") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_checkpoint_that_changes_meanwhile_is_noticed(folder, out, capsys, monkeypatch):
    real = writing.copy_external_data

    def change_then_copy(*args, **kwargs):
        with (folder / "checkpoint").open("ab") as file:
            file.write(b"more")
        return real(*args, **kwargs)

    monkeypatch.setattr(writing, "copy_external_data", change_then_copy)
    assert rewrite(folder, out) == 2
    assert "it was changed while it was being read" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("at", ["step", "micro-batch"])
def test_external_data_that_leads_out_of_the_folder_is_refused(folder, out, capsys, at):
    (folder.parent / "weights").write_bytes(bytes(1000))
    name = OPTIMIZER if at == "step" else "training_model.onnx"
    model = onnx.load(folder / name)
    tensor = model.graph.initializer.add(name="far", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="../weights")
    onnx.save(model, folder / name)
    assert rewrite(folder, out, "--at", at) == 2
    assert "which leads out of the model's folder" in capsys.readouterr().err
    assert not out.exists()


# -- power cuts --------------------------------------------------------------------------------


def test_a_folder_that_replaces_another_is_on_disk_first_and_a_new_one_need_not_be(
    folder, out, monkeypatch
):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    assert rewrite(folder, out) == 0
    assert synced == []
    assert rewrite(folder, out, "--clip-norm", "2") == 0
    assert {path.stat().st_ino for path in (out, *out.iterdir())} <= set(synced)
