"""Every model of `models/`: its gradients are found, clipped as the formula says, and restored.

What is true of each model is written by hand in `models/gradients.toml`. What its outputs should
be comes from the original model itself: its raw gradients are read out, clipped in float64, and
fed back in under the gradients' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from graphs import (
    HUGE,
    Arrays,
    Entry,
    acting_norm,
    assert_identical,
    clip_exactly,
    each,
    open_session,
    run,
)
from numpy.typing import NDArray

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, find_gradients, strip

BY_MEANING = "by meaning"

# Readers of a gradient through which another gradient is computed: these must see the raw value.
# Gradient to the outputs of such nodes; everywhere else in the models there is none.
RAW_READERS = {
    "ort_artifacts/param_plus_param_mse_sgd/training_model.optimized.onnx": {
        "/Add_1_output_0_grad": {"C_grad"}
    },
    "in_graph/sum_of_parameters.onnx": {"C_grad": {"S_grad"}},
}

has_gradients = each(lambda e: bool(e.gradients))
runs_in_main_graph = each(
    lambda e: e.runtime == "onnxruntime" and bool(e.gradients) and not any(e.graphs)
)
runs_in_nested_graph = each(lambda e: e.runtime == "onnxruntime" and any(e.graphs))


def clip(model: onnx.ModelProto, entry: Entry, clip_norm: float) -> onnx.ModelProto:
    """Clip every gradient; those that only their meaning tells are named."""
    named = dict(entry.gradients) if entry.found == BY_MEANING else None
    return clip_gradients(model, GradientClipByNorm(clip_norm), gradients=named)


# -- what is found -----------------------------------------------------------------------------


def in_words(model: onnx.ModelProto, path: str) -> str:
    """A `Gradient.graph` such as 'If[0].then_branch' in the words of `gradients.toml`."""
    match = re.fullmatch(r"(If|Loop|Scan)\[(\d+)\]\.(\w+)", path)
    if match is None:
        return path
    kind, number, attribute = match.groups()
    body = "loop body" if kind == "Loop" else attribute.replace("_", " ")
    return f"{body} of {model.graph.node[int(number)].name!r}"


@each(lambda e: e.found != BY_MEANING)
def test_finds_exactly_the_gradients(entry: Entry, model: onnx.ModelProto) -> None:
    found = [(g.name, g.parameter.name, in_words(model, g.graph)) for g in find_gradients(model)]
    true = [(*pair, graph) for pair, graph in zip(entry.gradients, entry.graphs, strict=True)]
    assert sorted(found) == sorted(true)


@each(lambda e: e.found == BY_MEANING)
def test_finds_nothing_where_no_name_and_no_structure_tells(model: onnx.ModelProto) -> None:
    assert find_gradients(model) == []


@each(lambda e: not e.gradients or e.found == BY_MEANING)
def test_refuses_and_touches_nothing_where_nothing_is_found(
    entry: Entry, model: onnx.ModelProto
) -> None:
    with pytest.raises(OnnxClipError, match=r"no gradients found|optimizer model"):
        clip_gradients(model, GradientClipByNorm(1.0))
    assert model == entry.load()


# -- what stays --------------------------------------------------------------------------------


@has_gradients
def test_strip_restores_the_model(entry: Entry, model: onnx.ModelProto) -> None:
    clipped = clip(model, entry, 1.0)
    assert clipped != model
    assert strip(clipped) == model


@has_gradients
def test_the_input_is_not_changed(entry: Entry, model: onnx.ModelProto) -> None:
    clip(model, entry, 1.0)
    assert model == entry.load()


@has_gradients
def test_clipping_again_replaces_the_clips(entry: Entry, model: onnx.ModelProto) -> None:
    assert clip(clip(model, entry, 0.25), entry, 2.0) == clip(model, entry, 2.0)


@has_gradients
def test_inputs_and_outputs_stay(entry: Entry, model: onnx.ModelProto) -> None:
    clipped = clip(model, entry, 1.0)
    assert clipped.graph.input == model.graph.input
    assert clipped.graph.output == model.graph.output


@each(lambda e: bool(e.gradients) and e.checker)
def test_the_checker_accepts_the_clipped_model(entry: Entry, model: onnx.ModelProto) -> None:
    onnx.checker.check_model(clip(model, entry, 1.0), full_check=entry.runtime == "onnxruntime")


@each(lambda e: e.runtime == "onnxruntime" and bool(e.gradients))
@pytest.mark.parametrize("optimize", [False, True], ids=["as written", "optimized"])
def test_norms_within_the_threshold_change_no_bit(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, optimize: bool
) -> None:
    clipped = clip(model, entry, HUGE)
    after = run(clipped, feeds, optimize=optimize)
    assert_identical(after, run(model, feeds, optimize=optimize))


# -- what changes ------------------------------------------------------------------------------


def feed_in(
    model: onnx.ModelProto, entry: Entry, clipped: Mapping[str, NDArray]
) -> onnx.ModelProto:
    """A copy in which each name of `clipped` is the input 'fed/<name>', the raw value 'raw/<name>'.

    A gradient that is an input already is fed under its own name instead.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = {value.name for value in copy.graph.input}
    for name in clipped.keys() - inputs:
        raw_readers = RAW_READERS.get(entry.file, {}).get(name, set())
        for node in copy.graph.node:
            for ports in (node.output, node.input if raw_readers & set(node.output) else []):
                ports[:] = [f"raw/{name}" if port == name else port for port in ports]
        for tensor in copy.graph.initializer:
            tensor.name = f"raw/{name}" if tensor.name == name else tensor.name
        copy.graph.node.insert(0, onnx.helper.make_node("Identity", [f"fed/{name}"], [name]))
        kind = onnx.helper.np_dtype_to_tensor_dtype(clipped[name].dtype)
        shape = clipped[name].shape
        copy.graph.input.append(onnx.helper.make_tensor_value_info(f"fed/{name}", kind, shape))
    return copy


