"""What a user names is a regular file that ends; nothing else is waited for or read on and on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from bytewise import sub
from graphs import SEED

from onnx_clip_pass import OnnxClipError, load_rules
from onnx_clip_pass.files import read_map
from onnx_clip_pass.runtime import load_feeds, make_feeds
from onnx_clip_pass.storage import open_model
from onnx_clip_pass.verification import verify

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among files")


def open_structure(path: Path) -> None:
    with open_model(path):
        pass


def verify_with(path: Path) -> None:
    verify(SEED, path)


READERS = [load_rules, read_map, load_feeds, verify_with, open_structure]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_that_nobody_writes_to_is_refused(read, pipe: Path):
    with pytest.raises(OnnxClipError, match="pipe"):
        read(pipe)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(read, name: str):
    with pytest.raises(OnnxClipError, match=name):
        read(Path(name))


@pytest.mark.parametrize("read", READERS)
def test_a_folder_is_refused(read, tmp_path: Path):
    with pytest.raises(OnnxClipError, match=r"folder|directory"):
        read(tmp_path)


@pytest.mark.parametrize("read", [load_rules, read_map])
def test_a_text_that_hardly_ends_is_refused_before_it_is_read(read, tmp_path: Path):
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    with pytest.raises(OnnxClipError, match="more than 4,194,304 bytes"):
        read(tmp_path / "long")


def test_verify_refuses_more_messages_than_models_have(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(SEED.read_bytes() + sub(7, 800_000 * b"\x0a\x00"))
    with pytest.raises(OnnxClipError, match="more than 750,000 nodes"):
        verify(SEED, path)


UNPACK = """
import resource, sys, onnx
from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.runtime import load_feeds, make_feeds
try:
    make_feeds(onnx.load(sys.argv[1]), given=load_feeds(sys.argv[2]))
except OnnxClipError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_what_the_model_has_no_input_for_is_not_unpacked(tmp_path: Path):
    path = tmp_path / "feeds.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("bomb.npy", "w", force_zip64=True) as member,
    ):
        head = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30,)}
        np.lib.format.write_array_header_1_0(member, head)
        for _ in range(1 << 6):
            member.write(bytes(1 << 24))
    assert path.stat().st_size < 1 << 23
    command = [sys.executable, "-c", UNPACK, str(SEED), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    *message, memory = done.stdout.splitlines()
    assert "no input is called 'bomb'" in " ".join(message)
    assert int(memory) < 500_000  # KiB on Linux


def test_feeds_that_are_asked_for_are_unpacked_once(tmp_path: Path):
    np.savez(tmp_path / "feeds.npz", **SEED_FEEDS)
    feeds = load_feeds(tmp_path / "feeds.npz")
    assert set(feeds) == set(SEED_FEEDS)
    assert len(feeds) == len(SEED_FEEDS)
    made = make_feeds(onnx.load(SEED), given=feeds)
    for name, array in SEED_FEEDS.items():
        assert made[name].tobytes() == array.tobytes()
        assert feeds[name] is feeds[name]


with np.load(SEED.with_suffix(".inputs.npz")) as _archive:
    SEED_FEEDS = dict(_archive)
