"""The pass for onnx_ir: the same rewrite, the same tensor objects, and the truth about both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Entry, each, parse, run

from onnx_clip_pass import (
    GradientClipByNorm,
    OnnxClipError,
    OnnxClipWarning,
    Report,
    clip_gradients,
    strip,
)
from onnx_clip_pass.rewrite import Verdict

ir = pytest.importorskip("onnx_ir", reason="the pass is for onnx_ir: pip install onnx-ir")
common = pytest.importorskip("onnx_ir.passes.common")
adapter = importlib.import_module("onnx_clip_pass.adapters.onnx_ir")
ClipGradients, from_proto = adapter.ClipGradients, adapter.from_proto

HALF = GradientClipByNorm(0.5)
STEP = """
    s (float[2, 100] x, float[100, 100] W, float[100, 100] V, float lr) => (float[100, 100] W_new) {
      y = MatMul(x, W) xt = Transpose <perm = [1, 0]> (x)
      W_grad = MatMul(xt, y) d = Mul(lr, W_grad) W_new = Sub(W, d)
    }"""


class Unread(ir.Tensor):
    """A weight whose elements nobody may ask for."""

    def numpy(self) -> Any:
        raise AssertionError("read")

    tobytes = tofile = __array__ = numpy


def weight(name: str = "W", shape: tuple[int, ...] = (100, 100)) -> ir.Tensor:
    return Unread(np.ones(shape, np.float32), name=name)


def step(text: str = STEP, **tensors: ir.TensorProtocol) -> ir.Model:
    """A model of the text in which inputs are initializers, W by default."""
    model = ir.from_proto(parse(text))
    for name, tensor in (tensors or {"W": weight()}).items():
        value = next(each for each in model.graph.inputs if each.name == name)
        model.graph.inputs.remove(value)
        value.const_value = tensor
        model.graph.register_initializer(value)
    return model


# -- what stays ----------------------------------------------------------------------------------


def test_the_input_stays_as_it_is():
    model = ir.from_proto(parse("s (float[2] x, float[2] W) => (float[2] W_grad) "
                                "{ y = Mul(x, W) W_grad = Neg(y) }"))  # fmt: skip
    before, values = ir.to_proto(model), [*model.graph.inputs, *model.graph.outputs]
    result = ClipGradients(HALF)(model)
    assert result.model is not model
    assert ir.to_proto(model) == before
    assert all(
        a is b for a, b in zip(values, [*model.graph.inputs, *model.graph.outputs], strict=True)
    )


def test_the_weights_are_the_same_objects_and_nobody_reads_them():
    tensor = weight()
    model = step(W=tensor)
    result = ClipGradients(HALF)(model)
    assert result.modified
    assert result.model.graph.initializers["W"].const_value is tensor
    assert model.graph.initializers["W"].const_value is tensor


def test_the_weights_are_back_where_the_rewrite_is_refused():
    tensor = weight()
    model = step(STEP.replace("W_grad", "t").replace("Sub(W, d)", "Neg(d)"), W=tensor)
    with pytest.raises(OnnxClipError, match="no gradients found"):
        ClipGradients(HALF)(model)
    assert model.graph.initializers["W"].const_value is tensor


def test_weights_in_files_know_where_they_lie(tmp_path: Path):
    """A ModelProto says in which file, and not in which folder: a small weight is no exception."""
    array = np.eye(2, dtype=np.float32)
    array.tofile(tmp_path / "weights.bin")
    tensor = ir.ExternalTensor(
        "weights.bin", 0, array.nbytes, ir.DataType.FLOAT,
        shape=ir.Shape(array.shape), name="W", base_dir=tmp_path,
    )  # fmt: skip
    model = step(STEP.replace("100", "2"), W=tensor)
    clipped = ClipGradients(HALF)(model).model
    assert clipped.graph.initializers["W"].const_value is tensor
    ir.save(clipped, tmp_path / "clipped.onnx")
    feeds = {"x": np.float32([[3, 0], [0, 4]]), "lr": np.float32(1), "V": array}
    # x'xW = [[9, 0], [0, 16]], of norm 337^0.5
    expected = array - np.float32([[9, 0], [0, 16]]) * 0.5 / 337**0.5
    found = run(tmp_path / "clipped.onnx", feeds)["W_new"]
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(np.float32).eps)


def test_a_weight_without_a_tensor_yet_is_left_without_one():
    model = step()
    model.graph.initializers["W"].const_value = None
    clipped = ClipGradients(HALF)(model).model
    assert clipped.graph.initializers["W"].const_value is None
    assert clipped.graph.initializers["W"].shape == [100, 100]


def test_tensors_in_attributes_of_nodes_bodies_and_functions_are_the_same_objects():
    model = ir.from_proto(
        parse(
            """
            s (float[2] x, float[2] W, bool yes) => (float[2] W_grad, float[200] k) {
              k = Constant <value = float[1] {1}> ()
              u = If (yes) <
                then_branch = a () => (float[200] t) { t = Constant <value = float[1] {2}> () },
                else_branch = b () => (float[200] e) { e = Constant <value = float[1] {3}> () }>
              v = local.held(x) y = Mul(v, W) W_grad = Neg(y)
            }
            <domain: "local", opset_import: ["" : 17]> held (v) => (w) {
              c = Constant <value = float[1] {4}> () w = Identity(v) }"""
        )
    )
    held = []
    functions = list(model.functions.values())
    for nodes in (*model.graphs(), *functions):
        for node in nodes:
            if node.op_type == "Constant":
                held.append(weight("k", (200,)))
                node.attributes["value"] = ir.AttrTensor("value", held[-1])
    assert len(held) == 4
    clipped = ClipGradients(HALF)(model).model
    found = [
        node.attributes["value"].value
        for nodes in (*clipped.graphs(), *clipped.functions.values())
        for node in nodes
        if node.op_type == "Constant"
    ]
    assert all(a is b for a, b in zip(found, held, strict=True))


def test_two_values_with_one_tensor_still_have_one():
    tensor = weight()
    clipped = ClipGradients(HALF)(step(W=tensor, V=tensor)).model
    assert [clipped.graph.initializers[name].const_value is tensor for name in "WV"] == [True, True]


# -- what changes --------------------------------------------------------------------------------


@each(lambda entry: bool(entry.gradients) and entry.found == "by structure or name")
def test_the_result_is_what_clip_gradients_makes_of_the_model(
    entry: Entry, model: onnx.ModelProto, caplog: pytest.LogCaptureFixture
):
    """With functions, subgraphs and operator sets: whatever onnx_ir holds."""
    caplog.set_level("CRITICAL")
    if model.training_info:
        with pytest.raises(OnnxClipError, match="training_info, number 1: the graph 'train"):
            from_proto(model)
        return
    given = from_proto(model)
    result = ClipGradients(HALF)(given)
    expected = ir.from_proto(clip_gradients(ir.to_proto(given), HALF))
    assert result.modified
    assert ir.to_proto(result.model) == ir.to_proto(expected)
    assert strip(ir.to_proto(result.model)) == ir.to_proto(given)
    again = ClipGradients(HALF)(result)
    assert not again.modified
    assert ir.to_proto(again.model) == ir.to_proto(result.model)


def test_operator_sets_are_imported_where_they_are_needed():
    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["f" : 1, "com.microsoft" : 1]>
            s (float[2] x, float[2] W) => (float[2] W_grad) { W_grad = f.back(x, W) }
            <domain: "f", opset_import: ["com.microsoft" : 1]> back (v, w) => (g) {
              g = com.microsoft.FusedMatMul(v, w) }"""
        )
    )
    clipped = ClipGradients(HALF)(model).model
    assert clipped.opset_imports == {"f": 1, "com.microsoft": 1, "": 21}
    assert model.opset_imports == {"f": 1, "com.microsoft": 1}


