"""The package is laid out as docs/design.md says: who imports whom, and which modules there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "onnx_clip_pass"
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}

# What a part does not know, though it lies in a lower layer, and what of it is known all the same.
UNKNOWN = {
    "storage": ["graph"],
    "rules": ["graph"],
    "clips": ["storage", "runtime", "record", "gradients"],
    "rewrite": ["storage", "runtime", "probe"],
    "verification": ["rewrite", "rules"],
}
KNOWN = {
    ("clips", "gradients.found"): "the type of a gradient, not how it is found",
    ("verification", "rewrite.metrics"): "which outputs a rewrite may add",
}


def part(module: str) -> str:
    """The package or top-level module of ours that a module belongs to."""
    return module.split(".")[1]


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that a module imports anywhere, in functions and for types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in FILES else node.module for name in names} & FILES.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & FILES.keys()


IMPORTS = {
    module: sorted({name for name in imported(path) if name != PACKAGE} - {module})
    for module, path in FILES.items()
    if module != PACKAGE  # it imports any part when a name of it is asked for
}
LAYERS = [
    line.split()
    for line in re.findall(r"^    ([\w ]+)$", PAGE.partition("## What may import")[2], re.M)
]
HEIGHT = {name: -number for number, names in enumerate(LAYERS) for name in names}


def test_the_page_names_each_part_in_one_layer():
    assert sorted(HEIGHT) == sorted({part(module) for module in IMPORTS})
    assert len(HEIGHT) == sum(map(len, LAYERS))


@pytest.mark.parametrize("module", IMPORTS)
def test_a_module_imports_what_lies_below_it_and_what_it_may_know(module: str):
    own = part(module)
    others = [name for name in IMPORTS[module] if part(name) != own]
    assert [name for name in others if HEIGHT[part(name)] >= HEIGHT[own]] == []
    unknown = [name for name in others if part(name) in UNKNOWN.get(own, ())]
    assert [
        name for name in unknown if (own, name.removeprefix("onnx_clip_pass.")) not in KNOWN
    ] == []


@pytest.mark.parametrize(("own", "other"), KNOWN, ids=str)
def test_an_exception_is_one_that_is_needed(own: str, other: str):
    assert any(
        f"{PACKAGE}.{other}" in names for module, names in IMPORTS.items() if part(module) == own
    )


def test_no_module_imports_itself_by_way_of_others():
    list(TopologicalSorter(IMPORTS).static_order())  # or a CycleError names the modules


def named_on_the_page() -> list[str]:
    """The modules in the list, by which folder is named before them in their entry."""
    found = []
    text = PAGE.partition("## Layout of the package")[2].partition("\n## ")[0]
    for entry in re.split(r"^- ", text, flags=re.M)[1:]:
        package = folder = ""
        for name in re.findall(r"`(\w+/?)`", entry):
            if not name.endswith("/"):
                found.append(f"{folder or package}{name}")
            elif package:
                folder = f"{package}{name}"
            else:
                package = name
    return found


def test_the_page_names_every_module_where_it_is_and_no_other():
    paths = [path.relative_to(ROOT / PACKAGE).with_suffix("") for path in FILES.values()]
    assert sorted(named_on_the_page()) == sorted(
        path.as_posix() for path in paths if path.name != "__init__"
    )


def files_of_python() -> list[Path]:
    """Our files of Python, but for the tests.

    These may be longer: a test stands alone, so that a file of them is never read as a whole.
    """
    folders = (PACKAGE, "models", "benchmarks", "examples", "docs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted([*found, *ROOT.glob("*.py")])


@pytest.mark.parametrize(
    "path", files_of_python(), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_module_is_longer_than_can_be_read_at_once(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_what_is_called_slow_is_a_test():
    for name in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines():
        path, _, function = name.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert path.startswith(PACKAGE) or f"def {function.rpartition('::')[2]}(" in text, name
