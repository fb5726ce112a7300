"""Topological order: what a node is taken to read, and that nothing else moves."""

from __future__ import annotations

import pytest
from onnx import helper, parser

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index
from onnx_clip_pass.graph.ordering import in_order

MODEL = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.preview.training" : 1]>
    s (float[2] x, bool yes) => (float[2] h) { a = Exp (x) b = Neg (x) h = Identity (b) }"""


def order(*nodes) -> list[str]:
    """The outputs of these nodes, by which the tests call them, once they are in order."""
    model = parser.parse_model(MODEL)
    del model.graph.node[:]
    scope = Index(model).main
    return [node.output[0] for node in in_order(scope, nodes, advice="why that may be")]


def gradient(**attributes):
    domain = "ai.onnx.preview.training"
    return helper.make_node("Gradient", ["x"], ["h"], domain=domain, **attributes)


A = helper.make_node("Exp", ["x"], ["a"])
B = helper.make_node("Neg", ["x"], ["b"])
BODY = parser.parse_graph("body () => (float[2] o) { i = Abs (a) o = Neg (i) }")
CAPTURED = parser.parse_graph("body () => (float[2] a) { }")
SHADOWED = parser.parse_graph("body () => (float[2] o) { a = Abs (x) o = Neg (a) }")
WAITING = {
    "its input": helper.make_node("Add", ["x", "a"], ["h"]),
    "what its body reads": helper.make_node(
        "If", ["yes"], ["h"], then_branch=BODY, else_branch=BODY),
    "what its body returns": helper.make_node(
        "If", ["yes"], ["h"], then_branch=CAPTURED, else_branch=CAPTURED),
    "xs of a Gradient node": gradient(xs=["a"], y="x"),
    "y of a Gradient node": gradient(xs=["x"], y="a"),
    "zs of a Gradient node": gradient(xs=["x"], y="x", zs=["a"]),
}  # fmt: skip


@pytest.mark.parametrize("node", WAITING.values(), ids=WAITING)
def test_a_node_moves_behind_what_it_reads_and_no_other_moves(node):
    assert order(node, A, B) == ["a", "h", "b"]
    assert order(B, A, node) == ["b", "a", "h"]


STAYING = {
    "a name of its body's own": helper.make_node(
        "If", ["yes"], ["h"], then_branch=SHADOWED, else_branch=SHADOWED),
    "a text attribute": helper.make_node("Add", ["x", "x"], ["h"], y="a"),
}  # fmt: skip


@pytest.mark.parametrize("node", STAYING.values(), ids=STAYING)
def test_a_name_that_is_no_read_moves_nothing(node):
    assert order(node, A, B) == ["h", "a", "b"]


def test_nodes_that_read_each_other_are_refused():
    one, other = helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])
    with pytest.raises(OnnxClipError, match=r"the main graph: node 'Neg' .* why that may be"):
        order(one, other)
