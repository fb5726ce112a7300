"""Names: new ones are new to the whole model, and old ones stand for one value each."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import parser

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, find_gradients, strip
from onnx_clip_pass.cli import main
from onnx_clip_pass.graph import Editor, Index

ONE = GradientClipByNorm(1.0)
HEAD = '<ir_version: 10, opset_import: ["" : 17, "own" : 1, "ai.onnx.preview.training" : 1]>'


def step(*nodes: str, more: str = "") -> onnx.ModelProto:
    body = "\n".join(nodes)
    return parser.parse_model(
        f"""{HEAD}
        step (float[2] W, float[2] x) => (float[2] W_grad) <float[2] c = {{1, 2}}> {{
          W_grad = Mul(x, c)
          {body}
        }}{more}"""
    )


READ_AND_MADE_NOWHERE = {
    "in the main graph": step('late = Neg("clip/W_grad/raw")'),
    "in a branch": step(
        "f = Constant <value = bool {1}> ()",
        """late = If (f) <then_branch = a () => (float[2] p) { p = Neg("clip/W_grad/raw") },
           else_branch = b () => (float[2] q) { q = Identity(c) }>""",
    ),
    "in a function": step(
        "late = own.f(x)",
        more="""<domain: "own", opset_import: ["" : 17]> f (a) => (b) {
            b = Add(a, "clip/W_grad/raw") }""",
    ),
    "by name": step(
        'd = ai.onnx.preview.training.Gradient <xs = ["x"], y = "clip/W_grad/raw"> (x)'
    ),
}


@pytest.mark.parametrize("model", READ_AND_MADE_NOWHERE.values(), ids=READ_AND_MADE_NOWHERE)
def test_a_name_that_is_read_and_made_nowhere_is_not_taken(model: onnx.ModelProto):
    clipped = clip_gradients(model, ONE, gradients={"W_grad": "W"})
    assert clipped.graph.node[0].output == ["clip/W_grad/raw#2"]
    assert strip(clipped) == model


MADE_TWICE = {
    "by two nodes": (step("y = Neg(x)", "y = Abs(x)"), "made by node 2, Abs, .* of node 1, Neg"),
    "by a node, and an input": (step("x = Neg(c)"), "made by node 1, Neg, .* of an input"),
    "by a node, and an initializer": (step("c = Neg(x)"), "made by node 1.* of an initializer"),
    "by one node twice": (step("y, y = Split(x)"), "'y' of the main graph is made by node 1"),
    "in a branch": (
        step(
            "f = Constant <value = bool {1}> ()",
            """late = If (f) <then_branch = a () => (float[2] p) { p = Neg(x) p = Abs(x) },
               else_branch = b () => (float[2] q) { q = Identity(c) }>""",
        ),
        r"'p' of If\[2\].then_branch is made by node 1, Abs",
    ),
    "in a function": (
        step(
            "late = own.f(x)",
            more='<domain: "own", opset_import: ["" : 17]> f (a) => (b) { b = Neg(a) b = Abs(a) }',
        ),
        "'b' of function own::f is made by node 1, Abs",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "said"), MADE_TWICE.values(), ids=MADE_TWICE)
def test_a_value_that_is_made_twice_is_refused(
    model: onnx.ModelProto, said: str, tmp_path: Path, capsys
):
    for act in (find_gradients, lambda model: clip_gradients(model, ONE)):
        with pytest.raises(OnnxClipError, match=f"made once, but .*{said}"):
            act(model)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    for command in ("inspect", "rewrite"):
        assert main([command, str(path)]) == 2
        assert "expected values that are made once" in capsys.readouterr().err


def test_outputs_without_a_name_are_none_and_a_branch_may_use_a_name_again():
    model = step(
        "f = Constant <value = bool {1}> ()",
        """late = If (f) <then_branch = a () => (float[2] p) { p = Neg(x) },
           else_branch = b () => (float[2] p) { p = Identity(c) }>""",
    )
    model.graph.node.append(onnx.helper.make_node("Split", ["x"], ["", ""]))
    assert [g.name for g in find_gradients(model)] == ["W_grad"]


def test_each_nested_graph_has_constants_of_its_own():
    """Known by the id of a scope that is gone, a constant would be that of another graph."""
    editor = Editor(Index(step()))
    made = [
        editor.constant(editor.nested(onnx.GraphProto(), editor.index.main), 1.0, 1)
        for _ in range(100)
    ]
    assert len(set(made)) == 100
