"""JSON that comes from outside, held against a description of its form, the whole of it at once.

A form is what type annotations say already: `list[str]`, `dict[str, float | None]`, `tuple[Count,
Count]`, a `TypedDict`. So the annotations of a dataclass are the one description of what may stand
in a file, for the reader, the writer and the type checker alike. `Annotated[dict[str, Any], Entry]`
is a mapping that has what the TypedDict `Entry` asks for, and more of any kind. Dataclasses
and NamedTuples are made of what has the form of their fields; a class with `from_json` says by
`FORM` what it is made of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NoReturn,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from onnx_clip_pass.errors import shown

__all__ = ["Count", "FormError", "read_json", "reader_of"]

Count = Annotated[int, "0 or more"]
"""A whole number, 0 or more, of at most 63 bits."""

Reader = Callable[[Any], Any]

_LARGEST = 1 << 63
_DEEPEST = 16
_TEXT_OR_BOOL, _NUMBER = (str, bool), (int, float)  # a union would be made anew for each value
_WORDS: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    Count: "a whole number, 0 or more",
    float: "a finite number",
    NoneType: "null",
    Any: "any value",
}


class FormError(ValueError):
    """A value of another form: where in the whole it is, what was expected, what is there."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place.lstrip('.')}: {problem}" if place else problem)
        self._problem, self._path = problem, place

    def inside(self, key: str | int) -> FormError:
        """The same error, seen from the value that has this one at `key`."""
        step = f"[{key}]" if isinstance(key, int) else f".{key[:60]}"
        return FormError(self._problem, step + self._path)


def read_json(text: object) -> Any:
    """The value of a JSON text.

    Raises:
        FormError: it is no JSON (nan and inf are none), or has half a character in it.
    """
    if not isinstance(text, str):  # protobuf gives as bytes what is no UTF-8
        raise FormError("no UTF-8")
    try:
        text.encode()
        found = json.loads(text, parse_constant=_refuse_word)
        # An escape may stand for half a character, which no text of a model can hold.
        if "\\" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except FormError:
        raise
    except UnicodeEncodeError:
        raise FormError("a text in it is no Unicode") from None
    except RecursionError:
        raise FormError("nested too deep") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise FormError(f"no JSON: {error}") from error
    return found


@cache
def reader_of(form: Any) -> Reader:
    """Return what takes a value of the types of JSON and returns it, if it is of this form.

    Where the form has a tuple, the list that JSON has becomes one. The reader raises FormError.
    """
    origin, args = get_origin(form), get_args(form)
    if origin is Annotated and form != Count:
        return _annotated(
            [
                reader_of(args[0]),
                *(_keys(e, e.__required_keys__, may_have_more=True) for e in args[1:]),
            ]
        )
    if origin in (Union, UnionType):
        return _union(args)
    if origin is list:
        return _list(reader_of(args[0]), is_text=args[0] is str)
    if origin is tuple and args[1:] == (...,):
        return _made(tuple, _list(reader_of(args[0]), is_text=args[0] is str))
    if origin is tuple:
        return _tuple([reader_of(each) for each in args])
    if origin is dict:
        return _dict(reader_of(args[1]), is_text=args[1] is str)
    if hasattr(form, "from_json"):
        return _made(form.from_json, reader_of(form.FORM))
    if is_dataclass(form):
        required = [each.name for each in fields(form) if each.default is MISSING]
        make: Any = form
        return _made(lambda found: make(**found), _keys(form, required, may_have_more=False))
    if hasattr(form, "_fields"):  # a NamedTuple
        read = _tuple([reader_of(each) for each in get_type_hints(form).values()])
        return _made(lambda found: form(*found), read)
    return {Any: _any, str: _text}.get(form) or _single(form)


def _made(make: Callable[[Any], Any], read: Reader) -> Reader:
    return lambda value: make(read(value))


def _annotated(readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        found, *_ = [each(value) for each in readers]
        return found

    return read


def _union(options: tuple[Any, ...]) -> Reader:
    readers = [reader_of(each) for each in options]
    filled = [each for each in options if each is not NoneType]

    def read(value: Any) -> Any:
        for each in readers:
            with suppress(FormError):
                return each(value)
        if len(filled) == 1 and value is not None:  # what is wrong inside says more
            return reader_of(filled[0])(value)
        return _refuse(value, " or ".join(map(_word, options)))

    return read


def _list(inner: Reader, *, is_text: bool) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            _refuse(value, "a list")
        if is_text and all(type(each) is str for each in value):
            return list(value)  # names, by the hundred thousand: without a call for each
        found: list[Any] = []
        try:
            for each in value:
                found.append(inner(each))  # noqa: PERF401, so that the error knows how far it got
        except FormError as error:
            raise error.inside(len(found)) from None
        return found

    return read


def _tuple(readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            _refuse(value, f"a list of {len(readers)}")
        found: list[Any] = []
        try:
            for own, each in zip(readers, value, strict=True):
                found.append(own(each))
        except FormError as error:
            raise error.inside(len(found)) from None
        return tuple(found)

    return read


def _dict(inner: Reader, *, is_text: bool = False) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            _refuse(value, "an object")
        if is_text and all(type(each) is str for each in value.values()):
            return dict(value)
        found: dict[str, Any] = {}
        for key, each in value.items():
            try:
                found[key] = inner(each)
            except FormError as error:
                raise error.inside(key) from None
        return found

    return read


def _keys(form: Any, required: Iterable[str], *, may_have_more: bool) -> Reader:
    readers = {
        key: reader_of(each) for key, each in get_type_hints(form, include_extras=True).items()
    }
    required = [key for key in readers if key in required]

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            _refuse(value, "an object")
        for key in required:
            if key not in value:
                raise FormError(f"{key!r} is missing")
        if not may_have_more and (more := [key for key in value if key not in readers]):
            raise FormError(f"{shown(more[0])} is unknown")
        found: dict[str, Any] = {}
        for key, each in readers.items():
            if key in value:
                try:
                    found[key] = each(value[key])
                except FormError as error:
                    raise error.inside(key) from None
        return found

    return read


def _any(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, _TEXT_OR_BOOL):
        return value
    if isinstance(value, _NUMBER):
        return reader_of(float)(value)
    if depth > _DEEPEST:
        raise FormError(f"nested deeper than {_DEEPEST}")
    if isinstance(value, Mapping):
        return _dict(lambda each: _any(each, depth + 1))(value)
    return _list(lambda each: _any(each, depth + 1), is_text=False)(value)


def _single(form: Any) -> Reader:
    word = _word(form)

    def read(value: Any) -> Any:
        if isinstance(value, bool):
            is_one = form is bool
        elif isinstance(value, int):
            low = 0 if form == Count else -_LARGEST
            is_one = form in (int, Count, float) and low <= value < _LARGEST
        elif isinstance(value, float):
            is_one = form is float and math.isfinite(value)
        else:
            is_one = form in (str, NoneType) and isinstance(value, form)
        return value if is_one else _refuse(value, word)

    return read


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else _refuse(value, _WORDS[str])


def _word(form: Any) -> str:
    if form in _WORDS:
        return _WORDS[form]
    return "an object" if get_origin(form) is dict else "a list"


def _refuse(value: object, expected: str) -> NoReturn:
    raise FormError(f"expected {expected}, not {_written(value)}")


def _refuse_word(word: str) -> NoReturn:
    raise FormError(f"no JSON: {word} is no number")


def _written(value: object) -> str:
    """A value in a message, as JSON has it; of a list or an object not what is in it."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)
