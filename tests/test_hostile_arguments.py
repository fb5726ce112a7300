"""Whatever stands on the command line, in a clip.toml or in a map: an answer, never a traceback.

Every option of every command and every key of a rule is tried with every hostile value; which
options and keys there are is asked of the program.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Bounds,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_gradients,
    load_rules,
)
from onnx_clip_pass.arguments import number_in, whole_in
from onnx_clip_pass.cli import cli, main
from onnx_clip_pass.rules.loading import keys_of_a_rule

MANY_DIGITS = 10**5000
DEEP = 4000
HOSTILE = {
    "empty": "",
    "5,000 digits": "9" * 5000,
    "a small number of 5,000 digits": "0." + "1" * 5000,
    "100,000 hexadecimal digits": "0x" + "f" * 100_000,
    "a large exponent": "1e999999999",
    "almost too large": "1e308",
    "almost nothing": "1e-320",
    "nan": "nan",
    "minus infinity": "-inf",
    "digits of another script": "٣",
    "bytes that are no UTF-8": b"caf\xe9".decode("utf-8", "surrogateescape"),
    "a NUL": "a\0b",
    "control characters": "\x1b[2J\r\n",
    "100,000 characters": "x" * 100_000,
    "a repetition that is too large": "re:a{99999999999999999999}",
    "nested groups": f"re:{'(' * DEEP}{')' * DEEP}",
    "open groups": "re:" + "(" * DEEP,
    "a group that is never closed": "re:(?P<a>",
    "a reference to nothing": r"re:\9",
    "many brackets": "[" * DEEP,
    "many stars": "*" * DEEP,
    "commas": ",,,",
    "an equation": "a=b=c",
}
STEP = """
    <ir_version: 8, opset_import: ["" : 17]>
    step (float[2] W, float[2] x) => (float[2] W_grad, float loss) {
      W_grad = Identity(x)
      product = Mul(W, x)
      loss = ReduceSum <keepdims = 0> (product)
    }"""


@pytest.fixture
def step(tmp_path: Path) -> Path:
    path = tmp_path / "step.onnx"
    onnx.save(parser.parse_model(STEP), path)
    return path


def answers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on standard error; it must be an answer, and short."""
    code = main(arguments)
    err = capsys.readouterr().err
    assert code in (0, 1, 2), err[-2000:]
    assert len(err) < 20_000
    assert "\x1b" not in err
    return err


OPTIONS = [
    (name, option.opts[-1])
    for name, command in cli.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag
]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=str)
def test_every_option_answers_every_hostile_value(
    command, option, value, step, capsys, monkeypatch
):
    monkeypatch.chdir(step.parent)
    models = [str(step)] * 2 if command == "verify" else [str(step)]
    answers([command, *models, f"{option}={value}"], capsys)


@pytest.mark.parametrize(
    "options",
    [
        ["--clip", "value", "--max", "1", "--min", "-1e308"],
        ["--clip", "adaptive", "--clipping", "1", "--eps", "1e300"],
    ],
)
def test_bounds_that_the_dtype_does_not_hold_bound_nothing_without_a_warning(options, step):
    assert main(["rewrite", str(step), "--gradient", "W_grad", *options]) == 0
    clipped = onnx.load(step.with_name("step.clipped.onnx"))
    run = ReferenceEvaluator(clipped)
    x = np.array([-1e15, 0.5], np.float32)
    assert run.run(["W_grad"], {"W": x, "x": x})[0].tolist() == x.tolist()


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("command", cli.commands)
def test_every_command_answers_every_hostile_path(command, value, step, capsys, monkeypatch):
    monkeypatch.chdir(step.parent)
    assert answers([command, *[value] * (1 + (command == "verify"))], capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--clip-norm", "9" * 5000], "is more than a float holds; for no bound say inf"),
        (["--clip-norm", "1_0"], "expected a number such as 0.5 or inf, not '1_0'"),
        (["--loss-scale", "1e-300", "--clip-norm", "1e-30"], "times the loss scale 1e-300 is less"),
        (["--axes", "9" * 5000], "--axes: expected axes such as 0 or 0,2, not '999"),
        (["--threshold-input", "caf\udce9"], "expected UTF-8, not 'caf\\udce9'"),
        (["--skip", HOSTILE["open groups"]], "is no regular expression: "),
        (["--skip", HOSTILE["a group that is never closed"]], "is no regular expression: "),
    ],
)
def test_what_is_wrong_is_said(options, said, step, capsys):
    assert main(["rewrite", str(step), "--dry-run", *options]) == 2
    assert said in capsys.readouterr().err


# -- clip.toml ---------------------------------------------------------------------------------

TOML = {
    "5,000 digits": "9" * 5000,
    "100,000 hexadecimal digits": "0x" + "f" * 100_000,
    "64 bits": "9223372036854775808",
    "a large exponent": "1e400",
    "5,000 digits behind a point": "0." + "1" * 5000,
    "nan": "nan",
    "minus infinity": "-inf",
    "a date": "1979-05-27",
    "a time": "07:32:00",
    "false": "false",
    "an empty text": '""',
    "a NUL": '"\\u0000"',
    "a long text": '"' + "x" * 1_000_000 + '"',
    "a repetition that is too large": '"re:a{99999999999999999999}"',
    "nested groups": f'"re:{"(" * DEEP}{")" * DEEP}"',
    "an empty list": "[]",
    "a list of lists": "[[[]]]",
    "a list of numbers": "[1, 2.5]",
    "a list of large numbers": f"[{'9' * 4000}]",
    "nested lists": "[" * 90 + "]" * 90,
    "an empty table": "{}",
    "a table": '{clip = "norm"}',
    "a list of tables": f'[{{clip = "norm", clip_norm = 0x{"f" * 5000}}}]',
}


