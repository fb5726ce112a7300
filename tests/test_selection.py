"""`need_clip`: predicates, globs, regular expressions, names, and what to skip."""

import re
from fnmatch import fnmatchcase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_clip_pass import OnnxClipError, Parameter
from onnx_clip_pass.selection import PatternMatcher, by_id, check_need_clip, select


def parameter(name: str) -> Parameter:
    return Parameter(name, (4, 3), "float32", f"{name}_grad")


PARAMETERS = [parameter(name) for name in ("encoder.w", "encoder.b", "head.w")]


def selected(need_clip: object, parameters: list[Parameter] = PARAMETERS, **options) -> list[str]:
    return [found.name for found in select(parameters, need_clip, **options)]


def test_none_selects_everything():
    assert selected(None) == ["encoder.w", "encoder.b", "head.w"]


def test_a_predicate_may_select_nothing():
    assert selected(lambda p: False) == []


@pytest.mark.parametrize("kind", [bool, np.bool_], ids=["bool", "numpy-bool"])
def test_a_predicate_is_asked_about_each_parameter(kind):
    assert selected(lambda p: kind(p.name.endswith(".w"))) == ["encoder.w", "head.w"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="None"),
        pytest.param(1, id="1"),
        pytest.param("yes", id="text"),
        pytest.param(np.array([True]), id="array"),
    ],
)
def test_a_predicate_that_gives_no_bool_is_refused(answer):
    message = f"for parameter 'encoder.w' it returned {answer!r}"
    with pytest.raises(OnnxClipError, match=re.escape(message)):
        selected(lambda p: answer)


def test_a_predicate_that_raises_is_reported_with_its_cause():
    with pytest.raises(OnnxClipError, match=r"ZeroDivisionError .*'encoder\.w'") as caught:
        selected(lambda p: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        pytest.param("encoder.*", ["encoder.w", "encoder.b"], id="glob"),
        pytest.param("*.w_grad", ["encoder.w", "head.w"], id="glob-on-the-gradient"),
        pytest.param(
            ["head.*", "*.b"], ["encoder.b", "head.w"], id="any-of-several-in-graph-order"
        ),
        pytest.param("head.w", ["head.w"], id="name"),
        pytest.param("head.w_grad", ["head.w"], id="name-of-the-gradient"),
        pytest.param("re:b$", ["encoder.b"], id="regular-expression"),
        pytest.param("re:^head", ["head.w"], id="regular-expression-on-either-name"),
    ],
)
def test_patterns_select_by_the_name_of_parameter_or_gradient(patterns, expected):
    assert selected(patterns) == expected


def test_globs_tell_upper_from_lower_case():
    with pytest.raises(OnnxClipError, match="matches no parameter"):
        selected("Encoder.*")


@pytest.mark.parametrize("name", ["params['w']", "layer[0].w", "w*", "what?", "re:w"])
def test_an_exact_name_is_not_read_as_a_pattern(name):
    parameters = [parameter(each) for each in (name, "w", "w2", "layer0.w", "what1")]
    assert selected(name, parameters) == [name]


@pytest.mark.parametrize("option", ["need_clip", "skip"])
def test_patterns_that_match_nothing_are_all_reported_beside_what_there_is(option):
    idle = ["decoder.*", "re:^bias"]
    options = {"need_clip": None, "skip": ()} | {option: ["head.w", *idle]}
    with pytest.raises(OnnxClipError, match=r"'encoder.w', 'encoder.b', 'head.w'") as caught:
        selected(**options)
    assert caught.value.faults == tuple(
        f"pattern {pattern!r} matches no parameter and no gradient" for pattern in idle
    )


def test_a_long_list_of_parameters_is_cut_short():
    with pytest.raises(OnnxClipError, match=r"'p9' and 5 more"):
        selected("q", [parameter(f"p{number}") for number in range(15)])


def test_skip_takes_away_from_what_is_selected():
    assert selected("encoder.*", skip=["*.b"]) == ["encoder.w"]


def test_more_parameters_are_selected_only_by_their_very_name():
    data = [parameter("x")]
    assert selected("*", also=data) == ["encoder.w", "encoder.b", "head.w"]
    assert selected(["x", "head.w"], also=data) == ["head.w", "x"]


@pytest.mark.parametrize(
    ("need_clip", "message"),
    [
        pytest.param(3, "a callable, a pattern or a list of patterns, not 3", id="number"),
        pytest.param(np.array(2.0), "a callable, a pattern or a list of patterns", id="array"),
        pytest.param({"a": 1}, "a callable, a pattern or a list of patterns", id="mapping"),
        pytest.param(b"w", "not b'w'", id="bytes"),
        pytest.param(["w", 3], "a list of strings", id="list-with-a-number"),
        pytest.param("re:(", "'re:(' is no regular expression", id="broken-expression"),
    ],
)
def test_what_is_no_selection_is_refused_when_it_is_given(need_clip, message):
    with pytest.raises(OnnxClipError, match=re.escape(message)):
        check_need_clip(need_clip)


@pytest.mark.parametrize(
    "need_clip", [None, bool, "w", ["w", "re:b$"]], ids=["None", "callable", "glob", "list"]
)
def test_a_selection_is_accepted_when_it_is_given(need_clip):
    check_need_clip(need_clip)


WORDS = st.text("ab[]!-?*.", max_size=6)


@given(names=st.lists(WORDS, unique=True, max_size=5), pattern=WORDS)
def test_a_glob_matches_what_the_standard_library_says(names: list[str], pattern: str):
    """But for a very name, which means that one."""
    known = [Parameter(name, (), "float32", name) for name in names]
    expected = [n for n in names if (n == pattern if pattern in names else fnmatchcase(n, pattern))]
    assert [p.name for p in PatternMatcher(known).matching(pattern, by_id(known))] == expected
