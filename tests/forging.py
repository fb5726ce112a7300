"""Records as someone else might write them: any value of any wrong kind, sealed again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from onnx import GraphProto, ModelProto

from onnx_clip_pass.graph import graphs_and_functions
from onnx_clip_pass.record import KEY

__all__ = ["WRONG", "fields_of", "mutations", "put"]

Path = tuple[str | int, ...]

WRONG = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a fraction": 1.5,
    "a large number": 2**62,
    "a number that no float holds": 10**400,
    "nan": float("nan"),
    "infinity": float("inf"),
    "an empty text": "",
    "a name": "W",
    "half a character": "\ud800",
    "a NUL": "\0",
    "a number as text": "1e999",
    "an empty list": [],
    "a list of null": [None],
    "a list of lists": [[]],
    "a list of names": ["W", "W"],
    "an empty object": {},
    "an object": {"a": None},
    "nested deep": [[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]],
}
"""What may stand in JSON, by what it is."""


def fields_of(model: ModelProto) -> dict[str, Any]:
    """The record of a model."""
    return json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))


def put(model: ModelProto, fields: Any, *, seal: bool = True) -> None:
    """Put a record into a model in place of its own, with the digest that it would have."""
    if seal and isinstance(fields, dict) and "digest" in fields:
        fields["digest"] = _digest(model, fields)
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    entry.value = json.dumps(fields)


def _digest(model: ModelProto, fields: dict[str, Any]) -> str:
    names = {name for key in ("nodes", "initializers") for name in _texts(fields.get(key))}
    added = []
    for body in graphs_and_functions(model):
        added += [node for node in body.node if node.name in names]
        if isinstance(body, GraphProto):
            added += [tensor for tensor in body.initializer if tensor.name in names]
    digest = hashlib.sha256()
    for message in sorted(added, key=lambda message: message.name):
        data = message.SerializeToString(deterministic=True)
        digest.update(b"%d:%b" % (len(data), data))
    if fields.get("format") not in (1, 2):
        digest.update(json.dumps(fields | {"digest": ""}, sort_keys=True).encode())
    return digest.hexdigest()


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def mutations(value: Any, at: Path = ()) -> Iterator[tuple[str, Any]]:
    """The whole with one value in it of every wrong kind, left out, or doubled; and what it is."""
    whole = value
    for place in _places(value, at):
        for what, wrong in WRONG.items():
            yield f"{_said(place)} is {what}", _with(whole, place, wrong)
        if place:
            yield f"{_said(place)} is left out", _without(whole, place)
            yield f"{_said(place)} is there twice", _doubled(whole, place)


def _places(value: Any, at: Path) -> Iterator[Path]:
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*at, key))


def _said(place: Path) -> str:
    return ".".join(map(str, place)) or "all of it"


def _with(whole: Any, place: Path, new: Any) -> Any:
    if not place:
        return copy.deepcopy(new)
    made = copy.deepcopy(whole)
    _inside(made, place)[place[-1]] = copy.deepcopy(new)
    return made


def _without(whole: Any, place: Path) -> Any:
    made = copy.deepcopy(whole)
    del _inside(made, place)[place[-1]]
    return made


def _doubled(whole: Any, place: Path) -> Any:
    made = copy.deepcopy(whole)
    around, key = _inside(made, place), place[-1]
    if isinstance(around, list):
        around.insert(key, copy.deepcopy(around[key]))
    else:
        around[f"{key}2"] = copy.deepcopy(around[key])
    return made


def _inside(whole: Any, place: Path) -> Any:
    for key in place[:-1]:
        whole = whole[key]
    return whole
