"""Fixtures for the tests of storage. What they are built with: `bytewise.py` beside this file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from bytewise import make_step


@pytest.fixture
def step() -> onnx.ModelProto:
    return make_step()


@pytest.fixture
def saved(step: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(step.SerializeToString())
    return path
