"""Types and groups of options, for all commands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, dataclass_transform, get_args, get_origin

import click
from click.core import ParameterSource

from onnx_clip_pass.arguments import is_text, number_in, whole_in
from onnx_clip_pass.errors import shown
from onnx_clip_pass.options import described

__all__ = [
    "NUMBER",
    "OUTPUT",
    "PATH",
    "TEXT",
    "WHOLE",
    "OptionGroup",
    "by_name",
    "given_options",
    "json_option",
    "option",
    "options_of",
    "refuse",
    "say_together",
    "spelled",
    "take_options",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class _File(click.Path):
    """A path; an empty text is none, though it would be that of the current folder."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not value:
            self.fail("expected a path, not an empty text", param, ctx)
        text = str(value)
        if "\0" in text:
            self.fail("no name of a file holds a NUL", param, ctx)
        if text == "-":
            self.fail(
                "give files, not streams: save what comes in first (cat > FILE), and name the file "
                "to write; one that is called - is ./-",
                param,
                ctx,
            )
        if _URL.match(text) and not os.path.lexists(text):
            self.fail(
                f"{shown(text)} is a URL, and onnx-clip reads and writes files alone: download it "
                f"first, or upload what is written",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class _Number(click.types.FloatParamType):
    """A number, read as everywhere."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return number_in(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Whole(click.types.IntParamType):
    """A whole number, 0 or more, read as everywhere."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = whole_in(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if number < 0:
            self.fail(f"expected a whole number, 0 or more, not {shown(value)}", param, ctx)
        return number


class _Text(click.types.StringParamType):
    """A text; what is no UTF-8 is none, and no name in a model."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not is_text(value):
            self.fail(f"expected UTF-8, not {shown(value)}", param, ctx)
        return super().convert(value, param, ctx)


NUMBER = _Number()
"""The type of an option that is a number."""

WHOLE = _Whole()
"""The type of an option that is a whole number, 0 or more."""

TEXT = _Text()
"""The type of an option that is a name, a pattern or other text but a path."""

PATH = _File(path_type=Path)
"""The type of an argument or option that is a path."""

OUTPUT = _File(path_type=str)
"""The type of an option that says where to write: text, for `target_of`."""


def option(*names: str, **attributes: Any) -> Any:
    """A field of an `OptionGroup`: what is given by an option, declared as for `click.option`."""
    return field(metadata={"option": (names, attributes)})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that belong together, each declared by a field, and what is given by them.

    Every subclass is a frozen dataclass.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def declare(cls, command: _Command) -> _Command:
        """Add the options to a command."""
        for each in reversed(fields(cls)):
            names, attributes = each.metadata["option"]
            command = click.option(*names, each.name, **attributes)(command)
        return command

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self:
        """Take them out of all options of a command."""
        return cls(**{name: options.pop(name) for name in cls.field_names()})

    @classmethod
    def field_names(cls) -> list[str]:
        """The names of the fields."""
        return [each.name for each in fields(cls)]


def _words_of(known: Sequence[str]) -> Callable[..., tuple[str, ...]]:
    """Return a callback that takes an option's texts for words, parted by commas or the option."""

    def words(
        _context: click.Context, given: click.Parameter, texts: Sequence[str]
    ) -> tuple[str, ...]:
        found = tuple(word.strip() for text in texts for word in text.split(","))
        if not all(found):
            raise click.UsageError(
                f"{given.opts[0]}: expected {', '.join(known)}, or several, not "
                f"{shown(','.join(texts))}"
            )
        return found

    return words


def _number_or_name(_context: click.Context, _option: click.Parameter, text: str) -> float | str:
    try:
        return number_in(text)
    except ValueError:
        return text


def _form_of(kind: Any, default: Any) -> dict[str, Any]:
    """The declaration of an option for one of `Options`, by its type."""
    if kind is bool:
        return {"is_flag": True}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind)), "default": default, "show_default": True}
    if kind == float | str:
        known = {"default": f"{default:g}", "show_default": True}
        return {"callback": _number_or_name, **known}
    if kind == str | Sequence[str]:
        return {"multiple": True}
    if get_origin(kind) is Sequence:
        (word,) = get_args(kind)
        return {"multiple": True, "callback": _words_of(get_args(word))}
    return {}


def spelled(name: str) -> str:
    """An option or setting as the command line spells it."""
    return "--" + name.replace("_", "-")


def options_of(kind: type) -> Callable[[_Command], _Command]:
    """Return what adds to a command those options of a kind that have words for it."""

    def add(command: _Command) -> _Command:
        for name, (type_, each) in reversed(described(kind).items()):
            if each.help:
                form = _form_of(type_, each.default)
                names = each.spelled or spelled(name), name
                command = click.option(*names, help=each.help, metavar=each.metavar, **form)(
                    command
                )
        return command

    return add


def take_options(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Take what is given by the options of `options_of` out of all options of a command."""
    return {name: options.pop(name) for name, (_, each) in described(kind).items() if each.help}


def by_name(
    form: str, read: Callable[[str], Any], noun: str = "", *, at_first: bool = False
) -> Callable[[click.Context, click.Parameter, Sequence[str]], dict[str, Any]]:
    """A callback that reads texts such as NAME=VALUE into values by name.

    Args:
        form: of a text, for the message: "NAME=SIZE such as batch=4".
        read: reads a value, and raises ValueError for what is none.
        noun: what has the name, for the message.
        at_first: end the name at the first "=", and not at the last.
    """

    def read_all(
        _context: click.Context, _option: click.Parameter, texts: Sequence[str]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for text in texts:
            name, _, value = text.partition("=") if at_first else text.rpartition("=")
            try:
                if not name:
                    raise ValueError
                made = read(value)
            except ValueError as error:
                raise click.BadParameter(f"expected {form}, not {shown(text)}") from error
            if name in found:
                raise click.BadParameter(f"{noun}{name!r} is named twice")
            found[name] = made
        return found

    return read_all


def refuse(faults: Mapping[str, object]) -> None:
    """Refuse options that do not go together.

    Args:
        faults: by what is wrong, whether it is; the first of them is told.
    """
    for what, is_wrong in faults.items():
        if is_wrong:
            raise click.UsageError(what)


def given_options(*names: str) -> list[str]:
    """Those of the running command's options that stand on its command line, spelled as there.

    Args:
        names: what the options are called in the command's arguments.
    """
    context = click.get_current_context()
    return [
        option.opts[-1]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]


def say_together(options: Sequence[str]) -> str:
    """Options as the subject of a message: --seed says, or --dim, --seed say."""
    return f"{', '.join(options)} {'say' if options[1:] else 'says'}"


def json_option(command: _Command) -> _Command:
    """Add `--json` to a command; what goes wrong is then told as JSON too, by `main`."""
    add = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    )
    return add(command)
