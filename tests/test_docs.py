"""The Python and TOML of README and docs, as they stand there, page by page from top to bottom.

That of docs/artifacts.md is in `artifacts/test_artifacts_page.py`, with its commands.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import onnx_clip_pass
from onnx_clip_pass import load_rules
from onnx_clip_pass.cli import main
from onnx_clip_pass.clips import CLIPS

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/rules.md", "docs/thresholds.md", "docs/finding.md"]
)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxruntime", reason="some of it runs a graph")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), space)


def test_the_rules_of_the_page_load(tmp_path: Path):
    (block,) = blocks("docs/rules.md", "toml")
    (tmp_path / "clip.toml").write_text(block, encoding="utf-8")
    assert len(load_rules(tmp_path / "clip.toml")) == 3


def test_the_clips_of_the_readme_take_what_it_says_in_that_order():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(\(.*\))` \|", text, re.MULTILINE)
    assert {name for name, _ in rows} == {clip.__name__ for clip in CLIPS.values()} | {"Chain"}
    for name, arguments in rows:
        space: dict[str, Any] = {}
        exec(f"def said{arguments}: ...", space)
        real = inspect.signature(getattr(onnx_clip_pass, name)).parameters.values()
        said = inspect.signature(space["said"]).parameters.values()
        assert [(p.name, p.default) for p in said] == [(p.name, p.default) for p in real], name


def test_the_page_of_rules_names_the_settings_of_each_clip_and_which_it_needs():
    text = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `\"([a-z-]+)\"` \| (.*) \|$", text, re.MULTILINE))
    assert rows.keys() == {*CLIPS, "none"}
    for kind, clip in CLIPS.items():
        settings = clip.described().items()
        named = set(re.findall(r"`(\w+)`", rows[kind].partition(";")[0]))
        assert named == {name for name, _ in settings}
        needed = set(re.findall(r"\*\*`(\w+)`\*\*", rows[kind]))
        assert needed == {name for name, setting in settings if setting.is_needed}


def test_the_explanation_of_the_page_is_what_inspect_prints(capsys: pytest.CaptureFixture[str]):
    text = (ROOT / "docs/finding.md").read_text(encoding="utf-8")
    command, _, rest = text.partition("    $ onnx-clip ")[2].partition("\n")
    assert main([str(ROOT / each) if "/" in each else each for each in command.split()]) == 0
    printed = capsys.readouterr().out
    shown = rest.partition("\nOf a parameter")[0].rstrip("\n")
    assert [line[4:] for line in shown.splitlines()] == printed.splitlines()
