"""The tests that are left out by `-m "not slow"`; run as a module it finds them anew.

    .venv/bin/python -m tests.slow

runs all tests, on a machine that does nothing else, and writes into `slow.txt` the functions whose
cases take more than 0.3 s together.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

__all__ = ["NAMES", "function_of"]

_LIST = Path(__file__).with_suffix(".txt")
_MOST = 0.3
NAMES = frozenset(_LIST.read_text(encoding="utf-8").splitlines())


def function_of(case: str) -> str:
    """The name of a test function, with its file, by that of one of its cases."""
    return case.partition("[")[0]


class Durations:
    """A plugin of pytest that adds up the seconds of each function, without its teardown.

    There fixtures end that all tests of a file or of the session have had.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            self.seconds[function_of(report.nodeid)] += report.duration


def main() -> int:
    durations = Durations()
    code = pytest.main(["-q"], plugins=[durations])
    if code == 0:
        slow = sorted(name for name, each in durations.seconds.items() if each > _MOST)
        _LIST.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
