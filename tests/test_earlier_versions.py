"""Models that earlier versions rewrote: today's code reads, undoes and verifies them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import onnx
import pytest

from onnx_clip_pass import inspect_artifacts, inspect_model, strip, strip_artifacts, verify
from onnx_clip_pass.cli import main
from onnx_clip_pass.clips import CLIPS
from onnx_clip_pass.record import Record, read_record
from onnx_clip_pass.record.entries import FORMATS

sys.path.insert(0, str(Path(__file__).parent / "earlier_versions"))
from rewrite_all import CASES, HERE, ORIGINALS

# Of a version, not of what it was told to do: itself, and the nodes that it emits, which may become
# others from version to version as long as they compute the same.
NOT_TOLD = {"version", "format", "digest", "nodes", "initializers", "values", "renamed", "order"}
NOT_RUN = {
    "in_training_info": "ONNX Runtime does not execute training_info",
    "optimizer_op": "no runtime has the operator vendor::SGD",
}


def cases() -> Iterator[object]:
    for number in FORMATS:
        for since, named in CASES.items():
            for name, (original, arguments) in named.items():
                if since <= number:
                    yield pytest.param(number, name, original, arguments, id=f"{number}-{name}")


EACH = list(cases())
FILES = [case for case in EACH if case.values[2] != "artifacts"]
FOLDERS = [case for case in EACH if case.values[2] == "artifacts"]
each_file = pytest.mark.parametrize(("number", "name", "original", "arguments"), FILES)
each_folder = pytest.mark.parametrize(("number", "name", "original", "arguments"), FOLDERS)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def told(record: Record) -> dict[str, object]:
    fields = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
    return {name: fields[name] for name in fields.keys() - NOT_TOLD}


def test_every_format_that_is_read_has_its_models():
    assert sorted(path.name for path in HERE.iterdir() if path.name.isdecimal()) == [
        str(number) for number in FORMATS
    ]
    kept = {
        f"{folder}-{path.stem}"
        for folder in map(str, FORMATS)
        for path in (HERE / folder).iterdir()
    }
    assert kept == {case.id for case in EACH}


def test_every_clip_is_among_the_newest_models():
    newest = [read_record(onnx.load(path)) for path in (HERE / str(FORMATS[-1])).glob("*.onnx")]
    kept = {entry.clip["clip"] for record in newest if record for entry in record.clips}
    assert kept == {clip.__name__ for clip in CLIPS.values()} | {"Chain"}


@pytest.fixture(scope="module")
def rewrite(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], onnx.ModelProto]:
    """What today makes of a model, given arguments of the command line; of each once."""

    @cache
    def written(source: Path, arguments: str) -> onnx.ModelProto:
        target = tmp_path_factory.mktemp("today") / "rewritten.onnx"
        with contextlib.chdir(HERE):  # where the rules are
            assert main(["rewrite", str(source), "-o", str(target), *arguments.split()]) == 0
        return onnx.load(target)

    return written


@each_file
def test_today_reads_the_record_and_means_the_same(number, name, original, arguments, rewrite):
    found = inspect_model(HERE / str(number) / f"{name}.onnx")
    assert found.record is not None
    assert (found.record.format, found.changed) == (number, "")
    written = read_record(rewrite(ORIGINALS / original, arguments))
    assert written is not None
    assert told(found.record) == told(written)


@each_file
def test_today_undoes_it(number, name, original, arguments):
    assert strip(onnx.load(HERE / str(number) / f"{name}.onnx")) == onnx.load(ORIGINALS / original)


@each_file
def test_rewriting_it_is_rewriting_the_original(number, name, original, arguments, rewrite):
    again = rewrite(HERE / str(number) / f"{name}.onnx", arguments)
    assert again == rewrite(ORIGINALS / original, arguments)


@each_file
def test_today_verifies_it(number, name, original, arguments):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    found = verify(ORIGINALS / original, HERE / str(number) / f"{name}.onnx", slopes="off")
    assert found.wrong == []
    assert found.gradients


@each_folder
def test_today_reads_and_undoes_a_folder(number, name, original, arguments, tmp_path):
    folder = HERE / str(number) / name
    found = inspect_artifacts(folder)
    record = found.record if name == "at_step" else found.training.record
    assert record is not None
    assert (record.format, found.changed, found.training.changed) == (number, "", "")
    strip_artifacts(folder, tmp_path / "back")
    assert files(tmp_path / "back") == files(ORIGINALS / original)
