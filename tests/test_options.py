"""Options are stated once: signatures, docstrings and the command line follow."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_clip_pass import (
    GradientClipByNorm,
    OnnxClipError,
    Plan,
    clip_artifacts,
    clip_gradients,
    clip_gradients_file,
    extract_clip,
    extract_clip_file,
    plan_clips,
    probe_gradients,
    verify,
)
from onnx_clip_pass.artifacts import strip_artifacts
from onnx_clip_pass.cli.rewriting import rewrite
from onnx_clip_pass.files import strip_file
from onnx_clip_pass.options import described
from onnx_clip_pass.rewrite import Options, Settings
from onnx_clip_pass.runtime import RunOptions
from onnx_clip_pass.saving import FileOptions, WriteOptions

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"
TAKEN = {  # the kinds of options of each function, and those that it does not take
    clip_gradients: ([Options], set()),
    clip_gradients_file: ([Options, FileOptions], set()),
    plan_clips: ([Options], set()),
    Plan.save: ([FileOptions], set()),
    strip_file: ([FileOptions], set()),
    extract_clip: ([Options], {"measure_only"}),
    extract_clip_file: ([Options], {"measure_only"}),
    clip_artifacts: ([Options, WriteOptions], {"threshold_input"}),
    strip_artifacts: ([WriteOptions], set()),
    probe_gradients: ([RunOptions], set()),
    verify: ([RunOptions], set()),
}


@pytest.mark.parametrize(
    ("function", "kinds", "lacking"),
    [(function, *taken) for function, taken in TAKEN.items()],
    ids=[function.__name__ for function in TAKEN],
)
def test_a_signature_shows_each_option_with_its_default(function, kinds, lacking):
    parameters = inspect.signature(function).parameters
    assert lacking.union({"options"}).isdisjoint(parameters)
    for name, (type_, option) in {
        n: o for kind in kinds for n, o in described(kind).items()
    }.items():
        if name not in lacking:
            assert parameters[name].default == option.default
            assert parameters[name].annotation == type_


@pytest.mark.parametrize(
    "function",
    [clip_gradients, clip_gradients_file, plan_clips, Plan.save, verify, probe_gradients],
)
def test_help_says_what_each_option_means(function):
    text = inspect.getdoc(function)
    assert "**options" not in text
    for kind in TAKEN[function][0]:
        for name, (_, option) in described(kind).items():
            assert f"{name}: {option.doc}" in " ".join(text.split())


def test_the_command_line_has_each_option_that_has_words_for_it():
    shown = {option.name: option for option in rewrite.params}
    for name, (_, option) in {**described(Options), **described(FileOptions)}.items():
        if option.help:
            assert shown[name].help == option.help
            assert shown[name].opts == [option.spelled or "--" + name.replace("_", "-")]


def test_what_is_said_is_told_from_defaults():
    assert Settings.of().said == ()
    assert Settings.of(skip="", emit=[], loss_scale=1, nonfinite="propagate").said == ()
    said = Settings.of(gradients=["g"], skip="a", loss_scale=2, emit="norm", measure_only=True).said
    assert said == ("gradients", "skip", "loss_scale", "emit", "measure_only")
    assert set(said) < set(Options.__annotations__)


def test_an_option_that_there_is_not_is_refused_for_the_one_that_is_meant():
    with pytest.raises(TypeError, match="option 'non_finite'; did you mean 'nonfinite'"):
        clip_gradients(onnx.load(SEED), GradientClipByNorm(1.0), non_finite="zero")


def calls_of(function: Callable[..., Any], tmp_path: Path) -> None:
    """Call it with an option that there is not, and with arguments that are wrong, too."""
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    required = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    function(*[damaged] * len(required), bogus=1)


@pytest.mark.parametrize("function", TAKEN, ids=lambda function: function.__name__)
def test_it_is_refused_before_all_else_beside_all_that_the_function_takes(function, tmp_path):
    with pytest.raises(TypeError) as caught:
        calls_of(function, tmp_path)
    start, _, listed = str(caught.value).partition("; there are ")
    assert start == f"{function.__name__}: there is no option 'bogus'"
    parameters = inspect.signature(function).parameters.values()
    assert listed.split(", ") == [
        each.name for each in parameters if each.kind is each.KEYWORD_ONLY
    ]


def test_what_a_function_does_not_take_is_refused_in_its_own_words(tmp_path):
    with pytest.raises(OnnxClipError, match="measure_only clips nothing"):
        extract_clip(onnx.load(SEED), GradientClipByNorm(1.0), measure_only=True)
    with pytest.raises(OnnxClipError, match="the training runtime feeds no input"):
        clip_artifacts(SEED, tmp_path, GradientClipByNorm(1.0), threshold_input="limit")


NEW = f"""
import inspect, sys
from typing import Annotated, Literal
from onnx_clip_pass import rewrite
from onnx_clip_pass.options import Option
from onnx_clip_pass.rewrite import settings

class Options(settings.Options, total=False):
    colour: Annotated[Literal["red", "blue"], Option("red", "the colour.", "The colour of it all.")]

settings.Options = rewrite.Options = Options
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
