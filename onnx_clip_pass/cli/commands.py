"""The commands by name, each imported when it is asked for: help on all of them needs none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

__all__ = ["COMMANDS", "Group", "HelpContext"]

_MODULES = {
    "rewrite": "rewriting",
    "inspect": "inspecting",
    "verify": "verifying",
    "strip": "rewriting",
    "extract": "extracting",
    "watch": "watching",
    "suggest": "watching",
}
_WORDS = {
    "rewrite": "Clip the gradients of models.",
    "inspect": "Show gradients, and what is clipped.",
    "verify": "Run a rewrite beside its original.",
    "strip": "Undo rewrites.",
    "extract": "Write the clip of a model alone.",
    "watch": "Run a step over batches, and record its norms.",
    "suggest": "Take thresholds from recorded norms.",
}
"""The work of each command in a line, in the order of need."""


class _Commands(Mapping[str, click.Command]):
    def __getitem__(self, name: str) -> click.Command:
        module = import_module(f"onnx_clip_pass.cli.{_MODULES[name]}")
        from onnx_clip_pass.cli.options import TEXT

        command: click.Command = getattr(module, name)
        for option in command.params:
            if option.type is click.STRING:
                option.type = TEXT
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


COMMANDS: Mapping[str, click.Command] = _Commands()
"""The commands in the order of need."""


class _Formatter(click.HelpFormatter):
    """Writes headings bold, as far as the terminal has it."""

    def write_heading(self, heading: str) -> None:
        """Write a heading."""
        super().write_heading(click.style(heading, bold=True))


class HelpContext(click.Context):
    """A context whose help is written so."""

    formatter_class = _Formatter


class Group(click.Group):
    """All commands, in their order, of which none is imported for help on all of them."""

    context_class = HelpContext

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **{**attributes, "commands": COMMANDS})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_WORDS.items()))
