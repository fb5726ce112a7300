"""Runs replacements in processes in which one call to the system goes wrong.

A server loads everything once and forks for each run; `faults.c`, which is loaded into it, lets the
fault happen. Run as a script, this file is that server.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent

COUNT, KILL, FAIL, SHORT, FAIL_FROM_HERE, INTERRUPT = range(6)
NAMES, DATA, SYNCS, READS, LOOKS = (1 << bit for bit in range(5))
CHANGES = NAMES | DATA | SYNCS


class Outcome(NamedTuple):
    """How a run ended: "done", "refused" (an OnnxClipError), "killed", "interrupted" or "fault"."""

    how: str
    message: str
    calls: int


def build(folder: Path) -> Path:
    """Compile what is loaded into the server."""
    library = folder / "faults.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Server:
    """Forks a process for each run; a context manager."""

    def __init__(self, library: Path) -> None:
        paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)},
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self,
        case: str,
        folder: Path,
        *,
        action: int = COUNT,
        at: int = 0,
        code: int = 0,
        kinds: int = CHANGES,
        after: float = 0,
    ) -> Outcome:
        """Run a case in a folder where it is prepared.

        Args:
            case: its name.
            folder: where.
            action: what happens.
            at: at the how manieth call of these kinds.
            code: the errno of a call that fails.
            kinds: which calls count.
            after: let the action, KILL or INTERRUPT, happen after so many seconds instead.
        """
        fault = [at, COUNT if after else action, code, kinds]
        wish = {"case": case, "folder": str(folder), "fault": fault}
        wish |= {"after": after, "kills": action == KILL}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(wish), file=self._process.stdin, flush=True)
        return Outcome(*json.loads(self._process.stdout.readline()))


def _serve(library: Path) -> None:
    import tempfile

    from replacements import CASES

    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults = ctypes.CDLL(str(library))
    faults.faults_count.restype = ctypes.c_long
    for case in CASES.values():  # nothing is imported in a run
        with tempfile.TemporaryDirectory() as folder:
            case.prepare(Path(folder))
            case.run(Path(folder))
    for line in sys.stdin:
        wish: dict[str, Any] = json.loads(line)
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            end = signal.SIG_DFL if wish["kills"] else signal.default_int_handler
            signal.signal(signal.SIGALRM, end)
            case, folder = CASES[wish["case"]], Path(wish["folder"])
            _run(case, folder, wish["fault"], wish["after"], faults, theirs)
        os.close(theirs)
        with os.fdopen(ours) as told:
            text = told.read()
        _, status = os.waitpid(child, 0)
        ends = (signal.SIGKILL, signal.SIGALRM)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in ends
        print(text or json.dumps(["killed" if is_killed else "fault", str(status), 0]), flush=True)


def _run(case: Any, folder: Path, fault: list[int], after: float, faults: Any, pipe: int) -> None:
    import traceback

    from onnx_clip_pass import OnnxClipError

    how, message = "done", ""
    at, action, code, kinds = fault
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        faults.faults_arm(ctypes.c_long(at), action, code, kinds, int(not case.exchanges))
        case.run(folder)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except OnnxClipError as error:
        how, message = "refused", str(error)
    except KeyboardInterrupt:
        how = "interrupted"
    except BaseException:
        how, message = "fault", traceback.format_exc()
    faults.faults_disarm()
    os.write(pipe, json.dumps([how, message, faults.faults_count()]).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
