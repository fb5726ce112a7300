"""The numbers of nodes by operator, before a rewrite and after it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
from graphs import MODELS, SEED

from onnx_clip_pass import GradientClipByGlobalNorm, GradientClipByNorm, clip_gradients, plan_clips
from onnx_clip_pass.cli import main


def nodes_of(model: onnx.ModelProto) -> Counter[str]:
    """The nodes of a model by operator, counted in another way than the package does."""
    found: Counter[str] = Counter()

    def count(nodes) -> None:
        for node in nodes:
            found[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
            for attr in node.attribute:
                for graph in (*attr.graphs, *([attr.g] if attr.HasField("g") else [])):
                    count(graph.node)

    count(model.graph.node)
    for function in model.functions:
        count(function.node)
    for info in model.training_info:
        count(info.initialization.node)
        count(info.algorithm.node)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "seed/train_step",
        "control_flow/if_updates_inside",
        "control_flow/function_called_twice",
        "control_flow/loop_steps",
        "in_graph/mixed_precision",
        "ort_artifacts/mlp_mse_sgd/training_model",
    ],
)
@pytest.mark.parametrize("clip", [GradientClipByNorm(1.0), GradientClipByGlobalNorm(1.0)])
def test_operators_are_those_of_both_models(name: str, clip):
    model = onnx.load(MODELS / f"{name}.onnx")
    before, after = nodes_of(model), nodes_of(clip_gradients(model, clip))
    told = plan_clips(model, clip).report.operators
    assert {each.operator: each.before for each in told if each.before} == before
    assert {each.operator: each.after for each in told} == after


def test_a_clip_that_is_replaced_does_not_count_as_before():
    model = clip_gradients(onnx.load(SEED), GradientClipByNorm(1.0))
    told = {
        each.operator: each.before
        for each in plan_clips(model, GradientClipByNorm(2.0)).report.operators
    }
    assert told["ReduceL2"] == 0


def test_the_optimizer_model_of_a_folder_is_counted_too(tmp_path: Path, capsys):
    folder = MODELS / "ort_artifacts" / "mlp_mse_sgd"
    out = tmp_path / "out"
    assert main(["rewrite", str(folder), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["operators"]
    name = "optimizer_model.onnx"
    before, after = (nodes_of(onnx.load(place / name)) for place in (folder, out))
    assert {name: pair[1] for name, pair in told.items()} == after
    assert {name: pair[0] for name, pair in told.items() if pair[0]} == before


def test_what_grows_is_told_in_a_line_and_all_of_it_on_demand(capsys):
    assert main(["rewrite", str(SEED), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("nodes: 16 -> 24 (Div 0 -> 2, Min 0 -> 2, Mul 2 -> 4, ReduceL2 0 -> 2)\n")
    assert "MatMul" not in err
    assert main(["rewrite", str(SEED), "--dry-run", "-v"]) == 0
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["MatMul", "2", "2"] in rows
    assert ["ReduceL2", "0", "2", "+2"] in rows
    assert ["all", "16", "24", "+8"] in rows