def clipped_by_hand(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, clip_norm: float
) -> tuple[Arrays, Arrays]:
    """The outputs and the clipped gradients, as the original model and the formula give them.

    One gradient after the other, because that of a second step depends on that of the first.
    """
    clipped: Arrays = {}

    def run_with_clipped(wanted: list[str] | None) -> Arrays:
        fed = feed_in(model, entry, clipped)
        extra = {name if name in feeds else f"fed/{name}": x for name, x in clipped.items()}
        return run(fed, feeds | extra, wanted)

    for name in entry.names:
        clipped[name] = clip_exactly(run_with_clipped([name])[name], clip_norm)
    return run_with_clipped(None), clipped


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, within its branches and bodies too."""
    yield from node.input
    for graph in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from names_read(inner)


def outputs_behind(model: onnx.ModelProto, names: set[str]) -> set[str]:
    """The graph outputs that depend on these values."""
    reached = set(names)
    for node in model.graph.node:  # in topological order
        if reached & set(names_read(node)):
            reached |= set(node.output)
    return reached & {output.name for output in model.graph.output}


@runs_in_main_graph
def test_outputs_are_those_of_the_original_with_clipped_gradients(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays
) -> None:
    before = run(model, feeds)
    clip_norm = acting_norm(run(model, feeds, entry.names).values())
    expected, gradients = clipped_by_hand(entry, model, feeds, clip_norm)
    rewritten = clip(model, entry, clip_norm)
    after = run(rewritten, feeds)
    fed = feed_in(model, entry, gradients)
    sources = {name if name in feeds else f"fed/{name}" for name in gradients}
    touched = outputs_behind(fed, sources)
    # not each of them: Adam's first update is the same for a gradient of any length
    assert any(before[name].tobytes() != after[name].tobytes() for name in touched)
    assert_identical(
        {name: value for name, value in after.items() if name not in touched},
        {name: value for name, value in before.items() if name not in touched},
    )
    for name in touched:
        assert_close(after[name], expected[name], name)
    # a clipped gradient bears the old name, unless that is the name of an input
    for name, value in run(rewritten, feeds, [n for n in gradients if n not in feeds]).items():
        assert_close(value, gradients[name], name)


def assert_close(actual: NDArray, expected: NDArray, name: str) -> None:
    """Equal but for the rounding of the clip itself.

    The norm's sum over at most some hundred elements errs by a few ulps, Div and Mul by half an
    ulp each; everything behind the clip is computed alike on both sides. The absolute part is for
    differences, such as a parameter's update, where the terms' ulps survive the result.
    """
    ulps = 16 * float(np.finfo(expected.dtype).eps)
    largest = float(np.max(np.abs(expected)))
    np.testing.assert_allclose(actual, expected, ulps, ulps * largest, err_msg=name)


# -- gradients in branches, bodies and functions -----------------------------------------------

STEPS = {
    "control_flow/if_updates_inside.onnx": 1,
    "control_flow/loop_steps.onnx": 3,
    "control_flow/function_whole_step.onnx": 1,
    "control_flow/function_called_twice.onnx": 2,
}


def train(feeds: Arrays, steps: int, clip_norm: float) -> tuple[Arrays, list[NDArray]]:
    """The steps of `models/control_flow` in float64: the results, and every raw gradient."""
    x, t, w, b = (feeds[name].astype(np.float64) for name in ("x", "t", "W", "b"))
    results, gradients = {}, []
    for step in range(steps):
        error = x @ w + b - t
        slope = 2 * error / error.size
        raw = [x.T @ slope, slope.sum(axis=0)]
        gradients += raw
        w, b = (p - 0.1 * clip_exactly(g, clip_norm) for p, g in zip((w, b), raw, strict=True))
        loss = np.mean(error * error)
        results |= {"loss": loss, f"loss_{step}": loss}
    return results | {"W_new": w, "b_new": b}, gradients


@runs_in_nested_graph
@pytest.mark.parametrize("acts", [True, False], ids=["clipped", "within the threshold"])
def test_steps_in_nested_graphs_take_clipped_gradients(
    entry: Entry, model: onnx.ModelProto, feeds: Arrays, acts: bool
) -> None:
    _, gradients = train(feeds, STEPS[entry.file], HUGE)
    clip_norm = acting_norm(gradients) if acts else HUGE
    expected, _ = train(feeds, STEPS[entry.file], clip_norm)
    outputs = run(clip(model, entry, clip_norm), feeds)
    assert {"W_new", "b_new"} <= outputs.keys()
    for name, value in outputs.items():
        # a few dozen float32 operations a step against float64, on numbers of size 1
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# -- the interface as a runtime sees it --------------------------------------------------------


@each(lambda e: e.runtime == "onnxruntime" and bool(e.gradients))
def test_a_session_lists_the_same_inputs_and_outputs(entry: Entry, model: onnx.ModelProto) -> None:
    def listed(proto: onnx.ModelProto) -> list[tuple[str, str, list[object]]]:
        session = open_session(proto, optimize=False)
        return [(v.name, v.type, v.shape) for v in (*session.get_inputs(), *session.get_outputs())]

    assert listed(clip(model, entry, 1.0)) == listed(model)
