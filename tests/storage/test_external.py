"""External data: it stays where it is, or it comes along, and nothing else is read."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import onnx
import pytest
from bytewise import COUNT, SIZE, large, make_step, point_to, references, rewrite, save, tensors
from onnx import TensorProto, helper

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, OnnxClipWarning, plan_clips
from onnx_clip_pass.cli import main
from onnx_clip_pass.files import strip_file
from onnx_clip_pass.progress import Progress
from onnx_clip_pass.storage import moving

# -- in the same folder ------------------------------------------------------------------------


def test_in_the_same_folder_references_stay_and_data_is_not_touched(source: Path):
    data = source.parent / "sub" / "w.bin"
    before = data.stat()
    clipped, back = source.with_name("clipped.onnx"), source.with_name("back.onnx")
    rewrite(source, clipped)
    strip_file(clipped, back)
    assert references(clipped) == references(source)
    assert tensors(clipped) == tensors(source)
    assert onnx.load(back) == onnx.load(source)
    after = data.stat()  # but for when it was read
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(source.parent.rglob("*"))) == 5


def bytes_read() -> int:
    """What this process has read from files so far."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(not os.access("/proc/self/io", os.R_OK), reason="nobody counts what is read")
def test_beside_six_gigabytes_of_data_a_rewrite_reads_none_and_takes_no_memory(tmp_path: Path):
    with (tmp_path / "w.bin").open("wb") as data:
        data.truncate(6 << 30)  # a hole: it takes no space
    source = save(tmp_path / "model.onnx", location="w.bin", offset=5 << 30, length=SIZE)
    rewrite(source, tmp_path / "warm.onnx")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = bytes_read()
    rewrite(source, tmp_path / "out.onnx")
    assert bytes_read() - read < 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB on Linux
    assert references(tmp_path / "out.onnx")[0] == references(source)[0]


# -- to another folder -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["copy", "link"])
def test_to_another_folder_the_data_comes_along(source: Path, outside: Path, how: str):
    target = outside / "model.onnx"
    rewrite(source, target, external_data=how)
    data, copied = source.parent / "sub" / "w.bin", outside / "sub" / "w.bin"
    assert references(target) == references(source)
    assert copied.read_bytes() == data.read_bytes()
    assert copied.samefile(data) == (how == "link")
    assert sorted(path.name for path in outside.rglob("*")) == ["model.onnx", "sub", "w.bin"]
    if how == "copy":  # onnx refuses to load data from a file with several names
        assert tensors(target) == tensors(source)


LINKED = r"'sub/w\.bin': hard links to the data of '.*\.onnx'.*onnx refuses to load it"


def test_whoever_has_data_linked_is_told_what_that_means(source: Path, outside: Path):
    one, copied = GradientClipByNorm(1.0), {"external_data": "copy"}
    linked = {"external_data": "link"}
    told = rewrite(source, outside / "dry.onnx", dry_run=True, **linked).warnings
    assert re.fullmatch(f"{LINKED}.*copies", "\n".join(told))
    assert rewrite(source, outside / "a.onnx", **linked).warnings == told
    assert rewrite(source, source.with_name("b.onnx"), **linked).warnings == ()  # it stays
    with pytest.warns(OnnxClipWarning, match=LINKED):
        plan_clips(source, one).save(outside / "c.onnx", **linked)
    with pytest.warns(OnnxClipWarning, match=LINKED):
        strip_file(source.with_name("b.onnx"), outside / "d.onnx", **linked)
    (outside / "sub" / "w.bin").unlink()
    assert rewrite(source, outside / "e.onnx", **copied).warnings == ()
    assert rewrite(source, outside / "f.onnx", **linked).warnings == ()  # the copy is left


def test_the_command_that_strips_says_so_too(source: Path, outside: Path, capsys):
    rewrite(source, source.with_name("b.onnx"))
    back, clipped = str(outside / "back.onnx"), str(source.with_name("b.onnx"))
    assert main(["strip", clipped, "-o", back, "--external-data", "link"]) == 0
    assert re.search(f"note: {LINKED}", capsys.readouterr().err)


