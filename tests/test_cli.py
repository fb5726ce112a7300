"""The command line: exit codes, streams and files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from graphs import MODELS, SEED, save
from onnx import TensorProto, helper, numpy_helper

from onnx_clip_pass import __version__, strip
from onnx_clip_pass.cli import main


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
        ("fc_0.w_0", {"clip": "GradientClipByNorm", "clip_norm": 1.0}),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rewrite", "m.onnx", "--in-place", "-o", "x"], "exclude each other"),
        (["rewrite", "m.onnx", "--clip", "foo"], "Invalid value for '--clip': 'foo' is not one of"),
        (["rewrite", "m.onnx", "--nope"], "No such option"),
        (["rewrite"], "Missing argument 'MODEL...'"),
        (["inspct", "m.onnx"], "No such command"),
    ],
)
def test_json_of_bad_usage_is_an_object_too(arguments, words, capsys):
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert words in json.loads(out)["error"]
    assert words in err


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


def test_of_several_models_each_failure_names_its_model_once(tmp_path, capsys):
    plain = save(tmp_path / "plain.onnx", "y = Relu(x)", inputs="float[2] x", outputs="float[2] y")
    assert main(["rewrite", "none.onnx", str(plain)]) == 2
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("error: cannot read 'none.onnx'")
    assert second.startswith(f"error: {plain}: no gradients found")


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
    record = found["record"]
    assert record.pop("version") == __version__
    assert record.pop("clips")[0]["clip_norm"] == 1.0
    assert record == {
        "measures_only": False,
        "loss_scale": 1.0,
        "norm_precision": "auto",
        "nonfinite": "propagate",
        "layout": "cpu",
        "inputs": [],
        "outputs": [],
        "states": {},
        "answers": {},
        "optimizer_ops": {},
        "uncovered": [],
    }
    assert len(found["gradients"]) == 2
    assert found["questions"] == found["carried"] == []


def test_inspect_tells_that_our_nodes_were_changed(seed, capsys):
    assert main(["rewrite", str(seed), "--in-place"]) == 0
    model = onnx.load(seed)
    next(node for node in model.graph.node if node.op_type == "ReduceL2").op_type = "ReduceL1"
    onnx.save(model, seed)
    capsys.readouterr()
    assert main(["inspect", str(seed)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"changed since: {seed}: the nodes that onnx-clip added")
    assert "by another tool since" in out
    assert "clipped by onnx-clip" in out
    assert main(["inspect", str(seed), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["changed"] is True
    assert "by another tool since" in facts["reason"]


def test_map_names_gradients_and_their_parameters(tmp_path, capsys):
    model = save(
        tmp_path / "m.onnx", "t_9 = Neg(x)", inputs="float[3] x, float[3] w", outputs="float[3] t_9"
    )
    (tmp_path / "map.json").write_text('{"t_9": "w"}')
    arguments = ["rewrite", str(model), "--map", str(tmp_path / "map.json"), "--need-clip", "w"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gradients"][0]["parameter"] == "w"


@pytest.mark.parametrize(
    ("model", "is_mentioned"),
    [
        ("ort_artifacts/mlp_mse_sgd/training_model.onnx", True),
        ("in_graph/accumulation_buffer.onnx", True),
        ("in_graph/momentum.onnx", False),
        ("in_graph/adam.onnx", False),
    ],
)
def test_sums_over_micro_batches_are_mentioned_on_standard_error(
    model, is_mentioned, tmp_path, capsys
):
    assert main(["rewrite", str(MODELS / model), "-o", str(tmp_path / "out.onnx")]) == 0
    assert ("each micro-batch is clipped" in capsys.readouterr().err) is is_mentioned


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
    assert [line.split()[:6] for line in err.splitlines()[:2]] == [
        ["count", "gradient", "parameter", "shape", "dtype", "clip"],
        ["41", "W*_grad", "W*", "[2]", "float32", "norm"],
    ]
    assert "(41 rows in 1 group; -v shows all)" in err
    assert main(["rewrite", str(path), "-v"]) == 0
    rows = capsys.readouterr().err.partition("operator")[0].splitlines()
    assert len(rows) == 1 + count


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
    assert main(["inspect", str(seed)]) == 1  # the digest covers the record
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


# -- what it costs to start --------------------------------------------------------------------


def test_no_command_imports_onnxruntime(seed):
    code = (
        "import sys; from onnx_clip_pass.cli import main\n"
        f"codes = [main([command, {str(seed)!r}]) for command in ('rewrite', 'inspect')]\n"
        "sys.exit(codes != [0, 0] or 'onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_imports_no_more_libraries_than_it_cannot_do_without():
    """By what is imported, since times on a busy machine tell little."""

    def libraries(code: str) -> set[str]:
        code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
        output = subprocess.check_output([sys.executable, "-c", code], text=True)
        return set(output.splitlines()[-1].split()) - sys.stdlib_module_names

    bare = libraries("import click, rich.console, sys")
    assert libraries("from onnx_clip_pass.cli import main; main(['--help'])") - bare == {
        "onnx_clip_pass"
    }
    ours = libraries("from onnx_clip_pass.cli import main; main(['rewrite', '--help'])")
    assert ours - libraries("import onnx, click, rich.console") == {"onnx_clip_pass"}
