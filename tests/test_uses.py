"""The two walks over a graph: where a value goes, and what it is computed from."""

from __future__ import annotations

import onnx
import pytest

from onnx_clip_pass.graph import Flow, Index, Value, ancestors_in, descendants_in, uses

MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[2, 2] W, float[2, 2] x, bool c, int64[2] shape) => (float[2, 2] y) {
      t = Transpose(W)
      r = Reshape(x, shape)
      a = MatMul(r, t)
      b = local.twice(W)
      d = If (c) <then_branch = yes () => (float[2, 2] e) { e = Mul(a, W) },
                  else_branch = no () => (float[2, 2] f) { f = Neg(a) }>
      y = Add(b, d)
    }
    <domain: "local", opset_import: ["" : 17]> twice (v) => (w) { w = Add(v, v) }""")


def found(name: str, through: set[str], **options: bool) -> list[tuple[str, int]]:
    flow = Flow(Index(MODEL))
    return sorted(
        (node.op_type, slot)
        for _, node, slot in uses(flow, Value(flow.main, name), through, **options)
    )


def test_uses_are_found_behind_what_passes_on_in_subgraphs_and_in_functions():
    assert found("W", {"Transpose"}) == [("Add", 0), ("Add", 1), ("MatMul", 1), ("Mul", 1)]


def test_what_does_not_pass_on_is_a_use_itself():
    assert ("Transpose", 0) in found("W", set())


@pytest.mark.parametrize(("by_any_slot", "expected"), [(False, []), (True, [("MatMul", 0)])])
def test_a_shape_is_passed_on_only_by_any_slot(by_any_slot, expected):
    assert found("shape", {"Reshape"}, by_any_slot=by_any_slot) == expected


def test_a_value_that_comes_by_two_ways_is_followed_once():
    """Forty doublings have 2**40 ways: a walk over ways would not end."""
    text = "\n".join(f"x{n + 1} = Add(x{n}, x{n})" for n in range(40))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float x0) => (float y) '
        f"{{ {text}\n y = Neg(x40) }}"
    )
    flow = Flow(Index(model))
    ends = list(uses(flow, Value(flow.main, "x0"), {"Add"}, by_any_slot=True))
    assert [use.node.op_type for use in ends] == ["Neg"]


def test_ancestors_take_in_what_subgraphs_read():
    ancestors = ancestors_in(MODEL.graph.node)
    assert ancestors("d") == {"d", "c", "a", "W", "r", "t", "x", "shape"}
    assert ancestors("x") == {"x"}


def test_ancestors_stop_at_nodes_that_are_not_followed():
    ancestors = ancestors_in(MODEL.graph.node, lambda node: node.op_type != "MatMul")
    assert ancestors("d") == {"d", "c", "a", "W"}


def test_descendants_take_in_what_subgraphs_read():
    assert descendants_in(MODEL.graph.node, ["x"]) == {"x", "r", "a", "d", "y"}
