"""Docstrings of what is public: every argument, the errors, and formulas with their source."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import onnx_clip_pass
from onnx_clip_pass import AutoClip, Chain, ZClip
from onnx_clip_pass.clips import CLIPS, Clip

PUBLIC = {name: getattr(onnx_clip_pass, name) for name in onnx_clip_pass.__all__ if name[0] != "_"}
CLASSES = {name: found for name, found in PUBLIC.items() if inspect.isclass(found)}
FUNCTIONS = {name: found for name, found in PUBLIC.items() if name not in CLASSES}
# Those of clips are for authors of clips, and said once, in the base class; callers have `apply`.
METHODS = {"Clip.apply": Clip.apply} | {
    f"{name}.{key}": getattr(found, "__func__", found)
    for name, kind in CLASSES.items()
    if not issubclass(kind, Clip)
    for key, found in vars(kind).items()
    if key[0] != "_" and inspect.isroutine(getattr(found, "__func__", found))
}
# What calls return is made here alone, and takes what it is given.
RESULTS = {
    "ArtifactsInspection",
    "Clipped",
    "Emitted",
    "Explanation",
    "Gradient",
    "Inspection",
    "Norms",
    "OnnxClipError",
    "OnnxClipWarning",
    "Parameter",
    "Plan",
    "Progress",
    "ProgressBar",
    "Report",
    "Uncovered",
    "Verification",
}
NEVER_RAISE = {"Bounds.hold", "Report.as_view", "Report.summary"}
FORMULAS = [*CLIPS.values(), AutoClip, ZClip]


def text_of(found: Any) -> str:
    return inspect.getdoc(found) or ""


def section(found: Any, heading: str) -> str:
    """What stands indented below a heading."""
    match = re.search(rf"^{heading}:\n((?:    .*\n|\n)*)", text_of(found) + "\n", re.MULTILINE)
    return match[1] if match else ""


def arguments(found: Any) -> list[str]:
    if found is onnx_clip_pass.OnnxClipWarning:
        return []  # it is made as every warning is, and has no signature that Python knows
    names = inspect.signature(found).parameters
    return [name for name in names if name not in ("self", "cls") and name[0] != "_"]


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, *METHODS])
def test_every_argument_is_explained(name: str):
    found = (FUNCTIONS | CLASSES | METHODS)[name]
    told = re.findall(r"^    (\*{0,2}\w+): .", section(found, "Args"), re.MULTILINE)
    if "**options" not in told:  # which names the function that explains them
        text = text_of(found)
        assert [x for x in arguments(found) if x not in told and f"`{x}`" not in text] == []
    known = {*arguments(found), "**options"}
    assert [x for x in told if x not in known] == []


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, *METHODS])
def test_it_says_when_it_raises(name: str):
    found = (FUNCTIONS | CLASSES | METHODS)[name]
    never = name in RESULTS | NEVER_RAISE or (name in METHODS and not arguments(found))
    text = section(found, "Raises")
    assert re.match(r"    OnnxClipError: \S", text) or (never and "OnnxClipError" not in text)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda kind: kind.__name__)
def test_a_formula_is_written_down_with_an_example_and_its_source(formula: type):
    assert ".. math:: " in text_of(formula)
    assert ">>> " in section(formula, "Example")
    assert re.search(r"https://|PyTorch", section(formula, "References"))


@pytest.mark.parametrize("clip", CLIPS.values(), ids=lambda kind: kind.__name__)
def test_a_clip_says_what_becomes_of_half_precision(clip: type):
    assert re.search(r"half\s+precision", text_of(clip), re.IGNORECASE)


def test_a_chain_whose_formulas_are_those_of_others_has_an_example_and_its_source():
    assert ">>> " in section(Chain, "Example")
    assert section(Chain, "References")
