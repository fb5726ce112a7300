"""Text for people on either stream, and JSON for programs.

Text is wrapped at words where a terminal shows it, or COLUMNS says how wide one is; in a file or a
pipe a line is as long as it is. Colours are for terminals, unless NO_COLOR or FORCE_COLOR say
otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click
from rich.console import Console

from onnx_clip_pass.progress import Progress, TellProgress, told
from onnx_clip_pass.tables import counted, escape_control

__all__ = [
    "console",
    "counted",
    "doing",
    "error_facts",
    "escape_control",
    "has_colour",
    "is_quiet",
    "is_verbose",
    "let_go_of_streams",
    "print_json",
    "say",
    "volume_options",
    "width",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LEADS = {
    **dict.fromkeys(("error:", "wrong:", "WRONG:", "changed since:"), "red"),
    **dict.fromkeys(("note:", "not known:", "would clip", "would measure", "would undo"), "yellow"),
    **dict.fromkeys(("right:", "clipped", "measured", "undid"), "green"),
}
"""Colours of the words by which messages begin."""


def has_colour(*, is_result: bool) -> bool:
    """Return whether a stream takes colours."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return _is_terminal(is_result) and os.environ.get("TERM") != "dumb"


def width(*, is_result: bool) -> int | None:
    """The columns that text on a stream is to fit; None if it may be as wide as it is."""
    if _is_terminal(is_result) or os.environ.get("COLUMNS", "").isdecimal():
        return max(shutil.get_terminal_size().columns, 20)
    return None


def console(*, is_result: bool) -> Console:
    """The writer of rich to a stream; its width is for the caller to set."""
    colour = has_colour(is_result=is_result)
    return Console(
        stderr=not is_result, color_system="auto" if colour else None, force_terminal=colour
    )


def _is_terminal(is_result: bool) -> bool:
    stream = sys.stdout if is_result else sys.stderr
    return stream is not None and stream.isatty()


def say(message: str, *, is_result: bool = False) -> None:
    """A message, on standard error unless it is what was asked for."""
    columns = width(is_result=is_result)
    lines = []
    for line in message.split("\n"):
        shown = _wrapped(escape_control(line), columns)
        lead = next((lead for lead in _LEADS if shown.startswith(lead)), "")
        lines.append(_coloured(lead) + shown[len(lead) :])
    click.echo("\n".join(lines), err=not is_result, color=has_colour(is_result=is_result))


def _coloured(lead: str) -> str:
    return click.style(lead, fg=_LEADS[lead], bold=True) if lead else ""


def _wrapped(line: str, columns: int | None) -> str:
    """A line in as many as it takes; those behind the first stand in by two."""
    if columns is None or len(line) <= columns:
        return line
    start = len(line) - len(line.lstrip(" ")) + 2
    return textwrap.fill(
        line, columns, subsequent_indent=" " * start, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def print_json(facts: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=True))


def let_go_of_streams() -> None:
    """Spare the end of the process from writing what one of them did not take."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # closed, they are None
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def error_facts(error: Exception) -> dict[str, Any]:
    """An error in the types of JSON; all faults, where there are several."""
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    faults = getattr(error, "faults", ())
    return {"error": message} | ({"faults": list(faults)} if faults else {})


_VOLUME = {
    "verbose": "Show names and evidence whole, and every row.",
    "quiet": "Say nothing but notes and errors.",
}


def volume_options(command: _Command) -> _Command:
    """Add `--verbose` and `--quiet`, which `is_verbose` and `is_quiet` tell of."""
    for name, words in reversed(_VOLUME.items()):
        add = click.option(
            f"-{name[0]}", f"--{name}", is_flag=True, expose_value=False, help=words,
            callback=_set_volume,
        )  # fmt: skip
        command = add(command)
    return command


def _set_volume(context: click.Context, option: click.Parameter, is_given: bool) -> None:
    if is_given:
        if __name__ in context.meta:
            raise click.UsageError("--verbose and --quiet exclude each other")
        context.meta[__name__] = option.name


def _volume() -> str | None:
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(__name__)


@contextmanager
def doing(what: str) -> Iterator[TellProgress]:
    """Show what is being done where it takes more than a second, unless all is to be quiet.

    It gives what more of it can be told to.
    """
    with told(not is_quiet()) as progress:
        progress(Progress(what))
        yield progress


def is_verbose() -> bool:
    """Return whether the running command is to show all that it has."""
    return _volume() == "verbose"


def is_quiet() -> bool:
    """Return whether the running command is to say only what matters."""
    return _volume() == "quiet"