def test_a_clip_that_picks_nothing_has_modified_nothing():
    tensor = weight()
    model = step(W=tensor)
    result = ClipGradients(GradientClipByNorm(0.5, need_clip=lambda parameter: False))(model)
    assert not result.modified
    assert result.model is not model
    assert result.model.graph.initializers["W"].const_value is tensor
    assert [node.op_type for node in result.model.graph] == [node.op_type for node in model.graph]


def test_another_clip_has_modified_the_model():
    once = ClipGradients(HALF)(step())
    twice = ClipGradients(GradientClipByNorm(0.25))(once)
    assert twice.modified
    assert [node.name for node in twice.model.graph].count("clip/W_grad/Mul") == 1


def test_what_the_report_warns_of_is_a_warning():
    text = "s (float16[2] x, float16[2] W) => (float16[2] W_grad) { y = Mul(x, W) W_grad = Neg(y) }"
    with pytest.warns(OnnxClipWarning, match="CUDA provider has no kernel for Cast"):
        ClipGradients(HALF)(ir.from_proto(parse(text, opset=24, ir=11)))


def test_the_report_and_what_others_noted_of_the_model_come_along():
    model = step()
    model.meta["of another pass"] = 3
    meta = ClipGradients(HALF)(model).model.meta
    assert meta["of another pass"] == 3
    assert isinstance(meta["onnx_clip_pass"], Report)
    assert [row.gradient.name for row in meta["onnx_clip_pass"].clipped] == ["W_grad"]
    assert "onnx_clip_pass" not in model.meta


