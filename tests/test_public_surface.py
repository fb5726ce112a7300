"""The public surface is what public_surface.txt says; docs/stability.md says what that promises."""

from __future__ import annotations

import sys
from difflib import unified_diff
from pathlib import Path

import pytest

import onnx_clip_pass
from onnx_clip_pass.cli.commands import COMMANDS

pytest.importorskip("griffe", reason="griffelib of the extra `test` lists what is public")
pytest.importorskip("onnxruntime", reason="some of what is listed is printed by runs")
sys.path.insert(0, str(Path(__file__).parent))

from public_surface import CALLS, LISTING, WRITE, surface


@pytest.fixture(scope="module")
def now() -> str:
    return surface()


def test_the_public_surface_is_as_listed(now):
    listed = LISTING.read_text(encoding="utf-8")
    changed = "\n".join(unified_diff(listed.splitlines(), now.splitlines(), "listed", "now", n=1))
    assert now == listed, f"{changed}\nif that is meant: {WRITE} (docs/stability.md says what may)"


def test_every_public_name_has_a_line(now):
    starts = {line.removeprefix("class ").partition("(")[0] for line in now.splitlines()}
    assert set(onnx_clip_pass.__all__) - starts == set()


def test_every_command_is_called_for_its_json():
    assert {title.partition(" ")[0] for title in CALLS} == set(COMMANDS)
