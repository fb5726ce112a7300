"""The command line's words for every clip, for rules, thresholds, loss scale and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnx_clip_pass import strip
from onnx_clip_pass.cli import main
from onnx_clip_pass.record import read_record

SEED = Path(__file__).parent.parent / "models" / "seed" / "train_step.onnx"

EACH = {
    "nothing said": ([], "each gradient by its own L2 norm", {"clip_norm": 1.0}),
    "norm": (["--clip", "norm", "--clip-norm", "2"], "its own L2 norm", {"clip_norm": 2.0}),
    "L1": (["--ord", "1"], "each gradient by its own L1 norm", {"clip_norm": 1.0, "ord": 1.0}),
    "L-infinity": (["--ord", "inf"], "its own Linf norm", {"clip_norm": 1.0, "ord": "inf"}),
    "axes": (["--axes", "-1"], "its own L2 norm over axes [-1]", {"clip_norm": 1.0, "axes": [-1]}),
    "samples": (
        ["--per-sample"],
        "each sample of each gradient by its own L2 norm",
        {"clip_norm": 1.0, "per_sample": True},
    ),
    "value": (["--clip", "value", "--max", "0.5"], "each element by its value", {"max": 0.5}),
    "two bounds": (
        ["--clip", "value", "--max", "0.5", "--min", "-1"],
        "each element by its value",
        {"max": 0.5, "min": -1.0},
    ),
    "global norm": (
        ["--clip", "global-norm", "--group-name", "net"],
        "all gradients of group 'net' by one L2 norm of all together",
        {"clip_norm": 1.0, "group_name": "net"},
    ),
    "rms": (["--clip", "rms", "--threshold", "3"], "its own root mean square", {"threshold": 3.0}),
    "adaptive": (
        ["--clip", "adaptive", "--clipping", "0.01", "--axes", "0"],
        "each unit by its norm against that of its parameter",
        {"clipping": 0.01, "eps": 0.001, "axes": [0]},
    ),
}


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    path = tmp_path / "step.onnx"
    path.write_bytes(SEED.read_bytes())
    return path


@pytest.mark.parametrize(("options", "words", "settings"), EACH.values(), ids=EACH)
def test_each_clip_is_said_in_words_that_leave_no_doubt(options, words, settings, seed, capsys):
    assert main(["rewrite", str(seed), *options]) == 0
    assert words in capsys.readouterr().out
    written = onnx.load(seed.with_name("step.clipped.onnx"))
    entry = read_record(written).clips[0].clip
    assert {name: entry[name] for name in settings} == settings
    assert strip(written) == onnx.load(SEED)


BAD = {
    "foreign option": (["--clip", "value", "--max", "1", "--clip-norm", "2"], "not --clip-norm"),
    "foreign to norm": (["--max", "1"], "--clip norm takes"),
    "value without max": (["--clip", "value"], "needs --max"),
    "rms without threshold": (["--clip", "rms"], "needs --threshold"),
    "adaptive without clipping": (["--clip", "adaptive"], "needs --clipping"),
    "no such clip": (["--clip", "l2"], "'l2' is not one of"),
    "axes that are none": (["--axes", "a"], "--axes: expected axes such as 0 or 0,2"),
    "axes twice": (["--axes", "0,0"], "one is named twice: [0, 0]"),
    "axes twice from either end": (
        ["--need-clip", "fc_0.w_0", "--axes", "0,-2"],
        "axes [0, -2] name one axis of a gradient of rank 2 twice",
    ),
    "axes beyond the rank": (["--axes", "5"], "axes [5] do not fit a gradient of rank"),
    "bounds the wrong way": (["--clip", "value", "--max", "1", "--min", "2"], "min below max"),
    "no scale to emit": (
        ["--clip", "value", "--max", "2", "--min", "1", "--emit", "scale"],
        "multiplies by no scale",
    ),
    "axes and samples": (["--axes", "0", "--per-sample"], "exclude each other"),
    "threshold of zero": (["--clip", "rms", "--threshold", "0"], "must be a positive number"),
    "rules and a clip": (["--rules", "clip.toml", "--clip", "norm"], "not with --clip"),
    "rules and a norm": (["--rules", "clip.toml", "--clip-norm", "1"], "not with --clip-norm"),
    "rules and a selection": (["--rules", "x", "--need-clip", "*"], "not with --need-clip"),
    "loss scale of nothing": (["--loss-scale", "S"], "loss scale 'S' is no value"),
    "loss scale of zero": (["--loss-scale", "0"], "loss_scale must be a positive number"),
    "taken input": (["--threshold-input", "fc_0.w_0"], "the model has a value of that name"),
    "unknown measure": (["--emit", "norm,length"], "not length"),
    "no measure": (["--emit", ""], "--emit: expected norm, scale, clipped"),
    "no measure behind a comma": (["--emit", "norm,"], "--emit: expected norm, scale, clipped"),
    "a form of no measure": (["--emit-as", "vector"], "add --emit"),
    "an input without a name": (["--threshold-input", ""], "the name of an input, not ''"),
    "nothing to measure": (["--measure-only"], "measure_only needs something to emit"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(options, words, seed, capsys):
    assert main(["rewrite", str(seed), *options]) == 2
    _, err = capsys.readouterr()
    assert words in err
    assert "Traceback" not in err
    assert [path.name for path in seed.parent.iterdir()] == ["step.onnx"]


def test_a_threshold_input_and_what_is_emitted_are_told_and_recorded(seed, capsys):
    options = ["--clip", "global-norm", "--threshold-input", "limit", "--emit", "norm,clipped"]
    assert main(["rewrite", str(seed), *options]) == 0
    out, _ = capsys.readouterr()
    assert "input limit: the threshold; not fed, it is as given here" in out
    assert "output default_group/norm: norm of default_group" in out
    written = onnx.load(seed.with_name("step.clipped.onnx"))
    assert [value.name for value in written.graph.input][-1] == "limit"
    assert main(["inspect", str(seed.with_name("step.clipped.onnx"))]) == 0
    out, _ = capsys.readouterr()
    assert "inputs that set thresholds: limit" in out
    assert "outputs that were added: fc_0.w_0@GRAD/norm" in out


def test_emitted_outputs_and_inputs_are_in_the_json(seed, capsys):
    options = ["--emit", "scale", "--emit-as", "vector", "--threshold-input", "limit", "--json"]
    assert main(["rewrite", str(seed), *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["threshold_inputs"] == ["limit"]
    assert facts["emitted"] == [
        {
            "output": "clip/scale",
            "quantity": "scale",
            "gradients": ["fc_0.w_0@GRAD", "fc_0.b_0@GRAD"],
            "group": "",
        }
    ]


def test_a_list_may_be_given_by_commas_or_bit_by_bit(seed, capsys):
    told = []
    for options in (["--emit", "norm,scale"], ["--emit", "norm", "--emit", "scale"]):
        assert main(["rewrite", str(seed), "--json", "--dry-run", *options]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    options = ["--need-clip", "fc_0.w_0", "--axes", "0", "--axes", "1", "--json"]
    assert main(["rewrite", str(seed), *options]) == 0
    assert json.loads(capsys.readouterr().out)["gradients"][0]["clip"]["axes"] == [0, 1]


def test_measure_only_says_that_nothing_is_clipped(seed, capsys):
    assert main(["rewrite", str(seed), "--emit", "norm", "--measure-only"]) == 0
    assert "measured 2 of 2 gradients" in capsys.readouterr().out
    clipped = str(seed.with_name("step.clipped.onnx"))
    assert main(["inspect", clipped]) == 0
    out = capsys.readouterr().out
    assert "measured by onnx-clip" in out
    assert ": 2 of them, norms auto" in out
    assert "nothing is clipped: the gradients are only measured" in out
    assert main(["inspect", clipped, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["record"]
    assert record["measures_only"]
    assert record["outputs"] == ["fc_0.w_0@GRAD/norm", "fc_0.b_0@GRAD/norm"]
