"""Rules, patterns and chains: the work grows as their number does, and no expression runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting import growth

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    OnnxClipError,
    Parameter,
    Rule,
    patterns,
)
from onnx_clip_pass.clips.schedule import scheduled
from onnx_clip_pass.rules import assign, load_rules
from onnx_clip_pass.selection import select

LINEAR = 2.05
"""Twice the work for twice the input, and a little for what grows with its logarithm."""
CLIP = GradientClipByNorm(1.0)


def parameters(count: int) -> list[Parameter]:
    return [Parameter(f"layer{n}.w", (4,), "float32", f"layer{n}.w_grad") for n in range(count)]


@pytest.mark.parametrize("pattern", ["layer{}.w", "layer{}.w_grad", "layer{}.*"])
def test_rules_for_a_parameter_each(pattern: str):
    def prepare(count: int):
        rules = [Rule(pattern.format(n), CLIP) for n in range(count)]
        return lambda: assign(rules, parameters(count))

    assert growth(prepare, 400) < LINEAR


def test_rules_that_take_nothing_since_others_have_taken_it():
    def prepare(count: int):
        rules = [Rule([f"layer{n}.w"], CLIP) for n in range(count)]
        return lambda: assign([*rules, *rules], parameters(count))

    assert growth(prepare, 400) < LINEAR


@pytest.mark.parametrize("key", ["parameters = 'w{}'", "min_elements = {}"])
def test_rules_in_a_file(tmp_path: Path, key: str):
    def prepare(count: int):
        file = tmp_path / f"{count}.toml"
        tables = [f"[[rule]]\n{key.format(n + 1)}\nclip = 'none'\n" for n in range(count)]
        file.write_text("".join(tables), encoding="utf-8")
        return lambda: load_rules(file)

    assert growth(prepare, 400) < LINEAR


def test_patterns_of_one_selection():
    def prepare(count: int):
        known = parameters(count)
        return lambda: select(known, [p.name for p in known], [f"{p.name}_*" for p in known[1:]])

    assert growth(prepare, 400) < LINEAR


def test_many_rules_before_one_that_takes_nothing_are_not_all_named():
    rules = [Rule(f"layer{n}.w", CLIP) for n in range(15)]
    _, warnings = assign([*rules, Rule(None, CLIP)], parameters(15))
    assert "rule 9, rule 10 and 5 more before it" in warnings[0]


@pytest.mark.parametrize("clip", [CLIP, GradientClipByGlobalNorm(1.0)], ids=["norm", "global"])
def test_chains_of_clips(clip: object):
    def prepare(count: int):
        formulas = Chain(*[clip] * count).formulas
        return lambda: scheduled([formulas, formulas], [0, 0])

    assert growth(prepare, 200) < LINEAR


# -- expressions -------------------------------------------------------------------------------


def test_an_expression_that_backtracks_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.05)
    hostile = Parameter("f" * 80 + "!", (4,), "float32", "g")
    with pytest.raises(OnnxClipError) as caught:
        select([hostile], ["g", "re:(f|ff)+$"])
    assert "'re:(f|ff)+$' takes more than 0.05 seconds" in str(caught.value)
    with pytest.raises(OnnxClipError, match="matches no parameter"):
        select([hostile], "re:(f+)+$")  # which the engine sees through


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("re:a{99999999999999999999}", "multiply to more than 100,000"),
        ("re:((a{1000}){1000}){1000}", "multiply to more than 100,000"),
        ("re:(ab){100000000}", "multiply to more than 100,000"),
        ("re:" + "(" * 4000 + ")" * 4000, "nested or repeated too often"),
        ("re:(", "missing )"),
    ],
    ids=["digits", "nested", "large", "groups", "open"],
)
def test_an_expression_that_cannot_be_compiled_in_little_memory_is_refused(
    expression: str, reason: str
):
    with pytest.raises(OnnxClipError, match=r"re:.*{}".format(reason.replace(")", r"\)"))):
        Rule(expression, CLIP)


@pytest.mark.parametrize(
    ("expression", "picked"),
    [
        (r"re:layer(?=1\.)", ["layer1.w"]),
        (r"re:(?<!layer[01][.]w_)g", ["layer2.w"]),
        (r"re:^(?P<l>l)ayer(?!2)[0-9]{1,2}\.w$", ["layer0.w", "layer1.w"]),
        (r"re:(?i)LAYER2", ["layer2.w"]),
        (r"re:(.).*\1ayer0|ayer0", ["layer0.w"]),
    ],
)
def test_an_expression_means_what_it_means_to_the_standard_library(expression: str, picked):
    assert [p.name for p in select(parameters(3), expression)] == picked
