"""Change the code in small ways, one at a time, and see whether a test fails.

`python -m tests.mutation` takes a sample of the functions that clips are made by, always the same.
It ends with 1 where less than FLOOR percent of it is killed. A mutant that does what the original
does stands in `equivalent.toml` with the reason; it does not count as killed.

What survives is shown, and stays in a folder: after a new test,
`python -m tests.mutation --again --tests tests/test_new.py` tries that again, with these tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import coverage

from .drawing import Mutant, sample

# Percent of the sample that must be killed; it only rises.
FLOOR = 90.0
SAMPLE = 100
PACKAGES = [
    f"onnx_clip_pass/{name}" for name in ("gradients", "clips", "rewrite", "record", "storage")
]
EQUIVALENT = Path(__file__).parent / "equivalent.toml"
# In sessions of their own, or about anything but the code that is changed.
LEFT_OUT = [
    "examples",
    "mutation",
    "onnx_backend",
    "package",
    "site",
    "test_benchmarks.py",
    "test_docs.py",
    "test_on_cuda.py",
    "test_pages_in_browser.py",
    "test_workflows.py",
    "training",
]
Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what has survived, and the score; 1 where that is too low."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="mutants of each package")
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--state", type=Path, default=Path(".mutation"), help="folder of results")
    parser.add_argument("--again", action="store_true", help="those that have survived only")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these mutants only")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="these tests only")
    parser.add_argument("--keep-map", action="store_true", help="do not see again what tests cover")
    options = parser.parse_args(arguments)

    options.state.mkdir(exist_ok=True)
    results, mapped = options.state / "results.json", options.state / "map.json"
    known = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    everything = ["tests", "onnx_clip_pass", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]
    collected = options.tests or everything
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy(Path(folder) / str(number)) for number in range(options.workers)]
        drawn = [one for package in PACKAGES for one in sample(trees[0], package, options.sample)]
        chosen = drawn
        if options.again:
            chosen = [one for one in drawn if not killed(known.get(one.id))]
        if options.only:
            chosen = [one for one in chosen if one.id in options.only]
        if options.keep_map:
            covering = json.loads(mapped.read_text(encoding="utf-8"))
        else:
            covering = cover(trees, collected, drawn)
        if not options.tests:
            mapped.write_text(json.dumps(covering), encoding="utf-8")
        for test in covering["failed"]:
            print(f"fails without a mutant, so left out: {test}")
        given = [task(mutant, covering, options.seconds) for mutant in chosen]
        shares = [{"mutants": given[index :: len(trees)]} for index in range(len(trees))]
        for answer in work(trees, collected, shares):
            known[answer["id"]] = answer
    results.write_text(json.dumps(known, indent=1), encoding="utf-8")
    equivalent = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    lines, score = report(drawn, known, equivalent)
    (options.state / "report.txt").write_text("\n".join(lines), encoding="utf-8")
    print(*lines, sep="\n")
    return int(score < FLOOR)


def killed(answer: Json | None) -> bool:
    """Whether a test has failed, or nothing came to an end."""
    return answer is not None and answer["outcome"] in ("killed", "stopped")


def copy(folder: Path) -> Path:
    """A copy of the repository, which mutants may damage."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in filter(os.path.exists, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, folder / name)
    package = str(folder / "onnx_clip_pass")
    subprocess.run([sys.executable, "-m", "compileall", "-q", package], check=True)
    return folder


