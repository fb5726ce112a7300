"""What the options of all commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from onnx_clip_pass.cli.words import error_facts, print_json
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["PATH", "given_options", "json_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _File(click.Path):
    """A path; an empty text is none, though it would be that of the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not value:
            self.fail("expected a path, not an empty text", param, ctx)
        return cast(Path, super().convert(value, param, ctx))


PATH = _File(path_type=Path)
"""The type of an argument or option that is a path."""


def given_options(*names: str) -> list[str]:
    """Those of the running command's options that stand on its command line, spelled as there.

    Args:
        names: what the options are called in the command's arguments.
    """
    context = click.get_current_context()
    return [
        option.opts[-1]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]


def json_option(command: _Command) -> _Command:
    """Add `--json` to a command; its object then says what went wrong, as the message does."""

    @wraps(command)
    def telling(*arguments: Any, as_json: bool, **options: Any) -> Any:
        try:
            return command(*arguments, as_json=as_json, **options)
        except (OnnxClipError, click.ClickException) as error:
            if as_json:
                print_json(error_facts(error))
            raise

    add = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    )
    return cast(_Command, add(telling))
