"""The mutants, and how they are put into functions; run by the session itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .__main__ import report
from .applying import Live
from .drawing import Mutant, sample

SOURCE = '''\
"""A module."""
import contextlib
import functools


def less(a: int, b: int) -> bool:
    return a < b


@functools.cache
def limit() -> int:
    return 7


class Counter:
    @property
    def next(self) -> int:
        return max(number for number in (1, limit()) if number < 9) + 1

    @contextlib.contextmanager
    def counted(self):
        yield 5
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`SOURCE` as a module that is imported, in a folder that is current."""
    path = tmp_path / "package" / "mutated.py"
    path.parent.mkdir()
    path.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutated", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutated", made)
    spec.loader.exec_module(made)
    return made


def apply(module: ModuleType, before: str, after: str) -> bool:
    assert SOURCE.count(before) == 1
    changed = SOURCE.replace(before, after)
    return Live("mutated").apply(Path(str(module.__file__)), SOURCE, changed)


def test_a_function_that_others_hold_changes_too(module: ModuleType):
    held = module.less
    assert not held(1, 1)
    assert apply(module, "a < b", "a <= b")
    assert held(1, 1)


def test_what_is_decorated_changes_and_what_was_cached_is_forgotten(module: ModuleType):
    counter = module.Counter()
    assert counter.next == 8
    assert apply(module, "return 7", "return 6")
    assert counter.next == 7
    assert apply(module, "number < 9", "number < 6")
    assert counter.next == 2
    assert apply(module, "yield 5", "yield 6")
    with counter.counted() as number:
        assert number == 6


def test_code_of_the_module_itself_is_not_applied(module: ModuleType):
    assert not apply(module, '"""A module."""', '"""Another module."""')


def test_the_sample_is_always_the_same_and_moves_little(module: ModuleType, tmp_path: Path):
    drawn = sample(tmp_path, "package", 5)
    assert [one.id for one in drawn] == [one.id for one in sample(tmp_path, "package", 5)]
    assert len({one.id for one in drawn}) == 5
    assert {one.operator for one in drawn} == {"arg_removal", "number", "swap_op"}

    path = Path(str(module.__file__))
    everything = {one.id for one in sample(tmp_path, "package", 100)}
    path.write_text("import os\n\n" + SOURCE.replace("return 7", "return 8"), encoding="utf-8")
    moved = {one.id for one in sample(tmp_path, "package", 100)}
    assert len(everything - moved) == len(moved - everything) == 1


def test_a_mutant_is_one_change_inside_a_function(module: ModuleType, tmp_path: Path):
    for mutant in sample(tmp_path, "package", 100):
        removed, added = (
            [line for line in mutant.diff.splitlines() if line.startswith(sign)] for sign in "-+"
        )
        assert len(removed) == len(added) == 1
        assert removed[0].startswith("-    ")  # no import, no decorator, no annotation
        assert SOURCE.splitlines()[mutant.line - 1] == removed[0][1:]


def mutant(id: str) -> Mutant:
    return Mutant(id, "package/part/module.py", "f", "number", 1, 1, "", "")


def test_what_is_equivalent_does_not_count_as_killed():
    known = {
        "a": {"outcome": "killed"},
        "b": {"outcome": "stopped"},
        "c": {"outcome": "survived", "run": 3, "took": 0.5},
        "d": {"outcome": "survived", "run": 3, "took": 0.5},
    }
    lines, percent = report([mutant(id) for id in "abcde"], known, dict.fromkeys("bcx", "why"))
    text = "\n".join(lines)
    assert percent == 40
    assert "2 of 5 killed: 40.0 %, or 50.0 % of those that are not equivalent" in text
    assert "d package/part/module.py:1 f: survived, 3 tests in 0.5 s" in text
    assert "e package/part/module.py:1 f: not tried" in text
    assert "c package" not in text
    assert "b is killed: take it out" in text
    assert "x is not in the sample: take it out" in text
