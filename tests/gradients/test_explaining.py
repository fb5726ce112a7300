"""Why a value is taken for a gradient: its chain, its states, and what keeps it open."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from steps import asking

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients
from onnx_clip_pass.gradients.explaining import explain_gradient

MODELS = Path(__file__).parents[2] / "models"
ADAM = """
    m0 = Mul (m, b1)
    m1 = Mul (g, a1)
    m_new = Add (m0, m1)
    g2 = Mul (g, g)
    v0 = Mul (v, b2)
    v1 = Mul (g2, a2)
    v_new = Add (v0, v1)
    root = Sqrt (v_new)
    ratio = Div (m_new, root)
    step = Mul (ratio, lr)
    W_new = Sub (W, step)
"""


@pytest.fixture
def adam(build_after_backward):
    return build_after_backward(ADAM, states="m v")


def test_the_chain_goes_from_the_new_value_to_the_gradient(adam):
    found = explain_gradient(adam, "W")
    assert found.gradients == (("g", "updates W to W_new"),)
    (step,) = found.steps
    assert (step.new, step.starts, step.candidates) == ("W_new", "g", ())
    assert [each.name for each in step.chain][:4] == ["W_new", "step", "ratio", "g"]
    links = [each.link for each in step.chain]
    assert "does not depend on data is added" in links[0]
    assert links[1] == "a number scales it"
    assert "not linear" in links[2]
    assert "a contraction" in links[3]
    assert [each.mark for each in step.chain][:4] == ["", "", "", "gradient"]
    assert step.chain[3].states == ("m", "v")
    assert "arithmetic of the update alone; a contraction" in step.why


def test_the_name_of_a_gradient_means_its_parameter(adam):
    assert explain_gradient(adam, "g") == explain_gradient(adam, "W")


def test_a_state_is_told_to_be_carried(adam):
    found = explain_gradient(adam, "m")
    assert (found.gradients, found.steps) == ((), ())
    assert found.note.endswith("its new value is m_new = Add(m0, m1)")


def test_a_question_shows_its_candidates_and_why():
    found = explain_gradient(asking(), "W")
    assert found.gradients == ()
    (step,) = found.steps
    assert step.candidates == ("whole", "g")
    assert [each.name for each in step.chain if each.mark == "candidate"] == ["whole", "g"]
    assert step.why == "a term in it alone is decay, or the slope of a penalty in the loss"
    assert "W: no gradient is known for sure" in found.lines()


def test_what_slopes_decided_is_said():
    pytest.importorskip("onnxruntime", reason="slopes need a run")
    found = explain_gradient(clip_gradients(asking(), GradientClipByNorm(1.0), probe=True), "W")
    assert [name for name, _ in found.gradients] == ["whole"]
    assert found.steps[0].why.startswith(
        "the slopes of the loss decided; the update alone leaves it open"
    )
    assert [each.mark for each in found.steps[0].chain][2:4] == ["gradient", "candidate"]


def test_what_other_evidence_tells_is_no_question_too():
    told = asking("W_out = vendor.SGD(W, whole)", outputs=", float[4,3] W_out")
    told.opset_import.add(domain="vendor", version=1)
    found = explain_gradient(told, "W", {"vendor::SGD": (0, 1)})
    assert found.gradients == (("g", "optimized by SGD"),)
    assert found.steps[0].candidates == ()
    assert found.steps[0].why.startswith("other evidence tells it; the update alone leaves it open")
    assert not any("may be" in line for line in found.lines())


def test_numbers_that_belong_to_the_gradient_are_told(build, backward):
    body = (
        backward.replace("slope)", "scale)")
        + """
        unscaled = Div (g, scale)
        step = Mul (unscaled, lr)
        W_new = Sub (W, step)
    """
    )
    (step,) = explain_gradient(build(body), "W").steps
    assert [each.name for each in step.chain if each.mark] == ["unscaled"]
    assert step.why.startswith("the update's arithmetic ends at g (a contraction")


def test_each_step_of_an_unrolled_graph_is_told():
    model = onnx.load(MODELS / "optimizers" / "unrolled_momentum.onnx")
    found = explain_gradient(model, "W")
    assert len(found.steps) == len(found.gradients) == 3
    for (gradient, _), step in zip(found.gradients, found.steps, strict=True):
        assert [each.name for each in step.chain if each.mark == "gradient"] == [gradient]


def test_what_a_graph_does_not_update_is_told_by_what_is_known():
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        s (float[N,4] x, float[4,3] W) => (float[4,3] W_grad, float[N,3] y) {
          y = MatMul(x, W)
          W_grad = Neg(W)
        }"""
    )
    found = explain_gradient(model, "W")
    assert [name for name, _ in found.gradients] == ["W_grad"]
    assert found.note == "no update in the graph trains it"
    assert explain_gradient(model, "x").note.startswith(
        "no update in the graph trains it, and no value"
    )


def test_a_name_that_is_not_there_is_refused(adam):
    with pytest.raises(OnnxClipError, match=r"'nothing' is no parameter, .* parameters are: 'W'"):
        explain_gradient(adam, "nothing")


def test_a_name_that_is_no_text_is_refused(adam: onnx.ModelProto):
    with pytest.raises(OnnxClipError, match="name must be that of a parameter or gradient"):
        explain_gradient(adam, ["W"])  # type: ignore[arg-type]
