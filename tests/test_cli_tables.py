"""Tables of the command line: on which stream, how wide, and what is never broken."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnx_clip_pass.cli import main
from onnx_clip_pass.cli.tables import show_table
from onnx_clip_pass.tables import Table

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"
WORDS = ["fc_0.w_0@GRAD", "fc_0.b_0@GRAD", "float32", "[2, 3]"]


@pytest.fixture
def clipped(tmp_path, capsys):
    path = tmp_path / "clipped.onnx"
    assert main(["rewrite", str(SEED), "-o", str(path), "--clip", "global-norm"]) == 0
    capsys.readouterr()
    return path


def test_what_rewrite_did_is_beside_its_result(tmp_path, capsys):
    assert main(["rewrite", str(SEED), "-o", str(tmp_path / "out.onnx")]) == 0
    out, err = capsys.readouterr()
    assert "evidence" in err
    assert "evidence" not in out


def test_the_table_is_the_result_of_inspect(clipped, capsys):
    assert main(["inspect", str(clipped)]) == 0
    out, err = capsys.readouterr()
    assert all(word in out for word in [*WORDS, "evidence"])
    assert err == ""


def test_the_table_is_the_result_of_verify(clipped, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    assert main(["verify", str(SEED), str(clipped)]) == 0
    out, err = capsys.readouterr()
    assert "raw norm" in out
    assert err == ""
    assert main(["verify", str(SEED), str(clipped), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_what_verify_finds_wrong_is_its_result(clipped, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    model = onnx.load(clipped)
    next(node for node in model.graph.node if node.op_type == "Min").op_type = "Max"
    onnx.save(model, clipped)
    assert main(["verify", str(SEED), str(clipped)]) == 1
    assert "wrong: gradient fc_0.w_0@GRAD" in capsys.readouterr().out


@pytest.fixture
def wide(tmp_path):
    """A model of 41 gradients."""
    grads = "\n".join(f"W{i}_grad = Neg(W{i})" for i in range(41))
    inputs = ", ".join(f"float[2] W{i}" for i in range(41))
    outputs = ", ".join(f"float[2] W{i}_grad" for i in range(41))
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {grads} }}'
    path = tmp_path / "wide.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_groups_in_place_of_a_long_table_are_the_result_of_inspect(wide, capsys):
    assert main(["inspect", str(wide)]) == 0
    out, err = capsys.readouterr()
    assert "\n   41  W*_grad   W*         [2]    float32  -     named after W*;" in out
    assert out.endswith("(41 rows in 1 group; -v shows all)\n")
    assert err == ""
    assert main(["inspect", str(wide), "--verbose"]) == 0
    assert sum(line.startswith("W") for line in capsys.readouterr().out.splitlines()) == 41


def test_of_very_many_wrong_gradients_the_first_are_told(wide, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    target = wide.with_name("clipped.onnx")
    assert main(["rewrite", str(wide), "-o", str(target)]) == 0
    model = onnx.load(target)
    for node in model.graph.node:
        if node.op_type == "Min":
            node.op_type = "Max"
    onnx.save(model, target)
    capsys.readouterr()
    assert main(["verify", str(wide), str(target)]) == 1
    out = capsys.readouterr().out
    assert out.count("wrong: ") == 40
    assert " more (--json lists them)" in out


def test_in_a_file_each_row_is_one_line_however_long(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    evidence = "because of this and that " * 20
    table = Table(("gradient", "evidence"), (("g", evidence.strip()),))
    show_table(table, is_result=True)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_at_any_width_names_and_numbers_stay_whole(columns, command, clipped, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    monkeypatch.setenv("COLUMNS", str(columns))
    models = [str(clipped)] if command == "inspect" else [str(SEED), str(clipped)]
    assert main([command, *models]) == 0
    out = capsys.readouterr().out
    table = out[out.index("\ngradient") + 1 :].splitlines()
    words = WORDS if command == "inspect" else [*WORDS[:2], "0.0837", "0.3727", "1 of 15", "right"]
    assert all(word in out for word in words)
    assert max(map(len, table)) <= columns
    is_table = "raw norm" in table[0] or "parameter" in table[0]
    assert is_table == (columns >= (60 if command == "inspect" else 80))


def test_numbers_have_four_digits(clipped, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    assert main(["verify", str(SEED), str(clipped)]) == 0
    assert "0.0837  " in capsys.readouterr().out


def test_one_is_not_many(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] W) => (float[2] W_grad) {
        W_grad = Neg(W)
    }"""
    model, target = str(tmp_path / "m.onnx"), str(tmp_path / "c.onnx")
    onnx.save(onnx.parser.parse_model(text), model)
    assert main(["rewrite", model, "-o", target]) == 0
    assert "clipped 1 of 1 gradient in" in capsys.readouterr().out
    assert main(["verify", model, target]) == 0
    assert "1 clipped gradient and 1 output compared, 0 faults" in capsys.readouterr().out


