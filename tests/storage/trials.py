"""One replacement over and over, each time with another fault, and what must be true then."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faulty import CHANGES, KILL, Outcome, Server
from replacements import CASES, Case

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.storage.journal import PREFIX

__all__ = ["LEAVES_GAPS", "Trials"]

LEAVES_GAPS = {"external data", "strip", "folder without exchange", "folder in place"}
"""The cases in which the main path is moved aside for a moment."""

Files = dict[str, bytes]


def files_of(folder: Path) -> tuple[Files, list[str]]:
    """What users see of a folder, folders in it included, and what onnx-clip has left there."""
    seen: Files = {}
    left = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(PREFIX) for part in path.relative_to(folder).parts):
            left.append(name)
        else:
            seen[name] = path.read_bytes() if path.is_file() else b"a folder"
    return seen, left


@dataclass
class Trials:
    """One case, over and over: prepared anew, run with a fault, looked at, run again without."""

    name: str
    case: Case
    server: Server
    place: Path
    old: Files
    new: Files
    results: Counter[str] = field(default_factory=Counter)
    killed_at: int = 0
    """The call at which an earlier run was killed, of which each run finds what it left."""
    _loaded: dict[tuple[tuple[str, bytes], ...], bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, server: Server, place: Path) -> Trials:
        case = CASES[name]
        (place / "template").mkdir()
        case.prepare(place / "template")
        shutil.copytree(place / "template", place / "run")
        old, _ = files_of(place / "run")
        case.run(place / "run")
        new, left = files_of(place / "run")
        assert old != new
        assert not left
        return cls(name, case, server, place, old, new)

    def calls(self, kinds: int) -> int:
        """How many calls of these kinds there are in a run in which nothing goes wrong."""
        outcome = self._run(kinds=kinds)
        assert outcome.how == "done", outcome.message
        return outcome.calls

    def at_each_call(self, action: int, code: int = 0, kinds: int = CHANGES) -> None:
        for at in range(1, self.calls(kinds) + 1):
            self.one(action=action, at=at, code=code, kinds=kinds)

    def one(self, **fault: float) -> None:
        """A run with a fault, and what must be true then."""
        outcome = self._run(**fault)
        told = f"{self.name}, {fault}: {outcome}"
        state, left = files_of(self.folder)
        result = self._state(state, told)
        self.results[f"{outcome.how}: {result}"] += 1
        if outcome.how == "done":
            assert result == "new", told
        elif outcome.how == "interrupted":
            assert result in ("old", "new"), told
            assert not left, told
        elif outcome.how == "refused":
            self._is_true(outcome.message, result, told)
        else:
            assert outcome.how == "killed", told
        self.case.run(self.folder)
        state, left = files_of(self.folder)
        assert state == self.new, told
        assert not left, told

    def is_named_after(self, at: int) -> bool:
        """Whether a kill at a call leaves a state that is neither the old set nor the new."""
        self._run(action=KILL, at=at)
        return self._state(files_of(self.folder)[0], str(at)) == "named"

    @property
    def folder(self) -> Path:
        return self.place / "run"

    def _run(self, **fault) -> Outcome:
        shutil.rmtree(self.folder)
        shutil.copytree(self.place / "template", self.folder)
        if self.killed_at:
            self.server.run(self.name, self.folder, action=KILL, at=self.killed_at)
        return self.server.run(self.name, self.folder, **fault)

    def _state(self, state: Files, told: str) -> str:
        """Whether the old set is there, the new one, or what the next command names."""
        if state == self.new:
            self._loads_as(state, self.new, told)
            return "new"
        if state == self.old:
            self._loads_as(state, self.old, told)
            return "old"
        if self.old.items() <= state.items() and state.items() <= (self.old | self.new).items():
            self._loads_as(state, self.old, told)
            return "old, and new files that it does not use"
        with pytest.raises(OnnxClipError, match="and has not finished; if it was killed, run that"):
            self.case.inspect(self.folder)
        if self.case.output.endswith(".onnx"):
            with pytest.raises(Exception, match="doesn't exist"):
                self.case.load(self.folder)
        else:
            assert not (self.folder / self.case.output / "training_model.onnx").exists(), told
        return "named"

    def _loads_as(self, state: Files, expected: Files, told: str) -> None:
        """What is loaded of this state is what is loaded of the set that it is to be."""
        if self.case.output not in expected:
            with pytest.raises(OnnxClipError, match="No such file"):
                self.case.inspect(self.folder)
            return
        key, reference = tuple(sorted(state.items())), tuple(sorted(expected.items()))
        if key not in self._loaded:
            self.case.inspect(self.folder)
            self._loaded[key] = self.case.load(self.folder)
        if reference in self._loaded:
            assert self._loaded[key] == self._loaded[reference], told

    def _is_true(self, message: str, result: str, told: str) -> None:
        """What a message says of what has changed is so."""
        if "is written" in message:
            assert result == "new", told
        elif "what was there could not be put back" in message:
            assert result == "named", told
        elif "when it was killed cannot be put in order" in message:
            assert self.killed_at, told
        elif "what was written could not be removed" in message:
            assert result.startswith("old"), told
        else:
            assert result == "old", told
