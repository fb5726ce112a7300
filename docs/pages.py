"""The commands and code on pages: run as they stand there, and their output put where it is shown.

    python docs/pages.py            # says which pages show another output than there is now
    python docs/pages.py --write    # puts it there

A page runs from top to bottom in a folder of its own, with `models`, `examples` and `model.onnx`
(the seed example) in it. By the language of a block:

- `bash`: commands, one a line; `onnx-clip` in this process, others by bash. They must succeed.
- `console`: `$ command`, and below what it prints, on both streams, 80 columns wide; of one that is
  to fail, `[exit code 1]` ends the output.
- `python`: all blocks of a page in one module. `pycon`: a session, held to what it shows.
- `toml`, `json`: a file of the name that the first line says in a comment (`# clip.toml`), or in a
  comment of the page before the block (`<!-- gradients.json -->`); without one it is only read.

`ELSEWHERE` has the commands that something else runs.
"""

from __future__ import annotations

import doctest
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

__all__ = ["ELSEWHERE", "PAGES", "Block", "Stage", "blocks", "loose_commands", "with_output"]

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
"""All of them."""

ELSEWHERE = {
    'python3 -m venv .venv && .venv/bin/pip install -q ".[test]" && .venv/bin/onnx-clip rewrite '
    "models/seed/train_step.onnx -o seed.clipped.onnx": ".ci/run",
    ".venv/bin/python -m pytest": ".ci/run",
    "onnx-clip verify artifacts/training_model.onnx picked/training_model.onnx": "tests/training",
    'pip install ".[ir]"  # in a clone of this repository': "nox -s readers",
    "pip install torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0": (
        "nox -s pytorch"
    ),
    "pip install jax==0.10.2 optax==0.2.8 jax2onnx==0.17.1 onnx==1.23.2 onnxruntime==1.32.0": (
        "nox -s jax"
    ),
    "pip install onnx-ad onnxruntime scikit-learn matplotlib": "nox -s examples",
    "python examples/digits/train.py --picture digits.png": "nox -s examples",
    "python examples/char_gru/train.py compare --picture lost_run.png": "by hand, in five minutes",
    'pip install -e . "onnxruntime-gpu[cuda,cudnn]" onnx-ad==0.3.0 scikit-learn': "who has a GPU",
    "python benchmarks/on_cuda.py --json found.json": "who has a GPU",
    "python benchmarks/on_cuda.py --without-gpu": "nox -s placement",
}
"""Commands of pages that are not run with them: by what they are run."""

_BLOCK = re.compile(
    r"^(?:<!-- (?P<file>[\w.]+) -->\n+)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_LOOSE = re.compile(r"^ {4}(?:\$ )?(?:onnx-clip|pip|python3?) .*$", re.MULTILINE)
_NAMED = re.compile(r"# ([\w.-]+\.(?:toml|json))\n")
_EXIT = re.compile(r"\[exit code (\d+)\]\n")
_SHELL = re.compile(r"[|&;<>$`*?~]")
_COLUMNS = "80"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, what is in it, and where that begins."""

    page: Path
    language: str
    text: str
    start: int
    file: str | None = None

    @property
    def place(self) -> str:
        """The page and the line, for people."""
        line = self.page.read_text(encoding="utf-8")[: self.start].count("\n") + 1
        return f"{self.page.name}:{line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, from top to bottom."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(page, m["language"], m["text"], m.start("text"), m["file"]) for m in found]


def loose_commands(page: Path) -> list[str]:
    """The commands of a page that stand in no block, and so are not run."""
    return [m[0].strip() for m in _LOOSE.finditer(page.read_text(encoding="utf-8"))]


@dataclass
class Stage:
    """A folder in which a page is run, and the module that its Python makes."""

    folder: Path
    space: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("models", "examples"):
            (self.folder / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "models" / "seed" / "train_step.onnx", self.folder / "model.onnx")
        # for the commands that bash runs
        (commands := self.folder / ".bin").mkdir()
        run = "import sys; from onnx_clip_pass.cli import main; sys.exit(main())"
        for name, options in (("python", ""), ("onnx-clip", f' -c "{run}"')):
            command = commands / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}"{options} "$@"\n')
            command.chmod(0o755)

    def run(self, block: Block) -> str:
        """Run a block.

        Returns:
            What the block shows if it shows what there is now.

        Raises:
            AssertionError: it does not do what the page says.
        """
        with chdir(self.folder):
            match block.language:
                case "bash":
                    for command in _commands(block.text):
                        code, said = self._command(command)
                        assert code == 0, f"{block.place}: {command}: exit code {code}\n{said}"
                case "console":
                    return self._console(block)
                case "python":
                    with mock.patch.object(sys, "path", [str(self.folder), *sys.path]):
                        exec(compile(block.text, block.place, "exec"), self.space)
                case "pycon":
                    self._session(block)
                case "toml" | "json":
                    (json if block.language == "json" else tomllib).loads(block.text)
                    named = _NAMED.match(block.text)
                    if name := block.file or (named and named[1]):
                        (self.folder / name).write_text(block.text, encoding="utf-8")
                case "text" | "math":
                    pass
                case other:
                    raise AssertionError(f"{block.place}: nothing says how to run {other!r}")
        return block.text

    def _command(self, command: str) -> tuple[int, str]:
        if command in ELSEWHERE:
            return 0, ""
        words = shlex.split(command, comments=True)
        if words[0] == "onnx-clip" and not _SHELL.search(re.sub(r"'[^']*'|#.*", "", command)):
            return self._here(words[1:])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env=os.environ
            | {
                "PATH": f"{self.folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "COLUMNS": _COLUMNS,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def _here(self, arguments: list[str]) -> tuple[int, str]:
        from onnx_clip_pass.cli import main

        said = io.StringIO()
        with (
            mock.patch.dict(os.environ, {"COLUMNS": _COLUMNS, "NO_COLOR": "1"}),
            redirect_stdout(said),
            redirect_stderr(said),
        ):
            code = main(arguments)
        return code, said.getvalue()

    def _console(self, block: Block) -> str:
        shown = []
        for command, _, before in _sessions(block.text):
            code, said = self._command(command)
            wanted = int(end[1]) if (end := _EXIT.search(before)) else 0
            assert code == wanted, f"{block.place}: {command}: exit code {code}\n{said}"
            lines = "".join(f"{line.rstrip()}\n" for line in said.splitlines())
            shown.append(f"$ {command}\n{lines}" + (f"[exit code {code}]\n" if code else ""))
        return "".join(shown)

    def _session(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(
            block.text, self.space, block.place, str(block.page), 0
        )
        said = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        failed = runner.run(test, out=said.write, clear_globs=False).failed
        self.space.update(test.globs)
        assert not failed, said.getvalue()


def _commands(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", "").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def _sessions(text: str) -> Iterator[tuple[str, str, str]]:
    """Each command of a console, and what stands below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        yield part.partition("\n")


def with_output(page: Path) -> str:
    """Return the text of a page with what its commands print now."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        moved = 0
        for block in blocks(page):
            shown = stage.run(block)
            start = block.start + moved
            text = text[:start] + shown + text[start + len(block.text) :]
            moved += len(shown) - len(block.text)
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for each in PAGES:
        if any(block.language == "console" for block in blocks(each)):
            made = with_output(each)
            if made != each.read_text(encoding="utf-8"):
                print(f"{each.relative_to(ROOT)} shows another output")
                if "--write" in sys.argv:
                    each.write_text(made, encoding="utf-8")
