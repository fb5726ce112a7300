r"""What Markdown does not know of our pages, as an extension of Python-Markdown.

- Formulas, written as `.. math::` in docstrings and as blocks marked `math` on pages, become MathML
  when the site is built: browsers show it without a script or a font of anyone's.
- `<!-- options of rewrite -->` becomes what `onnx-clip rewrite --help` says, as tables.
- Links out of this folder, which lead to files of the repository, lead to where that is kept.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import click
from check_site import REPOSITORY
from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

from onnx_clip_pass.cli import cli

__all__ = ["formulas", "makeExtension", "option_reference"]

_FORMULA = re.compile(
    r"^( *)(?:\.\. math::(?P<directive>.*\n(?:\1 +\S.*\n|\n(?=\1 +\S))*)"
    r"|```math\n(?P<fence>(?:.*\n)*?)\1```\n)",
    re.MULTILINE,
)
_PLACE = re.compile(r"^<!-- options of ([a-z-]+) -->$", re.MULTILINE)
_OUT = re.compile(r"\]\(\.\./([^)\s]+)\)")
_NAME = re.compile(r"--[a-z-]+")


def formulas(text: str) -> Iterator[tuple[str, str]]:
    """Each formula in a text as it stands there, and in LaTeX alone."""
    for found in _FORMULA.finditer(text):
        yield found[0], " ".join((found["directive"] or found["fence"]).split())


class _Recorder(click.HelpFormatter):
    """What a command writes as its help, as Markdown; however it groups its options."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self.command = command
        self.blocks: list[str] = []

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.blocks.append(f"    {prog} {args}")

    def write_heading(self, heading: str) -> None:
        self.blocks.append(f"#### {heading} {{#{self.command}-{_slug(heading)}}}")

    def write_text(self, text: str) -> None:
        for paragraph in re.split(r"\n\s*\n", textwrap.dedent(text).strip()):
            if paragraph.startswith("\b\n"):
                self.blocks.append(textwrap.indent(paragraph[2:], "    "))
            else:
                self.blocks.append(_escaped(paragraph))

    def write_dl(self, rows: Iterable[tuple[str, str]], *_: Any, **__: Any) -> None:
        lines = [
            f"| {self._anchor(spelled)}<code>{_coded(spelled)}</code> | {_cell(_escaped(help_))} |"
            for spelled, help_ in rows
        ]
        self.blocks.append("\n".join(["| option | |", "|---|---|", *lines]))

    def _anchor(self, spelled: str) -> str:
        name = _NAME.search(spelled)
        return f'<a id="{self.command}{name[0]}"></a>' if name else ""


def option_reference(command: str) -> str:
    """What `onnx-clip COMMAND --help` says, as Markdown.

    Args:
        command: its name.
    """
    found = cli.commands[command]
    recorder = _Recorder(command)
    context = click.Context(found, info_name=f"onnx-clip {command}")
    found.format_help(context, recorder)
    return "\n\n".join(recorder.blocks)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower()).strip("-")


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _coded(text: str) -> str:
    return html.escape(text).replace("|", "&#124;")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


class _Blocks(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        text = "\n".join([*lines, ""])
        for whole, latex in formulas(text):
            shown = convert(latex, display="block")
            mark = self.md.htmlStash.store(f'<div class="math">{shown}</div>')
            text = text.replace(whole, f"{mark}\n", 1)
        text = _PLACE.sub(lambda place: option_reference(place[1]), text)
        text = _OUT.sub(rf"]({REPOSITORY}/blob/main/\1)", text)
        return text.split("\n")


class _Extension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown calls it so
        md.preprocessors.register(_Blocks(md), "onnx_clip_blocks", 28)


def makeExtension(**settings: Any) -> Extension:  # noqa: N802 - Markdown asks for this name
    """The extension, for Markdown."""
    return _Extension(**settings)
