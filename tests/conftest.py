"""Fixtures for every test. Models, feeds and running them: `graphs.py` beside this file."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from graphs import SEED, Arrays, Entry
from hypothesis import HealthCheck, settings
from slow import NAMES, function_of

# The same examples in every run, so that a run tells about the change; nightly ones are new.
settings.register_profile("here", max_examples=100, deadline=None, derandomize=True)
settings.register_profile(
    "ci",
    parent=settings.get_profile("here"),
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly", parent=settings.get_profile("ci"), max_examples=10_000, derandomize=False
)
settings.load_profile(
    "nightly" if os.environ.get("ONNX_CLIP_NIGHTLY") else "ci" if os.environ.get("CI") else "here"
)

# The width of a terminal that is told to all that it starts, as to the workers of pytest-xdist.
os.environ.pop("COLUMNS", None)

# Scripts that need other packages, which --doctest-modules would import.
collect_ignore = ["mutation", "recorded", "public_surface.py"]
# They hold no examples, and --doctest-modules takes two of one name for one module.
collect_ignore_glob = ["*/conftest.py"]


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if function_of(item.nodeid) in NAMES:
            item.add_marker(pytest.mark.slow)


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
