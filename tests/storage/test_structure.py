"""What a file holds is what it holds after a rewrite and after undoing it, byte for byte."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from bytewise import COUNT, large, make_step, records, rewrite, sub, varint, walk
from graphs import Entry, each
from onnx import TensorProto, helper

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients_file, strip
from onnx_clip_pass.files import strip_file
from onnx_clip_pass.storage import open_model

INITIALIZERS = (7, 5)
UNKNOWN = sub(1000, b"of a later version") + b"\xc1\x3e" + bytes(8)  # fields 1000 and 1000


def both_ways(path: Path) -> onnx.ModelProto:
    """Rewrite and undo through files; the rewritten model."""
    clipped, back = path.with_name("clipped.onnx"), path.with_name("back.onnx")
    rewrite(path, clipped)
    strip_file(clipped, back)
    original, rewritten = onnx.load(path), onnx.load(clipped)
    assert original != rewritten
    assert onnx.load(back) == original
    assert strip(rewritten) == original
    return rewritten


def payload_in_memory(path: Path) -> int:
    with open_model(path) as structure:
        return len(structure.model.SerializeToString())


# -- bytes that are not touched ----------------------------------------------------------------


def test_each_initializer_record_is_that_of_the_source(step: onnx.ModelProto, saved: Path):
    step.graph.initializer.extend([large("V", 1), helper.make_tensor("axes", 7, [1], [0])])
    saved.write_bytes(step.SerializeToString())
    both_ways(saved)
    before = records(saved.read_bytes(), *INITIALIZERS)
    after = records(saved.with_name("clipped.onnx").read_bytes(), *INITIALIZERS)
    assert len(before) == 3
    assert after[:3] == before
    assert records(saved.with_name("back.onnx").read_bytes(), *INITIALIZERS) == before


def test_a_record_that_protobuf_would_write_otherwise_stays_as_it_is(saved: Path):
    """Its fields are in another order, unpacked, and have numbers longer than they need be."""
    floats = COUNT * b"\x25\x00\x00\x80\x3f"  # field 4, 1.0 each
    record = b"\x42\x81\x80\x00W" + floats + b"\x10\x81\x00" + b"\x08" + varint(COUNT) + UNKNOWN
    model = make_step()
    del model.graph.initializer[:]
    saved.write_bytes(model.SerializeToString() + sub(7, sub(5, record)))
    both_ways(saved)
    assert onnx.load(saved).graph.initializer[0].float_data == COUNT * [1.0]
    for name in ("clipped.onnx", "back.onnx"):
        assert record in records(saved.with_name(name).read_bytes(), *INITIALIZERS)


def test_a_gradient_that_is_a_large_initializer_is_renamed_and_keeps_its_payload(saved: Path):
    model = make_step()
    model.graph.initializer.append(large("W_grad", 5))
    del model.graph.node[:]
    saved.write_bytes(model.SerializeToString())
    rewritten = both_ways(saved)
    renamed = next(t for t in rewritten.graph.initializer if "W_grad" in t.name and t.raw_data)
    assert renamed.name != "W_grad"
    assert renamed.raw_data == large("W_grad", 5).raw_data


@each(lambda entry: entry.runtime == "onnxruntime" and bool(entry.gradients))
def test_models_come_through_files_as_through_memory(entry: Entry, tmp_path: Path):
    path = tmp_path / "model.onnx"
    with open_model(entry.path) as structure:
        pieces = structure.pieces()
        data = entry.path.read_bytes()
        path.write_bytes(b"".join(p if isinstance(p, bytes) else data[slice(*p)] for p in pieces))
    load = lambda p: onnx.load(p, load_external_data=False)  # noqa: E731
    assert load(path) == load(entry.path)


# -- everything that a model can hold ----------------------------------------------------------


def full_model() -> onnx.ModelProto:
    model = make_step()
    model.doc_string, model.producer_name = "a model", "someone"
    model.metadata_props.add(key="license", value="none")
    graph = model.graph
    graph.doc_string = "a graph"
    graph.node[0].doc_string = "a node"
    graph.initializer[0].doc_string = "a tensor"
    graph.metadata_props.add(key="k", value="v")
    note = graph.quantization_annotation.add(tensor_name="W")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    values, indices = large("sparse", 1), helper.make_tensor("i", 7, [COUNT], range(COUNT))
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2 * COUNT]))
    if "configuration" in model.DESCRIPTOR.fields_by_name:  # since onnx 1.18
        model.configuration.add(name="two", num_devices=2, device=["a", "b"])
        graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    constant = helper.make_node("Constant", [], ["c"], value=large("c", 2), name="c")
    branch = helper.make_graph([constant], "branch", [], [], [large("in branch", 3)])
    graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, name="if"))
    graph.node.append(helper.make_node("F", ["x"], ["z"], domain="f", name="call"))
    model.opset_import.add(domain="f", version=1)
    function = model.functions.add(name="F", domain="f", input=["a"], output=["c"])
    function.node.append(constant)
    function.attribute_proto.append(helper.make_attribute("default", large("default", 4)))
    info = model.training_info.add()
    info.initialization.CopyFrom(helper.make_graph([constant], "start", [], []))
    info.initialization.initializer.append(large("start", 6))
    for message in (model, graph, graph.node[0], graph.initializer[0], graph.node[1].attribute[0]):
        message.MergeFromString(UNKNOWN)
    return model


def test_everything_that_a_model_can_hold_comes_through(saved: Path):
    model = full_model()
    saved.write_bytes(model.SerializeToString())
    rewritten = both_ways(saved)
    assert onnx.load(saved) == model
    for name in ("sparse_initializer", "quantization_annotation", "metadata_props", "doc_string"):
        assert getattr(rewritten.graph, name) == getattr(model.graph, name)
    for name in ("functions", "training_info", "doc_string", "opset_import", "ir_version"):
        assert getattr(rewritten, name) == getattr(model, name)
    data = saved.with_name("clipped.onnx").read_bytes()
    for path in ((1000,), (7, 1000), (7, 1, 1000), (7, 5, 1000), (7, 1, 5, 1000)):
        assert records(data, *path)[0] == b"of a later version"


def test_large_tensors_stay_out_of_memory_wherever_they_are(saved: Path):
    """There are eight of 4000 bytes and a smaller one; names and nodes take less than one."""
    saved.write_bytes(full_model().SerializeToString())
    assert saved.stat().st_size > 8 * 4 * COUNT
    assert payload_in_memory(saved) < 4 * COUNT


# -- unusual ways to write the same ------------------------------------------------------------


def test_a_graph_in_two_parts_with_its_fields_in_another_order_is_merged(saved: Path):
    model = full_model()
    graph_fields = [
        varint(number << 3 | kind) + (varint(len(content)) if kind == 2 else b"") + content
        for number, kind, content in walk(model.graph.SerializeToString())
    ]
    graph_fields.sort(key=lambda record: record[0], reverse=True)
    half = len(graph_fields) // 2
    graph, model_without = b"".join(graph_fields[:half]), onnx.ModelProto()
    model_without.CopyFrom(model)
    model_without.ClearField("graph")
    rest = model_without.SerializeToString()
    saved.write_bytes(sub(7, graph) + rest + sub(7, b"".join(graph_fields[half:])))
    assert {t.name for t in onnx.load(saved).graph.initializer} == {"W"}
    both_ways(saved)
    assert payload_in_memory(saved) < 4 * COUNT


SMALL = TensorProto(float_data=[1.0, 2.0], raw_data=b"small", dims=[2])
LARGE = TensorProto(float_data=COUNT * [3.0], raw_data=COUNT * b"large", name="large")


@pytest.mark.parametrize(
    "parts", [(SMALL, LARGE), (LARGE, SMALL), (LARGE, LARGE), (LARGE, SMALL, LARGE)]
)
def test_an_attribute_given_its_tensor_twice_has_what_protobuf_merges(saved: Path, parts):
    """A repeated field is the one after the other, of a single one the last counts."""
    attribute = b"\x0a\x01a\xa0\x01\x04" + b"".join(sub(5, t.SerializeToString()) for t in parts)
    node = sub(2, b"c") + sub(4, b"Constant") + sub(5, attribute)
    saved.write_bytes(make_step().SerializeToString() + sub(7, sub(1, node)))
    rewritten = both_ways(saved)
    merged = rewritten.graph.node[-1].attribute[0].t
    assert merged == onnx.load(saved).graph.node[-1].attribute[0].t
    assert list(merged.float_data) == [value for part in parts for value in part.float_data]
    assert merged.raw_data == parts[-1].raw_data
    assert payload_in_memory(saved) < 4 * COUNT


def test_groups_of_unknown_fields_come_through(saved: Path):
    group = varint(1001 << 3 | 3) + sub(1, 2000 * b"g") + varint(1001 << 3 | 4)
    tensor = (
        b"\x08" + varint(COUNT) + sub(8, b"V") + b"\x10\x01" + sub(9, 4 * COUNT * b"\0") + group
    )
    saved.write_bytes(make_step().SerializeToString() + sub(7, group + sub(5, tensor)) + group)
    both_ways(saved)
    assert saved.with_name("clipped.onnx").read_bytes().count(group) == 3
    assert saved.with_name("back.onnx").read_bytes().count(group) == 3


def test_a_file_cannot_forge_a_mark(saved: Path):
    """It may have the field of the marks, with any content."""
    forged = b"".join(sub(2**29 - 1, 16 * b"\0" + bytes([k]) + bytes(7)) for k in range(3))
    small = sub(8, b"forged") + forged
    big = b"\x08" + varint(COUNT) + sub(8, b"V") + b"\x10\x01" + sub(9, 4 * COUNT * b"v") + forged
    saved.write_bytes(make_step().SerializeToString() + sub(7, sub(5, small) + sub(5, big)))
    both_ways(saved)
    after = records(saved.with_name("clipped.onnx").read_bytes(), *INITIALIZERS)
    assert after[:3] == records(saved.read_bytes(), *INITIALIZERS)


# -- no models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: expected an ONNX model"),
        (b"\x08\x08", "it has no graph"),
        (b"hello", "is no ONNX model, or it is truncated"),
        (make_step().SerializeToString()[:-9], "is no ONNX model, or it is truncated"),
    ],
    ids=["empty", "no graph", "text", "cut"],
)
def test_a_file_that_cannot_be_read_as_a_model_is_refused(saved: Path, data: bytes, reason: str):
    saved.write_bytes(data)
    with pytest.raises(OnnxClipError, match=reason):
        rewrite(saved, saved.with_name("out.onnx"))
    assert not saved.with_name("out.onnx").exists()


def test_a_name_that_is_no_utf_8_is_told_where_it_is_in_the_way(saved: Path):
    node = sub(1, b"x") + sub(2, b"d\xff")
    saved.write_bytes(make_step().SerializeToString() + sub(7, sub(1, node)))
    with pytest.raises(OnnxClipError, match=r"NodeProto\.output is no UTF-8"):
        clip_gradients_file(saved, saved.with_name("out.onnx"), GradientClipByNorm(1.0))


def test_text_that_is_no_utf_8_is_carried_along_where_nobody_reads_it(saved: Path):
    saved.write_bytes(make_step().SerializeToString() + sub(2, b"producer \xff"))
    both_ways(saved)
    assert b"producer \xff" in saved.with_name("clipped.onnx").read_bytes()


def test_a_long_name_or_doc_string_does_not_hide_the_value_of_a_scalar(saved: Path):
    """The finders read scalars, so files and models in memory would show them other gradients."""
    model = make_step()
    scalar = model.graph.initializer.add(name="n" * 600, data_type=TensorProto.FLOAT)
    scalar.raw_data = b"\0\0\0?"
    scalar.doc_string = "d" * 600
    saved.write_bytes(model.SerializeToString())
    with open_model(saved) as structure:
        assert structure.model.graph.initializer[-1] == scalar
