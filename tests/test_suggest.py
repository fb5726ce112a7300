"""Thresholds from norms: percentiles, and rules."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import parse

from onnx_clip_pass import (
    GradientClipByNorm,
    Norms,
    OnnxClipError,
    clip_gradients,
    load_rules,
)
from onnx_clip_pass.cli import main
from onnx_clip_pass.monitoring.recording import Head, Row
from onnx_clip_pass.reports import write_html

MODELS = Path(__file__).parent.parent / "models" / "in_graph"


def norms_of(columns: dict[str, list[float]]) -> Norms:
    """A run with these norms, by parameter."""
    names = tuple(columns)
    head = Head(tuple(f"{name}_grad" for name in names), names)
    zero = np.zeros(len(names))
    rows = [
        Row(t, 1.0, np.array(each), np.array(each), zero, zero)
        for t, each in enumerate(zip(*columns.values(), strict=True))
    ]
    return Norms(head, tuple(rows))


RAMP = [float(n) for n in range(1, 101)]


def test_a_threshold_for_each_is_a_percentile_that_stays_as_it_is():
    found = norms_of({"W": RAMP, "b": [x / 10 for x in RAMP]}).suggest(90)
    assert [t.parameters for t in found.thresholds] == [("W",), ("b",)]
    # numpy's 90th percentile of 1 to 100 is 90.1, and 10 of them are above
    assert [t.limit for t in found.thresholds] == [90.1, 9.01]
    assert [t.acts for t in found.thresholds] == [0.1, 0.1]
    assert [t.median for t in found.thresholds] == [50.5, 5.05]


def test_the_norm_at_a_percentile_stays_as_it_is_where_digits_are_cut():
    """0.43552 is above 0.4355, which would clip every step of a norm that never changes."""
    (found,) = norms_of({"W": [0.43552] * 60}).suggest(100).thresholds
    assert (found.limit, found.acts) == (0.4356, 0.0)


def test_of_a_run_that_was_lost_the_steps_before_count():
    norms = norms_of({"W": [*RAMP, *(1e6 * x for x in RAMP)]})
    assert norms.suggest(90, steps=100).to_json() == norms_of({"W": RAMP}).suggest(90).to_json()
    assert norms.suggest(90).thresholds[0].limit > 1e6
    for wrong in (0, 201, 1.5):
        with pytest.raises(OnnxClipError, match="steps must be"):
            norms.suggest(steps=wrong)  # type: ignore[arg-type]


def test_gradients_of_one_parameter_have_one_threshold():
    head = Head(("first", "second"), ("W", "W"))
    zero = np.zeros(2)
    rows = [Row(t, 1.0, np.array([1.0, 3.0]), zero, zero, zero) for t in range(60)]
    (threshold,) = Norms(head, rows).suggest(50).thresholds
    assert (threshold.parameters, threshold.median, threshold.largest) == (("W",), 2.0, 3.0)


def test_groups_and_the_rest_have_norms_together():
    three, four, two = [3.0] * 60, [4.0] * 60, [2.0] * 60
    norms = norms_of({"a.w": three, "a.b": four, "c": two})
    found = norms.suggest(50, groups=["a.*"], each="global")
    assert [(t.pattern, t.limit, t.is_global) for t in found.thresholds] == [
        ("a.*", 5.0, True),
        ("", 2.0, True),
    ]
    with pytest.raises(OnnxClipError, match="'nowhere' matches no parameter"):
        norms.suggest(groups=["nowhere"])


def test_what_speaks_against_a_threshold_is_said():
    few = norms_of({"W": [1.0, 2.0]}).suggest()
    assert any("2 steps says little" in warning for warning in few.warnings)
    falling = norms_of({"W": [100 / t for t in range(1, 101)]}).suggest()
    assert not any("says little" in warning for warning in falling.warnings)
    steep = norms_of({"W": [math.exp(-t / 10) for t in range(100)]}).suggest()
    assert any("the norms still change" in warning for warning in steep.warnings)
    always = norms_of({"W": RAMP}).suggest(10)
    assert any("W would act in most steps" in warning for warning in always.warnings)
    never = norms_of({"W": RAMP}).suggest(100)
    assert any("W would hardly ever act" in warning for warning in never.warnings)


def test_gradients_without_a_finite_norm_have_no_threshold():
    columns = {"W": RAMP, "zero": [0.0] * 100, "odd": [math.nan] * 100}
    found = norms_of(columns).suggest()
    assert [t.parameters for t in found.thresholds] == [("W",)]
    assert any("no threshold for zero" in warning for warning in found.warnings)
    assert any("no threshold for odd" in warning for warning in found.warnings)
    with pytest.raises(OnnxClipError, match="no threshold follows"):
        norms_of({"odd": [math.nan] * 3}).suggest()


HOSTILE = ["a*", "a", "a?", "a[b]", "\x1b[31m", "re:a.*", 'q"uote', "new\nline", "clip = 'norm'"]


def test_rules_take_each_parameter_by_its_name_alone_whatever_that_is(tmp_path: Path):
    norms = norms_of({name: [float(n)] * 60 for n, name in enumerate(HOSTILE, 1)})
    found = norms.suggest(50)
    path = tmp_path / "clip.toml"
    path.write_text(found.toml(), encoding="utf-8")
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in HOSTILE
    ]
    nodes = [onnx.helper.make_node("Neg", [name], [f"{n}_g"]) for n, name in enumerate(HOSTILE)]
    outputs = [
        onnx.helper.make_tensor_value_info(f"{n}_g", onnx.TensorProto.FLOAT, [2])
        for n in range(len(HOSTILE))
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    gradients = {f"{n}_g": name for n, name in enumerate(HOSTILE)}
    from onnx_clip_pass import plan_clips

    for rules in (load_rules(path), found.rules):
        rows = plan_clips(model, rules, gradients=gradients).rows
        limits = {row.gradient.parameter.name: row.clip.clip_norm for row in rows}  # type: ignore[union-attr]
        assert limits == {name: float(n) for n, name in enumerate(HOSTILE, 1)}


def test_a_global_suggestion_is_one_rule(tmp_path: Path):
    found = norms_of({"W": [3.0] * 60, "b": [4.0] * 60}).suggest(50, each="global")
    path = tmp_path / "clip.toml"
    path.write_text(found.toml())
    (rule,) = load_rules(path)
    assert rule.clip is not None
    assert rule.clip.to_dict()["clip_norm"] == 5.0
    model = parse(
        "s (float[2] W, float[2] b) => (float[2] W_grad, float[2] b_grad)"
        "{ W_grad = Neg(W) b_grad = Neg(b) }"
    )
    assert clip_gradients(model, found.rules).metadata_props


# -- the command line --------------------------------------------------------------------------


@pytest.fixture
def step(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")
    path = tmp_path / "step.onnx"
    path.write_bytes((MODELS / "adam.onnx").read_bytes())
    return path


def test_from_batches_to_rules_to_a_clipped_step(step: Path, capsys: Any):
    feeds, norms = MODELS / "adam.inputs.npz", step.with_name("n.jsonl")
    rules = step.with_name("clip.toml")
    run = ["watch", str(step), "--feeds", str(feeds), "--steps", "60", "-o", str(norms)]
    assert main([*run, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "carried: output W_new to W" in out
    assert "loss: loss" in out
    assert not norms.exists()
    assert main(run) == 0
    out = capsys.readouterr().out
    assert "60 steps of 2 gradients, loss 1.402 to" in out
    suggest = ["suggest", str(norms), "-o", str(rules), "--percentile", "50"]
    assert main([*suggest, "--steps", "50"]) == 0
    assert "from 50 steps" in capsys.readouterr().out
    assert main([*suggest, "--force"]) == 0
    assert "clip_norm" in capsys.readouterr().out
    assert main(["rewrite", str(step), "--rules", str(rules)]) == 0
    capsys.readouterr()
    assert main(["watch", str(step.with_name("step.clipped.onnx")), "--feeds", str(feeds),
                 "--steps", "20", "--json"]) == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["clipped"] is True
    assert told["steps"] == 20
    assert told["percentiles"]["50"].keys() == {"W", "b"}


def test_quietly_only_what_is_to_be_known_is_said(step: Path, capsys: Any):
    feeds, norms = str(MODELS / "adam.inputs.npz"), str(step.with_name("n.jsonl"))
    assert main(["watch", str(step), "--feeds", feeds, "-o", norms, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["suggest", norms, "-q"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "note: a percentile of 1 step says little" in err
    assert main(["suggest", norms, "-v"]) == 0
    assert "clip_norm" in capsys.readouterr().out


def test_what_is_there_is_not_replaced_and_numbers_can_be_set(step: Path, capsys: Any):
    feeds = dict(np.load(MODELS / "adam.inputs.npz"))
    lr = next(name for name, array in feeds.items() if array.size == 1)
    number = feeds.pop(lr).item()
    batch, norms = step.with_name("batch.npz"), step.with_name("n.jsonl")
    np.savez(batch, **feeds)
    run = ["watch", str(step), "--feeds", str(batch), "-o", str(norms)]
    assert main(run) == 2
    assert f"{lr!r}, an input that neither" in capsys.readouterr().err
    norms.unlink(missing_ok=True)
    assert main([*run, "--set", f"{lr}={number}"]) == 0
    assert main([*run, "--set", f"{lr}={number}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*run, "--set", f"{lr}={number}", "--force"]) == 0
    for wrong in ("lr", "=1", f"{lr}=x", "nowhere=1"):
        assert main([*run, "--force", "--set", wrong]) == 2
    rules = step.with_name("clip.toml")
    rules.write_text("# mine")
    assert main(["suggest", str(norms), "-o", str(rules)]) == 2
    assert rules.read_text() == "# mine"
    assert main(["suggest", str(norms), "-o", str(rules), "--force", "--json"]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"onnx_clip_norms": 9}',
        "no json",
        '{"onnx_clip_norms": 1}\n{}\n',
        "[" * 100_000,
        '{"onnx_clip_norms": 1, "gradients": ["g"], "parameters": ["\\ud800"]}\n',
    ],
)
def test_what_is_no_file_of_norms_is_refused(text: str, tmp_path: Path, capsys: Any):
    path = tmp_path / "n.jsonl"
    path.write_text(text)
    assert main(["suggest", str(path)]) == 2
    assert "error: expected norms as `onnx-clip watch` writes them" in capsys.readouterr().err


ROW = {"step": 0, "loss": 1, "norm": [1], "largest": [1], "zeros": [0], "nonfinite": [0]}


@pytest.mark.parametrize(
    "odd",
    [{"loss": 10**400}, {"step": math.inf}, {"norm": "1"}, {"norm": {"1": 1}}, {"norm": [1, 2]}],
    ids=str,
)
def test_a_step_that_is_none_is_refused_by_its_line(odd: Any, tmp_path: Path, capsys: Any):
    path, rules = tmp_path / "n.jsonl", tmp_path / "clip.toml"
    head = {"onnx_clip_norms": 1, "gradients": ["g"], "parameters": ["p"]}
    path.write_text("".join(json.dumps(each) + "\n" for each in (head, ROW, ROW | odd)))
    assert main(["suggest", str(path), "-o", str(rules)]) == 2
    assert f"error: {str(path)!r}, line 3: " in capsys.readouterr().err
    assert not rules.exists()


def test_norms_of_nothing_give_no_threshold(tmp_path: Path, capsys: Any):
    path = tmp_path / "n.jsonl"
    path.write_text('{"onnx_clip_norms": 1, "gradients": [], "parameters": []}\n')
    assert main(["suggest", str(path)]) == 2
    assert "error: no threshold follows" in capsys.readouterr().err


def test_a_number_that_an_input_cannot_hold_is_refused(step: Path, capsys: Any):
    model = onnx.load(step)
    for name, kind in (("count", onnx.TensorProto.UINT8), ("text", onnx.TensorProto.STRING)):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, []))
    onnx.save(model, step)
    run = ["watch", str(step), "--feeds", str(MODELS / "adam.inputs.npz")]
    for wrong, said in (
        (["count=0.5"], "'count' is uint8, which cannot be 0.5"),
        (["count=-1"], "'count' is uint8, which cannot be -1"),
        (["count=inf"], "'count' is uint8, which cannot be inf"),
        (["step=1e300"], "'step' is float32, which cannot be 1e+300"),
        (["text=1"], "'text' is no tensor of numbers"),
        (["step=1", "step=2"], "'step' is named twice"),
    ):
        assert main([*run, *(word for each in wrong for word in ("--set", each))]) == 2
        assert said in capsys.readouterr().err


def test_a_page_shows_the_run_and_takes_no_name_for_markup(step: Path, tmp_path: Path):
    page = tmp_path / "run.html"
    feeds = str(MODELS / "adam.inputs.npz")
    assert main(["watch", str(step), "--feeds", feeds, "--steps", "30", "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for shown in ("The loss went from", "Norm of each gradient", "W@GRAD", "AutoClip"):
        assert shown in text
    assert "its clip took away" not in text
    model = onnx.load(step)
    onnx.save(clip_gradients(model, GradientClipByNorm(0.1)), step)
    again = ["watch", str(step), "--feeds", feeds, "--steps", "3", "--html", str(page)]
    assert main(again) == 0
    assert "its clip took away" in page.read_text(encoding="utf-8")
    hostile = norms_of({"<script>alert(1)</script>": RAMP, "b": [math.nan] * 100})
    write_html(hostile, page)
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    write_html(Norms(hostile.head, ()), page)  # of no step at all
