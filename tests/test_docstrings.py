"""Docstrings begin with what the thing is or returns, not with a question about it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ASKING = ("What", "Whether", "Which", "Who", "Whose", "Why", "How", "Where")


def docstrings(path: Path) -> list[str]:
    """All texts that stand alone: those of modules, classes, functions and attributes."""
    return [
        node.value.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "onnx_clip_pass").rglob("*.py")),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_docstring_begins_with_a_question(path: Path):
    assert [text for text in docstrings(path) if text.startswith(ASKING)] == []