def test_the_only_group_needs_no_name(clipped, tmp_path, capsys):
    assert main(["inspect", str(clipped)]) == 0
    assert "default_group" not in capsys.readouterr().out
    options = ["--clip", "global-norm", "--group-name", "net"]
    assert main(["rewrite", str(SEED), "-o", str(tmp_path / "n.onnx"), *options]) == 0
    assert "global norm <= 1 (net)" in capsys.readouterr().err


# -- how much is said --------------------------------------------------------------------------


def test_the_summary_comes_first(clipped, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    for arguments, begins in [
        (["rewrite", str(SEED), "-o", str(tmp_path / "o.onnx")], "clipped 2 of 2 gradients in "),
        (["inspect", str(clipped)], "2 gradients in "),
        (["verify", str(SEED), str(clipped)], "right: "),
        (["strip", str(clipped), "--dry-run"], "would undo 2 clips of onnx-clip "),
    ]:
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith(begins)


def test_quiet_leaves_notes_and_errors_alone(clipped, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    target = str(tmp_path / "out.onnx")
    for arguments in (
        ["rewrite", str(SEED), "-o", target],
        ["inspect", str(clipped)],
        ["verify", str(SEED), str(clipped)],
        ["extract", str(SEED), "-o", str(tmp_path / "clip.onnx")],
        ["strip", str(clipped), "-o", str(tmp_path / "back.onnx")],
    ):
        assert main([*arguments, "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")
    assert main(["rewrite", target, "--in-place", "-q"]) == 0
    assert capsys.readouterr().err.startswith("note: the model was clipped already")
    assert main(["rewrite", "none.onnx", "-q"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["inspect", target, "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gradients"]


def test_a_wrong_model_is_told_though_quiet(clipped, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    model = onnx.load(clipped)
    next(node for node in model.graph.node if node.op_type == "Min").op_type = "Max"
    onnx.save(model, clipped)
    assert main(["verify", str(SEED), str(clipped), "-q"]) == 1
    assert capsys.readouterr().out.startswith(f"WRONG: {clipped} is not what")
    assert main(["inspect", str(clipped), "-q"]) == 1
    assert capsys.readouterr().out.startswith(f"changed since: {clipped}: ")


def test_verbose_shows_names_and_evidence_whole(clipped, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["inspect", str(clipped)]) == 0
    out = capsys.readouterr().out
    assert "updates fc_0.w_0 to fc_0.w_0@NEW" not in out
    assert "-v shows all" in out
    assert main(["inspect", str(clipped), "-v"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "updates fc_0.w_0 to fc_0.w_0@NEW" in out
    assert "-v shows all" not in out


# -- colours and widths ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "is_coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_unless_asked_for(
    settings, is_coloured, clipped, monkeypatch, capsys
):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", str(clipped)]) == 0
    assert main(["rewrite", "none.onnx"]) == 2
    assert main(["inspect", "--help"]) == 0
    out, err = capsys.readouterr()
    assert ("\x1b[36m" in out) == is_coloured  # clips in the table
    assert ("\x1b[1mOutput" in out) == is_coloured
    assert err.startswith("\x1b[31m\x1b[1merror:" if is_coloured else "error:")
    assert is_coloured or "\x1b" not in out + err


def test_messages_are_wrapped_at_words(tmp_path, monkeypatch, capsys):
    path = tmp_path / "plain.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    assert main(["rewrite", str(path)]) == 2
    whole = capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["rewrite", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(len(line) for line in lines) <= 60
    assert " ".join(" ".join(lines).split()) == " ".join(whole.split())
    assert all(line.startswith("  ") for line in lines[1:])
