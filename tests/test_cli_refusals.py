"""What the command line refuses: one message, exit code 2, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from graphs import MODELS, SEED, save

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, clip_gradients_file
from onnx_clip_pass.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of which each is wrong in another way."""
    folder = tmp_path_factory.mktemp("files")
    seed = folder / "step.onnx"
    seed.write_bytes(SEED.read_bytes())
    (folder / "text.onnx").write_text("this is no model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes(SEED.read_bytes()[:-100])
    (folder / "there.onnx").write_bytes(SEED.read_bytes())
    for name, form in (
        ("text.pbtxt", "textproto"),
        ("named.onnx", "json"),
        ("text.onnxtxt", "onnxtxt"),
    ):
        onnx.save(onnx.load(SEED), folder / name, format=form)
    (folder / "m.ort").write_bytes(b"\x20\0\0\0ORTM" + bytes(64))
    (folder / "bad.json").write_text("[1]")
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    save(folder / "plain.onnx", "y = Relu(x)", inputs="float[2] x", outputs="float[2] y")
    save(folder / "int.onnx", "g = Identity(x)", inputs="int64[2] x", outputs="int64[2] g")
    save(
        folder / "seq.onnx",
        "s = SequenceConstruct(x)",
        inputs="float[2] x",
        outputs="seq(float[2]) s",
    )
    save(
        folder / "old.onnx",
        "W_grad = Neg(W)",
        inputs="float[2] W",
        outputs="float[2] W_grad",
        opset=6,
    )
    assert main(["rewrite", str(seed), "-o", str(folder / "changed.onnx")]) == 0
    changed = onnx.load(folder / "changed.onnx")
    next(node for node in changed.graph.node if node.op_type == "ReduceL2").op_type = "ReduceL1"
    onnx.save(changed, folder / "changed.onnx")
    return folder


PATH = "{folder}/step.onnx"
REFUSED = {
    "not ONNX": (["rewrite", "{folder}/text.onnx"], "is no ONNX model"),
    "empty file": (["rewrite", "{folder}/empty.onnx"], "is empty"),
    "truncated file": (["rewrite", "{folder}/cut.onnx"], "truncated"),
    "a folder": (["rewrite", "{folder}"], "is a folder"),
    "this very folder": (["rewrite", "."], "is a folder"),
    "no name": (["rewrite", ""], "expected a path, not an empty text"),
    "no output": (["rewrite", PATH, "-o", ""], "expected a path, not an empty text"),
    "feeds and no run": (["rewrite", PATH, "--feeds", "x.npz"], "add --verify or --probe"),
    "a seed and no run": (["inspect", PATH, "--seed", "0"], "--seed says how to run a model"),
    "a loss and no probe": (["rewrite", PATH, "--loss", "l"], "--loss says how to probe: add"),
    "a loss, data and no probe": (
        ["inspect", PATH, "--loss", "l", "--data", "d"],
        "--loss, --data say how to probe: add --probe",
    ),
    "sizes and no run": (
        ["rewrite", PATH, "--dim", "N=2", "--provider", "cpu"],
        "--dim, --provider say how to run a model, and none is run",
    ),
    "a size twice": (
        ["rewrite", PATH, "--verify", "--dim", "N=3", "--dim", "N=4"],
        "'N' is named twice",
    ),
    "nothing left": (["rewrite", PATH, "--skip", "*"], "nothing is left to clip"),
    "missing file": (["rewrite", "{folder}/none.onnx"], "No such file"),
    "no gradients": (["rewrite", "{folder}/plain.onnx"], "no gradients found"),
    "patterns without match": (
        ["rewrite", PATH, "--need-clip", "x*", "--skip", "y*"],
        "2 patterns match nothing",
    ),
    "pattern without match": (["rewrite", PATH, "--need-clip", "x*"], "'x*' matches no"),
    "skip without match": (["rewrite", PATH, "--skip", "x*"], "'x*' matches no"),
    "bad regular expression": (["rewrite", PATH, "--skip", "re:("], "no regular expression"),
    "unknown gradient": (["rewrite", PATH, "--gradient", "fc_0.w_0@GRAT"], "did you mean"),
    "integer gradient": (["rewrite", "{folder}/int.onnx", "--gradient", "g"], "int64"),
    "sequence output": (["rewrite", "{folder}/seq.onnx", "--gradient", "s"], "not a tensor"),
    "opset 6": (["rewrite", "{folder}/old.onnx"], "opset 6 is too old"),
    "threshold of zero": (["rewrite", PATH, "--clip-norm", "0"], "not 0.0"),
    "negative threshold": (["rewrite", PATH, "--clip-norm", "-1"], "not -1.0"),
    "threshold nan": (["rewrite", PATH, "--clip-norm", "nan"], "not nan"),
    "no number": (
        ["rewrite", PATH, "--clip-norm", "x"],
        "expected a number such as 0.5 or inf, not 'x'",
    ),
    "output equal to input": (["rewrite", PATH, "-o", PATH], "--in-place"),
    "output there already": (
        ["rewrite", PATH, "-o", "{folder}/there.onnx"],
        "pass --force",
    ),
    "output in a missing folder": (
        ["rewrite", PATH, "-o", "{folder}/no/out.onnx"],
        "there is no folder",
    ),
    "output as a folder that is not there": (
        ["rewrite", PATH, "-o", "{folder}/new/"],
        "there is no folder",
    ),
    "clip as a folder that is not there": (
        ["extract", PATH, "-o", "{folder}/new/"],
        "there is no folder",
    ),
    "original as a folder that is not there": (
        ["strip", "{folder}/changed.onnx", "-o", "{folder}/new/"],
        "there is no folder",
    ),
    "a name that is too long": (["rewrite", PATH, "-o", "x" * 300], "File name too long"),
    "a model name that is too long": (["rewrite", "x" * 300], "File name too long"),
    "output is the folder of the model": (["rewrite", PATH, "-o", "{folder}"], "--in-place"),
    "several outputs and no folder": (
        ["rewrite", PATH, "{folder}/plain.onnx", "-o", "{folder}/none"],
        "several models are written into a folder, and there is no folder",
    ),
    "a missing model and a missing folder": (
        ["rewrite", "{folder}/none/", "-o", "{folder}/new/"],
        "cannot read '{folder}/none'",
    ),
    "a device": (["rewrite", PATH, "-o", "/dev/stdout"], "holds devices"),
    "a model beside which there are devices": (["rewrite", "/dev/null"], "holds devices"),
    "standard input": (["inspect", "-"], "give files, not streams"),
    "standard output": (["rewrite", PATH, "-o", "-"], "give files, not streams"),
    "a model on the web": (["rewrite", "https://example.com/m.onnx"], "is a URL"),
    "an output on the web": (["rewrite", PATH, "-o", "s3://bucket/m.onnx"], "is a URL"),
    "feeds on the web": (["verify", PATH, PATH, "--feeds", "http://x/f.npz"], "is a URL"),
    "quiet and verbose": (["inspect", PATH, "-q", "-v"], "exclude each other"),
    "an explanation of what is named": (
        ["inspect", PATH, "--explain", "fc_0.w_0", "--gradient", "fc_0.w_0@GRAD"],
        "--explain searches: not with --gradient",
    ),
    "our nodes changed since": (["rewrite", "{folder}/changed.onnx"], "another tool"),
    "nothing to strip": (["strip", PATH], "nothing to undo"),
    "map that is no object": (
        ["rewrite", PATH, "--map", "{folder}/bad.json"],
        "expected a JSON object",
    ),
    "map and names": (
        ["rewrite", PATH, "--map", "m.json", "--gradient", "g"],
        "exclude each other",
    ),
    "in place and output": (["rewrite", PATH, "--in-place", "-o", "x"], "exclude each other"),
    "unknown option": (["rewrite", PATH, "--clipnorm", "1"], "No such option"),
    "unknown command": (["rewrit", PATH], "No such command"),
    "no model as text": (["rewrite", "{folder}/m.textproto"], "No such file"),
    "a model as text": (["inspect", "{folder}/text.pbtxt"], "is a model as text (textproto)"),
    "a model as text under another name": (
        ["verify", "{folder}/named.onnx", PATH],
        "as text (json)",
    ),
    "a model as text of onnx": (["strip", "{folder}/text.onnxtxt"], "as text (onnxtxt)"),
    "a model for mobile": (["rewrite", "{folder}/m.ort"], "in ORT format"),
    "optimizer model": (
        ["rewrite", str(MODELS / "ort_artifacts" / "mlp_mse_sgd" / "optimizer_model.onnx")],
        "rewrite training_model.onnx",
    ),
}
"""Arguments, with the folder for `{folder}`, by what is wrong, and what the message must say."""


@pytest.mark.parametrize(("arguments", "expected"), REFUSED.values(), ids=REFUSED)
def test_each_bad_input_is_one_message_and_exit_code_2_and_writes_nothing(
    arguments: list[str], expected: str, files: Path, capsys
):
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    capsys.readouterr()
    assert main([each.replace("{folder}", str(files)) for each in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected.replace("{folder}", str(files)) in err
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before


@pytest.mark.parametrize("options", [[], ["--in-place"], ["--dry-run"]])
def test_two_models_for_one_place_are_refused_before_anything_is_written(options, seed, capsys):
    twin = seed.with_name("step")
    twin.write_bytes(SEED.read_bytes())
    before = sorted(path.name for path in seed.parent.iterdir())
    same = [(f"{seed.parent}/./step.onnx", "name it once")]
    same += [(str(twin), "give one of them alone, with --output")] if not options else []
    for other, way_out in same:
        assert main(["rewrite", str(seed), other, *options]) == 2
        err = capsys.readouterr().err
        assert "would both be written to" in err
        assert f": {way_out}\n" in err
    assert sorted(path.name for path in seed.parent.iterdir()) == before
    assert seed.read_bytes() == SEED.read_bytes()


def test_what_cannot_be_reached_is_named_once(seed, monkeypatch, capsys):
    def refuse(path, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.exists", refuse)
    assert main(["rewrite", str(seed), "-o", str(seed.with_name("out.onnx"))]) == 2
    err = capsys.readouterr().err
    assert err.count("out.onnx") == 1
    assert err.endswith(": Permission denied; nothing there has changed\n")


def test_an_unwritable_folder_is_refused(seed, monkeypatch, capsys):
    def refuse(*_args, **_kwargs):  # root writes anywhere, so permissions alone prove nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("onnx_clip_pass.storage.journal.Journal.create", refuse)
    assert main(["rewrite", str(seed)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_no_gradients_names_the_next_step_that_the_command_has(tmp_path, capsys):
    plain = save(tmp_path / "plain.onnx", "y = Relu(x)", inputs="float[2] x", outputs="float[2] y")
    assert main(["rewrite", str(plain)]) == 2
    err = capsys.readouterr().err
    assert "--probe" in err
    assert "probe_gradients" in err
    assert "or name them with --gradient (in Python: gradients=[…])" in err
    assert main(["inspect", str(plain)]) == 0
    out = capsys.readouterr().out
    assert "--probe" in out
    assert "--gradient" not in out
    assert main(["inspect", str(plain), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] in out


def test_of_many_faults_the_first_ten_are_shown_and_all_are_kept(tmp_path, capsys):
    count = 400
    path = save(
        tmp_path / "wide.onnx",
        *(f"W{i}_grad = Neg(W{i})" for i in range(count)),
        inputs=", ".join(f"float[2] W{i}" for i in range(count)),
        outputs=", ".join(f"float[2] W{i}_grad" for i in range(count)),
    )
    assert main(["rewrite", str(path), "--axes", "5", "--json"]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 12
    assert err.endswith("  and 390 more\n")
    assert len(json.loads(out)["faults"]) == count
    with pytest.raises(OnnxClipError) as caught:
        clip_gradients(onnx.load(path), GradientClipByNorm(1.0, axes=5))
    assert len(caught.value.faults) == count


def test_python_raises_what_the_command_line_prints(tmp_path):
    with pytest.raises(OnnxClipError, match="No such file"):
        clip_gradients_file(tmp_path / "none.onnx", tmp_path / "o.onnx", GradientClipByNorm(1.0))
