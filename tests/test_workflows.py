"""The workflows of GitHub call sessions of nox, which exist, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def decorators() -> dict[str, str]:
    """Each session of noxfile.py, with what its decorators say."""
    return {
        node.name: " ".join(map(ast.unparse, node.decorator_list))
        for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "nox.session" in ast.unparse(node)
    }


SESSIONS = {name: text for name, text in decorators().items() if text.startswith("nox.session")}


def called(workflow: Path) -> set[str]:
    text = workflow.read_text(encoding="utf-8")
    names = set(re.findall(r"nox -s (\w+)", text))
    for listed in re.findall(r"^ +session:\n((?: +- \w+\n)+)", text, re.MULTILINE):
        names |= set(re.findall(r"\w+", listed))
    return names


def test_there_are_workflows_and_sessions():
    assert [path.stem for path in WORKFLOWS] == ["checks", "nightly", "release"]
    assert {"lint", "tests", "release"} <= SESSIONS.keys()
    assert "build" not in SESSIONS  # a function that two sessions share


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_sessions_that_exist_and_nothing_else(workflow: Path):
    commands = re.findall(r"\brun: *(.*)", workflow.read_text(encoding="utf-8"))
    other = [line for line in commands if not line.startswith("python -m nox -s ")]
    assert set(other) == {"python -m pip install nox"}
    assert called(workflow) != set()
    assert called(workflow) - SESSIONS.keys() == set()


def test_every_change_gets_all_that_ci_runs():
    (checks,) = (path for path in WORKFLOWS if path.stem == "checks")
    ci = {name for name, text in SESSIONS.items() if "'ci'" in text}
    assert called(checks) == ci | {"tests"}


def test_the_tests_run_on_every_python_that_the_package_names():
    (checks,) = (path for path in WORKFLOWS if path.stem == "checks")
    (listed,) = re.findall(r"python: \[(.*)\]", checks.read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"[\d.]+", listed) == re.findall(r"Python :: (3\.\d+)", project)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_only_publishing_may_ask_for_a_token(workflow: Path):
    text = workflow.read_text(encoding="utf-8")
    granted = re.findall(r"([\w-]+): write\b", text)
    assert granted == (["id-token"] if workflow.stem == "release" else [])
    assert "\npermissions:\n  contents: read\n" in text
    assert text.count("timeout-minutes:") == text.count("runs-on:")
