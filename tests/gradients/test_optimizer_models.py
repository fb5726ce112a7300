"""The gradients of every kind of optimizer and update in `models/optimizers`, by hand listed."""

import pytest
from graphs import OPTIMIZERS, Entry

from onnx_clip_pass import OnnxClipError, find_gradients


def found_in(entry: Entry) -> list[tuple[str, str]]:
    return sorted((found.name, found.parameter.name) for found in find_gradients(entry.load()))


def named(entries: list[Entry]) -> pytest.MarkDecorator:
    cases = [pytest.param(e, id=e.path.stem) for e in entries]
    return pytest.mark.parametrize("entry", cases)


@named([entry for entry in OPTIMIZERS if not entry.asked])
def test_finds_exactly_the_gradients(entry: Entry) -> None:
    assert found_in(entry) == sorted(entry.gradients)


@named([entry for entry in OPTIMIZERS if entry.asked])
def test_finds_nothing_wrong_where_it_may_ask(entry: Entry) -> None:
    try:
        found = found_in(entry)
    except OnnxClipError:
        return
    assert set(found) <= set(entry.gradients)