def test_data_that_is_there_already_with_the_same_content_is_left_alone(source, outside):
    rewrite(source, outside / "a.onnx")
    before = (outside / "sub" / "w.bin").stat()
    rewrite(source, outside / "b.onnx")
    after = (outside / "sub" / "w.bin").stat()  # it was read, to be compared
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_data_of_other_content_is_not_replaced(source: Path, outside: Path):
    (outside / "sub").mkdir()
    (outside / "sub" / "w.bin").write_bytes(b"precious")
    with pytest.raises(OnnxClipError, match=r"w\.bin' exists with other content; pass --force"):
        rewrite(source, outside / "model.onnx")
    assert (outside / "sub" / "w.bin").read_bytes() == b"precious"
    assert not (outside / "model.onnx").exists()


def test_data_that_was_trained_since_is_replaced_by_force_alone(source, outside):
    """Beside an output that bears our record too: the data may be another model's, or newer."""
    target, data = outside / "model.onnx", outside / "sub" / "w.bin"
    rewrite(source, target)
    rewrite(source, target)
    data.write_bytes(b"trained")
    with pytest.raises(OnnxClipError, match=r"w\.bin' exists with other content; pass --force"):
        rewrite(source, target)
    assert data.read_bytes() == b"trained"
    rewrite(source, target, force=True)
    assert tensors(target) == tensors(source)


def test_a_failure_at_the_second_file_leaves_the_first_as_it_was(source, outside, monkeypatch):
    model = onnx.load(source, load_external_data=False)
    (source.parent / "v.bin").write_bytes(large("V", 1).raw_data)
    point_to(model.graph.initializer[1], location="v.bin")
    source.write_bytes(model.SerializeToString())
    for name in ("model.onnx", "v.bin", "sub"):
        (outside / name).write_bytes(b"old") if name != "sub" else (outside / name).mkdir()
    (outside / "sub" / "w.bin").write_bytes(b"old")
    real = moving._copy_block

    def fail_on_the_last(reads: int, writes: int, at: int, count: int) -> int:
        if count == SIZE and at == 0:  # v.bin
            raise OSError(28, "No space left on device")
        return real(reads, writes, at, count)

    monkeypatch.setattr(moving, "_copy_block", fail_on_the_last)
    with pytest.raises(OnnxClipError, match=r"v\.bin': No space left"):
        rewrite(source, outside / "model.onnx", force=True)
    found = {path.name: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(("model.onnx", "v.bin", "w.bin"), b"old")


def test_a_folder_where_one_file_is_to_lie_leaves_the_others_as_they_were(source, outside):
    model = onnx.load(source, load_external_data=False)
    (source.parent / "v.bin").write_bytes(large("V", 1).raw_data)
    point_to(model.graph.initializer[1], location="v.bin")
    source.write_bytes(model.SerializeToString())
    (outside / "sub" / "w.bin").mkdir(parents=True)
    for name in ("model.onnx", "v.bin"):
        (outside / name).write_bytes(b"old")
    with pytest.raises(OnnxClipError, match=r"w\.bin' is a folder, where a data file is to lie"):
        rewrite(source, outside / "model.onnx", force=True)
    found = {path.name: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(("model.onnx", "v.bin"), b"old")


@pytest.mark.parametrize("size", [0, SIZE, 10 * SIZE])
def test_data_that_changes_while_it_is_copied_is_an_error(source, outside, size: int):
    data = source.parent / "sub" / "w.bin"

    def change(progress: Progress) -> None:
        if progress.done < progress.total:
            os.truncate(data, size)

    with pytest.raises(OnnxClipError, match=r"w\.bin' (was changed|had \d+ bytes and now has)"):
        rewrite(source, outside / "model.onnx", progress=change)
    assert not [path for path in outside.rglob("*") if path.is_file()]


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/hostname", "an absolute path"),
        ("C:\\w.bin", "an absolute path"),
        ("\\w.bin", "an absolute path"),
        ("../w.bin", "which leads out of the model's folder"),
        ("sub/../../w.bin", "which leads out of the model's folder"),
        ("..\\w.bin", "which leads out of the model's folder"),
        ("link/w.bin", "by a symbolic link"),
        ("link.bin", "by a symbolic link"),
        ("", "which is no path"),
        (".", "is no regular file"),
        ("pipe", "is no regular file"),
        ("gone.bin", "No such file"),
        (300 * "x", "File name too long"),
    ],
)
def test_a_location_that_must_not_be_opened_is_refused(tmp_path, outside, location, reason):
    folder = tmp_path / "model"
    folder.mkdir()
    (outside / "w.bin").write_bytes(bytes(SIZE))
    (tmp_path / "w.bin").write_bytes(bytes(SIZE))
    (folder / "link").symlink_to(outside)
    (folder / "link.bin").symlink_to(outside / "w.bin")
    os.mkfifo(folder / "pipe")
    source = save(folder / "model.onnx", location=location, length=SIZE)
    with pytest.raises(OnnxClipError, match=f"tensor 'W'.*{reason}"):
        rewrite(source, folder / "out.onnx")
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"length": SIZE + 1}, rf"needs '.*w\.bin' up to byte {SIZE + 1}, but the file has {SIZE}"),
        ({"offset": 8, "length": SIZE}, f"up to byte {SIZE + 8}, but"),
        ({"offset": 8}, f"up to byte {SIZE + 8}, but"),  # by its dims and dtype
        ({"offset": -1}, "is negative"),
        ({"offset": "x"}, "is no number"),
        ({"offset": "\u0664"}, "is no number"),  # a digit of another script
        ({"offset": " 4"}, "is no number"),
        ({"offset": "1_0"}, "is no number"),
        ({"length": "+4"}, "is no number"),
        ({"offset": 5000 * "9"}, "is no number"),
    ],
)
def test_data_that_is_too_short_is_named_with_tensor_and_size(tmp_path, entries, reason):
    (tmp_path / "w.bin").write_bytes(bytes(SIZE))
    source = save(tmp_path / "model.onnx", location="w.bin", **entries)
    with pytest.raises(OnnxClipError, match=f"tensor 'W'.*{reason}"):
        rewrite(source, tmp_path / "out.onnx")