# -- among other passes --------------------------------------------------------------------------


def test_a_manager_stops_when_there_is_no_more_to_clip():
    counted: list[str] = []

    class Count(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> Any:
            counted.append("run")
            return ir.passes.PassResult(model, False)

    passes = [ClipGradients(HALF), common.ShapeInferencePass(), Count()]
    manager = ir.passes.PassManager(passes, steps=9)
    result = manager(step(W=ir.tensor(np.ones((100, 100), np.float32), name="W")))
    assert result.modified
    assert not manager.in_place
    assert not manager.changes_input
    assert len(counted) <= 3  # clipped, shapes inferred, nothing more
    assert strip(ir.to_proto(result.model)).graph.node


def test_a_refusal_among_other_passes_says_which_pass_and_why():
    model = step(STEP.replace("W_grad", "t").replace("Sub(W, d)", "Neg(d)"))
    passes = ir.passes.Sequential(common.TopologicalSortPass(), ClipGradients(HALF))
    with pytest.raises(ir.passes.PassError, match=r"ClipGradients\(GradientClipByNorm\(") as caught:
        passes(model)
    assert isinstance(caught.value.__cause__, OnnxClipError)
    assert "no gradients found" in str(caught.value.__cause__)


# -- refused -------------------------------------------------------------------------------------


def test_a_model_proto_is_sent_to_clip_gradients():
    with pytest.raises(ir.passes.PreconditionError, match="not ModelProto; clip_gradients clips"):
        ClipGradients(HALF)(parse("s (float[2] x) => (float[2] y) { y = Neg(x) }"))


def test_options_are_checked_before_there_is_a_model():
    with pytest.raises(OnnxClipError, match="norm_precision must be one of auto"):
        ClipGradients(HALF, norm_precision="exact")
    with pytest.raises(TypeError, match="there is no option 'clip_nrom'"):
        ClipGradients(HALF, clip_nrom=1)
    with pytest.raises(OnnxClipError, match="expected"):
        ClipGradients(1.0)


def sparse() -> onnx.ModelProto:
    model = parse("s (float[2] x, float[2] W) => (float[2] W_grad) "
                  "{ y = Mul(x, W) z = Add(y, few) W_grad = Neg(z) }")  # fmt: skip
    values = onnx.helper.make_tensor("few", onnx.TensorProto.FLOAT, [1], [3.0])
    places = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [1])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [2]))
    return model


def test_a_sparse_initializer_that_onnx_ir_has_dropped_is_named():
    model = ir.from_proto(sparse())
    with pytest.raises(ir.passes.PreconditionError, match=r"'few', which Add '.*' reads") as caught:
        ClipGradients(HALF)(model)
    assert "onnx_ir drops sparse initializers" in str(caught.value)


