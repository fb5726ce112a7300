"""Rows of the table that the checks make, and the time that they may take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Literal

__all__ = ["OutOfTimeError", "Row", "TimeLimit", "exit_code", "figures", "table"]

Verdict = Literal["ok", "fault", "note", "not run"]


@dataclass(frozen=True)
class Row:
    """The outcome of one check.

    `fault` is what is not as the documentation says, `note` a measurement that nothing is claimed
    of, `not run` what needs a package that is missing; `said` has the figures, or the reason.
    """

    part: str
    what: str
    verdict: Verdict
    said: str = ""


class OutOfTimeError(Exception):
    """The time for all checks is over."""


class TimeLimit:
    """The time that is left, in seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def check(self) -> None:
        """Raise where it is over."""
        if monotonic() > self._end:
            raise OutOfTimeError


def exit_code(rows: Iterable[Row]) -> int:
    """Return 1 if there is a fault, else 0."""
    return int(any(row.verdict == "fault" for row in rows))


def table(rows: list[Row]) -> str:
    """The rows in columns, and how many there are of each verdict."""
    cells = [("part", "what", "", "")]
    cells += [(row.part, row.what, row.verdict, row.said) for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(3)]
    lines = ["  ".join([*map(str.ljust, line[:3], widths), line[3]]).rstrip() for line in cells]
    counts = {
        verdict: sum(row.verdict == verdict for row in rows)
        for verdict in ("ok", "fault", "note", "not run")
    }
    return "\n".join(
        [*lines, "", ", ".join(f"{number} {verdict}" for verdict, number in counts.items())]
    )


def figures(rows: list[Row], machine: dict[str, str]) -> str:
    """The same as JSON, with where it was run."""
    return json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1)
