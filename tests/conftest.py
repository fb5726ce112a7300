"""Fixtures for every test. Models, feeds and running them: `graphs.py` beside this file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from graphs import SEED, Arrays, Entry

# Scripts that need other packages, which --doctest-modules would import.
collect_ignore = ["recorded"]


@pytest.fixture
def model(entry: Entry) -> onnx.ModelProto:
    """The model of the test's `entry` (see `graphs.each`), fresh for each test."""
    return entry.load()


@pytest.fixture
def feeds(entry: Entry) -> Arrays:
    """The inputs stored beside the model of the test's `entry`."""
    return entry.load_feeds()


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    """A copy of the seed example, alone in a folder."""
    path = tmp_path / "step.onnx"
    path.write_bytes(SEED.read_bytes())
    return path
