"""Reading rules from a `clip.toml`; docs/rules.md says what stands in it.

Nothing in the file is trusted or evaluated. All its faults are found before any is reported.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onnx_clip_pass.arguments import check_path, number_in
from onnx_clip_pass.clips import CLIPS, Chain, Clip, setting_names
from onnx_clip_pass.clips.base import DTYPES
from onnx_clip_pass.clips.settings import Setting
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients import OptimizerOps
from onnx_clip_pass.gradients.optimizer import NO_OPS, checked_ops
from onnx_clip_pass.rules.rule import Bounds, Rule, Rules
from onnx_clip_pass.storage.reading import read_text

__all__ = ["keys_of_a_rule", "load_rules"]

# A parser takes a time that grows with the square of the parts of a key.
_ENDLESS_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*+(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""",
    re.MULTILINE,
)
_LARGEST_NUMBER = 1 << 63
_DEEPEST = 16
_SELECTION = {
    "parameters",
    "dtype",
    "rank",
    "min_rank",
    "max_rank",
    "min_elements",
    "max_elements",
}
_TABLES = ["rule", "optimizer_ops"]


def keys_of_a_rule() -> list[str]:
    """All keys that a rule may have, in order."""
    return sorted({*_SELECTION, "clip", "threshold_input", *setting_names()})


def load_rules(path: str | os.PathLike[str]) -> Rules:
    """The rules of a `clip.toml`, and the optimizers that it tells of.

    Args:
        path: the file: an array of tables `[[rule]]`, and, if need be, a table `[optimizer_ops]`,
            see docs/rules.md.

    Raises:
        OnnxClipError: the file cannot be read, is no TOML, or its rules are at fault; each fault
            names the file and the number of the rule.
    """
    check_path("path", path)
    path = Path(path)
    text = _read(path)
    if _ENDLESS_KEY.search(text):
        raise OnnxClipError(
            f"{str(path)!r} is no file of rules: a key in it has more than 64 parts"
        )
    try:
        document = tomllib.loads(text, parse_float=lambda text: number_in(text.replace("_", "")))
    except (ValueError, RecursionError) as error:  # also of numbers that Python does not read
        raise OnnxClipError(f"{str(path)!r} is no TOML: {error}") from error
    _check_values(document, path)
    tables = document.get("rule")
    faults = [
        f"{path.name}: unknown key {shown(key)}{_near(key, _TABLES)}"
        for key in document
        if key not in _TABLES
    ]
    if not isinstance(tables, list) or not tables:
        faults.append(f"{path.name}: expected at least one table [[rule]]")
        tables = []
    rules: list[Rule] = []
    first: dict[_Selection, Rule] = {}
    for number, table in enumerate(tables, 1):
        reader = _Reader(table, f"{path.name}, rule {number}")
        rule = reader.rule()
        faults += reader.faults
        if rule is not None and not reader.faults:
            faults += _shadowing(rule, first)
            rules.append(rule)
            first.setdefault(_selection(rule), rule)
    ops = _optimizer_ops(document.get("optimizer_ops", {}), path.name, faults)
    if faults:
        raise OnnxClipError(f"the rules in {str(path)!r} cannot be used:", faults)
    return Rules(rules, ops)


def _check_values(document: dict[str, Any], path: Path) -> None:
    """Refuse what a TOML file can hold and no rule has: endless numbers, and tables without end."""
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
                raise OnnxClipError(f"{str(path)!r} is no TOML: it has {shown(value)}")
        level = inner
    if level:
        raise OnnxClipError(f"{str(path)!r} has tables nested more than {_DEEPEST} deep")


def _optimizer_ops(table: object, where: str, faults: list[str]) -> OptimizerOps:
    """The optimizers that a file tells of; what is wrong with them is added to `faults`."""
    expected = '"vendor::SGD" = {parameter = 0, gradient = 1}'
    if not isinstance(table, dict):
        faults.append(f"{where}: optimizer_ops must be a table of lines such as {expected}")
        return NO_OPS
    found: dict[str, tuple[int, int]] = {}
    for name, slots in table.items():
        try:
            if not isinstance(slots, dict) or slots.keys() != {"parameter", "gradient"}:
                raise OnnxClipError("two numbers of inputs that are none")
            found |= checked_ops({name: (slots["parameter"], slots["gradient"])})
        except OnnxClipError:
            faults.append(
                f"{where}, optimizer_ops: expected a line such as {expected}, with the numbers of "
                f"different inputs, not {shown(name)} = {shown(slots)}"
            )
    return found


def _read(path: Path) -> str:
    try:
        return read_text(path).decode("utf-8-sig")  # Windows editors put a mark before the text
    except UnicodeDecodeError as error:
        raise OnnxClipError(f"{str(path)!r} is no TOML, which is UTF-8 text: {error}") from error


_Selection = tuple[tuple[str, ...] | None, Bounds]
"""The patterns of a rule, None for all, and its bounds."""


def _selection(rule: Rule) -> _Selection:
    patterns = rule.need_clip
    return (tuple(patterns) if isinstance(patterns, Sequence) else None), rule.bounds


def _shadowing(rule: Rule, first: Mapping[_Selection, Rule]) -> list[str]:
    """The reasons why no gradient can ever get as far as this rule, whatever the model.

    Args:
        rule: the rule.
        first: of the rules before it the first of each selection.
    """
    patterns, bounds = _selection(rule)
    for wider in ((None, Bounds()), (None, bounds), (patterns, Bounds()), (patterns, bounds)):
        other = first.get(wider)
        if other is not None:
            return [f"{rule.where}: never matches, since {other.where} takes all of it before"]
    return []