def test_what_onnx_ir_does_not_hold_is_named_before_it_is_dropped():
    model = sparse()
    body = model.graph.node.add(op_type="If", input=["yes"], output=["z2"]).attribute.add(
        name="then_branch", type=onnx.AttributeProto.GRAPH
    )
    node = body.g.node.add(op_type="Constant", name="held", output=["e"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    model.training_info.add().algorithm.name = "train"
    with pytest.raises(OnnxClipError, match="onnx_ir cannot hold all of this model") as caught:
        from_proto(model)
    assert caught.value.faults == (
        "training_info, number 1: the graph 'train'",
        "the sparse initializer 'few'",
        "the sparse attribute 'sparse_value' of Constant 'held'",
    )


def test_where_no_gradients_are_it_is_said_that_training_info_is_dropped():
    with pytest.raises(OnnxClipError, match="onnx_ir drops training_info without a word"):
        ClipGradients(HALF)(ir.from_proto(parse("s (float[2] x) => (float[2] y) { y = Neg(x) }")))


def test_where_gradients_are_found_nothing_is_said_of_training_info():
    with pytest.raises(OnnxClipError) as caught:
        ClipGradients(HALF, skip="nothing like it")(step())
    assert "training_info" not in str(caught.value)


def test_an_initializer_of_which_nothing_is_known_is_named():
    model = step()
    value = model.graph.initializers["W"]
    value.const_value = None
    value.shape = ir.Shape(["n", 100])
    with pytest.raises(ir.passes.PreconditionError, match="initializer 'W' has neither a tensor"):
        ClipGradients(HALF)(model)


def test_a_model_that_onnx_ir_cannot_write_is_refused_with_its_reason():
    model = step()
    node = model.graph[-1]
    node.attributes["odd"] = ir.Attr("odd", ir.AttributeType.SPARSE_TENSOR, object())
    with pytest.raises(OnnxClipError, match="cannot write this model as a ModelProto: Sparse"):
        ClipGradients(HALF)(model)


def test_a_stand_in_that_stays_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapter.StandIns, "put_back", lambda *_: None)
    with pytest.raises(ir.passes.PostconditionError, match="a tensor has not come back"):
        ClipGradients(HALF)(step())


def test_a_model_cannot_pass_its_own_tensors_off_as_stand_ins(tmp_path: Path):
    tensor = ir.ExternalTensor(
        "onnx-clip stand-in", 0, None, ir.DataType.FLOAT,
        shape=ir.Shape([100, 100]), name="W", base_dir=tmp_path,
    )  # fmt: skip
    clipped = ClipGradients(HALF)(step(W=tensor, V=weight())).model
    assert clipped.graph.initializers["W"].const_value is tensor


def test_a_clip_that_others_have_changed_is_not_clipped_again():
    clipped = ClipGradients(HALF)(step()).model
    next(node for node in clipped.graph if node.name == "clip/W_grad/Mul").op_type = "Add"
    with pytest.raises(OnnxClipError, match="by another tool since"):
        ClipGradients(HALF)(clipped)


# -- a run decides -------------------------------------------------------------------------------


def test_a_run_has_the_weights_and_the_result_their_objects():
    seen: list[onnx.ModelProto] = []

    def decide(model: onnx.ModelProto, *_: Any) -> Verdict:
        seen.append(model)
        return Verdict({"W": "t"}, {})

    tensor = ir.tensor(np.full((100, 100), 3, np.float32), name="W")
    text = STEP.replace("W_grad", "t").replace("W_new = Sub(W, d)", "W_new = Neg(d)")
    clipped = ClipGradients(HALF, probe=decide)(step(text, W=tensor)).model
    (held,) = (onnx.numpy_helper.to_array(each) for each in seen[0].graph.initializer)
    np.testing.assert_array_equal(held, tensor.numpy())
    assert clipped.graph.initializers["W"].const_value is tensor


def test_a_run_of_a_weight_without_a_tensor_is_refused():
    model = step(STEP.replace("W_grad", "t").replace("W_new = Sub(W, d)", "W_new = Neg(d)"))
    model.graph.initializers["W"].const_value = None
    with pytest.raises(OnnxClipError, match="initializer 'W' has no tensor yet"):
        ClipGradients(HALF, probe=True)(model)


@pytest.mark.parametrize("other", [None, 5, "m.onnx", object()], ids=lambda x: type(x).__name__)
def test_what_is_no_model_is_refused_by_from_proto(other: Any):
    with pytest.raises(OnnxClipError, match="expected a ModelProto"):
        from_proto(other)
