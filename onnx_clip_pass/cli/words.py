"""Text for people on either stream, and JSON for programs."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["count_gradients", "escape_control", "print_json", "say"]


def escape_control(text: object) -> str:
    """Text from outside, with control characters made visible: a name must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(message: str) -> None:
    """A message on standard error."""
    click.echo("\n".join(escape_control(line) for line in message.split("\n")), err=True)


def print_json(facts: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=True))


def count_gradients(number: int) -> str:
    """How many gradients, in words."""
    return f"{number} gradient" + ("s" if number != 1 else "")