class _Reader:
    """Reads one table, and notes what is wrong with it."""

    def __init__(self, table: object, where: str) -> None:
        self.faults: list[str] = []
        self._where = where
        self._table: Mapping[str, Any] = table if isinstance(table, dict) else {}
        if not isinstance(table, dict):
            self._fault("expected a table")

    def rule(self) -> Rule | None:
        """The rule; None, or one not to be used, where there are faults."""
        known = keys_of_a_rule()
        for key in self._table:
            if key not in known:
                self._fault(f"unknown key {shown(key)}{_near(key, known)}")
        parameters, bounds, clip = self._parameters(), self._bounds(), self._clip()
        given = self._table.get("threshold_input")
        if given is not None and (not isinstance(given, str) or not given):
            self._fault(f"threshold_input must be a name, not {_written(given)}")
        elif given is not None and (clip is None or clip.threshold is None):
            self._fault(f"threshold_input {shown(given)} needs a clip with one threshold")
        if self.faults:
            return None
        try:
            return Rule(parameters, clip, given, bounds, self._where)
        except OnnxClipError as error:
            self._fault(str(error))
            return None

    def _fault(self, text: str) -> None:
        self.faults.append(f"{self._where}: {text}")

    def _parameters(self) -> list[str] | None:
        given = self._table.get("parameters")
        if given is None:
            return None
        patterns = [given] if isinstance(given, str) else given
        if (
            not isinstance(patterns, list)
            or not patterns
            or not all(isinstance(pattern, str) for pattern in patterns)
        ):
            self._fault(f"parameters must be a pattern, or a list of them, not {_written(given)}")
            return None
        return patterns

    def _bounds(self) -> Bounds:
        dtypes = self._table.get("dtype", [])
        dtypes = [dtypes] if isinstance(dtypes, str) else dtypes
        if not isinstance(dtypes, list) or not all(
            isinstance(dtype, str) and dtype in DTYPES for dtype in dtypes
        ):
            self._fault(
                f"dtype must be one or more of {', '.join(sorted(DTYPES))}, not {shown(dtypes)}"
            )
            dtypes = []
        counts = {key: self._count(key) for key in sorted(_SELECTION - {"parameters", "dtype"})}
        rank, low, high = counts["rank"], counts["min_rank"], counts["max_rank"]
        if rank is not None and (low is not None or high is not None):
            self._fault("rank says it all: not with min_rank or max_rank")
        low, high = (rank, rank) if rank is not None else (low, high)
        fewest, most = counts["min_elements"], counts["max_elements"]
        for what, least, largest in (("rank", low, high), ("elements", fewest, most)):
            if least is not None and largest is not None and least > largest:
                self._fault(f"can never match: min_{what} {least} is above max_{what} {largest}")
        return Bounds(
            tuple(dtypes),
            low or 0,
            math.inf if high is None else high,
            fewest or 0,
            math.inf if most is None else most,
        )

    def _count(self, key: str) -> int | None:
        given = self._table.get(key)
        if given is None or (type(given) is int and given >= 0):
            return given
        self._fault(f"{key} must be a whole number, 0 or more, not {_written(given)}")
        return None

    def _clip(self) -> Clip | None:
        kind = self._table.get("clip")
        settings = {key: self._table[key] for key in setting_names() if key in self._table}
        if kind == "none":
            if settings:
                self._fault(f'clip = "none" takes no {", ".join(sorted(settings))}')
            return None
        if isinstance(kind, list):
            if settings:
                self._fault(f"say {', '.join(sorted(settings))} in the tables of the chain")
            return self._chain(kind)
        return self._one(kind, settings, known=[*CLIPS, "none"])

    def _chain(self, tables: list[Any]) -> Clip | None:
        clips = []
        for table in tables:
            if not isinstance(table, dict):
                self._fault(
                    f'a chain is a list of tables such as {{clip = "norm"}}, not {shown(table)}'
                )
                continue
            settings = {key: value for key, value in table.items() if key != "clip"}
            clip = self._one(table.get("clip"), settings, known=list(CLIPS))
            if clip is not None:
                clips.append(clip)
        if not tables:
            self._fault("a chain needs at least one clip")
        try:
            return Chain(*clips) if clips else None
        except OnnxClipError as error:
            self._fault(str(error))
            return None

    def _one(self, kind: object, settings: dict[str, Any], known: list[str]) -> Clip | None:
        if not isinstance(kind, str) or kind not in CLIPS:
            names = ", ".join(known)
            near = _near(kind, known) if isinstance(kind, str) else ""
            what = "there is none" if kind is None else f"not {_written(kind)}"
            self._fault(f"clip must be one of {names}; {what}{near}")
            return None
        made: Any = CLIPS[kind]
        own: dict[str, Setting] = made.described()
        before = len(self.faults)
        for key in settings:
            if key not in own:
                self._fault(f'clip = "{kind}" takes {", ".join(own)}, not {key[:60]}')
        for key, each in own.items():
            if key not in settings and each.is_needed:
                self._fault(f'clip = "{kind}" needs {key}')
            elif key in settings and (what := each.type.toml_fault(settings[key])):
                self._fault(f"{key} {what}, not {_written(settings[key])}")
        if len(self.faults) > before:
            return None
        try:
            return made(**{key: own[key].type.from_json(settings[key]) for key in settings})  # type: ignore[no-any-return]
        except OnnxClipError as error:
            self._fault(str(error))
            return None


def _written(value: object) -> str:
    """A value as messages show it: true and false as TOML spells them."""
    return str(value).lower() if isinstance(value, bool) else shown(value)


def _near(key: str, known: list[str]) -> str:
    found = get_close_matches(key, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
