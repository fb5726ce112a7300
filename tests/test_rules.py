"""Rules, in Python and in a clip.toml: the first that matches takes a gradient."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from counting import lines
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_clip_pass import (
    Bounds,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    OnnxClipError,
    Parameter,
    Rule,
    clip_gradients,
    load_rules,
)
from onnx_clip_pass.cli import main
from onnx_clip_pass.rules import assign

ROOT = Path(__file__).parent.parent
ONE = GradientClipByNorm(1.0)
TWO = GradientClipByNorm(2.0)


def parameter(name: str, shape: tuple[int, ...] | None = (2, 2), dtype: str = "float32"):
    return Parameter(name, shape, dtype, f"{name}_grad")


NET = [
    parameter("encoder.weight", (64, 128)),
    parameter("encoder.bias", (64,)),
    parameter("head.weight", (10, 64), "float16"),
    parameter("head.bias", (10,), "float16"),
    parameter("temperature", ()),
]


def taken(rules: list[Rule], parameters=NET, **options) -> dict[str, int | None]:
    choices, _ = assign(rules, parameters, **options)
    return {p.name: choices[p].rule if p in choices else None for p in parameters}


# -- which rule takes what ---------------------------------------------------------------------


def test_the_first_rule_that_matches_takes_a_gradient():
    rules = [Rule("*.bias", None), Rule("encoder.*", ONE), Rule(None, TWO)]
    assert taken(rules) == {
        "encoder.weight": 2,
        "encoder.bias": None,
        "head.weight": 3,
        "head.bias": None,
        "temperature": 3,
    }


def test_what_no_rule_matches_is_left_alone():
    assert taken([Rule(["re:^head", "temperature"], ONE)]) == {
        "encoder.weight": None,
        "encoder.bias": None,
        "head.weight": 1,
        "head.bias": 1,
        "temperature": 1,
    }


def test_a_predicate_is_asked_only_of_what_is_left():
    asked = []
    rules = [Rule("encoder.*", ONE), Rule(lambda p: bool(asked.append(p.name)) or True, TWO)]
    assert taken(rules)["head.bias"] == 2
    assert asked == ["head.weight", "head.bias", "temperature"]


def test_skip_wins_over_every_rule():
    assert taken([Rule(None, ONE)], skip="*.bias")["head.bias"] is None


def test_gradients_of_data_are_taken_by_their_very_name_only():
    data = parameter("x")
    assert data not in assign([Rule(None, ONE)], NET, [data])[0]
    assert data not in assign([Rule(["x*", "*"], ONE)], NET, [data])[0]
    assert data in assign([Rule("x_grad", ONE)], NET, [data])[0]


BOUNDS = {
    "dtype": (Bounds(dtypes=("float16",)), ["head.weight", "head.bias"]),
    "rank 0": (Bounds(max_rank=0), ["temperature"]),
    "rank 2": (Bounds(min_rank=2), ["encoder.weight", "head.weight"]),
    "641 elements and more": (Bounds(min_elements=641), ["encoder.weight"]),
    "to 10 elements": (Bounds(max_elements=10), ["head.bias", "temperature"]),
}


@pytest.mark.parametrize(("bounds", "names"), BOUNDS.values(), ids=BOUNDS)
def test_bounds_are_included(bounds: Bounds, names: list[str]):
    found = taken([Rule(None, ONE, bounds=bounds)])
    assert [name for name, rule in found.items() if rule] == names


def test_what_is_not_known_of_a_shape_is_within_no_bound():
    unknown, partly = parameter("u", None), parameter("p", ("N", 8))
    assert Bounds(("float32",)).hold(unknown)
    assert not Bounds(max_rank=9).hold(unknown)
    assert Bounds(min_elements=8).hold(partly)
    assert not Bounds(min_elements=9).hold(partly)
    assert not Bounds(max_elements=1000).hold(partly)


NAMES = st.sampled_from(["a", "b", "ab", "ba", "a[0]"])
PATTERNS = st.sampled_from(["*", "a*", "*b", "re:^b", "a[0]", "ab", "?"])


@settings(max_examples=200, deadline=None)
@given(
    names=st.lists(NAMES, min_size=1, unique=True),
    rules=st.lists(st.tuples(PATTERNS, st.booleans()), min_size=1, max_size=6),
)
def test_assigning_is_what_a_plain_loop_does(names, rules):
    """The plain loop: of each parameter, the first rule that alone would pick it."""
    net = [parameter(name) for name in names]
    made = [Rule(pattern, ONE if clips else None) for pattern, clips in rules]
    expected = {}
    for one in net:
        alone = (
            number
            for number, rule in enumerate(made, 1)
            if one in assign([Rule(rule.need_clip, ONE), Rule(None, TWO)], net)[0]
            and assign([Rule(rule.need_clip, ONE), Rule(None, TWO)], net)[0][one].rule == 1
        )
        number = next(alone, None)
        expected[one.name] = number if number and made[number - 1].clip else None
    if any(expected.values()):
        assert taken(made, net) == expected
    else:
        with pytest.raises(OnnxClipError, match="nothing is left to clip"):
            assign(made, net)


# -- what is said of rules that do nothing -----------------------------------------------------


def test_a_rule_that_takes_nothing_is_told_with_the_reason():
    rules = [Rule("encoder.*", ONE), Rule("encoder.bias", TWO), Rule("decoder.*", TWO)]
    _, warnings = assign(rules, NET)
    assert warnings == [
        "rule 2 takes nothing: rule 1 before it takes all that it matches; put it first",
        "rule 3 takes nothing: no parameter of this model is like it says",
    ]


def test_rules_that_say_the_same_agree_on_a_value_that_two_parameters_share():
    path = ROOT / "models" / "in_graph" / "sum_of_parameters.onnx"
    model = onnx.load(path)
    apart = clip_gradients(model, [Rule("S", ONE), Rule(None, GradientClipByNorm(1.0))])
    together = clip_gradients(model, ONE)
    assert apart.graph.node == together.graph.node


def test_clips_that_differ_only_in_what_they_pick_agree_on_a_shared_value():
    model = onnx.load(ROOT / "models" / "in_graph" / "sum_of_parameters.onnx")
    picked = [GradientClipByNorm(1.0, need_clip=name) for name in ("A", "B")]
    apart = clip_gradients(model, Chain(*picked))
    together = clip_gradients(model, GradientClipByNorm(1.0, need_clip=["A", "B"]))
    assert apart.graph.node == together.graph.node


def test_a_rule_cannot_hold_a_clip_that_selects_for_itself():
    with pytest.raises(OnnxClipError, match="say need_clip in the rule"):
        Rule("a", GradientClipByNorm(1.0, need_clip="b"))


def test_a_rule_without_a_clip_is_refused():
    with pytest.raises(OnnxClipError, match="expected a clip"):
        Rule("a", 1.0)


# -- clip.toml ---------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / "clip.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_what_python_says(tmp_path: Path):
    rules = load_rules(
        written(
            tmp_path,
            """
            [[rule]]
            parameters = ["*.bias", "re:norm$"]
            dtype = "float16"
            max_rank = 1
            clip = "none"
            [[rule]]
            rank = 2
            min_elements = 100
            clip = "global-norm"
            clip_norm = 2
            ord = "inf"
            group_name = "large"
            threshold_input = "limit"
            [[rule]]
            clip = [{clip = "value", max = 1.0, min = -2}, {clip = "norm", clip_norm = 1}]
            """,
        )
    )
    assert rules[0].need_clip == ["*.bias", "re:norm$"]
    assert rules[0].clip is None
    assert rules[0].bounds == Bounds(("float16",), max_rank=1)
    group = GradientClipByGlobalNorm(2.0, group_name="large", ord=float("inf"))
    assert repr(rules[1].clip) == repr(group)
    assert (rules[1].threshold_input, rules[1].where) == ("limit", "clip.toml, rule 2")
    assert rules[1].bounds == Bounds(min_rank=2, max_rank=2, min_elements=100)
    assert repr(rules[2].clip) == repr(Chain(GradientClipByValue(1.0, -2), ONE))


WRONG = {
    "no rule": ("", "expected at least one table [[rule]]"),
    "no TOML": ("[[rule", "is no TOML"),
    "another table": ('[[rules]]\nclip = "none"', "unknown key 'rules'; did you mean 'rule'?"),
    "a key": ('clip = "norm"\nclip_nrom = 1', "unknown key 'clip_nrom'; did you mean 'clip_norm'?"),
    "no clip": ("clip_norm = 1", "clip must be one of norm, value, global-norm"),
    "a clip": ('clip = "norms"', "not 'norms'; did you mean 'norm'?"),
    "no threshold": ('clip = "rms"', 'clip = "rms" needs threshold'),
    "a foreign setting": ('clip = "rms"\nthreshold = 1\nord = 2', "takes threshold, not ord"),
    "text for a number": ('clip = "norm"\nclip_norm = "1"', "clip_norm must be a number, not '1'"),
    "true for a number": ('clip = "norm"\nclip_norm = true', "must be a number, not true"),
    "true for a rank": ('rank = true\nclip = "none"', "0 or more, not true"),
    "false for a name": ('clip = "rms"\nthreshold = 1\nthreshold_input = false', "not false"),
    "true for a clip": ("clip = true", "not true"),
    "true for a pattern": ('parameters = true\nclip = "none"', "not true"),
    "a threshold of zero": ('clip = "norm"\nclip_norm = 0', "clip_norm must be a positive number"),
    "samples": ('clip = "norm"\nclip_norm = 1\nper_sample = 1', "per_sample must be true or false"),
    "parameters": ('parameters = 3\nclip = "none"', "parameters must be a pattern"),
    "a regular expression": ('parameters = "re:("\nclip = "none"', "is no regular expression"),
    "dtype": ('dtype = "half"\nclip = "none"', "dtype must be one or more of"),
    "a list for a dtype": ('dtype = [[0]]\nclip = "none"', "dtype must be one or more of"),
    "none in a chain": ('clip = [{clip = "none"}]', "; not 'none'"),
    "rank": ('rank = -1\nclip = "none"', "rank must be a whole number"),
    "ranks": ('min_rank = 3\nmax_rank = 2\nclip = "none"', "can never match: min_rank 3"),
    "rank twice": ('rank = 1\nmax_rank = 2\nclip = "none"', "rank says it all"),
    "elements": ('min_elements = 9\nmax_elements = 8\nclip = "none"', "can never match"),
    "none with settings": ('clip = "none"\nmax = 1', 'clip = "none" takes no max'),
    "a chain of text": ('clip = ["norm"]', "a chain is a list of tables"),
    "an empty chain": ("clip = []", "at least one clip"),
    "a chain with a threshold input": (
        'clip = [{clip = "rms", threshold = 1}, {clip = "norm", clip_norm = 1}]\n'
        'threshold_input = "t"',
        "needs a clip with one threshold",
    ),
    "shadowed": ('clip = "none"\n[[rule]]\nclip = "none"', "rule 2: never matches, since"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_each_fault_of_a_file_is_named_with_file_and_rule(text: str, words: str, tmp_path: Path):
    if not text.startswith("[") and text:
        text = f"[[rule]]\n{text}"
    path = written(tmp_path, text)
    with pytest.raises(OnnxClipError) as caught:
        load_rules(path)
    assert words in str(caught.value)
    assert "clip.toml" in str(caught.value)


def test_all_faults_are_named_at_once(tmp_path: Path):
    path = written(tmp_path, '[[rule]]\nclip = "rms"\nrank = "two"\n[[rule]]\nclip = "l2"\n')
    with pytest.raises(OnnxClipError) as caught:
        load_rules(path)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "clip.toml, rule 1",
        "clip.toml, rule 1",
        "clip.toml, rule 2",
    ]


def test_patterns_that_are_none_hide_no_other_fault(tmp_path: Path):
    path = written(tmp_path, '[[rule]]\nparameters = 3\ncolour = "red"\nclip = "none"\n')
    with pytest.raises(OnnxClipError) as caught:
        load_rules(path)
    assert ["colour" in fault for fault in caught.value.faults] == [True, False]
    assert "parameters must be a pattern" in caught.value.faults[1]


def test_a_file_that_is_not_there_or_is_no_text_is_one_message(tmp_path: Path):
    with pytest.raises(OnnxClipError, match="cannot read"):
        load_rules(tmp_path / "none.toml")
    (tmp_path / "clip.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OnnxClipError, match="is no TOML, which is UTF-8 text"):
        load_rules(tmp_path / "clip.toml")


def test_a_mark_of_utf_8_before_the_text_is_passed_over(tmp_path: Path):
    path = tmp_path / "clip.toml"
    path.write_bytes(b'\xef\xbb\xbf[[rule]]\nclip = "none"\n')
    assert len(load_rules(path)) == 1


def test_the_example_loads():
    assert len(load_rules(ROOT / "examples" / "clip.toml")) == 4


def test_the_command_line_shows_which_rule_took_each_gradient(tmp_path: Path, capsys):
    model = tmp_path / "step.onnx"
    model.write_bytes((ROOT / "models" / "seed" / "train_step.onnx").read_bytes())
    path = written(
        tmp_path,
        '[[rule]]\nparameters = "*.b_0"\nclip = "value"\nmax = 1\n'
        '[[rule]]\nclip = "norm"\nclip_norm = 2\n',
    )
    assert main(["rewrite", str(model), "--rules", str(path), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "each gradient by its own L2 norm; each element by its value" in out
    assert "norm <= 2 [rule" in " ".join(err.split())
    assert main(["rewrite", str(model), "--rules", str(path)]) == 0
    inspected = onnx.load(tmp_path / "step.clipped.onnx")
    assert len(inspected.graph.node) > len(onnx.load(model).graph.node)


def test_thirty_rules_over_a_thousand_parameters_take_four_lines_of_code_each(tmp_path: Path):
    """Counted in lines of the package: 115,000 with Python 3.11 to 3.14, which take some 50 ms."""
    kinds = ['"layer{0}.*"', '["*.{0}.bias", "block{0}.*.weight"]', '"re:(^|\\\\.)h{0}\\\\."']
    text = ""
    for number in range(30):
        pattern = kinds[number % 3].format(number)
        bounds = "min_elements = 10\n" if number % 2 else ""
        text += (
            f'[[rule]]\nparameters = {pattern}\n{bounds}clip = "norm"\nclip_norm = {number + 1}\n'
        )
    path = written(tmp_path, text)
    net = [
        parameter(f"{kind}{number}.attention.{number % 30}.{leaf}", (64, 64))
        for number in range(125)
        for kind in ("layer", "block", "h", "other")
        for leaf in ("weight", "bias")
    ]
    assert len(net) == 1000
    assert len(assign(load_rules(path), net)[0]) > 100
    assert lines(lambda: assign(load_rules(path), net)) < 30 * 1000 * 4
