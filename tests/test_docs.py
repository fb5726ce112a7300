"""Pages: every command and block of code runs as it stands there, and shows what there is now."""

from __future__ import annotations

import inspect
import json
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_clip_pass
from onnx_clip_pass import load_rules
from onnx_clip_pass.clips import CLIPS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from check_site import REPOSITORY, faults  # noqa: E402
from make_picture import PICTURE, picture  # noqa: E402
from pages import ELSEWHERE, PAGES, Stage, blocks, loose_commands, with_output  # noqa: E402

NEEDS = {"jax.md": "jax2onnx", "onnx_ir.md": "onnxscript", "pytorch.md": "torch"}
"""Pages that need another module than the tests do; they run in the session that has it."""
TEXT_OF = "1.23.2"
"""The version of onnx whose documentation the net of lost_run.md learns."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_on_a_page_runs_and_gives_what_it_shows(page: Path):
    pytest.importorskip("onnxruntime", reason="some of it runs a graph")
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    if page.name == "lost_run.md" and onnx.__version__ != TEXT_OF:
        pytest.skip(f"its text, and so its figures, are those of onnx {TEXT_OF}")
    shown = page.read_text(encoding="utf-8")
    assert with_output(page) == shown, "run python docs/pages.py --write"


@pytest.mark.parametrize(
    "notebook", sorted(ROOT.glob("examples/notebooks/*.ipynb")), ids=lambda path: path.name
)
def test_a_notebook_runs_and_holds_no_outputs(notebook: Path):
    """`nox -s notebooks` runs it in Jupyter; here its cells run as they are, which is quick."""
    pytest.importorskip("onnxruntime", reason="it runs a graph")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "clear outputs"
    space: dict[str, Any] = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_stands_in_a_block_that_is_run(page: Path):
    assert loose_commands(page) == [], "put it behind ```bash or ```console"


def test_a_command_that_is_run_elsewhere_is_on_a_page():
    text = "\n".join(block.text for page in PAGES for block in blocks(page))
    assert [command for command in ELSEWHERE if command not in text] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\nonnx-clip inspect nothing.onnx\n```\n", "exit code 2"),
        ("```bash\nfalse\n```\n", "exit code 1"),
        ("```console\n$ onnx-clip inspect nothing.onnx\n```\n", "exit code 2"),
        ("```pycon\n>>> 1 + 1\n3\n```\n", "Got:\n    2"),
        ("```python\nassert False, 'no'\n```\n", "no"),
        ("```perl\nprint 1\n```\n", "nothing says how to run 'perl'"),
    ],
)
def test_what_does_not_run_is_a_fault_of_the_page(text: str, said: str, tmp_path: Path):
    (page := tmp_path / "page.md").write_text(text, encoding="utf-8")
    (folder := tmp_path / "stage").mkdir()
    (block,) = blocks(page)
    with pytest.raises(AssertionError, match=re.escape(said)):
        Stage(folder).run(block)


def test_output_is_put_where_it_is_shown_and_a_failure_that_is_shown_is_none(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("a\n```console\n$ echo 1\n0\n$ exit 3\n[exit code 3]\n```\nb\n")
    assert with_output(page) == ("a\n```console\n$ echo 1\n1\n$ exit 3\n[exit code 3]\n```\nb\n")


@pytest.mark.skipif(version("rich").startswith("13."), reason="rich 13 spaces lines otherwise")
def test_the_picture_shows_what_is_printed():
    assert PICTURE.read_text(encoding="utf-8") == picture(), (
        "run python docs/make_picture.py --write"
    )


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"[\w/]+\.md", text))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}, "see nav in mkdocs.yml"


def test_the_pages_of_reference_name_everything():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: onnx_clip_pass\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted({*onnx_clip_pass.__all__} - {"__version__"})
    from onnx_clip_pass.cli import cli

    text = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert re.findall(r"^<!-- options of ([\w-]+) -->$", text, re.MULTILINE) == list(cli.commands)


SITE = {
    "whole": ('<a href="b/#x">b</a> <a href="https://elsewhere.org">e</a>', []),
    "page": ('<a href="c/">c</a>', ["index.html links to c/, which is not there"]),
    "anchor": ('<a href="b/#y">b</a>', ["index.html links to b/#y, where there is no such anchor"]),
    "script": ('<script src="https://cdn.org/a.js">', ["index.html loads https://cdn.org/a.js"]),
    "font": (
        '<link rel="stylesheet" href="//fonts.org/a.css">',
        ["index.html loads //fonts.org/a.css"],
    ),
    "style": (
        '<p style="background: url(http://a.org/b.png)">',
        ["index.html loads http://a.org/b.png"],
    ),
    "diagram": ('<pre class="mermaid">', ["index.html loads //mermaid (a script's)"]),
    "stars": ('<a data-md-component="source">', ["index.html loads //source (a script's)"]),
    "repository": (
        f'<a href="{REPOSITORY}/blob/main/NO.md">n</a>',
        [f"index.html links to {REPOSITORY}/blob/main/NO.md, which is no file of the repository"],
    ),
}


@pytest.mark.parametrize(("text", "wrong"), SITE.values(), ids=SITE)
def test_a_site_is_whole_and_loads_nothing_from_elsewhere(
    text: str, wrong: list[str], tmp_path: Path
):
    (tmp_path / "b").mkdir()
    (tmp_path / "index.html").write_text(text)
    (tmp_path / "b" / "index.html").write_text('<h2 id="x">x</h2> <a href="../index.html">a</a>')
    assert faults(tmp_path) == wrong


@pytest.mark.parametrize(
    "page",
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("examples/*/README.md"),
        *(ROOT / name / "README.md" for name in ("benchmarks", "models")),
    ],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_link_of_a_page_outside_of_the_site_leads_to_a_file(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    inner = [link for link in links if "://" not in link]
    assert [link for link in inner if not (page.parent / link).exists()] == []


def test_an_address_of_the_repository_is_the_same_everywhere():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(urls["Source"]) for url in urls.values())


def test_the_rules_of_the_page_load(tmp_path: Path):
    (block,) = [b for b in blocks(ROOT / "docs/rules.md") if b.language == "toml"]
    (tmp_path / "clip.toml").write_text(block.text, encoding="utf-8")
    assert len(load_rules(tmp_path / "clip.toml")) == 3


def test_the_clips_of_the_page_take_what_it_says_in_that_order():
    text = (ROOT / "docs/clips.md").read_text(encoding="utf-8")
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
