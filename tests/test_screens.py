"""Screens at 80 and 200 columns, as texts to be looked at.

ONNX_CLIP_WRITE_SCREENS=1 pytest tests/test_screens.py     # writes them anew
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import onnx
import pytest
from graphs import MODELS, SEED
from onnx import TensorProto, helper
from rich.console import Console
from steps import asking

from onnx_clip_pass import Progress
from onnx_clip_pass import progress as module
from onnx_clip_pass.cli import main

SCREENS = Path(__file__).parent / "screens"
BLOCKS = {"attn.q.weight": 768, "attn.k.weight": 768, "mlp.fc1.weight": 3072, "mlp.fc2.bias": 768}


def transformer() -> onnx.ModelProto:
    """A graph of 50 gradients with long names."""
    sizes = {f"encoder.layers.{n}.{part}": s for n in range(12) for part, s in BLOCKS.items()}
    sizes |= {"embeddings.word_embeddings.weight": 1000, "head.weight": 10}
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name + end, TensorProto.FLOAT, [2, size])
            for name, size in sizes.items()
        ]
        for end in ("", "_grad")
    )
    nodes = [helper.make_node("Neg", [name], [f"{name}_grad"]) for name in sizes]
    graph = helper.make_graph(nodes, "transformer", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that the screens are about."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copyfile(SEED, folder / "step.onnx")
    onnx.save(transformer(), folder / "transformer.onnx")
    onnx.save(asking(), folder / "question.onnx")
    shutil.copytree(MODELS / "ort_artifacts" / "mlp_mse_sgd", folder / "artifacts")
    for name in ("step", "transformer"):
        assert main(["rewrite", f"{folder / name}.onnx"]) == 0
    assert main(["rewrite", str(folder / "artifacts"), "-o", str(folder / "at_step")]) == 0
    changed = onnx.load(folder / "step.clipped.onnx")
    next(node for node in changed.graph.node if node.op_type == "Min").op_type = "Max"
    onnx.save(changed, folder / "changed.onnx")
    return folder


COMMANDS = {
    "rewrite": ["rewrite step.onnx --clip global-norm --clip-norm 0.5 -o out.onnx"],
    "rewrite_many": ["rewrite transformer.onnx --skip *.fc2.bias --dry-run"],
    "rewrite_verbose": ["rewrite step.onnx --dry-run -v"],
    "inspect": ["inspect step.clipped.onnx", "inspect at_step", "inspect changed.onnx"],
    "verify": ["verify step.onnx step.clipped.onnx", "verify step.onnx changed.onnx"],
    "errors": [
        "rewrite question.onnx --no-run",
        "rewrite none.onnx",
        "rewrite step.onnx --skip *.bias",
        "verify step.clipped.onnx step.onnx",
    ],
    "help": ["--help", "inspect --help"],
}


_ERROR = re.compile(r"\d+(\.\d+)?(e\+\d+)? of (?=\d+(\.\d+)? {2})")
_FAULT = re.compile(r"^wrong: .*\n(  .*\n)*", re.MULTILINE)
"""Numbers that other versions of ONNX Runtime may round otherwise."""


def run(command: str) -> str:
    """What a person sees who gives a command."""
    screen = StringIO()
    with redirect_stdout(screen), redirect_stderr(screen):
        code = main(command.split())
    text = _ERROR.sub(lambda m: "?".ljust(len(m[0]) - 4) + " of ", screen.getvalue())
    lines = [line.rstrip() for line in _FAULT.sub("wrong: …\n", text).splitlines()]
    ends = [f"[exit code {code}]"] if code else []
    return "\n".join([f"$ onnx-clip {command}", *lines, *ends, ""])


def held(name: str, columns: int, text: str) -> None:
    """Hold a text against the one that was looked at."""
    path = SCREENS / f"{name}.{columns}.txt"
    if os.environ.get("ONNX_CLIP_WRITE_SCREENS"):
        SCREENS.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "look at it, and write it anew: see above"


IS_OLD = tuple(map(int, version("click").split(".")[:2])) < (8, 2)


@pytest.mark.skipif(IS_OLD, reason="click before 8.2 lays help out in another way")
@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_screen_is_as_it_was_looked_at(name, columns, stage, monkeypatch):
    pytest.importorskip("onnxruntime", reason="verify runs the model")
    monkeypatch.chdir(stage)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "\n".join(run(command) for command in COMMANDS[name])
    assert max(map(len, text.splitlines())) <= columns
    held(name, columns, text)


@pytest.mark.parametrize("columns", [80, 200])
def test_a_long_job_is_as_it_was_looked_at(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = []
    for now in (
        Progress("writing transformer.clipped.onnx", 1_200_000_000, 1_600_000_000, "bytes"),
        Progress("probing model.onnx", 15, 40, "parameters"),
        Progress("running both models, with gradients scaled up", 3, 8),
        Progress(f"finding the gradients of {'a' * 150}.onnx", 1, 2),
    ):
        bar = module._Terminal()
        bar.show(now)
        out = StringIO()
        Console(file=out, width=columns, color_system=None).print(bar._bar.get_renderable())
        bar.close()
        lines += [line.rstrip() for line in out.getvalue().splitlines()]
    held("long_job", columns, "\n".join([*lines, ""]))
