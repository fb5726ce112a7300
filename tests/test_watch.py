"""Watching a run: states are carried as by hand, norms are those of NumPy, and nothing is lost."""

from __future__ import annotations

import csv
import importlib
import json
import math
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import expose, open_session, parse

import onnx_clip_pass
from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
    read_norms,
    watch,
)
from onnx_clip_pass.monitoring import plan_watch
from onnx_clip_pass.monitoring.keeping import steps_before
from onnx_clip_pass.storage.journal import Journal

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")

MODELS = Path(__file__).parent.parent / "models"
CARRIED: dict[str, dict[str, str]] = {
    "sgd": {"W": "W_new", "b": "b_new"},
    "momentum": {"W": "W_new", "b": "b_new", "W_v": "W_v_new", "b_v": "b_v_new"},
    "adam": {name: f"{name}_new" for name in ("W", "b", "W_m", "b_m", "W_v", "b_v")},
    "loss_scaling": {"W": "W_new", "b": "b_new"},
    "micro_batches": {"W": "W_new", "b": "b_new"},
    "running_mean": {"W": "W_new", "b": "b_new", "running_mean": "running_mean_new"},
    "sgd_parameters_as_initializers": {"W": "W_new", "b": "b_new"},
    "weight_average": {"W": "W_new", "b": "b_new", "W_ema": "W_ema_new"},
    "gradient_norm_output": {"W": "W_new", "b": "b_new"},
}


def model_at(name: str) -> Path:
    return MODELS / "in_graph" / f"{name}.onnx"


def feeds_of(name: str) -> dict[str, Any]:
    with np.load(MODELS / "in_graph" / f"{name}.inputs.npz") as archive:
        return dict(archive)


def by_hand(name: str, steps: int) -> tuple[list[Any], dict[str, Any]]:
    """The losses of so many steps, states handed on by NumPy, and the states at the end."""
    model, feeds = onnx.load(model_at(name)), feeds_of(name)
    for tensor in list(model.graph.initializer):
        if tensor.name in CARRIED[name]:
            feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.initializer.remove(tensor)
            if tensor.name not in {value.name for value in model.graph.input}:
                model.graph.input.append(info)
    session = open_session(model, optimize=True)
    names = [value.name for value in session.get_outputs()]
    losses = []
    for _ in range(steps):
        found = dict(zip(names, session.run(names, feeds), strict=True))
        feeds |= {state: found[new] for state, new in CARRIED[name].items()}
        losses.append(found["loss"])
    return losses, {state: feeds[state] for state in CARRIED[name]}


@pytest.mark.parametrize("name", CARRIED)
def test_a_hundred_steps_are_those_by_hand_bit_for_bit(name: str, tmp_path: Path):
    found = watch(model_at(name), [feeds_of(name)], steps=100, states=tmp_path / "states.npz")
    assert found.head.carried == CARRIED[name]
    losses, states = by_hand(name, 100)
    np.testing.assert_array_equal(found.loss, np.array(losses, np.float64).reshape(-1))
    with np.load(tmp_path / "states.npz") as archive:
        assert set(archive.files) == set(states)
        for state, array in states.items():
            np.testing.assert_array_equal(archive[state], array)


def test_norms_are_those_of_the_gradients_in_each_step():
    """1e-6: the norm of four elements in float32 has a few roundings of 6e-8."""
    model, feeds = onnx.load(model_at("sgd")), feeds_of("sgd")
    found = watch(model, [feeds], steps=5)
    session = open_session(expose(model, found.gradients), optimize=False)
    for t in range(5):
        values = dict(zip(found.gradients, session.run(list(found.gradients), feeds), strict=True))
        norms = [np.linalg.norm(values[name].astype(np.float64)) for name in found.gradients]
        np.testing.assert_allclose(found.norm[t], norms, rtol=1e-6)
        np.testing.assert_allclose(found.global_norm[t], np.linalg.norm(norms), rtol=1e-6)
        largest = [np.abs(values[name]).max() for name in found.gradients]
        np.testing.assert_array_equal(found.rows[t].largest, largest)
        new = dict(zip(["W_new", "b_new"], session.run(["W_new", "b_new"], feeds), strict=True))
        feeds |= {"W": new["W_new"], "b": new["b_new"]}


