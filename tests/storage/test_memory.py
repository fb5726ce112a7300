"""Memory does not grow with the weights, wherever they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from apart import Apart
from bytewise import make_step, sub, varint

REWRITE = """
from onnx_clip_pass import GradientClipByNorm, clip_gradients_file
def answer(source, target):
    return len(clip_gradients_file(source, target, GradientClipByNorm(1.0)).clipped)
"""
SIZE = 240_000_000


def with_weights(path: Path) -> Path:
    """A step with so many bytes of weights in the file, as a hole that takes no space."""
    tensor = b"\x08" + varint(SIZE // 4) + b"\x10\x01" + sub(8, b"V") + b"\x4a" + varint(SIZE)
    initializer = b"\x2a" + varint(len(tensor) + SIZE) + tensor
    graph = b"\x3a" + varint(len(initializer) + SIZE) + initializer
    with path.open("wb") as file:
        file.write(make_step().SerializeToString() + graph)
        file.truncate(file.tell() + SIZE)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted otherwise")
def test_beside_weights_of_any_size_a_rewrite_takes_little_memory(tmp_path: Path):
    source, target = with_weights(tmp_path / "model.onnx"), tmp_path / "out.onnx"
    with Apart(REWRITE) as process:
        answer, memory = process.ask(os.fspath(source), os.fspath(target))
    assert answer == "1"
    assert memory < 100_000  # KiB, what is imported included
    assert target.stat().st_size > SIZE
