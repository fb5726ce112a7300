"""A mutant put into the functions of a module that has been imported already."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any


class Live:
    """The functions of a package in this process, and what they have cached.

    Args:
        package: its name.
    """

    def __init__(self, package: str) -> None:
        self._functions: dict[str, list[FunctionType]] = {}
        self._caches: list[Any] = []
        cached = type(functools.cache(len))
        for one in gc.get_objects():
            if isinstance(one, FunctionType):
                self._functions.setdefault(one.__code__.co_filename, []).append(one)
            elif isinstance(one, cached) and one.__module__.startswith(package):
                self._caches.append(one)

    def apply(self, path: Path, original: str, source: str) -> bool:
        """Give the functions of a module the code that they have in another source.

        Returns:
            Whether the code that differs is that of a function which is there.
        """
        old, new = (
            compile(text, str(path), "exec", dont_inherit=True) for text in (original, source)
        )
        changed = {before: after for before, after in _pairs(old, new) if before != after}
        applied = False
        for function in self._functions.get(str(path), []):
            after = changed.get(function.__code__)
            if after is not None and after.co_freevars == function.__code__.co_freevars:
                function.__code__ = after
                applied = True
        for cache in self._caches:
            cache.cache_clear()
        return applied


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The functions of two modules that correspond; those within functions come with them."""
    inner = [[one for one in code.co_consts if isinstance(one, CodeType)] for code in (old, new)]
    for before, after in zip(*inner, strict=True):
        if before.co_flags & 2:  # CO_NEWLOCALS: a function, not the body of a class
            yield before, after
        else:
            yield from _pairs(before, after)
