"""What would be published, as `nox -s package` has built it."""

from __future__ import annotations

import os
import re
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = os.environ.get("ONNX_CLIP_DIST")
if FOLDER is None:
    pytest.skip("nox -s package builds what this looks at", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wheel() -> zipfile.ZipFile:
    (path,) = Path(FOLDER or "").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata() -> Message:
    with wheel() as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_the_sdist_holds_what_the_tests_and_pages_need():
    (path,) = Path(FOLDER or "").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive}
    wanted = [
        path
        for folder in ("onnx_clip_pass", "tests", "docs", "models", "examples", ".github")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    wanted += [ROOT / name for name in ("README.md", "LICENSE", "CHANGELOG.md", "noxfile.py")]
    lacking = {path.relative_to(ROOT).as_posix() for path in wanted} - names
    assert lacking == set()
    assert not [name for name in names if name.startswith(("site/", ".nox/", ".venv/"))]


def test_the_wheel_holds_the_package_and_nothing_else():
    with wheel() as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"onnx_clip_pass"}
    package = ROOT / "onnx_clip_pass"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names
    assert "onnx_clip_pass/py.typed" in names


def test_the_readme_of_a_package_page_has_no_link_that_leads_nowhere():
    text = metadata().get_payload()
    links = re.findall(r"\]\(([^)\s]+)", text)
    assert len(links) == len(re.findall(r"\]\(", (ROOT / "README.md").read_text(encoding="utf-8")))
    source = PROJECT["urls"]["Source"]
    places = f"{source}/blob/main/", f"{source.replace('github', 'raw.githubusercontent')}/main/"
    for link in links:
        assert link.startswith(places)
        assert (ROOT / link.partition("/main/")[2]).exists(), link


def test_what_an_index_shows_of_it():
    found = metadata()
    assert found["Description-Content-Type"] == "text/markdown"
    assert found["License-Expression"] == "Apache-2.0"
    urls = dict(line.split(", ", 1) for line in found.get_all("Project-URL", []))
    assert urls == PROJECT["urls"]
    versions = [line for line in found.get_all("Classifier", []) if ":: 3." in line]
    assert [line[-4:] for line in versions] == ["3.11", "3.12", "3.13", "3.14"]
