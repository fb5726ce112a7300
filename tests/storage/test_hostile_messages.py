"""A model with wrong fields, as a message that can be parsed, is answered by every command."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from graphs import MODELS
from hostile_messages import changed

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients
from onnx_clip_pass.cli import main

MESSAGES = 12_000 if os.environ.get("ONNX_CLIP_NIGHTLY") == "1" else 400
SMALL_MODELS = [path for path in sorted(MODELS.rglob("*.onnx")) if path.stat().st_size < 8000]


@pytest.mark.parametrize("part", range(4))
def test_a_model_with_wrong_fields_is_answered_by_every_command(part: int, tmp_path: Path, capsys):
    source, clipped, out = (str(tmp_path / f"{name}.onnx") for name in ("in", "clipped", "out"))
    commands = [
        ["inspect", source],
        ["rewrite", source, "-o", clipped, "--force", "--no-run", "--partial"],
        ["extract", source, "-o", out, "--force", "--no-run"],
        ["strip", source, "-o", out, "--force"],
    ]
    for number in range(part, MESSAGES, 4):
        model = onnx.load(SMALL_MODELS[number % len(SMALL_MODELS)], load_external_data=False)
        if part == 3:  # with a record to be held against it
            with suppress(OnnxClipError):
                model = clip_gradients(model, GradientClipByNorm(0.1), partial=True)
        what = changed(model, number)
        Path(source).write_bytes(model.SerializeToString())
        for command in commands:
            code = main(command)
            is_told = code in (0, 2) or (command[0] == "inspect" and code == 1)  # changed since
            assert is_told, f"{number}: {what}: {command[0]}\n{capsys.readouterr().err}"
        capsys.readouterr()
