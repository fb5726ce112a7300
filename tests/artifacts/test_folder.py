"""Folders of training artifacts from the command line: what changes in them, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from sequences import ADAMW, ARTIFACTS, FOLDERS, SGD, folder_files

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, Progress, Rule, clip_artifacts, strip
from onnx_clip_pass.cli import main

TRAINING, OPTIMIZER = "training_model.onnx", "optimizer_model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `generate_artifacts` leaves it, and what people put beside it."""
    place = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS / SGD, place)
    (place / "README.txt").write_text("ours")
    (place / ".hidden").write_bytes(b"\0")
    (place / "tokens" / "empty").mkdir(parents=True)
    (place / "tokens" / "vocabulary").write_bytes(b"a b c")
    return place


def changed(before: Path, after: Path) -> list[str]:
    """The files that differ; there are the same in both folders."""
    old, new = folder_files(before), folder_files(after)
    assert list(old) == list(new)
    return [name for name in old if old[name] != new[name]]


def clips_in(path: Path) -> bool:
    return any(entry.key == "onnx_clip_pass" for entry in onnx.load(path).metadata_props)


# -- what stays, and what changes --------------------------------------------------------------


def test_at_the_step_only_the_optimizer_model_changes_and_this_is_the_default(folder, capsys):
    assert main(["rewrite", str(folder)]) == 0
    target = folder.with_name("artifacts.clipped")
    assert changed(folder, target) == [OPTIMIZER]
    assert (target / "tokens" / "empty").is_dir()
    out, err = capsys.readouterr()
    assert "clipped all gradients" in out
    assert "as in PyTorch and Paddle (--at step" in out
    assert "each gradient by its own L2 norm" in out
    assert "SGDOptimizerV2" in err


@pytest.mark.parametrize("skip", [None, (), []])
def test_nothing_to_skip_may_be_said_at_the_step(folder, tmp_path, skip):
    clip_artifacts(folder, tmp_path / "out", GradientClipByNorm(1.0), skip=skip)
    assert clips_in(tmp_path / "out" / "optimizer_model.onnx")


def test_gradients_in_an_array_are_names(folder, tmp_path):
    names = np.array(["nothing", "of the kind"])
    with pytest.raises(OnnxClipError, match="nothing"):
        clip_artifacts(
            folder, tmp_path / "out", GradientClipByNorm(1.0), at="micro-batch", gradients=names
        )


