"""The command line: exit codes, streams and files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_clip_pass import OnnxClipError, strip
from onnx_clip_pass.cli import main

MODELS = Path(__file__).parent.parent / "models"
SEED = MODELS / "seed" / "train_step.onnx"


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    path = tmp_path / "step.onnx"
    path.write_bytes(SEED.read_bytes())
    return path


def save(path: Path, *nodes: str, inputs: str, outputs: str, opset: int = 17) -> Path:
    body = "\n".join(nodes)
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


# -- what works --------------------------------------------------------------------------------


def test_rewrite_writes_beside_the_model_and_leaves_the_model_alone(seed, capsys):
    before = seed.read_bytes()
    assert main(["rewrite", str(seed)]) == 0
    written = onnx.load(seed.with_name("step.clipped.onnx"))
    assert strip(written) == onnx.load(SEED)
    assert seed.read_bytes() == before
    out, err = capsys.readouterr()
    assert "clipped 2 of 2 gradients" in out
    assert "fc_0.w_0@GRAD" in err


def test_dry_run_writes_nothing(seed, capsys):
    assert main(["rewrite", str(seed), "--dry-run"]) == 0
    assert [path.name for path in seed.parent.iterdir()] == ["step.onnx"]
    assert "would clip 2 of 2" in capsys.readouterr().out


def test_json_is_one_object_on_standard_output_and_nothing_else(seed, capsys):
    assert main(["rewrite", str(seed), "--json", "--need-clip", "fc_0.w_0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(g["parameter"], g["clip"]) for g in report["gradients"]] == [
        ("fc_0.w_0", {"type": "GradientClipByNorm", "clip_norm": 1.0}),
        ("fc_0.b_0", None),
    ]


def test_json_of_an_infinite_threshold_is_valid_json(seed, capsys):
    assert main(["rewrite", str(seed), "--json", "--clip-norm", "inf"]) == 0

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    json.loads(capsys.readouterr().out, parse_constant=refuse)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rewrite", "none.onnx"],
        ["inspect", "none.onnx"],
        ["verify", "none.onnx", "none.onnx"],
        ["extract", "none.onnx"],
    ],
)
def test_json_of_a_failure_is_one_object_with_the_error_of_the_message(arguments, capsys):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert f"error: {json.loads(out)['error']}\n" == err


def test_json_of_bad_usage_is_an_object_too(seed, capsys):
    assert main(["rewrite", str(seed), "--in-place", "-o", "x", "--json"]) == 2
    assert "exclude each other" in json.loads(capsys.readouterr().out)["error"]


def test_json_of_a_failure_lists_each_fault(seed, capsys):
    assert main(["rewrite", str(seed), "--skip", "x", "--skip", "y", "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 2


def test_in_place_replaces_the_model_and_a_second_run_replaces_the_clip(seed):
    assert main(["rewrite", str(seed), "--in-place"]) == 0
    assert main(["rewrite", str(seed), "--in-place", "--clip-norm", "2"]) == 0
    assert (
        main(["rewrite", str(SEED), "-o", str(seed.with_name("two.onnx")), "--clip-norm", "2"]) == 0
    )
    assert onnx.load(seed) == onnx.load(seed.with_name("two.onnx"))


def test_of_several_models_one_failure_does_not_stop_the_others(seed, capsys):
    (seed.parent / "bad.onnx").write_bytes(b"bad")
    copy = seed.with_name("copy.onnx")
    copy.write_bytes(seed.read_bytes())
    models = [str(seed), str(seed.parent / "bad.onnx"), str(copy)]
    assert main(["rewrite", *models]) == 2
    out, err = capsys.readouterr()
    assert out.count("clipped 2 of 2") == 2
    assert "bad.onnx" in err
    assert "1 of 3 models failed" in err
    assert copy.with_name("copy.clipped.onnx").exists()
    assert main(["rewrite", *models, "--json"]) == 2
    results = json.loads(capsys.readouterr().out)["models"]
    assert ["error" in result for result in results] == [False, True, False]


def test_an_output_that_onnx_clip_wrote_is_replaced_without_force(seed):
    assert main(["rewrite", str(seed)]) == 0
    assert main(["rewrite", str(seed), "--clip-norm", "2"]) == 0


def test_strip_gives_the_original_back(seed):
    assert main(["rewrite", str(seed)]) == 0
    clipped = seed.with_name("step.clipped.onnx")
    assert main(["strip", str(clipped), "-o", str(seed.with_name("back.onnx"))]) == 0
    assert onnx.load(seed.with_name("back.onnx")) == onnx.load(SEED)


def test_inspect_shows_gradients_evidence_and_record(seed, capsys):
    assert main(["inspect", str(seed)]) == 0
    out = capsys.readouterr().out
    assert "2 gradients" in out
    assert "not clipped by onnx-clip" in out
    assert "updates fc_0.w_0" in out
    assert main(["rewrite", str(seed), "--in-place"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(seed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["record"]["clips"][0]["clip_norm"] == 1.0
    assert len(found["gradients"]) == 2


def test_inspect_tells_that_our_nodes_were_changed(seed, capsys):
    assert main(["rewrite", str(seed), "--in-place"]) == 0
    model = onnx.load(seed)
    next(node for node in model.graph.node if node.op_type == "ReduceL2").op_type = "ReduceL1"
    onnx.save(model, seed)
    capsys.readouterr()
    assert main(["inspect", str(seed)]) == 0
    out = capsys.readouterr().out
    assert "by another tool since" in out
    assert "clipped by onnx-clip" in out


def test_map_names_gradients_and_their_parameters(tmp_path, capsys):
    model = save(
        tmp_path / "m.onnx", "t_9 = Neg(x)", inputs="float[3] x, float[3] w", outputs="float[3] t_9"
    )
    (tmp_path / "map.json").write_text('{"t_9": "w"}')
    arguments = ["rewrite", str(model), "--map", str(tmp_path / "map.json"), "--need-clip", "w"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gradients"][0]["parameter"] == "w"


def test_an_accumulator_is_mentioned_on_standard_error(tmp_path, capsys):
    model = MODELS / "ort_artifacts" / "mlp_mse_sgd" / "training_model.onnx"
    assert main(["rewrite", str(model), "-o", str(tmp_path / "out.onnx")]) == 0
    assert "each micro-batch is clipped" in capsys.readouterr().err


def test_above_forty_rows_the_table_sums_up(tmp_path, capsys):
    count = 41
    path = save(
        tmp_path / "wide.onnx",
        *(f"W{i}_grad = Neg(W{i})" for i in range(count)),
        inputs=", ".join(f"float[2] W{i}" for i in range(count)),
        outputs=", ".join(f"float[2] W{i}_grad" for i in range(count)),
    )
    assert main(["rewrite", str(path)]) == 0
    err = capsys.readouterr().err
    assert err.startswith("41 gradients, float32: norm <= 1\n")


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    evil = "\x1b[2J[red]W"
    graph = helper.make_graph(
        [helper.make_node("Neg", [evil], [f"{evil}_grad"])],
        "g",
        [helper.make_tensor_value_info(evil, TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(f"{evil}_grad", TensorProto.FLOAT, [2])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "evil.onnx")
    assert main(["rewrite", str(tmp_path / "evil.onnx")]) == 0
    out, err = capsys.readouterr()
    assert "\x1b[2J" not in out + err
    assert "[red]W" in err.replace("\n", "")


def test_names_do_not_turn_into_emoji(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Neg", [":bug:"], [":bug:_grad"])],
        "g",
        [helper.make_tensor_value_info(":bug:", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(":bug:_grad", TensorProto.FLOAT, [2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    assert main(["rewrite", str(path)]) == 0
    assert ":bug:_grad" in capsys.readouterr().err


def test_a_record_cannot_steer_the_terminal(seed, capsys):
    assert main(["rewrite", str(seed), "--in-place"]) == 0
    model = onnx.load(seed)
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"version":"', '"version":"\\u001b[31m')
    onnx.save(model, seed)
    capsys.readouterr()
    assert main(["inspect", str(seed)]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


def test_an_interruption_is_told_and_leaves_no_half_written_file(seed, monkeypatch, capsys):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    assert main(["rewrite", str(seed)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in seed.parent.iterdir()] == ["step.onnx"]


def test_names_that_we_would_add_are_no_obstacle(tmp_path):
    nodes = [
        helper.make_node("Neg", ["W"], ["clip/W_grad/raw"], name="clip/W_grad/Mul"),
        helper.make_node("Neg", ["clip/W_grad/raw"], ["W_grad"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("W", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("W_grad", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.float32(3), "clip/1:float32")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    assert main(["rewrite", str(path)]) == 0
    onnx.checker.check_model(onnx.load(path.with_name("m.clipped.onnx")), full_check=True)


# -- what is refused ---------------------------------------------------------------------------


def _bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments by what is wrong with them, and what the message must say."""
    seed = folder / "step.onnx"
    seed.write_bytes(SEED.read_bytes())
    (folder / "text.onnx").write_text("this is no model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes(SEED.read_bytes()[:-100])
    (folder / "there.onnx").write_bytes(SEED.read_bytes())
    (folder / "bad.json").write_text("[1]")
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    plain = save(folder / "plain.onnx", "y = Relu(x)", inputs="float[2] x", outputs="float[2] y")
    whole = save(folder / "int.onnx", "g = Identity(x)", inputs="int64[2] x", outputs="int64[2] g")
    sequence = save(
        folder / "seq.onnx",
        "s = SequenceConstruct(x)",
        inputs="float[2] x",
        outputs="seq(float[2]) s",
    )
    old = save(
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
    path = str(seed)
    return {
        "not ONNX": (["rewrite", str(folder / "text.onnx")], "is no ONNX model"),
        "empty file": (["rewrite", str(folder / "empty.onnx")], "is empty"),
        "truncated file": (["rewrite", str(folder / "cut.onnx")], "truncated"),
        "a folder": (["rewrite", str(folder)], "is a folder"),
        "this very folder": (["rewrite", "."], "is a folder"),
        "no name": (["rewrite", ""], "expected a path, not an empty text"),
        "no output": (["rewrite", path, "-o", ""], "expected a path, not an empty text"),
        "feeds and no run": (["rewrite", path, "--feeds", "x.npz"], "add --verify or --probe"),
        "a seed and no run": (["inspect", path, "--seed", "0"], "--seed: how to run a model"),
        "sizes and no run": (
            ["rewrite", path, "--dim", "N=2", "--provider", "cpu"],
            "--dim, --provider: how to run a model, and none is run",
        ),
        "a size twice": (
            ["rewrite", path, "--verify", "--dim", "N=3", "--dim", "N=4"],
            "'N' is named twice",
        ),
        "nothing left": (["rewrite", path, "--skip", "*"], "nothing is left to clip"),
        "missing file": (["rewrite", str(folder / "none.onnx")], "No such file"),
        "no gradients": (["rewrite", str(plain)], "no gradients found"),
        "patterns without match": (
            ["rewrite", path, "--need-clip", "x*", "--skip", "y*"],
            "2 patterns match nothing",
        ),
        "pattern without match": (["rewrite", path, "--need-clip", "x*"], "'x*' matches no"),
        "skip without match": (["rewrite", path, "--skip", "x*"], "'x*' matches no"),
        "bad regular expression": (["rewrite", path, "--skip", "re:("], "no regular expression"),
        "unknown gradient": (["rewrite", path, "--gradient", "fc_0.w_0@GRAT"], "did you mean"),
        "integer gradient": (["rewrite", str(whole), "--gradient", "g"], "int64"),
        "sequence output": (["rewrite", str(sequence), "--gradient", "s"], "not a tensor"),
        "opset 6": (["rewrite", str(old)], "opset 6 is too old"),
        "threshold of zero": (["rewrite", path, "--clip-norm", "0"], "not 0.0"),
        "negative threshold": (["rewrite", path, "--clip-norm", "-1"], "not -1.0"),
        "threshold nan": (["rewrite", path, "--clip-norm", "nan"], "not nan"),
        "no number": (["rewrite", path, "--clip-norm", "x"], "'x' is not a valid float"),
        "output equal to input": (["rewrite", path, "-o", path], "--in-place"),
        "output there already": (
            ["rewrite", path, "-o", str(folder / "there.onnx")],
            "pass --force",
        ),
        "output in a missing folder": (
            ["rewrite", path, "-o", str(folder / "no" / "out.onnx")],
            "there is no folder",
        ),
        "a name that is too long": (["rewrite", path, "-o", "x" * 300], "File name too long"),
        "a model name that is too long": (["rewrite", "x" * 300], "File name too long"),
        "output is a folder": (["rewrite", path, "-o", str(folder)], "is a folder"),
        "our nodes changed since": (["rewrite", str(folder / "changed.onnx")], "another tool"),
        "nothing to strip": (["strip", path], "nothing to undo"),
        "map that is no object": (
            ["rewrite", path, "--map", str(folder / "bad.json")],
            "expected a JSON object",
        ),
        "map and names": (
            ["rewrite", path, "--map", "m.json", "--gradient", "g"],
            "exclude each other",
        ),
        "in place and output": (["rewrite", path, "--in-place", "-o", "x"], "exclude each other"),
        "one output for two models": (["rewrite", path, path, "-o", "x"], "is for one model"),
        "unknown option": (["rewrite", path, "--clipnorm", "1"], "No such option"),
        "unknown command": (["rewrit", path], "No such command"),
        "a text format": (["rewrite", str(folder / "m.textproto")], "text format"),
        "optimizer model": (
            ["rewrite", str(MODELS / "ort_artifacts" / "mlp_mse_sgd" / "optimizer_model.onnx")],
            "rewrite training_model.onnx",
        ),
    }


def test_each_bad_input_is_one_message_and_exit_code_2_and_writes_nothing(tmp_path, capsys):
    cases = _bad_inputs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for what, (arguments, expected) in cases.items():
        capsys.readouterr()
        assert main(arguments) == 2, what
        out, err = capsys.readouterr()
        assert out == "", what
        assert expected in err, what
        assert "Traceback" not in err, what
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("options", [[], ["--in-place"], ["--dry-run"]])
def test_two_models_for_one_place_are_refused_before_anything_is_written(options, seed, capsys):
    twin = seed.with_name("step")
    twin.write_bytes(SEED.read_bytes())
    before = sorted(path.name for path in seed.parent.iterdir())
    same = [[str(seed), f"{seed.parent}/./step.onnx"]]
    same += [[str(seed), str(twin)]] if not options else []
    for models in same:
        assert main(["rewrite", *models, *options]) == 2
        assert "would both be written to" in capsys.readouterr().err
    assert sorted(path.name for path in seed.parent.iterdir()) == before
    assert seed.read_bytes() == SEED.read_bytes()


def test_what_cannot_be_reached_is_named_once(seed, monkeypatch, capsys):
    def refuse(path, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.exists", refuse)
    assert main(["rewrite", str(seed), "-o", str(seed.with_name("out.onnx"))]) == 2
    err = capsys.readouterr().err
    assert err.count("out.onnx") == 1
    assert err.endswith(": Permission denied\n")


def test_an_unwritable_folder_is_refused(seed, monkeypatch, capsys):
    def refuse(*_args, **_kwargs):  # root writes anywhere, so permissions alone prove nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert main(["rewrite", str(seed)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_no_gradients_names_the_next_step_that_the_command_has(tmp_path, capsys):
    plain = save(tmp_path / "plain.onnx", "y = Relu(x)", inputs="float[2] x", outputs="float[2] y")
    assert main(["rewrite", str(plain)]) == 2
    err = capsys.readouterr().err
    assert "--probe" in err
    assert "probe_gradients" in err
    assert "--gradient (in Python: gradients=[…]) names them" in err
    assert main(["inspect", str(plain)]) == 0
    out = capsys.readouterr().out
    assert "--probe" in out
    assert "--gradient" not in out


def test_of_many_faults_the_first_ten_are_shown_and_all_are_kept(tmp_path, capsys):
    from onnx_clip_pass import GradientClipByNorm, clip_gradients

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
    from onnx_clip_pass import GradientClipByNorm, clip_gradients_file

    with pytest.raises(OnnxClipError, match="No such file"):
        clip_gradients_file(tmp_path / "none.onnx", tmp_path / "o.onnx", GradientClipByNorm(1.0))


# -- what it costs to start --------------------------------------------------------------------


def test_no_command_imports_onnxruntime(seed):
    code = (
        "import sys; from onnx_clip_pass.cli import main\n"
        f"codes = [main([command, {str(seed)!r}]) for command in ('rewrite', 'inspect')]\n"
        "sys.exit(codes != [0, 0] or 'onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_starts_about_as_fast_as_the_imports_it_cannot_do_without():
    def best_of_five(*arguments: str) -> float:
        timer = (
            "import subprocess, sys, time\n"
            "times = []\n"
            "for _ in range(5):\n"
            "    start = time.perf_counter()\n"
            f"    command = [sys.executable, *{arguments!r}]\n"
            "    subprocess.run(command, check=True, capture_output=True)\n"
            "    times.append(time.perf_counter() - start)\n"
            "print(min(times))"
        )
        return float(subprocess.check_output([sys.executable, "-c", timer]))

    imports = best_of_five("-c", "import onnx, click, rich.console")
    ours = best_of_five("-c", "from onnx_clip_pass.cli import main; main(['--help'])")
    assert ours < 2 * imports
