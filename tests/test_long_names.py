"""A name as long as a book is shown by its beginning and its end."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from graphs import save

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients
from onnx_clip_pass.cli import main
from onnx_clip_pass.errors import shortened

LONG = 2_000_000


def rename(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model with another name for the parameter, and for its gradient."""
    named = {"w": name, "w_grad": f"{name}_grad"}
    for node in model.graph.node:
        for ports in (node.input, node.output):
            ports[:] = [named.get(port, port) for port in ports]
    for value in (*model.graph.input, *model.graph.output):
        value.name = named.get(value.name, value.name)
    return model


@pytest.fixture(params=["n" * LONG, "a b " * (LONG // 4)], ids=["word", "words"])
def path(request, tmp_path: Path) -> Path:
    nodes = ["y = MatMul (x, w)", "w_grad = MatMul (y, x)"]
    path = save(
        tmp_path / "m.onnx",
        *nodes,
        inputs="float[4,4] x, float[4,4] w",
        outputs="float[4,4] w_grad",
    )
    onnx.save(rename(onnx.load(path), request.param), path)
    return path


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["inspect"], 0),
        (["inspect", "--explain", "w"], 2),
        (["rewrite", "-o", "out.onnx", "--clip-norm", "1"], 0),
        (["rewrite", "-o", "out.onnx", "--clip-norm", "1", "--skip", "q"], 2),
    ],
    ids=["inspect", "explain", "rewrite", "refusal"],
)
def test_the_command_line_shows_it_shortened(
    path: Path, command: list[str], code: int, monkeypatch, capfd
):
    monkeypatch.chdir(path.parent)
    assert main([command[0], str(path), *command[1:]]) == code
    said = capfd.readouterr()
    assert 0 < len(said.out + said.err) < 50_000


def test_errors_show_it_shortened(path: Path):
    with pytest.raises(OnnxClipError) as caught:
        clip_gradients(onnx.load(path), GradientClipByNorm(1.0, need_clip=["q", "r"]))
    assert len(str(caught.value)) < 10_000
    with pytest.raises(OnnxClipError) as caught:
        clip_gradients(onnx.load(path), GradientClipByNorm(1.0), gradients=["g" * LONG, "q"])
    assert all(len(fault) < 10_000 for fault in caught.value.faults)


def test_what_is_cut_is_counted():
    assert shortened("the name " + 2000 * "n" + "!") == (
        f"the name {160 * 'n'}…[1,761 characters]…{79 * 'n'}!"
    )


def test_what_is_not_long_stays_as_it_is():
    text = "\n".join([" ".join(["word"] * 100), "/".join(["folder"] * 100), ""])
    assert shortened(text) == text
