"""Several models in one call: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from onnx_clip_pass.cli.words import error_facts, let_go_of_streams, print_json, say
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["Facts", "each_model"]

Facts = dict[str, Any]
"""Facts about a model in the types of JSON."""


def each_model(
    models: Sequence[Path],
    on: Callable[[Path], Iterable[Facts]],
    *,
    as_json: bool,
    is_wrong: Callable[[Facts], bool] = lambda _: False,
) -> None:
    """Do something to each model, and tell of all.

    Args:
        models: one or several.
        on: what is done; its facts are told even if it fails in the end.
        as_json: whether they are printed: those of one model as they are, of several in a list.
        is_wrong: whether facts tell of a check that has failed.

    Raises:
        click.exceptions.Exit: with code 2 if something was refused, with 1 if a check has failed.
    """
    results = []
    for model in models:
        facts: Facts = {"model": str(model)}
        try:
            for found in on(model):
                facts |= found
        except OnnxClipError as error:
            is_named = len(models) == 1 or repr(str(model)) in str(error)
            say(f"error: {error}" if is_named else f"error: {model}: {error}")
            facts |= error_facts(error)
        results.append(facts)
    failures = sum("error" in facts for facts in results)
    if as_json:
        try:
            print_json(results[0] if len(models) == 1 else {"models": results})
        except BrokenPipeError:
            if not failures:
                raise
            let_go_of_streams()
    if failures and len(models) > 1:
        say(f"{failures} of {len(models)} models failed")
    if failures:
        raise click.exceptions.Exit(2)
    if any(map(is_wrong, results)):
        raise click.exceptions.Exit(1)
