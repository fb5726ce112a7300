"""Patterns on names: globs, and regular expressions that are stopped if they backtrack on and on.

Expressions are those of the package `regex`, since it takes a time limit, which `re` does not, and
reads the syntax of `re`, lookarounds and references included. It writes counted repeats out when
it compiles, so their counts are bounded before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from functools import lru_cache
from math import prod
from time import perf_counter
from typing import Any

from onnx_clip_pass.errors import OnnxClipError, shown

__all__ = ["check_pattern", "fixed_part", "is_expression", "reader_of", "start_of"]

_SECONDS = 1.5
"""For one expression and all names that it is searched in."""
_MOST_REPEATS = 100_000


def is_expression(pattern: str) -> bool:
    """Return whether a pattern is a regular expression and no glob."""
    return pattern.startswith("re:")


def check_pattern(pattern: str) -> None:
    """Refuse what is no pattern."""
    if not isinstance(pattern, str):
        raise OnnxClipError(f"a pattern must be text, not {shown(pattern)}")
    if is_expression(pattern):
        _compiled(pattern)


def start_of(pattern: str) -> str:
    """Return what each name that fits a pattern starts with, as far as a glob tells."""
    return "" if is_expression(pattern) else re.split(r"[*?\[]", pattern, maxsplit=1)[0]


@lru_cache(maxsize=1024)
def fixed_part(pattern: str) -> str:
    """Return text that is in every name that fits a glob; "" if there is none, or it is no glob."""
    if is_expression(pattern):
        return ""
    return max(re.split("[*?]", pattern.partition("[")[0]), key=len)


def reader_of(pattern: str) -> Callable[[str], object]:
    """Return what tells whether a name fits a pattern.

    It raises OnnxClipError where a regular expression takes too long for all names together.
    """
    return _searcher(pattern) if is_expression(pattern) else _glob(pattern).match


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _searcher(pattern: str) -> Callable[[str], object]:
    search = _compiled(pattern).search
    left = _SECONDS

    def found(name: str) -> object:
        nonlocal left
        begin = perf_counter()
        try:
            return search(name, timeout=max(left, 1e-3))
        except TimeoutError as error:
            raise OnnxClipError(
                f"{pattern!r} takes more than {_SECONDS} seconds to be searched for in names, as "
                f"expressions do that repeat what is a repeat itself; write it without that, or as "
                f"a glob"
            ) from error
        finally:
            left -= perf_counter() - begin

    return found


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    import regex  # takes longer to import than most models take to be rewritten

    expression = pattern.removeprefix("re:")
    try:
        counts = prod(max(1, int(count)) for count in re.findall(r"\{(\d{1,9})", expression))
        if counts > _MOST_REPEATS:
            raise OnnxClipError(
                f"{pattern!r} has counts of repeats that multiply to more than {_MOST_REPEATS:,}"
            )
        return regex.compile(expression)
    except (regex.error, OverflowError, RecursionError) as error:
        why = str(error) if isinstance(error, regex.error) else "it is nested or repeated too often"
        raise OnnxClipError(f"{pattern!r} is no regular expression: {why}") from error
