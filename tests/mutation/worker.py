"""A process that has all tests collected, and runs some of them in forks of itself.

What is imported once serves every mutant, so a mutant costs its tests and a fork.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import coverage
import pytest

from .applying import Live

MEMORY = 12 << 30


class Worker:
    """A pytest plugin that does a task in place of pytest's loop over all tests.

    Args:
        task: which, and for what.
        answers: where a line of JSON goes for each part that is done.
    """

    def __init__(self, task: dict[str, Any], answers: Path) -> None:
        self._task = task
        self._answers = answers
        self._failed: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed = self._failed or report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert not session.testsfailed, "tests could not be collected"
        if "share" in self._task:
            self._fork(lambda: self._map(session.items), None)
        else:
            self._try_all({item.nodeid: item for item in session.items})
        return True

    def _map(self, items: Sequence[pytest.Item]) -> dict[str, Any]:
        """What each test covers and takes."""
        index, count = self._task["share"]
        files = sorted({item.path for item in items})
        mine = [item for item in items if item.path in files[index::count]]
        data = self._answers.with_suffix(".coverage")
        measured = coverage.Coverage(data, config_file=False, source=self._task["packages"])
        seconds: dict[str, float] = {}
        failed = []
        measured.start()
        for item, following in zip_longest(mine, mine[1:]):
            measured.switch_context(item.nodeid)
            before = sum(os.times()[:4])
            self._run(item, following)
            seconds[item.nodeid] = round(sum(os.times()[:4]) - before, 3)
            if self._failed:
                failed.append(item.nodeid)
            if len(seconds) % 500 == 0:
                print(f"{len(seconds)} of {len(mine)}", file=sys.stderr, flush=True)
        measured.stop()
        measured.save()
        return {"seconds": seconds, "failed": failed}

    def _try_all(self, items: dict[str, pytest.Item]) -> None:
        live = Live("onnx_clip_pass")
        for mutant in self._task["mutants"]:
            path = Path(mutant["path"]).absolute()
            chosen = [items[test] for test in mutant["tests"] if test in items]
            kept = path.with_suffix(".kept")
            shutil.copy2(path, kept)
            try:
                # On disk too, for the processes that tests start.
                path.write_text(mutant["source"], encoding="utf-8")
                original = kept.read_text(encoding="utf-8")
                self._fork(partial(self._try, live, path, original, mutant, chosen), mutant)
            finally:
                kept.replace(path)  # with its time, so that its bytecode stays valid

    def _try(
        self,
        live: Live,
        path: Path,
        original: str,
        mutant: dict[str, Any],
        chosen: Sequence[pytest.Item],
    ) -> dict[str, Any]:
        if not live.apply(path, original, mutant["source"]):
            return {"outcome": "not applied"}
        start = sum(os.times()[:4])
        for done, (item, following) in enumerate(zip_longest(chosen, chosen[1:])):
            if sum(os.times()[:4]) - start > mutant["seconds"]:
                return {"outcome": "survived", "run": done}
            self._run(item, following)
            if self._failed:
                return {"outcome": "killed", "by": self._failed, "run": done + 1}
        return {"outcome": "survived", "run": len(chosen)}

    def _run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        self._failed = None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _fork(self, work: Callable[[], dict[str, Any]], mutant: dict[str, Any] | None) -> None:
        """Do some work in a fork, under limits if it is of a mutant, and write down the result."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.monotonic()
            process = os.fork()
            if process == 0:
                try:
                    os.setsid()
                    self._settle(folder, mutant)
                    try:
                        done = work()
                    except Exception:
                        done = {"outcome": "error", "what": traceback.format_exc()}
                    (folder / "said").write_text(json.dumps(done), encoding="utf-8")
                finally:
                    os._exit(0)
            limit = mutant["seconds"] * 10 + 60 if mutant else 3600
            while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
                if time.monotonic() - start > limit:
                    os.killpg(process, signal.SIGKILL)
                    ended = os.waitpid(process, 0)
                    break
                time.sleep(0.01)
            # by a limit of time or memory, or a crash; what else says nothing is at fault here
            said = {"outcome": "stopped"}
            if not os.WIFSIGNALED(ended[1]):
                said = {"outcome": "error", "what": f"{mutant}: a child ended without a word"}
            if (folder / "said").exists():
                said = json.loads((folder / "said").read_text(encoding="utf-8"))
            said |= {"id": mutant and mutant["id"], "took": round(time.monotonic() - start, 2)}
            with self._answers.open("a", encoding="utf-8") as file:
                file.write(json.dumps(said) + "\n")

    def _settle(self, folder: Path, mutant: dict[str, Any] | None) -> None:
        """Let temporary files go to a folder that the parent removes, and set limits."""
        temporary = folder / "tmp"
        temporary.mkdir()
        os.environ |= {"TMPDIR": str(temporary), "PYTEST_DEBUG_TEMPROOT": str(temporary)}
        tempfile.tempdir = None
        if mutant:
            cpu = int(mutant["seconds"] * 3 + 20)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main(task: Path, answers: Path) -> int:
    """Do what a file says, in the folder that is current."""
    given = json.loads(task.read_text(encoding="utf-8"))
    plugins = ["no:cacheprovider", "no:terminal", "no:cov", "no:faulthandler"]
    options = [word for name in plugins for word in ("-p", name)]
    worker = Worker(given, answers)
    options += ["-o", "addopts=", "--doctest-modules", *given["options"]]
    return int(pytest.main(options, plugins=[worker]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