@pytest.mark.parametrize(
    "key",
    [*keys_of_a_rule(), "colour", "a" * 100_000, f"a{'.b' * 100_000}"],
    ids=lambda key: key[:20],
)
def test_every_key_of_a_rule_answers_every_hostile_value(key, step, capsys):
    rules = step.with_name("clip.toml")
    for value in TOML.values():
        others = {"clip": '"norm"', "clip_norm": "1"}
        lines = "\n".join(f"{name} = {text}" for name, text in (others | {key: value}).items())
        rules.write_text(f"[[rule]]\n{lines}\n")
        answers(["rewrite", str(step), "--dry-run", "--rules", str(rules)], capsys)


@pytest.mark.parametrize(
    "text",
    [
        f"{value}"
        for value in ("", "=", "[", "\0", "rule = 1", "rule = [1]", "[[rule]]\n[[rule.rule]]")
    ]
    + [f"optimizer_ops = {value}" for value in TOML.values()]
    + [f"[optimizer_ops]\n'a::b' = {value}" for value in TOML.values()]
    + [
        f"[optimizer_ops]\n'a::b' = {{parameter = {value}, gradient = 1}}"
        for value in TOML.values()
    ],
    ids=lambda text: text[:60],
)
def test_the_rest_of_a_clip_toml_answers_too(text, step, capsys):
    rules = step.with_name("clip.toml")
    rules.write_text(f"{text}\n[[rule]]\nclip = 'norm'\nclip_norm = 1")
    answers(["rewrite", str(step), "--dry-run", "--rules", str(rules)], capsys)


# -- maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "null", "[]", "[[]]", '{"W_grad": null}', '{"W_grad": ["W"]}', "NaN"),
        *('{"W_grad": "\\ud800"}', '{"\\ud800": "W"}', '{"W_grad": "\\u0000"}', '{"": ""}'),
        *("[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"W_grad": ' + "9" * 5000 + "}"),
        '{"W_grad": "' + "x" * 1_000_000 + '"}',
        '{"' + "x" * 1_000_000 + '": "W"}',
    ],
    ids=lambda text: text[:40],
)
def test_every_map_is_answered(text, step, capsys):
    path = step.with_name("map.json")
    path.write_text(text)
    assert answers(["rewrite", str(step), "--dry-run", "--map", str(path)], capsys)


def test_a_map_that_is_no_utf8_is_answered(step, capsys):
    path = step.with_name("map.json")
    path.write_bytes(json.dumps({"W_grad": "W"}).encode("utf-16"))
    assert "expected a JSON object" in answers(["rewrite", str(step), "--map", str(path)], capsys)


# -- Python ------------------------------------------------------------------------------------

VALUES = [MANY_DIGITS, -MANY_DIGITS, [MANY_DIGITS], "\ud800", np.array([1, 2]), object(), [[]], {}]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_arguments_of_clips_are_answered(value):
    for make in (
        lambda: GradientClipByNorm(value),
        lambda: GradientClipByNorm(1.0, ord=value),
        lambda: GradientClipByNorm(1.0, axes=value),
        lambda: GradientClipByNorm(1.0, per_sample=value),
        lambda: GradientClipByNorm(1.0, need_clip=[value]),
        lambda: GradientClipByValue(value),
        lambda: GradientClipByValue(1.0, value),
        lambda: GradientClipByGlobalNorm(1.0, group_name=value),
        lambda: GradientClipByRMS(value),
        lambda: AdaptiveGradientClip(value),
        lambda: AdaptiveGradientClip(1.0, eps=value),
        lambda: Rule(value, GradientClipByNorm(1.0)),
        lambda: Rule(None, value),
        lambda: Rule(None, GradientClipByNorm(1.0), value),
        lambda: Rule(None, GradientClipByNorm(1.0), bounds=Bounds(value)),
        lambda: load_rules(value),
    ):
        with suppress(OnnxClipError):
            make()


OPTIONS_IN_PYTHON = [
    *("gradients", "skip", "norm_precision", "nonfinite", "threshold_input", "loss_scale"),
    *("emit", "emit_as", "measure_only", "partial", "optimizer_ops", "probe"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", OPTIONS_IN_PYTHON)
def test_arguments_of_a_rewrite_are_answered(name, value):
    model = parser.parse_model(STEP)
    for given in (value, [value], {"a": value}, {"W_grad": value}, {"a": (value, 1)}):
        with suppress(OnnxClipError):
            clip_gradients(model, GradientClipByNorm(1.0), **{name: given})


# -- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("2", 2), (" .5 ", 0.5), ("-1.", -1), ("1e-3", 0.001), ("inf", np.inf), ("+Infinity", np.inf)],
)
def test_numbers_are_read_as_people_write_them(text, number):
    assert number_in(text) == number


@pytest.mark.parametrize("text", ["", " ", "x", "1_0", "1,5", "٣", "0x10", "1e999", "9" * 400, "."])
def test_what_is_no_number_is_not_read_as_one(text):
    with pytest.raises(ValueError, match=r"expected a number|more than a float holds"):
        number_in(text)


@pytest.mark.parametrize("text", ["", "1.0", "1_0", "0x1", "1" * 19, "٣", "--1"])
def test_what_is_no_whole_number_is_not_read_as_one(text):
    with pytest.raises(ValueError, match="expected a whole number of at most 18 digits"):
        whole_in(text)