def gradient_graph(dtype: str = "float") -> onnx.ModelProto:
    return parse(f"s ({dtype}[4] W, {dtype}[4] x) => ({dtype}[4] W_grad) {{ W_grad = Mul(x, x) }}")


def test_shares_of_zeros_and_what_is_not_finite_are_counted():
    x = np.array([0, 0, np.inf, 2], np.float32)
    found = watch(gradient_graph(), [{"W": np.zeros_like(x), "x": x}])
    (first,) = found.rows
    assert first.zeros == [0.5]
    assert first.nonfinite == [0.25]
    assert first.norm == [np.inf]
    assert first.largest == [np.inf]
    assert math.isnan(first.loss)
    assert not found.head.carried


def test_a_norm_beyond_float32_of_a_finite_gradient_is_a_number():
    x = np.full(4, 1e15, np.float32)
    (row,) = watch(gradient_graph(), {"W": x, "x": x}).rows
    assert row.nonfinite == [0]
    np.testing.assert_allclose(row.norm, [2e30], rtol=1e-6)  # the element is rounded to 6e-8


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_other_dtypes_are_measured_too(dtype: str):
    if dtype == "bfloat16":
        import ml_dtypes

        x: Any = np.array([0, 0, 3, 4], ml_dtypes.bfloat16)
        (row,) = watch(
            parse(
                "s (bfloat16[4] W, bfloat16[4] x) => (bfloat16[4] W_grad)"
                "{ a = Cast <to = 1> (x) b = Identity(a) W_grad = Cast <to = 16> (b) }"
            ),
            {"W": x, "x": x},
        ).rows
        assert (row.norm, row.largest, row.zeros) == ([5], [4], [0.5])
        return
    kind = {"float16": np.float16, "double": np.float64}[dtype]
    x = np.array([0, 0, 2, 2], kind)
    (row,) = watch(gradient_graph(dtype), {"W": x, "x": x}).rows
    np.testing.assert_allclose(row.norm, [np.sqrt(32)], rtol=1e-6)
    assert (row.largest, row.zeros) == ([4], [0.5])


