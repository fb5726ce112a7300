"""Mutants of the functions of some packages, and a sample of them that edits hardly move.

The operators are mutmut's. mutmut itself was tried and left: it picks tests by function instead of
by line and collects them anew for each mutant, which takes hours here, and it passes over
properties and everything else that is decorated.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import marshal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# What is passed to these is for the type checker, or breaks at once.
_LEFT = {"cast", "isinstance", "issubclass", "len", "super"}
# zip(strict=True) is an assertion: it says what holds anyway.
_ASSERTING = "strict"


@dataclass(frozen=True)
class Mutant:
    """A change of one function.

    Args:
        id: what it is called, the same as long as function and change are.
        path: the module, from the root of the repository.
        function: its qualified name.
        operator: the kind of change.
        line: where it is.
        statement: where the statement begins that holds it.
        original: the module.
        source: the module with the change.
    """

    id: str
    path: str
    function: str
    operator: str
    line: int
    statement: int
    original: str
    source: str

    @property
    def diff(self) -> str:
        """The change as lines of a unified diff."""
        texts = self.original.splitlines(), self.source.splitlines()
        lines = difflib.unified_diff(*texts, n=1, lineterm="")
        return "\n".join(itertools.islice(lines, 2, None))


@dataclass(frozen=True)
class _Change:
    id: str
    function: str
    operator: str
    line: int
    statement: int
    before: cst.CSTNode
    after: cst.CSTNode


class _Visitor(cst.CSTVisitor):
    """Gathers all changes of the bodies of functions."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, path: str, module: cst.Module) -> None:
        super().__init__()
        self.changes: list[_Change] = []
        self._path, self._module = path, module
        self._scope: list[str] = []
        self._functions = 0
        self._statements: list[int] = []
        self._seen: Counter[tuple[str, ...]] = Counter()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Parameters):
            return False
        if isinstance(node, cst.Call) and getattr(node.func, "value", None) in _LEFT:
            return False
        if isinstance(node, cst.Arg) and getattr(node.keyword, "value", None) == _ASSERTING:
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._scope.append(node.name.value)
            self._functions += isinstance(node, cst.FunctionDef)
        elif self._functions:
            if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
                self._statements.append(self._line(node))
            self._change(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._scope.pop()
            self._functions -= isinstance(original_node, cst.FunctionDef)
        elif self._functions and isinstance(
            original_node, cst.SimpleStatementLine | cst.BaseCompoundStatement
        ):
            self._statements.pop()

    def _line(self, node: cst.CSTNode) -> int:
        position = self.get_metadata(PositionProvider, node, None)
        return self._statements[-1] if position is None else int(position.start.line)

    def _change(self, node: cst.CSTNode) -> None:
        for kind, operator in mutation_operators:
            if not isinstance(node, kind):
                continue
            for after in operator(node):
                name, function = operator.__name__.removeprefix("operator_"), ".".join(self._scope)
                texts = (self._module.code_for_node(one) for one in (node, after))
                key = (self._path, function, name, *texts)
                text = "\0".join((*key, str(self._seen[key])))
                self._seen[key] += 1
                digest = hashlib.sha256(text.encode()).hexdigest()[:10]
                lines = self._line(node), self._statements[-1]
                self.changes.append(_Change(digest, function, name, *lines, node, after))


def mutants(root: Path, path: str) -> Iterator[tuple[_Change, functools.partial[Mutant | None]]]:
    """Each change of a module, and what makes the mutant of it (None: the code is the same)."""
    source = (root / path).read_text(encoding="utf-8")
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Visitor(path, wrapper.module)
    wrapper.visit(visitor)
    for change in visitor.changes:
        yield change, functools.partial(_made, path, source, wrapper.module, change)


def _made(path: str, original: str, module: cst.Module, change: _Change) -> Mutant | None:
    changed = module.deep_replace(change.before, change.after)
    assert isinstance(changed, cst.Module)
    source = changed.code
    try:
        codes = [marshal.dumps(compile(text, path, "exec")) for text in (original, source)]
    except SyntaxError:
        return None
    if codes[0] == codes[1]:
        return None
    where = change.line, change.statement
    return Mutant(change.id, path, change.function, change.operator, *where, original, source)


def sample(root: Path, package: str, count: int) -> list[Mutant]:
    """As many mutants of a package, of all kinds in turn, those whose digests come first."""
    kinds: dict[str, list[tuple[str, functools.partial[Mutant | None]]]] = {}
    for path in sorted((root / package).rglob("*.py")):
        for change, make in mutants(root, path.relative_to(root).as_posix()):
            kinds.setdefault(change.operator, []).append((change.id, make))
    queues = [iter(sorted(kind, key=lambda one: one[0])) for _, kind in sorted(kinds.items())]
    drawn: list[Mutant] = []
    while queues and len(drawn) < count:
        for queue in list(queues):
            made = next((one for _, make in queue if (one := make())), None)
            if made is None:
                queues.remove(queue)
            else:
                drawn.append(made)
    return drawn[:count]
