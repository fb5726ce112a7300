"""Fixtures for the tests of storage. What they are built with: `bytewise.py` beside this file."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from bytewise import SIZE, large, make_step, point_to
from faulty import Server, build
from replacements import CASES
from trials import Trials

SHARED_MEMORY = Path("/dev/shm")  # where forcing to disk takes no time


@pytest.fixture
def step() -> onnx.ModelProto:
    return make_step()


@pytest.fixture
def saved(step: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(step.SerializeToString())
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Another folder."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model whose two tensors lie in a file in a sub-folder, from byte 4096 and from byte 0."""
    folder = tmp_path / "from"
    (folder / "sub").mkdir(parents=True)
    weights, other = large("W"), large("V", 1)
    data = other.raw_data.ljust(4096, b"\0") + weights.raw_data
    (folder / "sub" / "w.bin").write_bytes(data)
    model = make_step()
    model.graph.initializer.append(other)
    checksum = hashlib.sha1(weights.raw_data).hexdigest()
    first, second = model.graph.initializer
    point_to(first, location="sub/w.bin", offset=4096, length=SIZE, checksum=checksum)
    point_to(second, location="./sub/w.bin", length=SIZE)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """Runs replacements in which something goes wrong."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("faults come from a library that is compiled and preloaded, on Linux")
    with Server(build(tmp_path_factory.mktemp("faults"))) as started:
        yield started


@pytest.fixture(scope="module", params=list(CASES))
def trials(request, server: Server) -> Iterator[Trials]:
    """Each case of `replacements.py`; every night its outcomes are counted in the output."""
    memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        made = Trials.of(request.param, server, Path(place))
        yield made
    if os.environ.get("ONNX_CLIP_NIGHTLY") == "1":
        counts = ", ".join(f"{made.results[each]} {each}" for each in sorted(made.results))
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{made.name}: {made.results.total()} runs: {counts}")
