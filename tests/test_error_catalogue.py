"""docs/errors.md has every message that the source has, and none that it has not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onnx_clip_pass"
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(.*?)` \| (.*) \|$", PAGE, re.MULTILINE))
RAISING = ("OnnxClipError", "UsageError", "fail")
LEAST = 8  # letters, of what says nothing by itself, such as `f"{path}: {error}"`


def template(node: ast.expr) -> str:
    """A text as it stands in the source, with … for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            made = "".join(template(part) for part in parts)
            return re.sub("…+", "…", made)
        case _:
            return "…"


def texts(path: Path) -> Iterator[str]:
    """All texts of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield template(node)


def messages(path: Path) -> Iterator[str]:
    """The messages of the errors that a module raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in RAISING:
                yield template(node.args[0])
            elif called == "refuse" and isinstance(node.args[0], ast.Dict):
                yield from (template(key) for key in node.args[0].keys if key is not None)


MODULES = sorted(PACKAGE.rglob("*.py"))


def is_met(row: str, text: str) -> bool:
    """Return whether a row is that of a text: its parts are there, in their order."""
    at = 0
    for part in row.split("…"):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def says_something(text: str) -> bool:
    return sum(letter.isalpha() for letter in text) >= LEAST


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_message_of_a_module_has_its_row(path: Path):
    telling = filter(says_something, messages(path))
    lacking = [message for message in telling if not any(is_met(row, message) for row in ROWS)]
    assert lacking == [], "docs/errors.md: put a row there, with the cause and the way out"


def test_every_row_is_of_a_message_that_there_is_and_says_something():
    known = {text for path in MODULES for text in texts(path) if says_something(text)}
    assert [row for row in ROWS if not any(is_met(row, text) for text in known)] == []
    assert all(says_something(row) and rest.strip() for row, rest in ROWS.items())
    assert len(ROWS) > 200