def work(trees: Sequence[Path], collected: Sequence[str], tasks: Sequence[Json]) -> list[Json]:
    """What workers answer to their tasks, each in a tree of its own."""
    processes = []
    for tree, given in zip(trees, tasks, strict=True):
        (tree / ".task").write_text(json.dumps({**given, "options": collected}), encoding="utf-8")
        (tree / ".answers").write_text("", encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "tests.mutation.worker", ".task", ".answers"]
        processes.append(subprocess.Popen(command, cwd=tree, env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"expected workers that end with 0, got {codes}")
    texts = ((tree / ".answers").read_text(encoding="utf-8") for tree in trees)
    answers = [json.loads(line) for text in texts for line in text.splitlines()]
    for answer in answers:
        if answer.get("outcome") == "error":
            sys.exit(answer["what"])
    return answers


def cover(trees: Sequence[Path], collected: Sequence[str], drawn: Sequence[Mutant]) -> Json:
    """Which tests run the line of each mutant, quickest first, and which fail as things are."""
    count = len(trees)
    shares = [
        {"share": [index, count], "packages": [str(tree / one) for one in PACKAGES]}
        for index, tree in enumerate(trees)
    ]
    answers = work(trees, collected, shares)
    seconds = {test: taken for answer in answers for test, taken in answer["seconds"].items()}
    failed = {test for answer in answers for test in answer["failed"]}
    quickest = sorted(seconds.keys() - failed, key=lambda test: (seconds[test], test))
    numbers = {test: number for number, test in enumerate(quickest)}
    covering: dict[str, set[int]] = {mutant.id: set() for mutant in drawn}
    for tree in trees:
        data = coverage.CoverageData(str(tree / ".answers.coverage"))
        data.read()
        for path in {mutant.path for mutant in drawn}:
            lines = data.contexts_by_lineno(str(tree / path))
            for mutant in drawn:
                if mutant.path == path:
                    tests = lines.get(mutant.line) or lines.get(mutant.statement) or []
                    covering[mutant.id].update(numbers[test] for test in tests if test in numbers)
    of = {id: sorted(tests) for id, tests in covering.items()}
    return {"failed": sorted(failed), "tests": quickest, "of": of}


def task(mutant: Mutant, covering: Json, seconds: float) -> Json:
    """What a worker must know of a mutant."""
    tests = [covering["tests"][number] for number in covering["of"].get(mutant.id, [])]
    given = {"id": mutant.id, "path": mutant.path, "source": mutant.source}
    return given | {"tests": tests, "seconds": seconds}


def report(
    drawn: Sequence[Mutant], known: Mapping[str, Json], equivalent: Mapping[str, str]
) -> tuple[list[str], float]:
    """What to say of the results, and how many percent are killed."""
    lines: list[str] = []
    counts: dict[str, Counter[str]] = {}
    for mutant in drawn:
        answer = known.get(mutant.id, {"outcome": "not tried"})
        outcome = answer["outcome"]
        if not killed(answer) and mutant.id in equivalent:
            outcome = "equivalent"
        elif not killed(answer):
            lines += ["", *describe(mutant, answer)]
        counts.setdefault(mutant.path.split("/")[1], Counter())[outcome] += 1
    dead = {mutant.id for mutant in drawn if killed(known.get(mutant.id))}
    for id in sorted(equivalent.keys() & dead):
        lines.append(f"equivalent.toml: {id} is killed: take it out")
    for id in sorted(equivalent.keys() - {mutant.id for mutant in drawn}):
        lines.append(f"equivalent.toml: {id} is not in the sample: take it out")
    total = sum(counts.values(), Counter[str]())
    lines.append("")
    for name, count in [*counts.items(), ("all", total)]:
        lines.append(f"{name:10} " + ", ".join(f"{count[one]} {one}" for one in sorted(count)))
    percent = 100 * len(dead) / len(drawn)
    rest = 100 * len(dead) / (len(drawn) - total["equivalent"])
    lines.append(
        f"{len(dead)} of {len(drawn)} killed: {percent:.1f} %, or {rest:.1f} % of those that are "
        f"not equivalent; the floor is {FLOOR} %"
    )
    return lines, percent


def describe(mutant: Mutant, answer: Json) -> Iterator[str]:
    """Which mutant it is, what it is made of, and how long it was tried."""
    tests = f"{answer['run']} tests in {answer['took']} s" if "run" in answer else ""
    yield f"{mutant.id} {mutant.path}:{mutant.line} {mutant.function}: {answer['outcome']}, {tests}"
    yield mutant.diff


if __name__ == "__main__":
    sys.exit(main())
