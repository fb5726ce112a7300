"""Small graphs as drawings, and the added nodes of a rewrite as such graphs."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import onnx
import pytest
from graphs import MODELS
from html_pages import Seen
from hypothesis import given
from hypothesis import strategies as st

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    Rule,
    clip_artifacts,
    clip_gradients,
)
from onnx_clip_pass.page import Box, Drawing
from onnx_clip_pass.page.layering import placed
from onnx_clip_pass.record import KEY
from onnx_clip_pass.reports.inserted import Inserted, inserted_in, inserted_in_file

ADAM = MODELS / "in_graph" / "adam.onnx"


@st.composite
def small_graphs(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    count = draw(st.integers(1, 14))
    pairs = list(itertools.combinations(range(count), 2))
    arrows = draw(st.lists(st.sampled_from(pairs), max_size=24, unique=True)) if pairs else []
    chance = random.Random(count)
    return [(chance.uniform(30, 200), chance.choice([28, 40])) for _ in range(count)], arrows


@given(small_graphs())
def test_boxes_stand_apart_within_the_drawing_and_arrows_lead_right(graph):
    sizes, arrows = graph
    found = placed(sizes, arrows)
    edges = [
        (p.x - w / 2, p.x + w / 2, p.y - h / 2, p.y + h / 2)
        for p, (w, h) in zip(found.boxes, sizes, strict=True)
    ]
    tiny = 1e-6  # of sums of a hundred sizes in float64
    for left, right, top, bottom in edges:
        assert left >= -tiny
        assert right <= found.width + tiny
        assert top >= -tiny
        assert bottom <= found.height + tiny
    for one, other in itertools.combinations(edges, 2):
        overlaps_x = one[0] < other[1] - tiny and other[0] < one[1] - tiny
        overlaps_y = one[2] < other[3] - tiny and other[2] < one[3] - tiny
        assert not (overlaps_x and overlaps_y)
    for (source, target), bends in zip(arrows, found.bends, strict=True):
        way = [edges[source][1], *(bend.x for bend in bends), edges[target][0]]
        assert all(a <= b + tiny for a, b in itertools.pairwise(way))


@given(small_graphs())
def test_an_arrow_crosses_no_box(graph):
    """Between its ends an arrow is level wherever there are boxes, and beside all of them."""
    sizes, arrows = graph
    found = placed(sizes, arrows)
    for (source, target), bends in zip(arrows, found.bends, strict=True):
        for start, end in zip(bends[1:-1:2], bends[2:-1:2], strict=True):
            assert start.y == end.y
            for box, (place, (width, height)) in enumerate(zip(found.boxes, sizes, strict=True)):
                if box in (source, target):
                    continue
                over = start.x < place.x + width / 2 and end.x > place.x - width / 2
                assert not (over and abs(start.y - place.y) < height / 2)


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="cycle"):
        placed([(10, 10)] * 2, [(0, 1), (1, 0)])


def test_what_a_box_says_is_text():
    drawing = Drawing([Box("<b>", "</svg>"), Box("x" * 100)], [(0, 1)], '"><script>')
    seen = Seen.of(drawing.html())
    assert seen.faults == []
    assert seen.tags() == {"div", "svg", "g", "rect", "text", "path"}
    assert seen.texts[:2] == ["<b>", "</svg>"]
    assert len(seen.texts[2]) < 40


def drawn(clip, path: Path = ADAM, **options) -> Inserted:
    return inserted_in(clip_gradients(onnx.load(path), clip, **options))


def as_text(drawing: Drawing) -> list[str]:
    boxes = [f"{box.title} {box.note}".strip() for box in drawing.boxes]
    return [f"{boxes[a]} -> {boxes[b]}" for a, b in drawing.arrows]


def test_the_nodes_of_a_clip_are_drawn_once_for_all_that_have_the_same():
    found = drawn(GradientClipByNorm(1.0))
    assert (found.nodes, found.constants) == (8, 1)
    assert found.ops == (("Div", 2), ("Min", 2), ("Mul", 2), ("ReduceL2", 2))
    ((drawing, count),) = found.drawings
    assert count == 2
    assert found.drawing_of == {"W@GRAD": 1, "b@GRAD": 1}
    dot = "\N{MIDDLE DOT}"
    assert as_text(drawing) == [
        "gradient raw -> ReduceL2 norm",
        f"ReduceL2 norm -> Div(1, {dot}) ratio",
        f"Div(1, {dot}) ratio -> Min({dot}, 1) scale",
        "gradient raw -> Mul",
        f"Min({dot}, 1) scale -> Mul",
        "Mul -> gradient clipped",
    ]


def test_a_norm_in_common_is_drawn_with_the_others_as_one_box():
    ((drawing, count),) = drawn(GradientClipByGlobalNorm(1.0)).drawings
    assert count == 2
    text = as_text(drawing)
    assert "1 other gradient the same of each -> Sum together" in text
    assert [line for line in text if line.endswith("1 other gradient in the same way")] != []


def test_numbers_that_differ_are_drawn_from_the_least_to_the_greatest():
    rules = [Rule("W", GradientClipByNorm(0.5)), Rule(None, GradientClipByNorm(2.0))]
    ((drawing, count),) = drawn(rules).drawings
    assert count == 2
    assert any(box.title.startswith("Div(0.5\N{HORIZONTAL ELLIPSIS}2, ") for box in drawing.boxes)


def test_clips_of_other_forms_are_other_drawings():
    rules = [Rule("W", GradientClipByValue(0.5)), Rule(None, GradientClipByNorm(2.0))]
    found = drawn(rules)
    assert [count for _, count in found.drawings] == [1, 1]
    assert sorted(found.drawing_of.values()) == [1, 2]


@pytest.mark.parametrize(
    ("clip", "options", "words"),
    [
        (AdaptiveGradientClip(0.01), {}, ["parameter as it is read"]),
        (GradientClipByNorm(1.0), {"threshold_input": "limit"}, ["input limit"]),
        (GradientClipByNorm(1.0), {"emit": ["norm"]}, ["norm output"]),
        (GradientClipByGlobalNorm(1.0), {"emit": ["norm"]}, ["norm output, of all"]),
        (GradientClipByNorm(1.0), {"emit": ["norm"], "measure_only": True}, ["norm output"]),
        (Chain(GradientClipByValue(1.0), GradientClipByRMS(1.0)), {"nonfinite": "zero"}, []),
    ],
)
def test_each_kind_of_clip_is_drawn(clip, options, words):
    found = drawn(clip, **options)
    assert sum(count for _, count in found.drawings) == 2
    for drawing, _ in found.drawings:
        text = " ".join(as_text(drawing))
        assert all(word in text for word in words)
        assert ("gradient clipped" in text) == ("measure_only" not in options)
        assert Seen.of(drawing.html()).faults == []


@pytest.mark.parametrize("name", ["function_gives_gradients", "loop_steps", "if_gives_gradients"])
def test_clips_in_functions_and_subgraphs_are_drawn(name: str):
    found = drawn(GradientClipByNorm(1.0), MODELS / "control_flow" / f"{name}.onnx")
    assert found.drawings
    assert any("Div(1, " in box.title for box in found.drawings[0][0].boxes)


def test_the_body_of_a_loop_is_drawn(tmp_path: Path):
    clip_artifacts(
        MODELS / "ort_artifacts" / "mlp_mse_sgd", tmp_path / "out", GradientClipByNorm(0.5)
    )
    found = inserted_in_file(tmp_path / "out" / "optimizer_model.onnx")
    assert "parameter as it is read" not in " ".join(as_text(found.drawings[0][0]))
    (body,) = found.bodies
    assert body.label == "inside Loop"
    dot = "\N{MIDDLE DOT}"
    text = as_text(body)
    assert text[:2] == ["gradients -> SequenceAt raw", "number -> SequenceAt raw"]
    assert f"Sqrt norm -> Div(0.5, {dot}) ratio" in text
    assert "SequenceInsert more -> more" in text
    assert Seen.of(body.html()).faults == []


def test_a_read_in_the_backward_pass_is_drawn():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> s (float[2] W, float[2] V, float[2] x) => '
        "(float[2] W_grad, float[2] V_grad) { W_grad = Mul(x, V) V_grad = Mul(W_grad, W) }"
    )
    found = inserted_in(clip_gradients(model, GradientClipByNorm(1.0)))
    ((drawing, count),) = found.drawings
    assert count == 2
    assert "gradient raw -> backward pass reads it raw, of 1" in as_text(drawing)


def wide_step(number: int) -> onnx.ModelProto:
    values = [
        (f"W{at}", f"W{at}_grad", onnx.helper.make_node("Sin", [f"W{at}"], [f"W{at}_grad"]))
        for at in range(number)
    ]
    inputs = [onnx.helper.make_tensor_value_info(w, 1, [2]) for w, _, _ in values]
    outputs = [onnx.helper.make_tensor_value_info(g, 1, [2]) for _, g, _ in values]
    graph = onnx.helper.make_graph([node for *_, node in values], "s", inputs, outputs)
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def test_measures_of_many_as_one_output_are_drawn_once():
    model = clip_gradients(
        wide_step(300), GradientClipByGlobalNorm(1.0), emit=["norm", "scale"], emit_as="vector"
    )
    found = inserted_in(model)
    assert found.drawing_of.keys() == {f"W{at}_grad" for at in range(300)}
    assert all(len(drawing.boxes) < 40 for drawing, _ in found.drawings)


def test_a_group_of_any_size_is_a_drawing_of_the_same_size():
    model = clip_gradients(wide_step(300), GradientClipByGlobalNorm(1.0))
    found = inserted_in(model)
    assert sum(count for _, count in found.drawings) == 300
    for drawing, _ in found.drawings:
        assert len(drawing.boxes) < 20
        others = [int(n) for n in re.findall(r"(\d+) other", " ".join(as_text(drawing)))]
        assert max(others) == 299  # whom the scale goes to
    ways_in = [t for t in as_text(found.drawings[0][0]) if "same of each" in t.split("->")[0]]
    assert sum(int(re.match(r"\d+", line)[0]) for line in ways_in) == 299


def test_a_record_that_says_too_much_gives_no_drawing():
    """Anyone can write one: of nodes in a cycle, and of a hundred around one gradient."""
    model = clip_gradients(onnx.load(ADAM), GradientClipByNorm(1.0))
    names = {node.name for node in model.graph.node if node.name.startswith("clip/")}
    ring = [node for node in model.graph.node if node.name in names][:4]
    ring[0].input.append(ring[3].output[0])
    ring[1].input.append(ring[1].output[0])
    found = inserted_in(model)
    assert list(found.drawing_of) == ["b@GRAD"]
    assert [Seen.of(drawing.html()).faults for drawing, _ in found.drawings] == [[]]
    long = clip_gradients(onnx.load(ADAM), GradientClipByNorm(1.0))
    (entry,) = (each for each in long.metadata_props if each.key == KEY)
    nodes = [onnx.helper.make_node("Neg", ["clip/W@GRAD/raw"], ["clip/0"], "clip/n0")]
    nodes += [
        onnx.helper.make_node("Neg", [f"clip/{at}"], [f"clip/{at + 1}"], f"clip/n{at + 1}")
        for at in range(100)
    ]
    long.graph.node.extend(nodes)
    told = ",".join(f'"{node.name}"' for node in nodes)
    entry.value = entry.value.replace('"nodes":[', f'"nodes":[{told},')
    mul = next(node for node in long.graph.node if node.output[0] == "W@GRAD")
    mul.input[1] = "clip/100"
    assert "W@GRAD" not in inserted_in(long).drawing_of
