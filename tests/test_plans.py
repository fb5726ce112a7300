"""Plans: what would be done is shown, and what is applied or saved is what clipping makes."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    OnnxClipError,
    Plan,
    clip_gradients,
    clip_gradients_file,
    plan_clips,
    strip,
)
from onnx_clip_pass.cli import main

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"
ONE = GradientClipByNorm(1.0)
BOTH = pytest.mark.parametrize("given", [SEED, str(SEED), onnx.load(SEED)], ids=type)


def plain(text: str) -> str:
    return " ".join(text.split())


@BOTH
def test_what_is_applied_is_what_clipping_makes(given: object):
    original = onnx.load(SEED)
    plan = plan_clips(given, ONE, skip="*.b_0")
    assert plan.apply() == plan.apply() == clip_gradients(original, ONE, skip="*.b_0")
    assert strip(plan.apply()) == original
    if isinstance(given, onnx.ModelProto):
        assert given == original


@BOTH
def test_what_is_saved_is_what_clipping_writes(given: object, tmp_path: Path):
    saved, written = tmp_path / "saved.onnx", tmp_path / "written.onnx"
    plan = plan_clips(given, ONE)
    plan.save(saved)
    assert clip_gradients_file(SEED, written, ONE).rows == plan.rows
    assert onnx.load(saved) == onnx.load(written)


def test_it_shows_what_a_dry_run_shows(capsys: pytest.CaptureFixture[str]):
    plan = plan_clips(SEED, ONE, skip="*.b_0", emit="norm", threshold_input="limit")
    command = ["rewrite", str(SEED), "--skip", "*.b_0", "--emit", "norm"]
    assert main([*command, "--threshold-input", "limit", "--dry-run"]) == 0
    printed = "".join(capsys.readouterr())
    text = str(plan)
    assert text.startswith(f"would clip 1 of 2 gradients in {SEED}, each gradient by its own")
    assert [line for line in text.splitlines() if plain(line) not in plain(printed)] == []
    assert repr(plan) == text
    assert [row.label for row in plan.rows] == ["norm <= 1", "-"]
    assert plan.clipped == plan.rows[:1]
    assert "output fc_0.w_0@GRAD/norm: norm of fc_0.w_0@GRAD" in text
    assert "input limit: the threshold" in text


def test_its_text_is_no_output_of_a_notebook(monkeypatch: pytest.MonkeyPatch):
    plan = plan_clips(SEED, ONE)
    text = str(plan)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(plan) == text


def test_rich_shows_it_as_a_table_that_fits():
    console = Console(width=60, record=True, file=StringIO())
    console.print(plan_clips(SEED, ONE))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert {"gradient", "fc_0.w_0@GRAD", "norm"} <= set(" ".join(lines).split())


def named(name: str) -> onnx.ModelProto:
    """A model of one gradient, of a parameter of that name."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] W) => (float[2] W_grad) '
        "{ W_grad = Neg(W) }"
    )
    text = model.SerializeToString()
    for node in model.graph.node:
        node.input[0], node.output[0] = name, f"{name}_grad"
    model.graph.input[0].name, model.graph.output[0].name = name, f"{name}_grad"
    assert text != model.SerializeToString()
    return model


HOSTILE = "<script>alert(1)</script>[red]\x1b[2J&amp;"