def test_a_folder_that_is_made_for_data_goes_again_if_nothing_is_written(
    source, outside, monkeypatch
):
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moving, "_copy_block", fail)
    with pytest.raises(OnnxClipError, match="No space left on device; nothing there has changed"):
        rewrite(source, outside / "model.onnx")
    assert not list(outside.iterdir())


def test_a_folder_of_the_output_that_is_a_link_out_of_it_is_refused(source, outside, tmp_path):
    (tmp_path / "third").mkdir()
    (outside / "sub").symlink_to(tmp_path / "third")
    with pytest.raises(OnnxClipError, match="lies outside the output's folder"):
        rewrite(source, outside / "model.onnx", force=True)
    assert not list((tmp_path / "third").iterdir())


def test_an_output_where_the_data_lies_is_refused(source: Path):
    data = source.parent / "sub" / "w.bin"
    before = data.read_bytes()
    with pytest.raises(OnnxClipError, match="is where the model's external data lies"):
        rewrite(source, source.parent / "sub" / ".." / "sub" / "w.bin", force=True)
    assert data.read_bytes() == before


def test_every_place_of_a_tensor_is_looked_at(tmp_path: Path):
    """An attribute, a sparse attribute, a branch, a default of a function, training_info."""

    def away(name: str) -> TensorProto:
        tensor = large(name)
        point_to(tensor, location="/" + name)
        return tensor

    model = make_step()
    graph, info, function = model.graph, model.training_info.add(), model.functions.add()
    sparse = helper.make_sparse_tensor(
        large("v"), helper.make_tensor("i", 7, [COUNT], range(COUNT)), [COUNT]
    )
    sparse.values.CopyFrom(away("sparse"))
    branch = helper.make_graph([], "branch", [], [], [away("branch")])
    graph.node.append(helper.make_node("Constant", [], ["c"], value=away("constant")))
    graph.node.append(helper.make_node("Constant", [], ["d"], sparse_value=sparse))
    graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch))
    function.attribute_proto.append(helper.make_attribute("d", away("default")))
    info.initialization.initializer.append(away("start"))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxClipError) as caught:
        rewrite(tmp_path / "model.onnx", tmp_path / "out.onnx")
    named = {fault.split("'")[1] for fault in caught.value.faults}
    assert named == {"constant", "sparse", "branch", "default", "start"}


def test_a_data_file_that_the_old_output_does_not_use_is_not_replaced(source: Path, outside: Path):
    """Our record on the old output says nothing about a file that others put beside it."""
    plain = source.with_name("plain.onnx")
    plain.write_bytes(make_step().SerializeToString())
    rewrite(plain, outside / "out.onnx")
    (outside / "sub").mkdir()
    (outside / "sub" / "w.bin").write_bytes(b"precious")
    with pytest.raises(OnnxClipError, match="exists with other content"):
        rewrite(source, outside / "out.onnx")
    assert (outside / "sub" / "w.bin").read_bytes() == b"precious"
