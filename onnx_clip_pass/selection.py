"""`need_clip`: which parameters' gradients are clipped.

A selection is a callable, as Paddle's `need_clip`, or patterns as on the command line. A pattern
is a glob on the parameter's or the gradient's name (`encoder.*`), or a regular expression behind
`re:` that is searched in them (`re:bias$`). A pattern that is the very name of a parameter or
gradient means that one and is not read as a glob (`params['w']`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Sized
from fnmatch import translate
from functools import lru_cache

import numpy as np

from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients.found import Parameter

__all__ = ["Chooser", "NeedClip", "check_need_clip", "select"]

NeedClip = Callable[[Parameter], bool] | str | Sequence[str] | None
"""A predicate, a pattern, several patterns (any of them), or None for all parameters."""


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
    everything = [*parameters, *also]
    left_out = [] if _is_empty(skip) else _patterns(skip, "skip")
    asked = [] if need_clip is None or callable(need_clip) else _patterns(need_clip, "need_clip")
    matches = _matches([*asked, *left_out], everything, Chooser(parameters, also))
    skipped = {parameter for pattern in left_out for parameter in matches[pattern]}
    if need_clip is None:
        picked = list(parameters)
    elif callable(need_clip):
        picked = [parameter for parameter in parameters if _ask(need_clip, parameter)]
    else:
        wanted = {parameter for pattern in asked for parameter in matches[pattern]}
        picked = [parameter for parameter in everything if parameter in wanted]
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
            f"{what} must be a callable, a pattern or a list of patterns, not {shown(given)}"
        )
    patterns = list(patterns)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OnnxClipError(f"{what} must be a list of strings, at least one, not {shown(given)}")
    return patterns


def _is_empty(patterns: object) -> bool:
    return patterns is None or (isinstance(patterns, Sized) and len(patterns) == 0)


def _matches(
    patterns: Sequence[str], everything: Sequence[Parameter], chooser: Chooser
) -> dict[str, list[Parameter]]:
    """What each pattern matches; refused if one matches nothing."""
    found = {pattern: chooser.matching(pattern, everything) for pattern in patterns}
    idle = [
        f"pattern {pattern!r} matches no parameter and no gradient"
        for pattern, matched in found.items()
        if not matched
    ]
    if idle:
        there = _listed(everything)
        if len(idle) == 1:
            raise OnnxClipError(f"{idle[0]}; there is: {there}")
        raise OnnxClipError(f"{len(idle)} patterns match nothing; there is: {there}", idle)
    return found


class Chooser:
    """Matches patterns with parameters by their names and their gradients' names.

    Args:
        parameters: what there is.
        also: more that a pattern picks only by its very name.
    """

    def __init__(self, parameters: Sequence[Parameter], also: Sequence[Parameter] = ()) -> None:
        everything = (*parameters, *also)
        self._names = {p.name for p in everything} | {p.gradient for p in everything} - {""}
        self._only_by_name = set(also)

    def choose(self, need_clip: NeedClip, among: Sequence[Parameter]) -> list[Parameter]:
        """Those of `among` that a selection picks; a pattern may match nothing."""
        if need_clip is None:
            return self._open(among)
        if callable(need_clip):
            return [parameter for parameter in self._open(among) if _ask(need_clip, parameter)]
        patterns = _patterns(need_clip, "need_clip")
        if len(patterns) == 1:
            return self.matching(patterns[0], among)
        picked: set[Parameter] = set()
        for pattern in patterns:
            picked.update(self.matching(pattern, among))
        return [parameter for parameter in among if parameter in picked] if picked else []

    def matching(self, pattern: str, among: Sequence[Parameter]) -> list[Parameter]:
        """Those of `among` that one pattern matches; a very name wins over its other readings."""
        if pattern in self._names:
            return [p for p in among if pattern in (p.name, p.gradient)]
        part = _literal_of(pattern)  # sorts most of them out, ten times as fast
        if part:
            among = [p for p in among if part in p.name or part in p.gradient]
        fits = _reader_of(pattern)
        return self._open([p for p in among if fits(p.name) or fits(p.gradient)])

    def _open(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Those that need not be named outright."""
        if not self._only_by_name:
            return list(parameters)
        return [parameter for parameter in parameters if parameter not in self._only_by_name]


@lru_cache(maxsize=1024)
def _reader_of(pattern: str) -> Callable[[str], object]:
    """Return whether a name fits a pattern, compiled once."""
    if pattern.startswith("re:"):
        return _compile(pattern).search
    return re.compile(translate(pattern)).match


@lru_cache(maxsize=1024)
def _literal_of(pattern: str) -> str:
    """Text that is in every name that fits a glob; "" if there is none, or it is no glob."""
    if pattern.startswith("re:"):
        return ""
    return max(re.split("[*?]", pattern.partition("[")[0]), key=len)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        reason = str(error)
    except OverflowError as error:
        reason = str(error)
    except (RecursionError, MemoryError):
        reason = "it is nested too deep"
    raise OnnxClipError(f"{shown(pattern)} is no regular expression: {reason}")


def _listed(parameters: Sequence[Parameter]) -> str:
    return listed([repr(parameter.name) for parameter in parameters])