def test_measures_are_named_as_outputs(folder, capsys):
    arguments = ["--at", "micro-batch", "--emit", "norm", "--measure-only"]
    assert main(["rewrite", str(folder), *arguments]) == 0
    out = capsys.readouterr().out
    assert "measured 4 of 4 gradients" in out
    assert "output fc1.weight_grad/norm: norm of" in out
    clipped = str(folder.with_name("artifacts.clipped"))
    assert main(["inspect", clipped]) == 0
    assert "at the micro-batch: measured by onnx-clip" in capsys.readouterr().out
    assert main(["inspect", clipped, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)["micro-batch"]
    assert done["measures_only"]
    assert "fc1.weight_grad/norm" in done["outputs"]


def test_one_norm_over_all_gradients_is_called_so(folder, capsys):
    assert main(["rewrite", str(folder), "--clip", "global-norm"]) == 0
    assert changed(folder, folder.with_name("artifacts.clipped")) == [OPTIMIZER]
    assert "by one L2 norm of all together" in capsys.readouterr().out


def test_at_the_micro_batch_only_the_training_model_changes_by_name(folder, capsys):
    target = folder.with_name("out")
    arguments = ["-o", str(target), "--at", "micro-batch", "--need-clip", "fc1.*"]
    assert main(["rewrite", str(folder), *arguments]) == 0
    assert changed(folder, target) == [TRAINING]
    out, err = capsys.readouterr()
    assert "clipped 2 of 4 gradients" in out
    assert "before it is added up (--at micro-batch" in out
    assert "each micro-batch is clipped before it is added" in " ".join(err.split())


@pytest.mark.parametrize("at", ["step", "micro-batch"])
@pytest.mark.parametrize("name", FOLDERS)
def test_strip_gives_every_byte_of_every_folder_back(name, at, tmp_path):
    clipped, back = tmp_path / "clipped", tmp_path / "back"
    arguments = ["-o", str(clipped), "--at", at]
    assert main(["rewrite", str(ARTIFACTS / name), *arguments]) == 0
    assert len(changed(ARTIFACTS / name, clipped)) == 1
    assert main(["strip", str(clipped), "-o", str(back)]) == 0
    assert folder_files(back) == folder_files(ARTIFACTS / name)


def test_any_prefix_is_understood(folder, capsys):
    for name in (TRAINING, OPTIMIZER, "eval_model.onnx", "checkpoint"):
        (folder / name).rename(folder / f"foo_{name}")
    target = folder.with_name("out")
    assert main(["rewrite", str(folder), "-o", str(target)]) == 0
    assert changed(folder, target) == [f"foo_{OPTIMIZER}"]
    assert main(["inspect", str(target)]) == 0


def test_in_place_replaces_the_model_alone(folder):
    before = folder_files(folder)
    assert main(["rewrite", str(folder), "--in-place"]) == 0
    after = folder_files(folder)
    assert [name for name in before if before[name] != after[name]] == [OPTIMIZER]
    assert main(["strip", str(folder), "--in-place"]) == 0
    assert folder_files(folder) == before


def test_the_folder_one_stands_in_is_clipped_beside_itself(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["rewrite", "."]) == 0
    assert changed(folder, folder.with_name("artifacts.clipped")) == [OPTIMIZER]


@pytest.mark.parametrize("in_place", [False, True], ids=["elsewhere", "in place"])
def test_another_place_replaces_the_clip_instead_of_adding_one(folder, in_place, capsys):
    once, twice = folder.with_name("once"), folder.with_name("twice")
    assert main(["rewrite", str(folder), "-o", str(once), "--at", "micro-batch"]) == 0
    assert clips_in(once / TRAINING)
    if in_place:
        twice = once
        assert main(["rewrite", str(once), "--in-place"]) == 0
    else:
        assert main(["rewrite", str(once), "-o", str(twice)]) == 0
    assert "the clips it had are replaced" in capsys.readouterr().err
    assert changed(folder, twice) == [OPTIMIZER]
    assert strip(onnx.load(twice / OPTIMIZER)) == onnx.load(folder / OPTIMIZER)


def test_permissions_come_along(folder):
    (folder / "tokens" / "vocabulary").chmod(0o640)
    folder.chmod(0o750)
    assert main(["rewrite", str(folder)]) == 0
    target = folder.with_name("artifacts.clipped")
    assert target.stat().st_mode & 0o777 == 0o750
    assert (target / "tokens" / "vocabulary").stat().st_mode & 0o777 == 0o640
    for name in (TRAINING, OPTIMIZER):
        assert (target / name).stat().st_mode == (folder / name).stat().st_mode


def test_links_save_the_space_of_what_is_not_rewritten_and_that_is_said(folder, capsys):
    assert main(["rewrite", str(folder), "--external-data", "link"]) == 0
    assert "saves into the checkpoint" in " ".join(capsys.readouterr().err.split())
    target = folder.with_name("artifacts.clipped")
    assert (target / "checkpoint").samefile(folder / "checkpoint")
    assert not (target / OPTIMIZER).samefile(folder / OPTIMIZER)


def test_external_data_of_the_training_model_comes_along_with_the_folder(folder):
    model = onnx.load(folder / TRAINING)
    onnx.save(
        model, folder / TRAINING, save_as_external_data=True, location="weights", size_threshold=0
    )
    target = folder.with_name("out")
    assert main(["rewrite", str(folder), "-o", str(target), "--at", "micro-batch"]) == 0
    assert changed(folder, target) == [TRAINING]
    assert strip(onnx.load(target / TRAINING)) == onnx.load(folder / TRAINING)


def test_dry_run_says_what_would_be_done_and_writes_nothing(folder, capsys):
    before = folder_files(folder.parent)
    assert main(["rewrite", str(folder), "--dry-run"]) == 0
    assert folder_files(folder.parent) == before
    assert "would clip all gradients" in capsys.readouterr().out


def test_json_names_the_place(folder, capsys):
    assert main(["rewrite", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["at"], facts["replaced"]) == ("step", False)
    assert facts["output"] == str(folder.with_name("artifacts.clipped"))
    assert facts["gradients"][0]["gradient"] == "gradients"
    assert facts["gradients"][0]["clip"] == {"clip": "GradientClipByNorm", "clip_norm": 1.0}


def test_of_several_folders_one_failure_does_not_stop_the_others(folder, capsys):
    other = folder.with_name("other")
    shutil.copytree(ARTIFACTS / ADAMW, other)
    (folder / "checkpoint").unlink()
    assert main(["rewrite", str(folder), str(other), "--json"]) == 2
    results = json.loads(capsys.readouterr().out)["models"]
    assert ["error" in result for result in results] == [True, False]
    assert changed(other, folder.with_name("other.clipped")) == [OPTIMIZER]


def test_a_model_in_ort_format_is_not_taken_for_clipped(folder, capsys):
    (folder / "optimizer_model.ort").write_bytes(b"ort")
    assert main(["rewrite", str(folder)]) == 0
    assert "optimizer_model.ort is the same model in ORT format" in capsys.readouterr().err


# -- inspect -----------------------------------------------------------------------------------


def test_inspect_shows_both_places_and_the_optimizer(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "4 gradients in the training artifacts" in out
    assert "optimizer: SGDOptimizerV2" in out
    assert "at the micro-batch: not clipped" in out
    assert "at the step: not clipped" in out
    assert "fc1.weight_grad" in out
    assert main(["rewrite", str(folder), "--in-place", "--clip-norm", "0.5"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "at the step: clipped by onnx-clip" in out
    assert "all gradients, norm <= 0.5" in out


def test_inspect_as_json_keeps_the_places_apart(folder, capsys):
    arguments = ["--in-place", "--at", "micro-batch", "--need-clip", "fc2.*"]
    assert main(["rewrite", str(folder), *arguments]) == 0
    capsys.readouterr()
    assert main(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["optimizer"] == "SGDOptimizerV2"
    assert facts["step"] is None
    clipped = {clip["parameter"] for clip in facts["micro-batch"]["clips"]}
    assert clipped == {"fc2.weight", "fc2.bias"}


def test_inspect_shows_a_folder_whose_optimizer_it_does_not_know(folder, capsys):
    (folder / OPTIMIZER).unlink()
    assert main(["inspect", str(folder)]) == 0
    assert "there is no optimizer model" in capsys.readouterr().out
    shutil.copy(folder / "eval_model.onnx", folder / OPTIMIZER)
    assert main(["inspect", str(folder)]) == 0
    assert "no optimizer model of ONNX Runtime training" in capsys.readouterr().out


# -- what is refused ---------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_a_folder_without_a_training_model(folder, capsys):
    (folder / TRAINING).unlink()
    before = folder_files(folder.parent)
    for command in ("rewrite", "strip", "inspect"):
        err = refused([command, str(folder)], capsys)
        assert "expected a file training_model.onnx, any prefix before it" in err
        assert "'eval_model.onnx'" in err
    assert folder_files(folder.parent) == before


def test_two_sets_in_one_folder(folder, capsys):
    shutil.copy(folder / TRAINING, folder / f"b_{TRAINING}")
    err = refused(["rewrite", str(folder)], capsys)
    assert "several sets of training artifacts: 'b_training_model.onnx', 'training_model" in err


@pytest.mark.parametrize("at", ["step", "micro-batch"])
def test_a_missing_checkpoint(folder, capsys, at):
    (folder / "checkpoint").unlink()
    err = refused(["rewrite", str(folder), "--at", at], capsys)
    assert "the checkpoint is missing: expected 'checkpoint' beside 'training_model.onnx'" in err
    (folder / "nominal_checkpoint").write_bytes(b"nominal")
    assert main(["rewrite", str(folder), "--at", at]) == 0


@pytest.mark.parametrize("at", ["step", "micro-batch"])
def test_a_training_model_of_another_version(folder, capsys, at):
    model = onnx.load(folder / TRAINING)
    model.graph.input[-1].name = "reset"
    for node in model.graph.node:
        if node.op_type == "InPlaceAccumulatorV2":
            node.input[2] = "reset"
    onnx.save(model, folder / TRAINING)
    err = refused(["rewrite", str(folder), "--at", at], capsys)
    assert "training_model.onnx' is of another version" in err
    assert "'lazy_reset_grad'" in err
    assert "the inputs here are 'x', 'target'" in err


def test_an_optimizer_model_of_another_version_matters_at_the_step_alone(folder, capsys):
    model = onnx.load(folder / OPTIMIZER)
    model.graph.input[1].name = "iteration"
    onnx.save(model, folder / OPTIMIZER)
    err = refused(["rewrite", str(folder)], capsys)
    assert "optimizer_model.onnx' is of another version" in err
    assert "here they are learning_rate, iteration, params" in err
    assert main(["rewrite", str(folder), "--at", "micro-batch"]) == 0


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        (["--need-clip", "fc1.*"], "need_clip"),
        (["--skip", "*.bias"], "skip"),
        (["--gradient", "fc1.weight_grad"], "gradients"),
    ],
)
@pytest.mark.parametrize("at", [[], ["--at", "step"]], ids=["by default", "asked for"])
def test_names_at_the_step_with_the_reason_and_the_way_out(folder, capsys, wish, word, at):
    err = refused(["rewrite", str(folder), *wish, *at], capsys)
    assert f"cannot pick by name ({word})" in err
    assert "in an order that the runtime does not promise" in err
    assert "pass --at micro-batch" in err
    assert not folder.with_name("artifacts.clipped").exists()


def test_rules_at_the_step_are_names_too(folder):
    target = folder.with_name("out")
    rules = [Rule("fc1.*", GradientClipByNorm(1.0)), Rule(None, GradientClipByNorm(2.0))]
    with pytest.raises(OnnxClipError, match=r"cannot pick by name \(rules\)"):
        clip_artifacts(folder, target, rules)
    report = clip_artifacts(folder, target, rules, at="micro-batch")
    assert {row.gradient.parameter.name: row.rule for row in report.rows} == {
        "fc1.weight": 1, "fc1.bias": 1, "fc2.weight": 2, "fc2.bias": 2,
    }  # fmt: skip


def test_the_rule_of_each_gradient_is_shown(folder, capsys):
    rules = folder.with_name("clip.toml")
    rules.write_text('[[rule]]\nclip = "norm"\nclip_norm = 2\n')
    assert main(["rewrite", str(folder), "--rules", str(rules), "--at", "micro-batch"]) == 0
    assert "norm <= 2 [rule 1]" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["step", "micro-batch"])
@pytest.mark.parametrize("clips", [1.0, "norm", [], [1, 2]], ids=repr)
def test_what_is_no_clip_is_called_so(folder, clips, at):
    target = folder.with_name("out")
    with pytest.raises(OnnxClipError, match="expected a clip such as") as refusal:
        clip_artifacts(folder, target, clips, at=at)
    assert str(refusal.value).endswith(f"or a list of Rule, not {clips!r}")
    assert not target.exists()


@pytest.mark.parametrize(
    ("option", "word"), [(["--emit", "norm"], "emit"), (["--loss-scale", "8"], "loss_scale")]
)
def test_measures_and_loss_scales_at_the_step(folder, capsys, option, word):
    err = refused(["rewrite", str(folder), *option], capsys)
    assert f"cannot have {word}: the runtime feeds and fetches its own" in err
    assert main(["rewrite", str(folder), *option, "--at", "micro-batch"]) == 0


def test_a_threshold_input_that_nobody_would_feed(folder, capsys):
    arguments = ["--threshold-input", "t", "--at", "micro-batch"]
    err = refused(["rewrite", str(folder), *arguments], capsys)
    assert "feeds no input that it does not know" in err


def test_the_step_without_an_optimizer_model(folder, capsys):
    (folder / OPTIMIZER).unlink()
    err = refused(["rewrite", str(folder)], capsys)
    assert "has no optimizer_model.onnx" in err
    assert "--at micro-batch" in err
    assert main(["rewrite", str(folder), "--at", "micro-batch"]) == 0


def test_a_place_for_a_single_file(folder, capsys):
    err = refused(["rewrite", str(folder / TRAINING), "--at", "step"], capsys)
    assert "--at is for a folder" in err


def test_a_probe_of_a_folder(folder, capsys):
    err = refused(["rewrite", str(folder), "--probe"], capsys)
    assert "known by their accumulators: leave --probe out" in err


@pytest.mark.parametrize("command", ["rewrite", "verify"])
def test_verifying_a_folder(folder, capsys, command):
    target = folder.with_name("clipped")
    arguments = {
        "rewrite": ["rewrite", str(folder), "-o", str(target), "--verify"],
        "verify": ["verify", str(folder), str(target)],
    }[command]
    err = refused(arguments, capsys)
    assert f"onnx-clip verify {folder / TRAINING} {target / TRAINING}." in err
    assert "in an environment with onnxruntime-training" in err
    assert "--at micro-batch" in err


def test_nothing_to_strip(folder, capsys):
    assert "there is nothing to undo" in refused(["strip", str(folder)], capsys)


def test_a_model_changed_by_another_tool_since_is_named(folder, capsys):
    assert main(["rewrite", str(folder), "--in-place"]) == 0
    model = onnx.load(folder / OPTIMIZER)
    model.graph.node[0].op_type = "Identity"
    onnx.save(model, folder / OPTIMIZER)
    capsys.readouterr()
    err = refused(["rewrite", str(folder)], capsys)
    assert "optimizer_model.onnx': the nodes that onnx-clip added" in err


def test_python_says_the_same(folder):
    target = folder.with_name("out")
    with pytest.raises(OnnxClipError, match=r"cannot pick by name \(need_clip\)"):
        clip_artifacts(folder, target, GradientClipByNorm(1.0, lambda p: True))
    with pytest.raises(OnnxClipError, match="at must be one of step, micro-batch, not 'epoch'"):
        clip_artifacts(folder, target, GradientClipByNorm(1.0), at="epoch")  # type: ignore[arg-type]
    with pytest.raises(OnnxClipError, match="expected a clip"):
        clip_artifacts(folder, target, 1.0)  # type: ignore[arg-type]
    with pytest.raises(OnnxClipError, match="as the target where it is to be replaced"):
        clip_artifacts(folder, target, GradientClipByNorm(1.0), replace=True)
    assert not target.exists()


def test_python_clips_a_folder_and_reports(folder):
    target = folder.with_name("out")
    told: list[Progress] = []
    report = clip_artifacts(
        folder,
        target,
        GradientClipByNorm(1.0),
        at="micro-batch",
        gradients={"fc1.weight_grad": "fc1.weight"},
        progress=told.append,
    )
    assert [row.gradient.name for row in report.clipped] == ["fc1.weight_grad"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert told[-1] == Progress("writing out", size, size, "bytes")
    assert changed(folder, target) == [TRAINING]
