"""`rewrite --verify` writes nothing that it then cannot run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from graphs import MODELS

from onnx_clip_pass.cli import main
from onnx_clip_pass.cli.verifying import RunOptions
from onnx_clip_pass.errors import OnnxClipError

ort = pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

SGD = MODELS / "in_graph" / "sgd.onnx"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--feeds", "no such file.npz"], "no such file.npz"),
        (["--dim", "no such symbol=3"], "no dimension of an input is called 'no such symbol'"),
        (["--provider", "cuda"], "CUDAExecutionProvider"),
    ],
)
def test_rewrite_writes_nothing_that_it_then_cannot_verify(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("CUDA is there")
    target = tmp_path / "clipped.onnx"
    arguments = ["rewrite", str(SGD), "-o", str(target), "--verify", "--json", *options]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not target.exists()
    facts = json.loads(out)
    assert facts["model"] == str(SGD)
    assert words in facts["error"]
    assert words in err


def test_rewrite_writes_nothing_to_verify_without_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["rewrite", str(SGD), "-o", str(tmp_path / "c.onnx"), "--verify"]) == 2
    assert "pip install onnxruntime" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_was_written_is_told_where_verifying_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OnnxClipError("the runtime gave up")

    monkeypatch.setattr(RunOptions, "verify", fail)
    target = tmp_path / "c.onnx"
    assert main(["rewrite", str(SGD), "-o", str(target), "--verify", "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert (facts["output"], facts["error"]) == (str(target), "the runtime gave up")
    assert [row["gradient"] for row in facts["gradients"]] == ["W_grad", "b_grad"]
