"""Clipping by a percentile of the norms so far, whose history the graph carries: AutoClip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import MODELS, clip_exactly, open_session, parse
from numpy.typing import NDArray
from onnx import numpy_helper
from single import single

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByPercentile,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_artifacts,
    clip_gradients,
    clip_gradients_file,
    extract_clip,
    extract_clip_file,
    initial_states,
    inspect_model,
    load_rules,
    plan_clips,
    strip,
    verify,
    watch,
)
from onnx_clip_pass.record import read_record

Array = NDArray[Any]
NORMS = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0]
TWO = """step (float[2] a, float[3] b) => (float[2] a_grad, float[3] b_grad) {
    a_grad = Identity (a)
    b_grad = Identity (b)
}"""
NAMED = {"a_grad": "a", "b_grad": "b"}


def stepped(model: onnx.ModelProto, feeds: list[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """What each step of a rewritten model gives, its states carried as a loop would."""
    session = open_session(model, optimize=True)
    names = [output.name for output in session.get_outputs()]
    states = initial_states(model)
    for each in feeds:
        found = dict(zip(names, session.run(names, each | states), strict=True))
        states = {name: found[f"{name}_new"] for name in states}
        yield found


def test_the_first_ten_steps_by_hand():
    """The 50th percentile of what was seen: 3, then 1 and 3, then 1, 3 and 4, and so on."""
    clip, states = GradientClipByPercentile(50.0), {}
    seen = [float(clip.apply({"w": np.array([n])}, states=states)["w"][0]) for n in NORMS]
    assert seen == [3, 1, 3, 1, 3, 3.5, 2, 3.5, 4, 3]
    assert np.array_equal(states["default_group"][-10:], NORMS)
    assert np.isinf(states["default_group"][:-10]).all()


def test_while_there_are_fewer_steps_than_it_keeps_it_is_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    clip, states, seen = GradientClipByPercentile(10.0, 200), {}, []
    for norm in rng.lognormal(size=200):
        x = np.array([0.6, 0.8]) * norm
        seen.append(float(np.linalg.norm(x)))
        wanted = clip_exactly(x, float(np.percentile(seen, 10)))
        np.testing.assert_allclose(clip.apply({"w": x}, states=states)["w"], wanted, rtol=1e-14)


def test_then_the_oldest_norm_is_forgotten():
    clip, states = GradientClipByPercentile(0.0, 2), {}
    for norm, wanted in ((1.0, 1.0), (8.0, 1.0), (9.0, 8.0), (4.0, 4.0), (6.0, 4.0)):
        assert clip.apply({"w": np.array([norm])}, states=states)["w"] == wanted


def test_twice_the_median_lets_pass_what_is_usual():
    clip, states = GradientClipByPercentile(50.0, 5, factor=2.0), {}
    for norm, wanted in ((1.0, 1.0), (2.0, 2.0), (1.5, 1.5), (50.0, 3.5), (1.0, 1.0)):
        found = clip.apply({"w": np.array([norm])}, states=states)["w"]
        assert found == pytest.approx([wanted], rel=1e-15)


def test_a_history_that_is_none_leaves_the_others_as_they_are():
    states = {"a": np.ones(3), "b": np.zeros(2)}
    with pytest.raises(OnnxClipError, match="expected the last 3 norms of 'b'"):
        GradientClipByPercentile(10.0, 3, per_gradient=True).apply(
            {"a": np.ones(2), "b": np.ones(2)}, states=states
        )
    assert np.array_equal(states["a"], np.ones(3))


def test_without_states_every_step_is_the_first():
    x = np.array([3.0, 4.0])
    assert np.array_equal(GradientClipByPercentile().apply({"w": x})["w"], x)


def test_states_that_are_none_are_refused():
    with pytest.raises(OnnxClipError, match="states must be a dict, which is brought up to date"):
        GradientClipByPercentile().apply({"w": np.ones(2)}, states=[])
    nan, negative = np.full(4, np.nan), np.full(4, -1.0)
    for wrong in (
        np.zeros(3),
        [1.0],
        [[1.0], [1.0, 2.0]],
        np.zeros(4, int),
        "norms",
        nan,
        negative,
    ):
        with pytest.raises(OnnxClipError, match="expected the last 4 norms of 'default_group'"):
            GradientClipByPercentile(10.0, 4).apply(
                {"w": np.ones(2)}, states={"default_group": wrong}
            )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_not_enter(bad):
    clip, states = GradientClipByPercentile(50.0, 3), {}
    for value in (bad, 4.0, bad, 2.0):
        clip.apply({"w": np.array([value])}, states=states)
    assert np.array_equal(states["default_group"], [math.inf, 4.0, 2.0])


@pytest.mark.parametrize("per_gradient", [True, False])
def test_each_gradient_has_a_history_of_its_own_or_all_have_one(per_gradient):
    clip, states = GradientClipByPercentile(10.0, 4, per_gradient=per_gradient), {}
    clip.apply({"a": np.array([3.0]), "b": np.array([4.0])}, states=states)
    last = {name: float(history[-1]) for name, history in states.items()}
    assert last == ({"a": 3.0, "b": 4.0} if per_gradient else {"default_group": 5.0})


GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "times": ("float32", {"factor": 1.5}),
    "float32": ("float32", {}),
    "float64": ("float64", {}),
    "float16": ("float16", {}),
    "wide": ("float32", {"norm_precision": "wide"}),
    "plain": ("float32", {"norm_precision": "plain"}),
    "zero": ("float32", {"nonfinite": "zero"}),
    "keep": ("float32", {"nonfinite": "keep"}),
    "cuda": ("float32", {"layout": "cuda"}),
    "x86-64": ("float32", {"layout": "x86-64"}),
    "loss scale": ("float32", {"loss_scale": 8.0}),
    "opset 12": ("float32", {"opset": 12}),
    "newest opset": ("float32", {"opset": onnx.defs.onnx_opset_version()}),
}


@pytest.mark.parametrize("per_gradient", [True, False])
@pytest.mark.parametrize("percentile", [0.0, 10.0, 72.5, 99.9])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_clips_step_by_step_as_the_formula_on_arrays(name, percentile, per_gradient):
    """Twice as many steps as it keeps; among them 0, inf, nan, and a norm that was there before."""
    dtype, how = GRAPHS[name]
    how = dict(how)
    rng = np.random.default_rng(1)
    factor = how.pop("factor", 1.0)
    clip = GradientClipByPercentile(percentile, 9, factor, per_gradient)
    model = clip_gradients(
        single(dtype, (7,), how.pop("opset", 17)), clip, gradients={"g": "w"}, **how
    )
    scale, states = how.get("loss_scale", 1.0), {}
    steps = [rng.standard_normal(7) * norm for norm in rng.lognormal(size=20)]
    steps[4], steps[11], steps[13] = np.zeros(7), steps[8], steps[8]
    steps[6], steps[15] = np.full(7, np.inf), np.full(7, np.nan)
    feeds = [{"x": (x * scale).astype(dtype)} for x in steps]
    for step, (feed, found) in enumerate(zip(feeds, stepped(model, feeds), strict=True)):
        exact = feed["x"].astype(np.float64) / scale
        policy = how.get("nonfinite", "propagate")
        wanted = clip.apply({"w": exact}, states=states, nonfinite=policy)["w"] * scale
        # the stated 1e-5 of a norm, which the limit has once more; half precision is rounded behind
        rtol = {"float16": 2e-3, "float64": 1e-14}.get(dtype, 2e-5)
        np.testing.assert_allclose(found["g"], wanted, rtol=rtol, err_msg=f"step {step}")
        if step == 0:
            assert found["g"].tobytes() == feed["x"].tobytes()


def test_a_gradient_within_the_percentile_stays_bit_for_bit():
    """Falling norms: each is the least so far, and at its own 0th percentile."""
    model = clip_gradients(
        single("float32", (33,)), GradientClipByPercentile(0.0, 50), gradients=["g"]
    )
    rng = np.random.default_rng(2)
    x = rng.standard_normal(33)
    feeds = [{"x": (x * 0.97**step).astype(np.float32)} for step in range(40)]
    for feed, found in zip(feeds, stepped(model, feeds), strict=True):
        assert found["g"].tobytes() == feed["x"].tobytes()


def test_a_group_has_one_norm_and_one_history():
    clip = GradientClipByPercentile(40.0, 6)
    model = clip_gradients(parse(TWO), clip, gradients=NAMED, emit=["norm", "scale"])
    rng, states = np.random.default_rng(3), {}
    feeds = [
        {name: rng.standard_normal(size).astype("f4") for name, size in (("a", 2), ("b", 3))}
        for _ in range(15)
    ]
    for feed, found in zip(feeds, stepped(model, feeds), strict=True):
        wanted = clip.apply(feed, states=states)
        together = np.concatenate([feed["a"], feed["b"]]).astype(np.float64)
        norm = np.linalg.norm(together)
        np.testing.assert_allclose(found["a_grad"], wanted["a"], rtol=1e-6)
        np.testing.assert_allclose(found["b_grad"], wanted["b"], rtol=1e-6)
        np.testing.assert_allclose(found["default_group/norm"], norm, rtol=1e-6)
        scale = np.linalg.norm(np.concatenate([wanted["a"], wanted["b"]])) / norm
        np.testing.assert_allclose(found["a_grad/scale"], scale, rtol=1e-6)
    assert [*states] == ["default_group"]
    assert [*initial_states(model)] == ["clip/default_group/norms"]


def test_the_history_is_that_of_the_unscaled_norm_whatever_the_loss_scale_does():
    text = """    step (float[2] x, float S) => (float[2] g) { g = Mul (x, S) }"""
    model = clip_gradients(
        parse(text), GradientClipByPercentile(50.0, 4), gradients={"g": "w"}, loss_scale="S"
    )
    x = np.array([3.0, 4.0], np.float32)
    scales, sizes = (1.0, 1024.0, 2.0, 512.0), (1.0, 3.0, 2.0, 5.0)
    feeds = [
        {"x": x * np.float32(size), "S": np.array(scale, np.float32)}
        for scale, size in zip(scales, sizes, strict=True)
    ]
    *_, last = stepped(model, feeds)
    np.testing.assert_array_equal(last["clip/default_group/norms_new"], [5, 15, 10, 25])
    np.testing.assert_allclose(last["g"], x * 2.5 * 512, rtol=1e-6)  # half way from 10 to 15


def test_a_state_is_an_input_without_default_and_an_output_behind_the_others():
    original = onnx.load(MODELS / "in_graph" / "adam.onnx")
    clipped = clip_gradients(original, GradientClipByPercentile(10.0, 12), emit="norm")
    before, after = original.graph, clipped.graph
    (added,) = after.input[len(before.input) :]
    assert list(after.input)[: len(before.input)] == list(before.input)
    assert added.name == "clip/default_group/norms"
    assert added.name not in {tensor.name for tensor in after.initializer}
    assert list(after.output)[: len(before.output)] == list(before.output)
    assert after.output[len(before.output)].name == "clip/default_group/norms_new"
    assert after.output[len(before.output)].type == added.type
    (state,) = initial_states(clipped).values()
    assert state.dtype == np.float32
    assert np.array_equal(state, np.full(12, np.inf))
    record = read_record(clipped)
    assert record is not None
    assert record.states == {added.name: f"{added.name}_new"}
    assert {entry.state for entry in record.clips} == {added.name}
    assert strip(clipped) == original
    assert clip_gradients(clipped, GradientClipByPercentile(10.0, 12), emit="norm") == clipped
    assert initial_states(original) == {}
    assert "states, to be carried from step to step" in str(inspect_model(clipped))


def test_names_that_are_taken_are_left_to_the_model():
    text = TWO.replace("a_grad = ", "clip_a = Neg (a) a_grad = ").replace(
        "float[2] a,", "float[2] a, float[5] norms,"
    )
    original = parse(text)
    original.graph.input[1].name = "clip/default_group/norms"
    clipped = clip_gradients(original, GradientClipByPercentile(), gradients=NAMED)
    assert [*initial_states(clipped)] == ["clip/default_group/norms#2"]
    assert strip(clipped) == original


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"nonfinite": "zero", "emit": ["norm", "scale", "clipped"]},
        {"nonfinite": "keep", "norm_precision": "wide"},
        {"emit": "norm", "measure_only": True},
        {"loss_scale": 4.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_gradient", [True, False])
@pytest.mark.parametrize("model", ["in_graph/adam", "in_graph/sgd"])
def test_verify_goes_through_many_steps_and_finds_all_right(model, per_gradient, how):
    original = onnx.load(MODELS / f"{model}.onnx")
    feeds = dict(np.load(MODELS / f"{model}.inputs.npz"))
    clipped = clip_gradients(original, GradientClipByPercentile(20.0, 5, 0.9, per_gradient), **how)
    found = verify(original, clipped, feeds=feeds)
    assert found, str(found)
    assert [check.verdict for check in found.gradients] == ["right"] * len(found.gradients)
    states = [check for check in found.outputs if check.quantity == "norms so far"]
    assert len(states) == len(initial_states(clipped)) > 0


def damaged(clipped: onnx.ModelProto, what: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(clipped)
    nodes = {node.name.removeprefix("clip/default_group/"): node for node in model.graph.node}
    (state,) = initial_states(clipped)
    match what:
        case "another percentile":
            place = next(n for n in model.graph.node if n.output[0].endswith("/place"))
            (value,) = (t for t in model.graph.initializer if t.name == place.input[1])
            value.raw_data = np.array(0.25).tobytes()
        case "never carried":
            nodes["clip/clip/default_group/norms_new/Identity"].input[0] = state
        case "the largest instead of the smallest":
            nodes["TopK"].attribute[0].i = 1
        case "the oldest kept":
            (value,) = (t for t in model.graph.initializer if t.name == nodes["Slice"].input[1])
            value.raw_data = np.array([0]).tobytes()
            (value,) = (t for t in model.graph.initializer if t.name == nodes["Slice"].input[2])
            value.raw_data = np.array([4]).tobytes()
        case "the norm put first":
            nodes["Concat"].input[:] = reversed(nodes["Concat"].input)
        case "what is not finite let in":
            kept = next(n for n in model.graph.node if n.output[0].endswith("/norms so far"))
            kept.input[2] = kept.input[1]
        case "empty places filled":
            kept = next(n for n in model.graph.node if n.output[0].endswith("/norms so far"))
            most = numpy_helper.from_array(np.array(3e38, np.float32), "clip/most")
            model.graph.initializer.append(most)
            at = list(model.graph.node).index(kept)
            name, kept.output[0] = kept.output[0], "clip/kept"
            low = onnx.helper.make_node("Min", ["clip/kept", "clip/most"], [name], "low")
            model.graph.node.insert(at + 1, low)
        case "a first norm that is not finite taken":
            last = next(n for n in model.graph.node if n.output[0].endswith("/scale if limited"))
            last.input[1] = last.input[2]
    return model


@pytest.mark.parametrize(
    "what",
    [
        "another percentile",
        "never carried",
        "the largest instead of the smallest",
        "the oldest kept",
        "the norm put first",
        "what is not finite let in",
        "a first norm that is not finite taken",
        "empty places filled",
    ],
)
def test_verify_sees_a_history_that_is_kept_or_used_otherwise(what):
    original = onnx.load(MODELS / "in_graph" / "sgd.onnx")
    clipped = clip_gradients(original, GradientClipByPercentile(30.0, 5))
    wrong = damaged(clipped, what)
    assert wrong != clipped
    assert not verify(original, wrong, feeds=dict(np.load(MODELS / "in_graph" / "sgd.inputs.npz")))


def test_a_loop_that_forgets_the_state_is_told_at_once():
    model = clip_gradients(single("float32", (2,)), GradientClipByPercentile(), gradients=["g"])
    with pytest.raises(Exception, match="norms"):
        open_session(model, optimize=False).run(None, {"x": np.ones(2, np.float32)})


REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "in a loop": (
        "control_flow/loop_steps", GradientClipByPercentile(), {}, "would be a state of the main"
    ),
    "in a function": (
        "control_flow/function_whole_step", GradientClipByPercentile(), {}, "state of the main"
    ),
    "two steps": (
        "in_graph/two_steps", GradientClipByPercentile(), {}, "are of different steps"
    ),
    "two steps, each gradient": (
        "in_graph/two_steps", GradientClipByPercentile(per_gradient=True), {}, "of different steps"
    ),
    "a threshold as an input": (
        "in_graph/sgd", GradientClipByPercentile(), {"threshold_input": "t"}, "no single threshold"
    ),
    "seeds": ("onnx_ad/mlp_tanh", GradientClipByPercentile(), {}, "each seed of several"),
    "two settings for one group": (
        "in_graph/adam",
        [Rule("W", GradientClipByPercentile(10.0)), Rule("b", GradientClipByPercentile(20.0))],
        {},
        "cannot have one norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_where_there_is_no_history_to_go_on_from_it_is_refused(name):
    path, clip, how, words = REFUSED[name]
    with pytest.raises(OnnxClipError, match=words):
        clip_gradients(onnx.load(MODELS / f"{path}.onnx"), clip, **how)


def test_a_chain_has_one_history(tmp_path):
    with pytest.raises(OnnxClipError, match="a chain can have one clip by a percentile"):
        Chain(GradientClipByPercentile(), GradientClipByPercentile(20.0, group_name="b"))
    path = tmp_path / "clip.toml"
    path.write_text('[[rule]]\nclip = [{clip = "autoclip"}, {clip = "autoclip"}]\n')
    with pytest.raises(OnnxClipError, match="rule 1: a chain can have one clip by a percentile"):
        load_rules(path)


def test_opset_11_is_too_old():
    with pytest.raises(OnnxClipError, match="needs opset 12 or later, not 11"):
        clip_gradients(single("float32", (2,), 11), GradientClipByPercentile(), gradients=["g"])


@pytest.mark.parametrize("at", ["step", "micro-batch"])
def test_the_training_runtime_would_never_carry_it(at, tmp_path):
    with pytest.raises(OnnxClipError, match="the training runtime carries no state"):
        clip_artifacts(tmp_path, tmp_path / "out", GradientClipByPercentile(), at=at)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"percentile": 100}, "percentile must be a number from 0 to below 100, not 100"),
        ({"percentile": -1}, "percentile must be a number from 0 to below 100"),
        ({"percentile": math.nan}, "percentile must be a number"),
        ({"factor": 0}, "factor must be a positive number"),
        ({"factor": math.inf}, "factor must be a positive number, not inf"),
        ({"history": 1}, "history must be a whole number from 2 to 1,048,576, not 1"),
        ({"history": 1 << 21}, "history must be a whole number from 2"),
        ({"history": 10.0}, "history must be a whole number"),
        ({"history": True}, "history must be a whole number"),
        ({"per_gradient": 1}, "per_gradient must be True or False"),
        ({"group_name": ""}, "group_name must be a name"),
        ({"per_gradient": True, "group_name": "b"}, "per_gradient has no groups"),
    ],
)
def test_settings_beyond_their_bounds_are_refused(settings, words):
    with pytest.raises(OnnxClipError, match=words):
        GradientClipByPercentile(**settings)


def test_from_a_file_of_rules(tmp_path):
    path = tmp_path / "clip.toml"
    path.write_text('[[rule]]\nclip = "autoclip"\npercentile = 25\nhistory = 50\n')
    (rule,) = load_rules(path)
    assert repr(rule.clip) == repr(GradientClipByPercentile(25.0, 50))
    path.write_text('[[rule]]\nclip = "autoclip"\nhistory = 50.5\n')
    with pytest.raises(OnnxClipError, match="history must be a whole number"):
        load_rules(path)


def test_two_names_that_go_together_are_free():
    """An output of the model itself that is called as the new value of the state would be."""
    text = TWO.replace("float[3] b_grad)", "float[3] b_grad, float[2] theirs)").replace(
        "b_grad = ", "theirs = Neg (a) b_grad = "
    )
    original = parse(text)
    original.graph.node[1].output[0] = "clip/default_group/norms_new"
    original.graph.output[2].name = "clip/default_group/norms_new"
    model = clip_gradients(original, GradientClipByPercentile(10.0, 3), gradients=NAMED)
    feeds = {name: np.full(size, 2.0, np.float32) for name, size in (("a", 2), ("b", 3))}
    *_, found = stepped(model, [feeds] * 2)
    np.testing.assert_allclose(found["clip/default_group/norms#2_new"], [np.inf, 20**0.5, 20**0.5])


def test_an_unclipped_model_has_no_states_whatever_its_names():
    model = parse(TWO)
    model.graph.input[0].name = model.graph.node[0].input[0] = "clip/a"
    model.graph.output[0].name = model.graph.node[0].output[0] = "clip/a_new"
    assert initial_states(model) == {}


def test_in_a_chain_it_takes_what_the_clip_before_it_has_made():
    clip = Chain(GradientClipByValue(1.0), GradientClipByPercentile(50.0, 3))
    model = clip_gradients(single("float32", (2,)), clip, gradients=["g"])
    feeds = [{"x": np.array(x, np.float32)} for x in ([3, 4], [0.3, 0.4], [9, 0.0])]
    found = [step["g"] for step in stepped(model, feeds)]
    np.testing.assert_allclose(found[0], [1, 1])
    np.testing.assert_allclose(found[2], [1, 0])  # of 1.41, 0.5 and 1 the middle one
    original = single("float32", (2,))
    assert verify(original, model, feeds=feeds[0])


def test_the_clip_alone_has_the_states_too():
    original = onnx.load(MODELS / "in_graph" / "adam.onnx")
    alone = extract_clip(original, GradientClipByPercentile(10.0, 3))
    assert "clip/default_group/norms" in [port.name for port in alone.graph.input]
    assert "clip/default_group/norms_new" in [port.name for port in alone.graph.output]
    onnx.checker.check_model(alone, full_check=True)
    assert [*initial_states(alone)] == ["clip/default_group/norms"]


def test_of_a_clip_in_two_phases_the_second_has_the_state(tmp_path):
    source, clip = MODELS / "in_graph" / "adam.onnx", GradientClipByPercentile(10.0, 3)
    extract_clip_file(source, tmp_path / "norms.onnx", clip, phase="norms")
    extract_clip_file(source, tmp_path / "scale.onnx", clip, phase="scale")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["norms.onnx", "scale.clip_state.npz", "scale.onnx"]
    rng, states, carried = np.random.default_rng(5), {}, initial_states(tmp_path / "scale.onnx")
    norms, scale = (
        open_session(tmp_path / f"{name}.onnx", optimize=False) for name in ("norms", "scale")
    )
    for _ in range(6):
        x = {"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
        feeds = {f"{name}@GRAD": array.astype(np.float32) for name, array in x.items()}
        (sums,) = norms.run(None, feeds)
        *found, new = scale.run(None, feeds | {"clip/sums": sums} | carried)
        carried = dict.fromkeys(carried, new)
        for made, wanted in zip(found, clip.apply(x, states=states).values(), strict=True):
            np.testing.assert_allclose(made, wanted, rtol=1e-5)


def test_watch_carries_it_and_starts_it():
    model = onnx.load(MODELS / "in_graph" / "sgd.onnx")
    batch = dict(np.load(MODELS / "in_graph" / "sgd.inputs.npz"))
    clip = GradientClipByPercentile(10.0, 5)
    rng, states = np.random.default_rng(4), {}
    batches = [{**batch, "x": batch["x"] * np.float32(s)} for s in rng.lognormal(size=12)]
    norms = watch(clip_gradients(model, clip), batches)
    assert norms.scale is not None
    for norm, scale in zip(norms.norm, norms.scale, strict=True):
        wanted = clip.apply(dict(zip("ab", norm.reshape(-1, 1), strict=False)), states=states)
        np.testing.assert_allclose(scale[0] * norm[0], wanted["a"][0], rtol=1e-5)
    assert (norms.scale < 1).any()


# -- files -------------------------------------------------------------------------------------


ONE_ARRAY = (
    b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (), }".ljust(127)
    + b"\n0000"
)


def rewritten(folder: Path, **how: Any) -> Path:
    target = folder / "out.onnx"
    source = MODELS / "in_graph" / "adam.onnx"
    clip_gradients_file(source, target, GradientClipByPercentile(10.0, 6), **how)
    return target


def test_the_first_values_go_beside_the_model_and_are_those_of_initial_states(tmp_path):
    target = rewritten(tmp_path)
    with np.load(tmp_path / "out.clip_state.npz") as found:
        states = dict(found)
    wanted = initial_states(target)
    assert states.keys() == wanted.keys()
    assert all(np.array_equal(states[name], wanted[name]) for name in wanted)
    plan = plan_clips(MODELS / "in_graph" / "adam.onnx", GradientClipByPercentile(10.0, 6))
    assert dict(plan.report.states) == {name: f"{name}_new" for name in wanted}
    (tmp_path / "planned").mkdir()
    plan.save(tmp_path / "planned" / "out.onnx")
    one, other = (folder / "out.clip_state.npz" for folder in (tmp_path, tmp_path / "planned"))
    assert one.read_bytes() == other.read_bytes()


def test_states_that_a_loop_has_saved_are_not_replaced(tmp_path):
    target = rewritten(tmp_path)
    rewritten(tmp_path)  # the same again changes nothing
    saved = {name: np.ones_like(array) for name, array in initial_states(target).items()}
    path = tmp_path / "out.clip_state.npz"
    np.savez(path, **saved)
    held, model = path.read_bytes(), target.read_bytes()
    with pytest.raises(OnnxClipError, match="a loop may have saved them; pass --force"):
        rewritten(tmp_path)
    with pytest.raises(OnnxClipError, match="a loop may have saved them"):
        rewritten(tmp_path, dry_run=True)
    assert (path.read_bytes(), target.read_bytes()) == (held, model)
    rewritten(tmp_path, force=True)
    assert path.read_bytes() != held


def test_histories_without_norms_are_replaced_by_others(tmp_path):
    rewritten(tmp_path)
    source = MODELS / "in_graph" / "adam.onnx"
    clip = GradientClipByPercentile(10.0, 9, per_gradient=True)
    clip_gradients_file(source, tmp_path / "out.onnx", clip)
    with np.load(tmp_path / "out.clip_state.npz") as found:
        shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {"clip/W@GRAD/norms": (9,), "clip/b@GRAD/norms": (9,)}


def test_the_model_itself_is_never_replaced_by_its_states(tmp_path):
    source = tmp_path / "out.clip_state.npz"
    source.write_bytes((MODELS / "in_graph" / "adam.onnx").read_bytes())
    clip, held = GradientClipByPercentile(), source.read_bytes()
    with pytest.raises(OnnxClipError, match="where the model or its external data lies"):
        clip_gradients_file(source, tmp_path / "out.onnx", clip, force=True)
    with pytest.raises(OnnxClipError, match="where the model or its external data lies"):
        plan_clips(source, clip).save(tmp_path / "out.onnx", force=True)
    with pytest.raises(OnnxClipError, match="where the model or its external data lies"):
        extract_clip_file(source, tmp_path / "out.onnx", clip, force=True)
    assert source.read_bytes() == held


def test_a_link_that_leads_nowhere_is_replaced_by_the_states(tmp_path):
    (tmp_path / "out.clip_state.npz").symlink_to("out.clip_state.npz")
    rewritten(tmp_path)
    assert not (tmp_path / "out.clip_state.npz").is_symlink()


def test_names_that_no_archive_holds_are_refused(tmp_path):
    source = MODELS / "in_graph" / "adam.onnx"
    clip = GradientClipByPercentile(group_name="a" * 70_000)
    with pytest.raises(OnnxClipError, match="cannot be kept in an"):
        clip_gradients_file(source, tmp_path / "out.onnx", clip)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no archive", b"\x93NUMPY", ONE_ARRAY])
def test_what_is_no_archive_is_not_replaced_either(content, tmp_path):
    (tmp_path / "out.clip_state.npz").write_bytes(content)
    with pytest.raises(OnnxClipError, match=r"out\.clip_state\.npz"):
        rewritten(tmp_path)
    assert not (tmp_path / "out.onnx").exists()


def test_weights_that_lie_where_the_states_would_go_stay(tmp_path):
    text = """    step (float[2] x) => (float[2] W_new) <float[2] W = {1, 2}> {
        W_grad = Mul (x, W)
        W_new = Sub (W, W_grad)
    }"""
    model = parse(text)
    where = "out.clip_state.npz"
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "W"))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], where)
    onnx.save(model, tmp_path / "in.onnx")
    held = (tmp_path / where).read_bytes()
    with pytest.raises(OnnxClipError, match="choose another name for the output"):
        clip_gradients_file(
            tmp_path / "in.onnx",
            tmp_path / "out.onnx",
            GradientClipByPercentile(),
            gradients={"W_grad": "W"},
            force=True,
        )
    assert (tmp_path / where).read_bytes() == held


def test_a_clip_without_states_writes_no_such_file(tmp_path):
    source = MODELS / "in_graph" / "adam.onnx"
    for clip in (GradientClipByNorm(1.0), GradientClipByGlobalNorm(1.0)):
        clip_gradients_file(source, tmp_path / "out.onnx", clip)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("shape", [(), (3, 1), ("N",), (10**15,), None])
def test_a_history_of_no_or_an_impossible_size_is_refused(shape):
    clipped = clip_gradients(
        onnx.load(MODELS / "in_graph" / "sgd.onnx"), GradientClipByPercentile(10.0, 6)
    )
    port = next(port for port in clipped.graph.input if port.name.endswith("/norms"))
    port.CopyFrom(onnx.helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, shape))
    with pytest.raises(OnnxClipError, match="the model says that the input"):
        initial_states(clipped)


def test_verify_wants_a_state_without_default():
    original = onnx.load(MODELS / "in_graph" / "sgd.onnx")
    clipped = clip_gradients(original, GradientClipByPercentile(10.0, 3))
    (name,) = initial_states(clipped)
    clipped.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), name))
    found = verify(original, clipped, feeds=dict(np.load(MODELS / "in_graph" / "sgd.inputs.npz")))
    assert any("has a default" in fault for fault in found.faults)


def test_verify_knows_the_scale_of_a_first_step_that_is_not_finite():
    original = onnx.load(MODELS / "in_graph" / "sgd.onnx")
    clipped = clip_gradients(original, GradientClipByPercentile(10.0, 3), emit=["scale", "clipped"])
    assert verify(original, clipped, feeds=dict(np.load(MODELS / "in_graph" / "sgd.inputs.npz")))


def test_an_input_that_only_the_record_takes_for_a_state_is_no_array():
    clipped = clip_gradients(
        onnx.load(MODELS / "in_graph" / "sgd.onnx"), GradientClipByPercentile(10.0, 6)
    )
    port = next(port for port in clipped.graph.input if port.name.endswith("/norms"))
    port.type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(OnnxClipError, match="is the state of a clip, which it is not"):
        initial_states(clipped)
