"""The command line where the graph leaves open which value is a gradient."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from graphs import MODELS
from onnx import numpy_helper
from steps import ASKED, asking, unknown_optimizer

from onnx_clip_pass import deciding
from onnx_clip_pass.cli import main
from onnx_clip_pass.deciding import Apart
from onnx_clip_pass.record import read_record


@pytest.fixture
def step(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(asking(), path)
    return path


def record_of(path: Path):
    record = read_record(onnx.load(path.with_name("m.clipped.onnx")))
    assert record is not None
    return record


# -- running unasked ---------------------------------------------------------------------------


def test_a_question_is_decided_by_slopes_unasked_and_that_is_said(step: Path, capsys):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    assert main(["rewrite", str(step)]) == 0
    out, err = capsys.readouterr()
    assert "clipped 2 of 2 gradients" in out
    assert "note: the model was run: the slopes of the loss decided for 'W' (whole)" in err
    assert record_of(step).answers == {"W": "whole"}
    assert main(["verify", str(step), str(step.with_name("m.clipped.onnx"))]) == 0
    capsys.readouterr()
    assert main(["rewrite", str(step.with_name("m.clipped.onnx")), "--in-place", "--no-run"]) == 0
    assert main(["inspect", str(step.with_name("m.clipped.onnx"))]) == 0
    assert "the slopes of the loss decided for W" in capsys.readouterr().out


def test_extract_decides_as_rewrite_does(step: Path, capsys):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    assert main(["extract", str(step), "--no-run"]) == 2
    assert main(["extract", str(step)]) == 0
    extracted = onnx.load(step.with_name("m.clip.onnx"))
    assert [port.name for port in extracted.graph.input] == ["whole", "h"]


def test_no_run_forbids_it(step: Path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("nothing may be run")

    monkeypatch.setattr(deciding.subprocess, "run", never)
    assert main(["rewrite", str(step), "--no-run"]) == 2
    err = capsys.readouterr().err
    assert ASKED in err
    assert "the slopes of the loss did not decide" not in err
    assert [path.name for path in step.parent.iterdir()] == ["m.onnx"]


def test_a_model_that_is_too_large_is_not_run_unasked(step: Path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    monkeypatch.setattr(deciding, "_MOST_BYTES", 100)
    assert main(["rewrite", str(step)]) == 2
    assert "too many to run it unasked" in capsys.readouterr().err


def test_data_files_count_as_weights(tmp_path: Path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    model, path = asking(), tmp_path / "m.onnx"
    for tensor in model.graph.initializer:  # only raw data can lie outside
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    monkeypatch.setattr(deciding, "_MOST_BYTES", path.stat().st_size + 1)
    verdict = Apart(path)(onnx.load(path, load_external_data=False), {"W": ["g", "whole"]}, None)
    assert "too many to run it unasked" in verdict.reasons["W"]


def test_a_model_that_takes_too_long_is_given_up(step: Path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    monkeypatch.setattr(deciding, "_MOST_SECONDS", 0.01)
    assert main(["rewrite", str(step)]) == 2
    assert "longer than the 0.01 s for which it is run unasked" in capsys.readouterr().err


def test_without_onnxruntime_the_refusal_says_so(step: Path, capsys, monkeypatch):
    monkeypatch.setattr(deciding.importlib.util, "find_spec", lambda name: None)
    assert main(["rewrite", str(step)]) == 2
    assert "needs ONNX Runtime, which is not installed" in capsys.readouterr().err


def test_an_optimizer_that_no_runtime_has_is_no_obstacle_to_slopes(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    path = tmp_path / "m.onnx"
    onnx.save(unknown_optimizer(), path)
    assert main(["rewrite", str(path)]) == 0
    assert record_of(path).answers == {"W": "g"}


def test_where_slopes_cannot_be_taken_the_refusal_says_why(tmp_path: Path, capsys):
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    model, path = unknown_optimizer(), tmp_path / "m.onnx"
    del model.graph.output[0]
    onnx.save(model, path)
    assert main(["rewrite", str(path)]) == 2
    err = capsys.readouterr().err
    assert "the slopes of the loss did not decide: which output is the loss?" in err


# -- accepting ---------------------------------------------------------------------------------


def test_partial_accepts_and_says_what_is_left_out(step: Path, capsys):
    assert main(["rewrite", str(step), "--no-run", "--partial", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "note: not clipped, since the gradients are not known: 'W'" in err
    (left_out,) = json.loads(out)["uncovered"]
    assert (left_out["parameter"], left_out["candidates"]) == ("W", ["whole", "g"])
    assert [each.to_json() for each in record_of(step).uncovered] == [left_out]
    assert main(["inspect", str(step.with_name("m.clipped.onnx"))]) == 0
    out = capsys.readouterr().out
    assert "not known: " + ASKED in out
    assert "not covered, as was accepted (--partial): W" in out


def test_skipping_by_name_is_no_question(step: Path, capsys):
    assert main(["rewrite", str(step), "--no-run", "--skip", "W"]) == 0
    assert "not known" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("option", ["--partial", "--no-run"])
@pytest.mark.parametrize("others", [["--gradient", "h"], ["--map", "x.json"], ["--probe"]])
def test_options_for_questions_are_refused_where_nothing_is_searched(
    step: Path, capsys, option, others
):
    assert main(["rewrite", str(step), option, *others]) == 2
    assert "nothing is searched: not with" in capsys.readouterr().err


# -- looking -----------------------------------------------------------------------------------


def test_inspect_lists_questions_and_carried_states(tmp_path: Path, capsys):
    path = tmp_path / "m.onnx"
    body = "m2 = Mul(m, half) m_new = Add(m2, h)"
    model = asking(body, outputs=", float[3] m_new")
    model.graph.input.append(onnx.helper.make_tensor_value_info("m", 1, [3]))
    onnx.save(model, path)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 gradient in" in out
    assert f"not known: {ASKED}'whole' or 'g'" in out
    assert "carried, not trained: m" in out
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [question["parameter"] for question in facts["questions"]] == ["W"]
    assert facts["carried"] == ["m"]


# -- operators that nobody knows ---------------------------------------------------------------


def test_an_optimizer_may_be_told(tmp_path: Path, capsys):
    path = tmp_path / "m.onnx"
    onnx.save(unknown_optimizer(), path)
    said = ["--optimizer-op", "vendor::SGD:parameter=0,gradient=1"]
    assert main(["rewrite", str(path), "--no-run"]) == 2
    assert main(["rewrite", str(path), "--no-run", *said]) == 0
    assert [entry.gradient for entry in record_of(path).clips] == ["g"]
    capsys.readouterr()
    assert main(["inspect", str(path), *said]) == 0
    assert "optimized by SGD" in capsys.readouterr().out
    assert main(["inspect", str(path.with_name("m.clipped.onnx"))]) == 0  # the record says it
    assert "optimized by SGD" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "vendor::SGD",
        "vendor::SGD:0,1",
        ":parameter=0,gradient=1",
        "vendor::SGD:parameter=0,gradient=0",
        "vendor::SGD:parameter=0,gradient=-1",
        "vendor::SGD:parameter=0,gradients=1",
    ],
)
def test_an_optimizer_that_is_told_wrongly_is_refused(step: Path, capsys, text):
    assert main(["rewrite", str(step), "--optimizer-op", text]) == 2
    assert "expected an operator and the numbers of two of its inputs" in capsys.readouterr().err


def test_an_operator_of_another_domain_is_named(tmp_path: Path, capsys):
    path = tmp_path / "m.onnx"
    onnx.save(unknown_optimizer(), path)
    said = ["--optimizer-op", "SGD:parameter=0,gradient=1", "--gradient", "g"]
    assert main(["rewrite", str(path), *said]) == 0
    assert "'SGD' is not in this model; there is 'vendor::SGD'" in capsys.readouterr().err


# -- gradients that were named -----------------------------------------------------------------


def test_inspect_shows_gradients_that_were_named(step: Path, capsys):
    clipped = step.with_name("m.clipped.onnx")
    assert main(["rewrite", str(step), "--gradient", "whole"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(clipped)]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("whole", "norm <= 1", "named by the caller"))
    assert "not known" not in table


def test_what_was_named_is_to_be_named_again(capsys, tmp_path: Path):
    clipped = tmp_path / "clipped.onnx"
    path = MODELS / "torch_grad" / "mlp_mse.onnx"
    assert main(["rewrite", str(path), "-o", str(clipped), "--gradient", "t_8"]) == 0
    assert main(["inspect", str(clipped)]) == 0
    assert "1 gradient in" in capsys.readouterr().out
    assert main(["rewrite", str(clipped), "--in-place"]) == 2
    said = capsys.readouterr().err
    assert "or name them with --gradient" in said
    assert "must be told again: 't_8'" in said
    assert main(["rewrite", str(clipped), "--in-place", "--gradient", "t_8"]) == 0


# -- explaining --------------------------------------------------------------------------------


def test_inspect_explains_one_parameter(step: Path, capsys):
    assert main(["inspect", str(step), "--explain", "W"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "W: no gradient is known for sure"
    assert [line.split()[1] for line in lines if line.startswith("  ?")] == ["whole", "g"]
    assert lines[-2:] == [
        "the gradient may be whole or g",
        "why: a term in it alone is decay, or the slope of a penalty in the loss",
    ]


def test_the_explanation_as_json(step: Path, capsys):
    assert main(["inspect", str(step), "--explain", "b", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameter"] == "b"
    assert facts["gradients"] == [["h", "updates b to b_new"]]
    assert [each["name"] for each in facts["steps"][0]["chain"]][:3] == ["b_new", "b_step", "h"]


def test_explaining_is_refused_for_what_it_cannot_do(step: Path, capsys):
    assert main(["inspect", str(step), "--explain", "nothing"]) == 2
    assert "is no parameter, state or gradient" in capsys.readouterr().err
    assert main(["inspect", str(step), "--explain", "W", "--probe"]) == 2
    assert "not with --probe" in capsys.readouterr().err
