"""Sessions of ONNX Runtime and the feeds for them."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import MODELS, Entry, each, parse

from onnx_clip_pass import OnnxClipError
from onnx_clip_pass.runtime import load_feeds, make_feeds, open_session

ort = pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")


# -- sessions ----------------------------------------------------------------------------------


def test_outputs_come_by_name_and_once_if_they_are_listed_twice() -> None:
    model = onnx.load(MODELS / "in_graph" / "output_listed_twice.onnx")
    session = open_session(model)
    found = session.run(make_feeds(model))
    assert len(found) < len(session.outputs)
    assert set(found) == set(session.outputs)


def test_feeds_are_left_as_they_are() -> None:
    session = open_session(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    x = np.ones(2, np.float32)
    session.run({"x": x})
    assert x.tolist() == [1, 1]


def test_a_model_without_outputs_gives_nothing() -> None:
    assert open_session(parse("g (float[2] x) => () { y = Neg(x) }")).run({"x": _ones(2)}) == {}


@pytest.mark.parametrize("shape", [(3,), (1,), ()], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_goes_in_and_comes_out(dtype: type, shape: tuple[int, ...]) -> None:
    name = np.dtype(dtype).name
    kind = onnx.helper.make_tensor_value_info
    number = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[name]
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["wide"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Cast", ["wide"], ["y"], to=number),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [kind("x", number, shape)], [kind("y", number, shape)]
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    x = np.resize([1, 2.5, -3], shape).astype(dtype)
    y = open_session(model).run({"x": x})["y"]
    assert (y.dtype, y.shape) == (dtype, shape)
    assert y.tobytes() == x.tobytes()


def test_missing_and_unknown_feeds_are_named_together() -> None:
    session = open_session(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    with pytest.raises(OnnxClipError, match="missing: 'x'") as caught:
        session.run({"z": _ones(2)})
    assert "no input of the model: 'z'" in str(caught.value)


def test_a_failing_run_is_our_error() -> None:
    session = open_session(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    with pytest.raises(OnnxClipError, match="failed to run"):
        session.run({"x": _ones(3)})


def test_without_onnxruntime_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OnnxClipError, match="pip install onnxruntime "):
        open_session(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is there"
)
def test_cuda_is_refused_where_it_is_not_there() -> None:
    with pytest.raises(OnnxClipError, match="CUDAExecutionProvider of ONNX Runtime"):
        open_session(onnx.load(MODELS / "in_graph" / "sgd.onnx"), provider="cuda")


@pytest.mark.skipif(hasattr(ort, "training"), reason="this is ONNX Runtime training")
def test_operators_of_onnxruntime_training_are_named() -> None:
    path = MODELS / "ort_artifacts" / "mlp_mse_sgd" / "training_model.onnx"
    with pytest.raises(OnnxClipError, match=r"com\.microsoft:\w+; .* onnxruntime-training"):
        open_session(path)


def test_the_operators_that_no_runtime_has_are_named() -> None:
    path = MODELS / "training_info" / "main_graph_adam.onnx"
    with pytest.raises(OnnxClipError, match=r"preview\.training:\w+; no release"):
        open_session(path)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_kernel_that_is_missing_for_a_dtype_is_named(as_file: bool, tmp_path: Path) -> None:
    """The operator is known: it belongs to no other runtime."""
    model = parse("g (bfloat16[2] x) => (bfloat16[2] y) { z = Identity(x) y = Neg(z) }")
    model.graph.node[1].name = "minus"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        OnnxClipError, match=r"CPU provider has no kernel for Neg .* with bfloat16 \(node 'minus'\)"
    ) as caught:
        open_session(tmp_path / "model.onnx" if as_file else model)
    assert "another runtime" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnnxClipError, match="no such file"):
        open_session(tmp_path / "model.onnx")


# -- feeds -------------------------------------------------------------------------------------


@each(lambda e: e.runtime == "onnxruntime" and e.file != "onnx_ad/mlp_sgd.onnx")
def test_made_up_feeds_run_and_give_finite_numbers(entry: Entry, model: onnx.ModelProto) -> None:
    found = open_session(entry.path).run(make_feeds(model))
    assert all(np.isfinite(value).all() for value in found.values())


def test_a_given_array_is_taken_and_tells_the_size_of_its_symbols() -> None:
    model = parse("g (float[n, 3] x, float[n] t, float[m] s) => (float[n, 3] y) { y = Neg(x) }")
    x = np.ones((5, 3), np.float32)
    feeds = make_feeds(model, given={"x": x}, dims={"m": 4})
    assert feeds["x"] is x
    assert (feeds["t"].shape, feeds["s"].shape) == ((5,), (4,))


def test_the_same_seed_makes_the_same_feeds() -> None:
    model = onnx.load(MODELS / "in_graph" / "sgd.onnx")
    one, two, other = (make_feeds(model, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_indices_stay_within_their_table() -> None:
    graph = """g (float[7, 2] table, int64[50] at) => (float[50, 2] y) {
        same = Identity(at)
        y = Gather(table, same)
    }"""
    at = make_feeds(parse(graph))["at"]
    assert (at.min(), at.max()) == (0, 6)


def test_initializers_need_no_feed() -> None:
    model = parse(
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"
    )
    assert list(make_feeds(model)) == ["x"]


def test_all_faults_are_named_at_once() -> None:
    model = parse("g (float[n, 3] x, seq(float[2]) s) => (float[n, 3] y) { y = Neg(x) }")
    with pytest.raises(OnnxClipError) as caught:
        make_feeds(model, given={"x": np.ones((2, 4)), "q": _ones(1)}, dims={"m": 1})
    text = str(caught.value)
    for part in ("'q'", "'m'", "[n=2, 3]", "float64", "'s' is a sequence"):
        assert part in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"given": "x.npz"}, "feeds must be a mapping of input names to arrays, not 'x.npz'"),
        ({"dims": ["n"]}, r"dims must be a mapping of names to sizes, not \['n'\]"),
        ({"dims": {"n": -1}}, "dimension 'n' must be a whole number, 0 or more, not -1"),
        ({"dims": {"n": 1.5}}, "dimension 'n' must be a whole number, 0 or more, not 1.5"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, not -1"),
        ({"seed": True}, "seed must be a whole number, 0 or more, not True"),
        ({"dims": {"n": 1 << 60}}, "'x' would have the shape .* too large to be made up"),
    ],
)
def test_arguments_of_another_kind_say_what_was_expected(wrong: dict, words: str) -> None:
    model = parse("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    with pytest.raises(OnnxClipError, match=words):
        make_feeds(model, **wrong)


def test_feeds_come_from_several_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=_ones(1), y=_ones(2))
    np.savez(tmp_path / "b.npz", y=_ones(3))
    found = load_feeds([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert {name: value.size for name, value in found.items()} == {"x": 1, "y": 3}


def test_names_that_end_like_files_in_an_archive_are_names(tmp_path):
    arrays = {"x": np.zeros(1), "x.npy": np.ones(2), "x.npy.npy": np.ones(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    found = load_feeds(tmp_path / "a.npz")
    assert {name: array.size for name, array in found.items()} == {
        name: array.size for name, array in arrays.items()
    }


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 broken"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    path.write_bytes(content)
    with pytest.raises(OnnxClipError, match=r"feeds"):
        load_feeds([path])


def _ones(size: int) -> np.ndarray:
    return np.ones(size, np.float32)
