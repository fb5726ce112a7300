"""Options of functions, each described once, in the annotation of a `TypedDict`.

From its description follow the type that callers see, its default and check, its place in
signatures and docstrings, and its option on the command line.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar, cast, get_origin, get_type_hints

from onnx_clip_pass.arguments import check_choice, check_flags
from onnx_clip_pass.progress import WantsProgress, check_progress

__all__ = ["Option", "ProgressOption", "checked", "described", "takes_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_PLACE_IN_DOC = re.compile(r"^( +)\*\*options: .*\n(?:\1 +.*\n)*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """The description of an option.

    Args:
        default: what it is where it is not said.
        doc: it, in the words of a docstring.
        help: it, in those of the command line; "" where that has other options for it.
        metavar: what the command line calls its value.
        spelled: what the command line calls it, where that is not its name.
    """

    default: Any
    doc: str
    help: str = ""
    metavar: str | None = None
    spelled: str = ""

    def is_said_by(self, value: object) -> bool:
        """Return whether a value is another one than the default."""
        if self.default is None:
            return value is not None
        if isinstance(self.default, Collection) and isinstance(value, Collection):
            return len(value) != 0 if not self.default else value != self.default
        return bool(value != self.default)


ProgressOption = Annotated[
    WantsProgress,
    Option(
        None,
        "a callback, which is told how much is done by a `Progress`, or True for a bar in a "
        "terminal or a notebook.",
    ),
]
"""The option of everything that takes long."""


@cache
def described(kind: type) -> dict[str, tuple[Any, Option]]:
    """The type and the description of each key of a `TypedDict` of options."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


def checked(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a kind, those that are not given at their defaults.

    Raises:
        TypeError: there is no such option.
        OnnxClipError: a flag is none, or a word is not one of those to choose from.
    """
    known = described(kind)
    if unknown := given.keys() - known.keys():
        raise TypeError(_unknown(min(unknown), known))
    values = {name: option.default for name, (_, option) in known.items()} | dict(given)
    for name, (type_, _) in known.items():
        if type_ is bool:
            check_flags(**{name: values[name]})
        elif get_origin(type_) is Literal:
            check_choice(name, values[name], type_)
        elif type_ == WantsProgress:
            check_progress(values[name])
    return values


def takes_options(kind: type, *without: str) -> Callable[[_Function], _Function]:
    """Show what the options are in the signature of a function with `**options: Unpack[kind]`.

    So does its docstring: what it does not say itself takes the place of `**options`, unless that
    refers to another function. An option that it does not have is refused, by a `TypeError`, before
    anything else.

    Args:
        kind: the `TypedDict`.
        without: those that the function does not take, and refuses itself.
    """

    def told(function: _Function) -> _Function:
        own = {name: each for name, each in described(kind).items() if name not in without}
        signature = inspect.signature(function)
        parameters = [
            each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD
        ]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=type_
            )
            for name, (type_, option) in own.items()
        ]
        asked: Any = function if isinstance(function, type) else _refusing(
            function, parameters, without
        )  # fmt: skip
        shown = signature.replace(parameters=parameters)
        text = function.__doc__ or ""
        place = _PLACE_IN_DOC.search(text)
        if place and f"see `{kind.__name__}`" in place[0]:
            lines = [
                _line(name, option, place[1])
                for name, (_, option) in own.items()
                if f"{place[1]}{name}: " not in text
            ]
            text = "".join([text[: place.start()], *lines, text[place.end() :]])
        made: tuple[Any, ...] = (function, asked)
        for each in made:  # tools that make pages look through wrappers
            each.__signature__, each.__doc__ = shown, text or None
        return cast(_Function, asked)

    return told


def _refusing(
    function: Callable[..., Any], parameters: Iterable[inspect.Parameter], without: Iterable[str]
) -> Callable[..., Any]:
    """Return the function, but that it refuses options that it does not have before all else."""
    shown = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    known = {each.name for each in parameters}.union(without)

    @wraps(function)
    def asked(*arguments: Any, **given: Any) -> Any:
        if unknown := given.keys() - known:
            raise TypeError(f"{function.__name__}: {_unknown(min(unknown), shown)}")
        return function(*arguments, **given)

    return asked


def _unknown(name: str, known: Iterable[str]) -> str:
    """The message about an option that there is not."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no option {name!r}{hint or '; there are ' + ', '.join(known)}"


def _line(name: str, option: Option, indent: str) -> str:
    further = f"{indent}    "
    text = f"{name}: {option.doc}"
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=further) + "\n"