CLIPS = {
    "norm": GradientClipByNorm(0.1),
    "global": GradientClipByGlobalNorm(0.1),
    "value": GradientClipByValue(0.01),
    "never": GradientClipByNorm(1e6),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_a_clipped_step_tells_both_norms_and_whether_it_acted(clip: Any):
    model = clip_gradients(onnx.load(model_at("sgd")), clip)
    found = watch(model, [feeds_of("sgd")], steps=3)
    plain = watch(model_at("sgd"), [feeds_of("sgd")], steps=1)
    np.testing.assert_allclose(found.norm[0], plain.norm[0], rtol=1e-6)
    assert found.scale is not None
    assert found.scale.shape == (3, 2)
    if clip is CLIPS["never"]:
        assert np.all(found.scale == 1)
    else:
        assert np.all(found.scale < 1)
    after = np.array([row.clipped_norm for row in found.rows])
    if clip is CLIPS["norm"]:
        np.testing.assert_allclose(after, 0.1, rtol=1e-5)  # by auto's bound
    if clip is CLIPS["global"]:
        np.testing.assert_allclose(np.linalg.norm(after, axis=1), 0.1, rtol=1e-5)


def test_batches_go_round_where_they_are_short_of_steps():
    one, two = feeds_of("sgd"), feeds_of("sgd")
    two["x"] = -two["x"]
    twice = watch(model_at("sgd"), [one, two, one, two, one])
    round_ = watch(model_at("sgd"), [one, two], steps=5)
    np.testing.assert_array_equal(twice.loss, round_.loss)
    ends = watch(model_at("sgd"), (each for each in (one, two)), steps=5)
    assert len(ends) == 2
    assert ends.notes == ("the batches ended after 2 steps",)


def test_batches_are_read_from_files_folders_and_patterns(tmp_path: Path):
    feeds = feeds_of("sgd")
    batches = tmp_path / "batches"
    batches.mkdir()
    for number in range(3):
        np.savez(batches / f"{number}.npz", **(feeds | {"x": feeds["x"] * (number + 1)}))
    expected = watch(model_at("sgd"), [feeds | {"x": feeds["x"] * n} for n in (1, 2, 3)]).loss
    for named in (batches, f"{batches}/*.npz", sorted(batches.iterdir())):
        np.testing.assert_array_equal(watch(model_at("sgd"), named).loss, expected)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for name, array in feeds.items():
        np.save(arrays / f"{name}.npy", array)
    assert watch(model_at("sgd"), arrays).loss == expected[:1]


def test_who_gave_a_value_that_does_not_fit_is_named():
    model = onnx.load(MODELS / "in_graph" / "adam.onnx")
    batch = dict(np.load(MODELS / "in_graph" / "adam.inputs.npz"))
    with pytest.raises(OnnxClipError, match="'W_m' of the initial values: expected the shape"):
        watch(model, [batch], initial={"W_m": np.zeros((1, 3), np.float32)})
    with pytest.raises(OnnxClipError, match="'x' of batch 0: expected float32"):
        watch(model, [{**batch, "x": batch["x"].astype(np.float64)}])


def test_states_and_numbers_that_no_batch_has_are_given_at_first(tmp_path: Path):
    feeds = feeds_of("adam")
    data = {name: feeds.pop(name) for name in ("x", "t") if name in feeds}
    with pytest.raises(OnnxClipError, match="neither batch 0 nor the initial values have"):
        watch(model_at("adam"), [data])
    np.savez(tmp_path / "initial.npz", **feeds)
    given = watch(model_at("adam"), [data], steps=4, initial=tmp_path / "initial.npz")
    np.testing.assert_array_equal(
        given.loss, watch(model_at("adam"), [feeds_of("adam")], steps=4).loss
    )


def test_steps_are_written_at_once_and_read_again(tmp_path: Path):
    path = tmp_path / "norms.jsonl"
    found = watch(model_at("adam"), [feeds_of("adam")], steps=6, to=path)
    read = read_norms(path)
    assert len(found) == len(read) == 6
    assert read.head == found.head
    np.testing.assert_array_equal(read.norm, found.norm)
    np.testing.assert_array_equal(read.loss, found.loss)
    with pytest.raises(OnnxClipError, match="is there already; pass --force"):
        watch(model_at("adam"), [feeds_of("adam")], to=path)
    assert len(read_norms(path)) == 6
    kept = tmp_path / "kept.jsonl"
    read.save(kept)
    assert kept.read_bytes() == path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["onnx_clip_norms"] == 1
    assert lines[0]["parameters"] == ["W", "b"]
    assert lines[1].keys() == {
        "step", "loss", "global_norm", "norm", "largest", "zeros", "nonfinite",
    }  # fmt: skip


def test_what_is_not_finite_is_a_text_in_json_lines(tmp_path: Path):
    x = np.array([0, np.nan, np.inf, 2], np.float32)
    path = tmp_path / "norms.jsonl"
    found = watch(gradient_graph(), {"W": x, "x": x}, to=path)
    assert json.loads(path.read_text().splitlines()[1])["norm"] == ["nan"]
    assert np.isnan(found.norm).all()


def test_a_path_that_ends_in_csv_has_a_line_for_each_step_and_gradient(tmp_path: Path):
    path = tmp_path / "norms.csv"
    found = watch(model_at("sgd"), [feeds_of("sgd")], steps=3, to=path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 6
    assert [float(row["norm"]) for row in rows] == found.norm.ravel().tolist()
    assert rows[1]["parameter"] == "b"


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=x", "\r=x"])
def test_a_name_that_begins_like_a_formula_is_text_to_programs_for_tables(
    name: str, tmp_path: Path
):
    step = gradient_graph()
    step.graph.input[0].name = name
    step.graph.node[0].output[0] = step.graph.output[0].name = f"{name}_grad"
    x = np.ones(4, np.float32)
    found = watch(step, {name: x, "x": x}, to=tmp_path / "norms.csv")
    assert found.parameters == (name,)
    with (tmp_path / "norms.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["gradient"], row["parameter"]) == (f"'{name}_grad", f"'{name}")


def test_a_run_is_gone_on_with_as_if_it_had_not_ended(tmp_path: Path):
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    batches = [feeds_of("momentum"), {"x": -feeds_of("momentum")["x"]}, feeds_of("momentum")]
    batches = [feeds_of("momentum") | batch for batch in batches]
    whole = watch(model_at("momentum"), batches, steps=7)
    watch(model_at("momentum"), batches, steps=4, to=path, states=states)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # as a run leaves it that is killed
    on = watch(model_at("momentum"), batches, steps=7, to=path, states=states, resume=True)
    assert [row.step for row in on.rows] == list(range(7))
    np.testing.assert_array_equal(on.loss, whole.loss)
    np.testing.assert_array_equal(read_norms(path).norm, whole.norm)
    with pytest.raises(OnnxClipError, match="norms of other gradients"):
        watch(model_at("mixed_precision"), [{}], to=path, states=states, resume=True)


def test_steps_without_their_states_are_run_again(tmp_path: Path):
    """A run that is killed has written its norms, and not the states behind them."""
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    step, batches = model_at("momentum"), [feeds_of("momentum")]
    whole = watch(step, batches, steps=7)
    watch(step, batches, steps=3, to=path, states=states)
    early = states.read_bytes()
    watch(step, batches, steps=5, to=path, states=states, resume=True)
    states.write_bytes(early)
    on = watch(step, batches, steps=7, to=path, states=states, resume=True)
    np.testing.assert_array_equal(on.loss, whole.loss)
    assert [row.step for row in read_norms(path).rows] == list(range(7))
    assert on.notes[0].startswith("steps 3 to 4 were run again")
    states.unlink()
    with pytest.raises(OnnxClipError, match="leaves none; begin again"):
        watch(step, batches, steps=9, to=path, states=states, resume=True)


def test_states_are_written_every_so_many_steps_and_never_before_their_norms(tmp_path: Path):
    """What lies on the disk at any moment is what a run that is killed leaves there."""
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    left = tmp_path / "left"
    left.mkdir()
    step, batch = model_at("momentum"), feeds_of("momentum")
    there: list[tuple[int, int | None]] = []

    def batches() -> Iterator[dict[str, Any]]:
        for number in range(9):
            if path.exists():
                after = steps_before(states) if states.exists() else None
                there.append((len(read_norms(path)), after))
            if number == 7:
                shutil.copy(path, left)
                shutil.copy(states, left)
            yield batch

    watch(step, batches(), steps=9, to=path, states=states, states_every=3)
    assert there == [(t, t - t % 3 or None) for t in range(9)]
    assert steps_before(states) == 9
    on = watch(step, [batch], steps=9, to=left / path.name, states=left / states.name, resume=True)
    assert on.notes[0].startswith("step 6 was run again")
    assert (left / path.name).read_bytes() == path.read_bytes()
    with np.load(states) as whole, np.load(left / states.name) as resumed:
        for name in whole.files:
            np.testing.assert_array_equal(resumed[name], whole[name])


@pytest.mark.parametrize("name", ["W\0", "W" * 70_000], ids=["NUL", "long"])
def test_a_state_that_an_archive_cannot_give_back_is_refused_before_the_run(
    name: str, tmp_path: Path
):
    """An archive cuts a name off at a NUL, and counts its bytes in 16 bits."""
    step = onnx.load(model_at("sgd"))
    for node in step.graph.node:
        node.input[:] = [name if each == "W" else each for each in node.input]
    (weight,) = (value for value in step.graph.input if value.name == "W")
    weight.name = name
    path = tmp_path / "norms.jsonl"
    with pytest.raises(OnnxClipError, match="file holds no arrays with"):
        watch(step, [feeds_of("sgd")], to=path, states=tmp_path / "states.npz")
    assert not path.exists()


def test_states_that_a_killed_run_has_half_written_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    step, batch = model_at("momentum"), feeds_of("momentum")
    watch(step, [batch], steps=2, to=path, states=states)

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(Journal, "settle", Journal.close)
        with pytest.raises(Killed):
            watch(step, [batch], steps=4, to=path, states=states, resume=True)
    assert len(list(tmp_path.glob(".onnx-clip-*.new"))) == 1
    on = watch(step, [batch], steps=4, to=path, states=states, resume=True)
    np.testing.assert_array_equal(on.loss, watch(step, [batch], steps=4).loss)
    assert sorted(tmp_path.iterdir()) == [path, states]


def test_norms_that_end_before_the_states_are_refused(tmp_path: Path):
    path, states = tmp_path / "norms.jsonl", tmp_path / "states.npz"
    watch(model_at("sgd"), [feeds_of("sgd")], steps=3, to=path, states=states)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(OnnxClipError, match=r"after 3 steps, but .* only 1 steps"):
        watch(model_at("sgd"), [feeds_of("sgd")], steps=9, to=path, states=states, resume=True)


def test_states_are_those_before_a_step_that_fails(tmp_path: Path):
    states, good = tmp_path / "states.npz", feeds_of("sgd")
    with pytest.raises(OnnxClipError, match="step 1"):
        watch(model_at("sgd"), [good, good | {"x": np.zeros(3)}], states=states)
    assert steps_before(states) == 1
    with np.load(states) as archive:
        np.testing.assert_array_equal(archive["W"], by_hand("sgd", 1)[1]["W"])


@pytest.mark.parametrize("name", ["states", "to"])
def test_no_file_that_the_run_reads_and_nothing_unknown_is_replaced(name: str, tmp_path: Path):
    model, batch, others = tmp_path / "m.onnx", tmp_path / "b.npz", tmp_path / "mine.npz"
    model.write_bytes(model_at("sgd").read_bytes())
    for path in (batch, others):
        np.savez(path, **feeds_of("sgd"))
    before = {path: path.read_bytes() for path in (model, batch, others)}
    for place in (model, batch):
        with pytest.raises(OnnxClipError, match="another file of this run"):
            watch(model, batch, force=True, **{name: place})  # type: ignore[arg-type]
    for place in (others, tmp_path, tmp_path / "no" / "x", Path("/dev/null"), tmp_path / "a\0b"):
        with pytest.raises(OnnxClipError, match=r"exists|is there|is a folder|no folder|NUL"):
            watch(model, batch, **{name: place})  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(tmp_path.iterdir()) == sorted(before)


def test_what_was_given_for_nothing_is_said():
    found = watch(model_at("sgd"), [feeds_of("sgd")], initial={"x": feeds_of("sgd")["x"]})
    assert found.notes == ("the initial values of 'x' are not used: the batches have them",)


def test_a_weight_that_stays_as_it_is_is_said():
    model = diverging()
    model.graph.output[1].name = "W_grad"
    del model.graph.node[-2:]
    (note,) = plan_watch(model).notes
    assert note.startswith("no output is known to be the new value of 'W'")
    assert plan_watch(diverging()).notes == ()


@pytest.mark.parametrize("is_first", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("name", CARRIED)
def test_new_values_that_are_outputs_twice_are_carried_once(name: str, is_first: bool):
    step = onnx.load(model_at(name))
    known = {value.name: value for value in step.graph.output}
    copies = []
    for new in CARRIED[name].values():
        step.graph.node.add(op_type="Identity", input=[new], output=[f"{new}_copy"])
        copies.append(onnx.ValueInfoProto(name=f"{new}_copy", type=known[new].type))
    outputs = [*copies, *known.values()] if is_first else [*known.values(), *copies]
    del step.graph.output[:]
    step.graph.output.extend(outputs)
    planned = plan_watch(step)
    assert planned.carried == CARRIED[name]
    assert not list(planned.questions())


def net_of(inputs: str, forward: str, outputs: str) -> onnx.ModelProto:
    """loss = |y|^2 of what the forward pass makes, W_new = W - 0.1 x^T 2y, and W_copy = W_new."""
    return parse(
        f"s ({inputs}, float[2,2] x) => (float loss, {outputs}, float[2] W_copy)"
        "<float two = {2}, float rate = {0.1}>"
        f"{{ {forward} z = Mul(y, y) loss = ReduceSum <keepdims = 0> (z)"
        "  q = Mul(y, two) t = Transpose(x) g = MatMul(t, q) d = Mul(g, rate)"
        "  W_new = Sub(W, d) W_copy = Identity(W_new) }"
    )


def test_a_weight_that_is_an_output_twice_is_no_new_value_of_data_of_its_shape():
    step = net_of(
        "float[2] W, float[2] wanted", "p = MatMul(x, W) y = Sub(p, wanted)", "float[2] W_new"
    )
    assert plan_watch(step).carried == {"W": "W_new"}


def test_a_copy_of_a_weight_for_the_forward_pass_is_carried():
    step = net_of("float[2] W, float[2] V", "y = MatMul(x, V)", "float[2] W_new")
    assert plan_watch(step).carried == {"W": "W_new", "V": "W_copy"}


COUNTERS: dict[str, tuple[tuple[str, str, list[str]], ...]] = {
    "up": (("Add", "turned", ["turn", "one"]),),
    "up, turned around": (("Add", "turned", ["one", "turn"]),),
    "down": (("Sub", "turned", ["turn", "one"]),),
    "by two ways": (("Add", "next", ["turn", "one"]), ("Identity", "turned", ["next"])),
    "twice": (("Add", "turned", ["turn", "one"]), ("Identity", "turned again", ["turned"])),
    "not: from one": (("Sub", "turned", ["one", "turn"]),),
    "not: doubled": (("Add", "turned", ["turn", "turn"]),),
    "not: as it is": (("Identity", "turned", ["turn"]),),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_is_carried(name: str):
    step = onnx.load(model_at("sgd"))
    for port, to in (("turn", step.graph.input), ("turned", step.graph.output)):
        to.append(onnx.helper.make_tensor_value_info(port, onnx.TensorProto.INT64, []))
    step.graph.initializer.append(onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [], [1]))
    for op_type, made, takes in COUNTERS[name]:
        step.graph.node.add(op_type=op_type, input=takes, output=[made])
        if made == "turned again":
            kind = onnx.TensorProto.INT64
            step.graph.output.append(onnx.helper.make_tensor_value_info(made, kind, []))
    planned = plan_watch(step)
    assert planned.carried.get("turn") == (None if name.startswith("not") else "turned")
    assert {"W", "b"} <= planned.carried.keys()


def diverging() -> onnx.ModelProto:
    """loss = |x W|^2, and W_new = W - 100 * dloss/dW, which is -199 W where x is the identity."""
    return parse(
        "s (float[2] W, float[2,2] x) => (float loss, float[2] W_new)"
        "<float two = {2}, float rate = {100}>"
        "{ y = MatMul(x, W) z = Mul(y, y) loss = ReduceSum <keepdims = 0> (z)"
        "  q = Mul(y, two) t = Transpose(x) W_grad = MatMul(t, q)"
        "  d = Mul(W_grad, rate) W_new = Sub(W, d) }"
    )


def test_a_run_ends_at_a_loss_that_is_not_finite_and_says_what_went_before(tmp_path: Path):
    """199 ** 16 is below float32's largest number, 3.4e38, and 199 ** 18 is above."""
    feeds = {"W": np.array([1, 0], np.float32), "x": np.eye(2, dtype=np.float32)}
    path = tmp_path / "norms.jsonl"
    found = watch(diverging(), [feeds], steps=100, to=path)
    assert len(found) == len(read_norms(path)) == 10
    assert found.stopped == (
        "the loss is inf in step 9; all gradients were finite, their norm together 4.92e+18 in "
        "step 8"
    )
    assert found.view().faults == (found.stopped,)


def test_the_gradient_that_was_not_finite_first_is_named():
    feeds = {"W": np.array([1, 0], np.float32), "x": np.eye(2, dtype=np.float32)}
    odd = feeds | {"x": np.full((2, 2), 1e30, np.float32)}
    found = watch(diverging(), [feeds, odd], steps=5)
    assert found.stopped == (
        "the loss is inf in step 1; the first gradient that was not finite: that of 'W', in step 1"
    )


def test_a_broken_batch_in_the_middle_loses_nothing(tmp_path: Path):
    for number in range(4):
        np.savez(tmp_path / f"{number}.npz", **feeds_of("sgd"))
    (tmp_path / "2.npz").write_bytes(b"PK no archive")
    path = tmp_path / "norms.jsonl"
    with pytest.raises(OnnxClipError, match=r"2\.npz"):
        watch(model_at("sgd"), tmp_path, to=path)
    assert len(read_norms(path)) == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": None}, "'x', an input that neither batch 0 nor"),
    "dtype": ({"x": np.zeros((4, 3))}, "'x' of batch 0: expected float32, but it is float64"),
    "rank": ({"x": np.zeros(3, np.float32)}, "'x' of batch 0: expected the shape"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_feeds_that_do_not_fit_are_refused_by_name(change: dict[str, Any], said: str):
    feeds = feeds_of("sgd") | change
    feeds = {name: array for name, array in feeds.items() if array is not None}
    with pytest.raises(OnnxClipError, match="step 0, batch 0") as error:
        watch(model_at("sgd"), [feeds])
    assert said in str(error.value)


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path):
    sgd, feeds = model_at("sgd"), [feeds_of("sgd")]
    for wrong, said in (
        ({"steps": 0}, "steps must be a whole number, 1 or more"),
        ({"loss": "cost"}, "no output is called 'cost'"),
        ({"carry": {"W_new": "nowhere"}}, "no input is called 'nowhere'"),
        ({"carry": {"nowhere": "W"}}, "no output is called 'nowhere'"),
        ({"carry": [("W_new", "W")]}, "carry must map"),
        ({"initial": {"nowhere": np.zeros(1)}}, "initial values are given for 'nowhere'"),
        ({"resume": True}, "to resume say where"),
        ({"resume": "yes"}, "resume must be True or False"),
        ({"to": 5}, "to must be a path"),
        ({"states": 5}, "states must be a path"),
        ({"states_every": 2}, "say where, too"),
        ({"states_every": 0}, "states_every must be a whole number, 1 or more"),
        ({"micro_batches": 2}, "is for folders of training artifacts"),
        ({"micro_batches": True}, "micro_batches must be a whole number"),
        ({"initial": 5}, "must be a path, not 5"),
        ({"initial": {"W": [[1], [1, 2]]}}, "'W' is no array"),
        ({"loss": ["loss"]}, "no output is called"),
        ({"loss": "W_new"}, "expected one number as the loss"),
        ({"provider": ["cpu"]}, "expected the provider cpu or cuda"),
        ({"carry": {"W_new": "W", "b_new": "W"}}, "'W' is to be 2 outputs at once"),
    ):
        with pytest.raises(OnnxClipError, match=said):
            watch(sgd, feeds, **wrong)  # type: ignore[arg-type]
    for no_feeds in (tmp_path, f"{tmp_path}/*.npz", 3, [3], []):
        with pytest.raises(OnnxClipError):
            watch(sgd, no_feeds)  # type: ignore[arg-type]
    with pytest.raises(OnnxClipError, match="no gradient is found"):
        watch(model_at("inference_only"), feeds)


def interchangeable() -> onnx.ModelProto:
    """Two states, each of which is part of both new values alike."""
    return parse(
        "s (float[2] A, float[2] B, float[2,2] x) => (float loss, float[2] P, float[2] Q)"
        "<float half = {0.5}>"
        "{ s = Add(A, B) y = MatMul(x, s) z = Mul(y, y) loss = ReduceSum <keepdims = 0> (z)"
        "  t = Transpose(x) g = MatMul(t, y)"
        "  a = Sub(A, g) b = Sub(B, g) P = Add(a, B) Q = Add(b, A) }"
    )


def test_states_that_cannot_be_told_apart_are_a_question():
    feeds = {"A": np.ones(2, np.float32), "B": np.zeros(2, np.float32),
             "x": np.eye(2, dtype=np.float32)}  # fmt: skip
    planned = plan_watch(interchangeable())
    if planned.unsure:
        with pytest.raises(OnnxClipError, match="which is which, as in carry="):
            watch(interchangeable(), [feeds])
    found = watch(interchangeable(), [feeds], steps=2, carry={"P": "A", "Q": "B"})
    assert found.head.carried == {"A": "P", "B": "Q"}


def test_what_is_said_of_a_state_overrules_what_is_found():
    feeds = feeds_of("momentum")
    planned = plan_watch(model_at("momentum"), carry={"W_v_new": "W"})
    assert planned.carried["W"] == "W_v_new"
    assert planned.carried["b"] == "b_new"
    assert "W_v" not in planned.carried
    watch(model_at("momentum"), [feeds], carry={"W_v_new": "W"})


def test_a_bar_or_a_callback_is_told_the_steps():
    told: list[str] = []
    watch(model_at("sgd"), [feeds_of("sgd")], steps=2, progress=lambda p: told.append(str(p)))
    assert told == ["running sgd.onnx: 1 of 2 steps", "running sgd.onnx: 2 of 2 steps"]


def test_public_functions_stay_functions_after_every_module_is_imported():
    for module in pkgutil.walk_packages(onnx_clip_pass.__path__, "onnx_clip_pass."):
        if not module.name.endswith(("__main__", "adapters.onnx_ir", "adapters.stand_ins")):
            importlib.import_module(module.name)
    for _ in range(2):
        assert callable(onnx_clip_pass.watch)
        assert callable(onnx_clip_pass.verify)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "nowhere", ""])
def test_weights_that_cannot_be_read_are_refused(location: str, tmp_path: Path):
    step = onnx.load(model_at("sgd_parameters_as_initializers"))
    (weight,) = (tensor for tensor in step.graph.initializer if tensor.name == "W")
    weight.ClearField("raw_data")
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path = tmp_path / "m.onnx"
    path.write_bytes(step.SerializeToString())
    feeds = [feeds_of("sgd_parameters_as_initializers")]
    with pytest.raises(OnnxClipError, match="the initial value of 'W' cannot be read"):
        watch(path, feeds)
    with pytest.raises(OnnxClipError, match="lies in another file: give the path"):
        watch(step, feeds)


ARTIFACTS = MODELS / "ort_artifacts" / "transformer_block_mse_adamw"


def test_a_folder_of_artifacts_is_looked_at_without_its_runtime():
    planned = plan_watch(ARTIFACTS, micro_batches=4)
    assert planned.head.parameters[0] == "feed.2.weight"
    assert planned.head.loss == "onnx::reducemean_output::33"
    said = str(planned)
    assert "micro-batches in each step: 4" in said
    assert "would measure 10 gradients and carry checkpoint" in said
    for wrong, message in (
        ({"carry": {"a": "b"}}, "the runtime itself carries the states"),
        ({"loss": "cost"}, "no output is called 'cost'"),
    ):
        with pytest.raises(OnnxClipError, match=message):
            plan_watch(ARTIFACTS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(OnnxClipError, match="not one of training artifacts"):
        plan_watch(MODELS)


def test_a_folder_of_artifacts_is_run_by_its_runtime_alone():
    with pytest.raises(OnnxClipError, match=r"No module named 'onnxruntime\.training'"):
        watch(ARTIFACTS, ARTIFACTS / "training_model.inputs.npz")


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    folder = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS, folder)
    (folder / "checkpoint").rename(folder / "nominal_checkpoint")
    with pytest.raises(OnnxClipError, match="there are no weights to begin with"):
        plan_watch(folder)


@pytest.mark.parametrize("name", ["states", "to"])
@pytest.mark.parametrize("file", ["checkpoint", "training_model.onnx"])
def test_no_file_of_a_folder_is_replaced(name: str, file: str, tmp_path: Path):
    folder = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS, folder)
    before = (folder / file).read_bytes()
    with pytest.raises(OnnxClipError, match="another file of this run"):
        watch(folder, [{}], force=True, **{name: folder / file})  # type: ignore[arg-type]
    assert (folder / file).read_bytes() == before
