"""Options are stated once: signatures, docstrings and the command line follow."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnx_clip_pass import (
    GradientClipByNorm,
    clip_artifacts,
    clip_gradients,
    clip_gradients_file,
    extract_clip,
    extract_clip_file,
)
from onnx_clip_pass.cli.rewriting import rewrite
from onnx_clip_pass.rewrite import Options, Settings, described_options

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"
LACKING = {
    clip_gradients: set(),
    clip_gradients_file: set(),
    extract_clip: {"measure_only"},
    extract_clip_file: {"measure_only"},
    clip_artifacts: {"threshold_input"},
}


@pytest.mark.parametrize("function", LACKING, ids=lambda function: function.__name__)
def test_a_signature_shows_each_option_with_its_default(function):
    parameters = inspect.signature(function).parameters
    assert "options" not in parameters
    for name, (kind, option) in described_options().items():
        if name in LACKING[function]:
            assert name not in parameters
        else:
            assert parameters[name].default == option.default
            assert parameters[name].annotation == kind


def test_help_says_what_each_option_means():
    text = inspect.getdoc(clip_gradients)
    assert "**options" not in text
    for name, (_, option) in described_options().items():
        assert f"{name}: {option.doc}" in " ".join(text.split())


def test_the_command_line_has_each_option_that_has_words_for_it():
    shown = {option.name: option for option in rewrite.params}
    for name, (_, option) in described_options().items():
        if option.help:
            assert shown[name].help == option.help
            assert shown[name].opts == ["--" + name.replace("_", "-")]


def test_what_is_said_is_told_from_defaults():
    assert Settings.of().said == ()
    assert Settings.of(skip="", emit=[], loss_scale=1, nonfinite="propagate").said == ()
    said = Settings.of(gradients=["g"], skip="a", loss_scale=2, emit="norm", measure_only=True).said
    assert said == ("gradients", "skip", "loss_scale", "emit", "measure_only")
    assert set(said) < set(Options.__annotations__)


def test_an_option_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="no option 'non_finite'"):
        clip_gradients(onnx.load(SEED), GradientClipByNorm(1.0), non_finite="zero")


NEW = f"""
import inspect, sys
from typing import Annotated, Literal
from onnx_clip_pass.rewrite import settings

settings.Options.__annotations__["colour"] = Annotated[
    Literal["red", "blue"], settings.Option("red", "the colour.", "The colour of it all.")
]
import onnx
from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, clip_gradients_file
from onnx_clip_pass.cli import main

assert "colour: the colour." in clip_gradients.__doc__
assert inspect.signature(clip_gradients_file).parameters["colour"].default == "red"
assert settings.Settings.of(colour="blue").options["colour"] == "blue"
try:
    clip_gradients(onnx.load({str(SEED)!r}), GradientClipByNorm(1.0), colour="green")
except OnnxClipError as error:
    print(error)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rewrite", "--help"], 0, "--colour [red|blue] The colour of it all. [default: red]"),
        (["rewrite", str(SEED), "--dry-run", "--colour", "blue"], 0, "would clip 2 of 2"),
        (["extract", str(SEED), "--colour", "green"], 2, "'green' is not one of 'red', 'blue'"),
    ],
    ids=["help", "taken", "refused"],
)
def test_a_new_option_is_one_description(arguments: list[str], code: int, words: str):
    command = [sys.executable, "-c", NEW, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, "colour must be one of red, blue" in ran.stdout) == (code, True)
    assert words in " ".join((ran.stdout + ran.stderr).split())
