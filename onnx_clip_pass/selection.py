"""`need_clip`: which parameters' gradients are clipped.

A selection is a callable, as Paddle's `need_clip`, or patterns as on the command line. A pattern
is a glob on the parameter's or the gradient's name (`encoder.*`), or a regular expression behind
`re:` that is searched in them (`re:bias$`). A pattern that is the very name of a parameter or
gradient means that one and is not read as a glob (`params['w']`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import cached_property

import numpy as np

from onnx_clip_pass.errors import OnnxClipError, listed, shown
from onnx_clip_pass.gradients.found import Parameter
from onnx_clip_pass.patterns import check_pattern, fixed_part, reader_of, start_of

__all__ = [
    "Among",
    "NeedClip",
    "PatternMatcher",
    "as_patterns",
    "by_id",
    "check_need_clip",
    "select",
]

NeedClip = Callable[[Parameter], bool] | str | Sequence[str] | None
"""A predicate, a pattern, several patterns (any of them), or None for all parameters."""

Among = Mapping[int, Parameter]
"""Parameters by their ids, in order, see `by_id`."""


def check_need_clip(need_clip: object) -> None:
    """Refuse what is no `NeedClip`, when it is given rather than when it is used."""
    if need_clip is None or callable(need_clip):
        return
    for pattern in _patterns(need_clip, "need_clip"):
        check_pattern(pattern)


def as_patterns(given: object, what: str) -> tuple[str, ...]:
    """The patterns of an argument called `what`; None and an empty list are none.

    Raises:
        OnnxClipError: it is no pattern and no list of patterns.
    """
    return () if _is_empty(given) else tuple(_patterns(given, what))


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
    left_out = as_patterns(skip, "skip")
    asked = [] if need_clip is None or callable(need_clip) else _patterns(need_clip, "need_clip")
    matches = _matches([*asked, *left_out], everything, PatternMatcher(parameters, also))
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
    if (
        not isinstance(patterns, Iterable)
        or isinstance(patterns, bytes | Mapping)
        or getattr(patterns, "shape", None) == ()  # an array without axes has no items
    ):
        also = "a callable, " if what == "need_clip" else ""
        raise OnnxClipError(
            f"{what} must be {also}a pattern or a list of patterns, not {shown(given)}"
        )
    patterns = list(patterns)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OnnxClipError(f"{what} must be a list of strings, at least one, not {shown(given)}")
    return patterns


def _is_empty(patterns: object) -> bool:
    return patterns is None or (isinstance(patterns, Sized) and len(patterns) == 0)


def _matches(
    patterns: Sequence[str], everything: Sequence[Parameter], matcher: PatternMatcher
) -> dict[str, list[Parameter]]:
    """The matches of each pattern; refused if one matches nothing."""
    among = by_id(everything)
    found = {pattern: matcher.matching(pattern, among) for pattern in patterns}
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


def by_id(parameters: Iterable[Parameter]) -> dict[int, Parameter]:
    """Return parameters by their ids: hashing one takes longer than matching it."""
    return {id(parameter): parameter for parameter in parameters}


class PatternMatcher:
    """Matches patterns with parameters by their names and their gradients' names.

    A very name, and the start of a glob, are looked up, so that many rules for a few parameters
    each do not go over all of them.

    Args:
        parameters: what there is.
        also: more that a pattern picks only by its very name.
    """

    def __init__(self, parameters: Sequence[Parameter], also: Sequence[Parameter] = ()) -> None:
        self._everything = (*parameters, *also)
        self._named: dict[str, list[Parameter]] = {}
        for parameter in self._everything:
            for name in {parameter.name, parameter.gradient}:
                self._named.setdefault(name, []).append(parameter)
        self._named.pop("", None)
        outright = set(also)
        self._only_by_name = {id(p) for p in self._everything if outright and p in outright}

    def choose(self, need_clip: NeedClip, among: Among) -> list[Parameter]:
        """Those of `among` that a selection picks; a pattern may match nothing."""
        if need_clip is None:
            return self._open(among.values())
        if callable(need_clip):
            return [p for p in self._open(among.values()) if _ask(need_clip, p)]
        patterns = _patterns(need_clip, "need_clip")
        picked = [by_id(self.matching(pattern, among)) for pattern in patterns]
        if len(picked) == 1:
            return list(picked[0].values())
        joined = {each: p for part in picked for each, p in part.items()}
        return [joined[each] for each in sorted(joined, key=self._position.__getitem__)]

    def matching(self, pattern: str, among: Among) -> list[Parameter]:
        """Those of `among` that one pattern matches; a very name wins over its other readings."""
        if pattern in self._named:
            return [p for p in self._named[pattern] if id(p) in among]
        start, part = start_of(pattern), fixed_part(pattern)
        near: Iterable[Parameter] = among.values()
        if start and len(among) > 1:
            near = [p for p in self._starting(start) if id(p) in among]
        elif part:  # sorts most of them out, ten times as fast
            near = [p for p in near if part in p.name or part in p.gradient]
        fits = reader_of(pattern)
        return self._open([p for p in near if fits(p.name) or fits(p.gradient)])

    def _open(self, parameters: Iterable[Parameter]) -> list[Parameter]:
        """Those that need not be named outright."""
        return [each for each in parameters if id(each) not in self._only_by_name]

    @cached_property
    def _position(self) -> dict[int, int]:
        return {id(parameter): position for position, parameter in enumerate(self._everything)}

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._named)

    def _starting(self, start: str) -> list[Parameter]:
        """Those whose name, or whose gradient's, starts so."""
        names = self._sorted
        found: dict[int, Parameter] = {}
        for at in range(bisect_left(names, start), len(names)):
            if not names[at].startswith(start):
                break
            found.update(by_id(self._named[names[at]]))
        return sorted(found.values(), key=lambda parameter: self._position[id(parameter)])


def _listed(parameters: Sequence[Parameter]) -> str:
    return listed([repr(parameter.name) for parameter in parameters])
