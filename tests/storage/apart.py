"""A process of its own for what may end it, or take memory that must be counted."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from typing import Any

__all__ = ["Apart"]

_PATIENCE = 300  # seconds, of what hangs
_LOOP = """
import json, re, resource, sys
from pathlib import Path
{code}
def most():
    status = Path("/proc/self/status")  # ru_maxrss counts the process that started this one, too
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search("VmHWM:\\s+([0-9]+) kB", status.read_text())[1])
for line in sys.stdin:
    try:
        made = str(answer(*json.loads(line)))
    except Exception as error:
        made = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps([made, most()]), flush=True)
"""


class Apart:
    """Calls of one function in a process that is started once, and again where a call ended it.

    Args:
        code: Python, with a function `answer`.
    """

    def __init__(self, code: str) -> None:
        self._command = [sys.executable, "-c", _LOOP.format(code=code)]
        self._started: subprocess.Popen[str] | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started is not None:
            self._started.kill()
            self._started.communicate()
            self._started = None

    def ask(self, *arguments: Any) -> tuple[str, int]:
        """What the function returns or raises, and the most memory so far in KiB.

        Nothing and 0 where the call has ended the process.
        """
        if self._started is None:
            pipe = subprocess.PIPE
            self._started = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        assert self._started.stdin is not None
        assert self._started.stdout is not None
        print(json.dumps(arguments), file=self._started.stdin, flush=True)
        ready, _, _ = select.select([self._started.stdout], [], [], _PATIENCE)
        if line := self._started.stdout.readline() if ready else "":
            made, memory = json.loads(line)
            return made, memory
        self.__exit__()
        return "", 0
