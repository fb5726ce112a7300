"""The site that `nox -s docs` has built shows what is made for it alone: formulas and options."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml", reason="the site is built in a session of its own: nox -s docs")
ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import markdown  # noqa: E402
from page_blocks import formulas, option_reference  # noqa: E402

import onnx_clip_pass  # noqa: E402
from onnx_clip_pass.cli import cli  # noqa: E402

SITE = ROOT / "site"


def built(page: str) -> str:
    return (SITE / page / "index.html").read_text(encoding="utf-8")


def test_every_formula_of_a_public_docstring_is_drawn():
    docs = [inspect.getdoc(getattr(onnx_clip_pass, name)) or "" for name in onnx_clip_pass.__all__]
    written = sum("..math::" in doc.replace(" ", "") for doc in docs)
    assert written == built("api").count('<div class="math"><math') > 0


def test_every_option_of_a_function_is_in_its_signature():
    functions = built("api").partition('id="onnx_clip_pass.adapters')[0]
    assert "Unpack" not in functions
    assert functions.count("norm_precision") >= 6


def test_no_formula_is_left_as_it_is_written():
    pages = [path.read_text(encoding="utf-8") for path in SITE.rglob("*.html")]
    assert not any(".. math::" in page or "\\begin{cases}" in page for page in pages)


@pytest.mark.parametrize("command", cli.commands)
def test_every_option_has_its_place(command: str):
    page = built("options")
    for each in cli.commands[command].params:
        if each.param_type_name == "option":
            assert f'id="{command}{each.opts[-1]}"' in page, each.name


@pytest.mark.parametrize(
    "text",
    [
        "a\n\n.. math:: x = \\frac{1}{2}\n\nb\n",
        "a\n\n.. math:: x =\n          \\frac{1}{2}\n\nb\n",
        "a\n\n.. math::\n\n   x = \\frac{1}{2}\n\nb\n",
        "a\n\n```math\nx = \\frac{1}{2}\n```\n\nb\n",
    ],
    ids=["in one line", "in two", "below", "in a block"],
)
def test_a_formula_becomes_mathml_and_nothing_else_does(text: str):
    assert [latex for _, latex in formulas(text)] == ["x = \\frac{1}{2}"]
    made = markdown.markdown(text, extensions=["page_blocks"])
    assert re.fullmatch(
        r'<p>a</p>\n<div class="math"><math.*<mfrac>.*</math></div>\n<p>b</p>', made
    )


def test_help_is_text_on_a_page_and_no_markup():
    text = option_reference("rewrite")
    assert "--clip [norm&#124;value" in text  # a bar would end the cell
    assert "\\[default: MODEL.clipped.onnx\\]" in text
    assert '<a id="rewrite--clip-norm"></a>' in text
