"""What commands take and where they write: several models, folders, names, what is no model."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from graphs import MODELS, SEED, save

from onnx_clip_pass import strip
from onnx_clip_pass.cli import main

ARTIFACTS = MODELS / "ort_artifacts" / "mlp_mse_sgd"
NAMELESS = MODELS / "torch_grad" / "mlp_mse.onnx"


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two models under different names in one folder."""
    for name in ("a.onnx", "b.onnx"):
        shutil.copyfile(SEED, tmp_path / name)
    return [str(tmp_path / name) for name in ("a.onnx", "b.onnx")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- where they are written --------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_into_a_folder_models_go_under_their_own_names(two, slash, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["rewrite", *two, "-o", f"{tmp_path}/out{slash}", "--json"]) == 0
    assert names(tmp_path / "out") == ["a.onnx", "b.onnx"]
    facts = json.loads(capsys.readouterr().out)["models"]
    assert [each["output"] for each in facts] == [f"{tmp_path}/out/{n}.onnx" for n in "ab"]
    (tmp_path / "back").mkdir()
    assert main(["strip", *(each["output"] for each in facts), "-o", f"{tmp_path}/back"]) == 0
    assert onnx.load(tmp_path / "back" / "b.onnx") == onnx.load(SEED)


def test_one_model_goes_into_a_folder_too(two, tmp_path):
    (tmp_path / "out").mkdir()
    assert main(["rewrite", two[0], "-o", f"{tmp_path}/out"]) == 0
    assert main(["extract", two[0], "-o", f"{tmp_path}/out/"]) == 0
    assert names(tmp_path / "out") == ["a.clip.onnx", "a.onnx"]


def test_folders_of_artifacts_go_into_a_folder_beside_files(two, tmp_path):
    shutil.copytree(ARTIFACTS, tmp_path / "artifacts")
    (tmp_path / "out").mkdir()
    assert main(["rewrite", two[0], f"{tmp_path}/artifacts/", "-o", f"{tmp_path}/out"]) == 0
    assert names(tmp_path / "out") == ["a.onnx", "artifacts"]
    assert "training_model.onnx" in names(tmp_path / "out" / "artifacts")


def test_two_of_one_name_are_refused_before_anything_is_written(two, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "other").mkdir()
    shutil.copyfile(SEED, tmp_path / "other" / "a.onnx")
    assert main(["rewrite", two[0], f"{tmp_path}/other/a.onnx", "-o", f"{tmp_path}/out"]) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert names(tmp_path / "out") == []


@pytest.mark.skipif(not os.path.islink("/dev/stdout"), reason="only some systems have one")  # noqa: PTH114
@pytest.mark.parametrize("command", ["rewrite", "extract"])
def test_a_link_to_a_stream_is_not_replaced_by_a_model(command, two, capsys):
    before = os.readlink("/dev/stdout")  # noqa: PTH115
    assert main([command, two[0], "-o", "/dev/stdout", "--force"]) == 2
    assert "holds devices" in capsys.readouterr().err
    assert os.readlink("/dev/stdout") == before  # noqa: PTH115


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only some systems have pipes with names")
@pytest.mark.parametrize("command", ["rewrite", "inspect", "strip", "extract"])
def test_a_pipe_is_refused_and_not_waited_for(command, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main([command, str(tmp_path / "pipe")]) == 2
    assert "expected a file, of which any part can be read" in capsys.readouterr().err


def test_a_file_called_dash_is_written_by_its_path(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["rewrite", two[0], "-o", "./-"]) == 0
    assert strip(onnx.load(tmp_path / "-")) == onnx.load(SEED)
    assert main(["inspect", "./-"]) == 0


# -- models that are no files of ONNX ----------------------------------------------------------


@pytest.mark.parametrize("form", ["textproto", "json", "onnxtxt"])
def test_the_line_that_converts_a_text_does(form, tmp_path, capsys):
    path = tmp_path / "it's a model.txt"
    onnx.save(onnx.load(SEED), path, format=form)
    assert main(["rewrite", str(path)]) == 2
    line = capsys.readouterr().err.strip().partition("convert it: ")[2]
    python, *arguments = shlex.split(line)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert main(["rewrite", str(path.with_suffix(".onnx"))]) == 0


# -- inspect -----------------------------------------------------------------------------------


def test_inspect_takes_several_and_one_that_fails_stops_no_other(two, capsys):
    assert main(["inspect", two[0], "none.onnx", two[1]]) == 2
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("2 gradients in")] == [
        f"2 gradients in {model}" for model in two
    ]
    assert "1 of 3 models failed" in err
    assert main(["inspect", *two, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2


def test_a_changed_clip_among_several_is_exit_code_1(two, capsys):
    assert main(["rewrite", two[1], "--in-place"]) == 0
    capsys.readouterr()
    model = onnx.load(two[1])
    next(node for node in model.graph.node if node.op_type == "Min").op_type = "Max"
    onnx.save(model, two[1])
    assert main(["inspect", *two, "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("changed since: ")
    facts = json.loads(out)["models"]
    assert [each["changed"] for each in facts] == [False, True]


def test_what_inspect_prints_names_the_gradients_for_rewrite(tmp_path, capsys):
    assert main(["inspect", str(NAMELESS), "--gradient", "t_8", "--json"]) == 0
    said = capsys.readouterr().out
    assert [row["evidence"] for row in json.loads(said)["gradients"]] == ["named by the caller"]
    (tmp_path / "map.json").write_text(said)
    out = str(tmp_path / "out.onnx")
    assert main(["rewrite", str(NAMELESS), "--map", f"{tmp_path}/map.json", "-o", out]) == 0
    capsys.readouterr()
    assert main(["inspect", str(NAMELESS), "--map", f"{tmp_path}/map.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"models": []}, "tells of several models"),
        ({"gradients": [{"gradient": "t_8"}]}, "expected a JSON object"),
        ({"gradients": [{"gradient": [], "parameter": "W"}]}, "expected a JSON object"),
        ({"gradients": [1]}, "expected a JSON object"),
        ({"gradients": [{"gradient": "t_8", "parameter": 1}]}, "with a string for each"),
        ({"gradients": "W"}, "these are not the gradients of this model"),  # a name like others
    ],
)
def test_what_names_no_gradients_is_refused(text, words, tmp_path, capsys):
    (tmp_path / "map.json").write_text(json.dumps(text))
    assert main(["inspect", str(NAMELESS), "--map", f"{tmp_path}/map.json"]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_clipped_at_the_step_shows_it_in_its_table(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["rewrite", str(ARTIFACTS), "-o", out]) == 0
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "_grad " in line]
    assert len(rows) == 4
    assert all("norm <= 1 (step)" in row for row in rows)


def test_a_folder_whose_clip_was_changed_is_exit_code_1(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["rewrite", str(ARTIFACTS), "-o", str(out)]) == 0
    model = onnx.load(out / "optimizer_model.onnx")
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"clip_norm":1.0', '"clip_norm":2.0')
    onnx.save(model, out / "optimizer_model.onnx")
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 1
    assert capsys.readouterr().out.startswith(f"changed since: {out}: ")


# -- strip and verify --------------------------------------------------------------------------


def test_strip_tells_what_it_would_undo_and_writes_nothing(two, tmp_path, capsys):
    assert main(["rewrite", *two, "--in-place", "--clip-norm", "2"]) == 0
    before = names(tmp_path)
    capsys.readouterr()
    assert main(["strip", *two, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("would undo 2 clips") == 2
    assert out.count("nothing was written") == 2
    assert main(["strip", two[0], "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] is None
    assert [entry["clip_norm"] for entry in facts["undone"][0]["clips"]] == [2.0, 2.0]
    assert names(tmp_path) == before
    assert main(["strip", two[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "a.stripped.onnx")


def test_strip_of_a_folder_is_told_too(tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["rewrite", str(ARTIFACTS), "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["strip", str(out), "-o", str(back), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["undone"][0]["clips"][0]["gradient"] == "gradients"
    assert not back.exists()
    assert main(["strip", str(out), "-o", str(back)]) == 0
    assert "undid 1 clip of onnx-clip" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["training_model.onnx", "optimizer_model.onnx"])
def test_verify_says_that_a_clip_is_at_the_step(name, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["rewrite", str(ARTIFACTS), "-o", str(out)]) == 0
    assert main(["verify", str(ARTIFACTS / name), str(out / name)]) == 2
    assert "--at micro-batch: that of" in capsys.readouterr().err


def test_a_folder_with_another_training_model_is_no_obstacle(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    shutil.copytree(ARTIFACTS, tmp_path / "here")
    model = save(
        tmp_path / "here" / "m.onnx",
        "W_grad = Neg(W)",
        inputs="float[2] W",
        outputs="float[2] W_grad",
    )
    target = str(tmp_path / "here" / "c.onnx")
    assert main(["rewrite", str(tmp_path / "here"), "--in-place"]) == 0
    assert main(["rewrite", str(model), "-o", target]) == 0
    assert main(["verify", str(model), target]) == 0
