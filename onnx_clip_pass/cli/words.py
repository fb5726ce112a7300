"""Text for people on either stream, and JSON for programs."""

from __future__ import annotations

import json
from typing import Any

import click

from onnx_clip_pass.views import counted, escape_control

__all__ = ["counted", "error_facts", "escape_control", "print_json", "say"]


def say(message: str, *, is_result: bool = False) -> None:
    """A message, on standard error unless it is what was asked for."""
    lines = [escape_control(line) for line in message.split("\n")]
    click.echo("\n".join(lines), err=not is_result)


def print_json(facts: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=True))


def error_facts(error: Exception) -> dict[str, Any]:
    """An error in the types of JSON; all faults, where there are several."""
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    faults = getattr(error, "faults", ())
    return {"error": message} | ({"faults": list(faults)} if faults else {})
