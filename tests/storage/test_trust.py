"""What a model names comes along only where that is safe, or its user says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bytewise import SIZE, large, references, rewrite, save, tensors

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.cli import main


@pytest.mark.parametrize("location", [".bashrc", ".git/hooks/pre-commit", "sub/.hidden/w.bin"])
def test_data_under_a_hidden_name_comes_along_by_the_users_word_alone(tmp_path, outside, location):
    folder = tmp_path / "model"
    path = folder / location
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(SIZE))
    source = save(folder / "model.onnx", location=location, length=SIZE)
    rewrite(source, folder / "beside.onnx")  # where nothing comes along
    with pytest.raises(OnnxClipError, match=r"has a hidden name.*pass --trust-data"):
        rewrite(source, outside / "model.onnx")
    assert not list(outside.iterdir())
    rewrite(source, outside / "model.onnx", trust_data=True)
    assert (outside / location).read_bytes() == bytes(SIZE)


def test_the_names_that_are_kept_for_journals_are_refused_even_if_the_model_is_trusted(tmp_path):
    name = ".onnx-clip-0.journals/0123456789abcdef"
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(bytes(SIZE))
    source = save(tmp_path / "model.onnx", location=name, length=SIZE)
    with pytest.raises(OnnxClipError, match="a name that onnx-clip keeps for itself"):
        rewrite(source, tmp_path / "out.onnx", trust_data=True)


@pytest.mark.parametrize("how", ["copy", "link"])
def test_data_with_several_names_comes_along_by_the_users_word_alone(
    tmp_path, source: Path, outside: Path, how: str
):
    (tmp_path / "secret").hardlink_to(source.parent / "sub" / "w.bin")
    with pytest.raises(OnnxClipError, match=r"has 2 names \(hard links\).*pass --trust-data"):
        rewrite(source, outside / "model.onnx", external_data=how)
    assert not list(outside.iterdir())
    rewrite(source, outside / "model.onnx", external_data=how, trust_data=True)
    rewrite(source, outside / "again.onnx", external_data=how)  # the data is there already
    assert references(outside / "again.onnx") == references(source)


@pytest.mark.parametrize("how", ["copy", "link"])
def test_a_link_out_of_the_folder_is_followed_by_the_users_word_alone(tmp_path, outside, how):
    """As in the caches of hubs, where each file is a link to a blob."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1f").write_bytes(bytes(SIZE))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "blobs" / "1f")
    source = save(tmp_path / "model" / "model.onnx", location="w.bin", length=SIZE)
    for target in (source.with_name("out.onnx"), outside / "model.onnx"):
        with pytest.raises(OnnxClipError, match="by a symbolic link; pass --trust-data"):
            rewrite(source, target, external_data=how)
        rewrite(source, target, external_data=how, trust_data=True)
    assert (outside / "w.bin").read_bytes() == bytes(SIZE)
    assert not (outside / "w.bin").is_symlink()


def test_the_command_line_takes_the_users_word_for_files_and_refuses_it_for_folders(
    tmp_path, source: Path, outside: Path, capsys
):
    (tmp_path / "secret").hardlink_to(source.parent / "sub" / "w.bin")
    rewrite(source, source.with_name("clipped.onnx"))
    word = ["--trust-data"]
    arguments = ["strip", str(source.with_name("clipped.onnx")), "-o", str(outside / "back.onnx")]
    assert main(arguments) == 2
    assert main(arguments + word) == 0
    arguments = ["rewrite", str(source), "-o", str(outside / "a.onnx"), "--gradient", "W_grad"]
    assert main(arguments + word) == 0
    assert tensors(outside / "a.onnx")["V"] == large("V", 1).raw_data
    for command in ("rewrite", "strip"):
        capsys.readouterr()
        assert main([command, str(outside), *word]) == 2
        assert "--trust-data is for a model file" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_data_that_comes_along_cannot_be_run_and_what_it_replaces_keeps_its_mode(source, outside):
    data, copied = source.parent / "sub" / "w.bin", outside / "sub" / "w.bin"
    data.chmod(0o4755)
    before = os.umask(0o022)
    try:
        rewrite(source, outside / "model.onnx")
    finally:
        os.umask(before)
    assert copied.stat().st_mode & 0o7777 == 0o644
    copied.write_bytes(b"other")
    copied.chmod(0o600)
    rewrite(source, outside / "model.onnx", force=True)
    assert copied.stat().st_mode & 0o7777 == 0o600
