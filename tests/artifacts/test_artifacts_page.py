"""The commands and the code of docs/artifacts.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from graphs import MODELS

ROOT = MODELS.parent


def test_the_examples_of_the_page_run_one_after_another(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "models").symlink_to(MODELS)
    command = tmp_path / "bin" / "onnx-clip"
    command.parent.mkdir()
    run = "import sys; from onnx_clip_pass.cli import main; sys.exit(main())"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{run}" "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for language, text in blocks:
        program = (
            [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        )
        done = subprocess.run(
            [*program, text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
    assert (tmp_path / "picked" / "training_model.onnx").exists()
