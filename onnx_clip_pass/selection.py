"""`need_clip`: which parameters' gradients are clipped.

A selection is a callable, as Paddle's `need_clip`, or patterns as on the command line. A pattern
is a glob on the parameter's or the gradient's name (`encoder.*`), or a regular expression behind
`re:` that is searched in them (`re:bias$`). A pattern that is the very name of a parameter or
gradient means that one and is not read as a glob (`params['w']`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

import numpy as np

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients.found import Parameter

__all__ = ["Chooser", "NeedClip", "check_need_clip", "select"]

NeedClip = Callable[[Parameter], bool] | str | Sequence[str] | None
"""A predicate, a pattern, several patterns (any of them), or None for all parameters."""

_SHOWN = 10


def check_need_clip(need_clip: object) -> None:
    """Refuse what is no `NeedClip`, when it is given rather than when it is used."""
    if need_clip is None or callable(need_clip):
        return
    for pattern in _patterns(need_clip, "need_clip"):
        if pattern.startswith("re:"):
            _compile(pattern)


def select(
    parameters: Sequence[Parameter],
    need_clip: NeedClip,
    skip: str | Sequence[str] = (),
    *,
    also: Sequence[Parameter] = (),
) -> list[Parameter]:
    """Those of the parameters that `need_clip` picks and `skip` does not.

    Args:
        parameters: what there is.
        need_clip: a predicate or patterns.
        skip: patterns of what to leave out all the same.
        also: more that a pattern picks only by its very name.

    Raises:
        OnnxClipError: a pattern matches nothing, nothing is left, or a predicate raises or gives no
            bool.
    """
    skipped = set(_match(_patterns(skip, "skip"), parameters, also)) if skip else set()
    if need_clip is None:
        picked = list(parameters)
    elif callable(need_clip):
        picked = [parameter for parameter in parameters if _ask(need_clip, parameter)]
    else:
        picked = _match(_patterns(need_clip, "need_clip"), parameters, also)
    chosen = [parameter for parameter in picked if parameter not in skipped]
    if parameters and not chosen and not callable(need_clip):  # a predicate may say no to all
        raise OnnxClipError(
            f"nothing is left to clip: need_clip and skip leave out all there is: "
            f"{_listed(parameters)}"
        )
    return chosen


def _ask(need_clip: Callable[[Parameter], bool], parameter: Parameter) -> bool:
    try:
        answer = need_clip(parameter)
    except Exception as error:
        raise OnnxClipError(
            f"need_clip raised {type(error).__name__} when asked about parameter "
            f"{parameter.name!r}: {error}"
        ) from error
    if not isinstance(answer, bool | np.bool_):
        raise OnnxClipError(
            f"need_clip must return True or False, but for parameter {parameter.name!r} it "
            f"returned {answer!r}"
        )
    return bool(answer)


def _patterns(given: object, what: str) -> list[str]:
    patterns = [given] if isinstance(given, str) else given
    if not isinstance(patterns, Iterable) or isinstance(patterns, bytes):
        raise OnnxClipError(
            f"{what} must be a callable, a pattern or a list of patterns, not {given!r}"
        )
    patterns = list(patterns)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OnnxClipError(f"{what} must be a list of strings, at least one, not {given!r}")
    return patterns


def _match(
    patterns: Sequence[str], parameters: Sequence[Parameter], also: Sequence[Parameter]
) -> list[Parameter]:
    chooser = Chooser(parameters, also)
    everything = [*parameters, *also]
    found = [chooser.matching(pattern, everything) for pattern in patterns]
    idle = [
        f"pattern {pattern!r} matches no parameter and no gradient"
        for pattern, matched in zip(patterns, found, strict=True)
        if not matched
    ]
    if idle:
        there = _listed(everything)
        if len(idle) == 1:
            raise OnnxClipError(f"{idle[0]}; there is: {there}")
        raise OnnxClipError(f"{len(idle)} patterns match nothing; there is: {there}", idle)
    picked = {parameter for matched in found for parameter in matched}
    return [parameter for parameter in everything if parameter in picked]


class Chooser:
    """Matches patterns with parameters by their names and their gradients' names.

    Args:
        parameters: what there is.
        also: more that a pattern picks only by its very name.
    """

    def __init__(self, parameters: Sequence[Parameter], also: Sequence[Parameter] = ()) -> None:
        self._by_name: dict[str, list[Parameter]] = {}
        for parameter in (*parameters, *also):
            for name in {parameter.name, parameter.gradient}:
                self._by_name.setdefault(name, []).append(parameter)
        self._only_by_name = set(also)

    def choose(self, need_clip: NeedClip, among: Sequence[Parameter]) -> list[Parameter]:
        """Those of `among` that a selection picks; a pattern may match nothing."""
        if need_clip is None:
            return [parameter for parameter in among if parameter not in self._only_by_name]
        if callable(need_clip):
            asked = [parameter for parameter in among if parameter not in self._only_by_name]
            return [parameter for parameter in asked if _ask(need_clip, parameter)]
        picked: set[Parameter] = set()
        for pattern in _patterns(need_clip, "need_clip"):
            picked.update(self.matching(pattern, among))
        return [parameter for parameter in among if parameter in picked]

    def matching(self, pattern: str, among: Sequence[Parameter]) -> list[Parameter]:
        """Those of `among` that one pattern matches; a very name wins over its other readings."""
        named = self._by_name.get(pattern)
        if named is not None:
            return [parameter for parameter in named if parameter in set(among)]
        fits = _reader_of(pattern)
        return [
            parameter
            for parameter in among
            if (fits(parameter.name) or fits(parameter.gradient))
            and parameter not in self._only_by_name
        ]


@lru_cache(maxsize=1024)
def _reader_of(pattern: str) -> Callable[[str], object]:
    """Whether a name fits a pattern, compiled once."""
    if pattern.startswith("re:"):
        return _compile(pattern).search
    return re.compile(translate(pattern)).match


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise OnnxClipError(f"{pattern!r} is no regular expression: {error}") from error


def _listed(parameters: Sequence[Parameter]) -> str:
    names = [repr(parameter.name) for parameter in parameters[:_SHOWN]]
    more = len(parameters) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