def test_a_name_is_never_markup_nor_a_control_character():
    plan = plan_clips(named(HOSTILE), ONE)
    page = plan._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[red]\\x1b[2J&amp;amp;_grad" in page
    assert "\x1b" not in str(plan)
    assert "<script>alert(1)</script>[red]\\x1b[2J&amp;_grad" in str(plan)
    console = Console(width=300, record=True, file=StringIO())
    console.print(plan)
    assert "[red]\\x1b[2J" in console.export_text()


def test_html_has_each_row_once_and_closes_what_it_opens():
    page = plan_clips(SEED, ONE)._repr_html_()
    for tag in ("div", "p", "table", "tr", "th", "td"):
        assert page.count(f"</{tag}>") == len(re.findall(rf"<{tag}[ >]", page)) > 0
    assert page.count(">fc_0.w_0@GRAD<") == 1


def test_faults_are_told_before_there_is_a_plan():
    with pytest.raises(OnnxClipError, match="matches no parameter"):
        plan_clips(SEED, ONE, skip="nothing")
    with pytest.raises(OnnxClipError, match="model must be a ModelProto or a path, not 3"):
        plan_clips(3, ONE)
    with pytest.raises(OnnxClipError, match="cannot read"):
        plan_clips(SEED.with_name("missing.onnx"), ONE)


def test_a_file_that_was_changed_since_is_neither_applied_nor_saved(tmp_path: Path):
    path, target = tmp_path / "m.onnx", tmp_path / "c.onnx"
    path.write_bytes(SEED.read_bytes())
    plan = plan_clips(path, ONE)
    path.unlink()
    path.write_bytes(SEED.read_bytes())  # equal, but nobody knows without reading all of it
    for use in (plan.apply, lambda: plan.save(target)):
        with pytest.raises(OnnxClipError, match="was changed"):
            use()
    path.unlink()
    with pytest.raises(OnnxClipError, match="cannot read"):
        plan.apply()
    assert not target.exists()


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with a weight of 4 kB in a file of its own."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[32, 32] d) => (float[32, 32] W_grad) '
        "{ W_grad = Mul(W, d) }"
    )
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def test_weights_in_files_of_their_own_are_applied_and_saved(external: Path, tmp_path: Path):
    plan = plan_clips(external, ONE)
    assert plan.apply() == clip_gradients(onnx.load(external), ONE)
    plan.save(tmp_path / "c.onnx")
    assert (tmp_path / "w.bin").read_bytes() == external.with_name("w.bin").read_bytes()
    assert onnx.load(tmp_path / "c.onnx") == plan.apply()


def test_of_weights_that_are_not_loaded_nobody_knows_the_folder(external: Path, tmp_path: Path):
    plan = plan_clips(onnx.load(external, load_external_data=False), ONE)
    assert len(plan.clipped) == 1
    with pytest.raises(OnnxClipError, match="plan from its path"):
        plan.save(tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()


def test_weights_that_lie_elsewhere_are_not_applied(external: Path, tmp_path: Path):
    external.with_name("w.bin").rename(tmp_path / "secret")
    external.with_name("w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(OnnxClipError, match="trust"):
        plan_clips(external, ONE).apply()


def test_what_stands_in_the_way_is_not_replaced(tmp_path: Path):
    target = tmp_path / "t.onnx"
    target.write_text("mine")
    for given in (SEED, onnx.load(SEED)):
        plan = plan_clips(given, ONE)
        with pytest.raises(OnnxClipError, match="pass --force"):
            plan.save(target)
        assert target.read_text() == "mine"
    plan.save(target, force=True)
    plan.save(target)  # it is ours by now
    assert onnx.load(target) == plan.apply()


def test_the_model_itself_is_replaced_on_request_only(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(SEED.read_bytes())
    plan = plan_clips(path, ONE)
    with pytest.raises(OnnxClipError, match="the model itself"):
        plan.save(path)
    plan.save(path, replace=True)
    assert onnx.load(path) == clip_gradients(onnx.load(SEED), ONE)


def test_a_plan_of_a_clipped_model_says_that_its_clip_is_replaced():
    once = clip_gradients(onnx.load(SEED), ONE)
    plan = plan_clips(once, GradientClipByGlobalNorm(2.0))
    assert plan.report.replaced
    assert "note: the model was clipped already; the clips it had are replaced" in str(plan)
    assert plan.apply() == clip_gradients(onnx.load(SEED), GradientClipByGlobalNorm(2.0))


def test_many_rows_are_groups_in_text_and_not_in_html():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g ('
        + ", ".join(f"float[2] W{n}" for n in range(41))
        + ") => ("
        + ", ".join(f"float[2] W{n}_grad" for n in range(41))
        + ") { "
        + " ".join(f"W{n}_grad = Neg(W{n})" for n in range(41))
        + " }"
    )
    plan = plan_clips(model, ONE)
    assert [line.split()[:2] for line in str(plan).splitlines()[1:]] == [
        ["count", "gradient"],
        ["41", "W*_grad"],
        ["nodes:", "41"],
    ]
    assert plan._repr_html_().count("<tr>") == 42
    assert isinstance(plan, Plan)
