"""Records that nobody should trust: whatever stands in one, the answer is an answer.

Every value of the record of each model here is put in every wrong kind, and sealed with the digest
that it then has, so that what lies behind the digest sees it too. ONNX_CLIP_NIGHTLY takes all of
them; otherwise a part is taken, of each kind at another place.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import onnx
import pytest
from forging import fields_of, mutations, put
from graphs import MODELS
from onnx import ModelProto, parser
from steps import asking, unknown_optimizer

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByPercentile,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
    strip,
)
from onnx_clip_pass.cli import main

ONE = GradientClipByNorm(0.5)
STRIDE = 1 if os.environ.get("ONNX_CLIP_NIGHTLY") else 41
SCALED_LATE = """
    <ir_version: 8, opset_import: ["" : 17]>
    step (float[3] x, float s) => (float[3] W_grad, float[3] read) <float[3] W = {1, 2, 3}> {
      W_grad = Mul(x, W)
      read = Neg(W_grad)
      two = Add(s, s)
    }"""


def model_at(path: str) -> ModelProto:
    return onnx.load(MODELS / f"{path}.onnx")


def with_threshold_inputs() -> tuple[ModelProto, ModelProto]:
    original = parser.parse_model(SCALED_LATE)
    how = {"threshold_input": "largest", "emit": ["norm", "clipped"], "loss_scale": "two"}
    return original, clip_gradients(original, ONE, **how)


def chained() -> tuple[ModelProto, ModelProto]:
    original = model_at("in_graph/sgd")
    clip = Chain(GradientClipByValue(2.0, -1.0), GradientClipByRMS(0.5), AdaptiveGradientClip(0.1))
    return original, clip_gradients(original, clip, emit="norm", emit_as="vector")


def grouped() -> tuple[ModelProto, ModelProto]:
    original = model_at("in_graph/sgd")
    clip = GradientClipByGlobalNorm(0.5, group_name="mine", per_sample=False)
    return original, clip_gradients(original, clip, gradients={"W_grad": "W"}, emit="norm")


def with_a_history() -> tuple[ModelProto, ModelProto]:
    original = model_at("in_graph/sgd")
    return original, clip_gradients(original, GradientClipByPercentile(20.0, 3), emit="norm")


def nested() -> tuple[ModelProto, ModelProto]:
    original = model_at("control_flow/if_updates_inside")
    return original, clip_gradients(original, GradientClipByNorm(0.5, axes=[0]))


def uncovered() -> tuple[ModelProto, ModelProto]:
    return asking(), clip_gradients(asking(), ONE, partial=True)


def known_by_the_caller() -> tuple[ModelProto, ModelProto]:
    ops = {"vendor::SGD": (0, 1)}
    return unknown_optimizer(), clip_gradients(unknown_optimizer(), ONE, optimizer_ops=ops)


@pytest.mark.parametrize(
    "make",
    [
        with_threshold_inputs,
        chained,
        grouped,
        with_a_history,
        nested,
        uncovered,
        known_by_the_caller,
    ],
)
def test_every_value_of_every_wrong_kind_is_accepted_or_refused_by_every_command(
    make: Callable[[], tuple[ModelProto, ModelProto]], tmp_path, capsys
):
    pytest.importorskip("onnxruntime", reason="verify runs the models")
    original, clipped = make()
    before, path, out = (str(tmp_path / f"{name}.onnx") for name in ("before", "forged", "out"))
    onnx.save(original, before)
    commands = [
        ["inspect", path],
        ["inspect", path, "--json"],
        ["strip", path, "-o", out, "--force"],
        ["rewrite", path, "-o", out, "--force", "--no-run"],
        ["verify", before, path],
    ]
    fields = fields_of(clipped)
    counts: Counter[int] = Counter()
    faults: list[str] = []
    for what, wrong in list(mutations(fields))[::STRIDE]:
        model = ModelProto.FromString(clipped.SerializeToString())
        put(model, wrong)
        onnx.save(model, path)
        for command in commands:
            code = main(command)
            counts[code] += 1
            if code not in (0, 1, 2):
                faults.append(f"{what}: {command[0]}: {capsys.readouterr().err[-600:]}")
        capsys.readouterr()
    assert not faults, "\n".join(faults)
    assert counts[2] > counts[0] + counts[1]  # most is refused


# -- what undoing removes ----------------------------------------------------------------------

OWN = """
    <ir_version: 8, opset_import: ["" : 17]>
    step (float[2] W, float[2] x, float lr, float unused = {0})
         => (float[2] W_new, float[2] W_grad, float said) <float unread = {2}> {
      W_grad = Mul(x, x)
      step = Mul(W_grad, lr)
      W_new = Sub(W, step)
      [namesake] said = ReduceSum <keepdims = 0> (W_grad)
    }"""


def own() -> ModelProto:
    """A step in which an input, an initializer, a node and an output are read by nobody."""
    return parser.parse_model(OWN)


def forge(more: dict[str, list[str] | dict[str, str]], *, seal: bool = True, number: int = 3):
    """The clipped model with a record that claims more, and its fields."""
    how = {"threshold_input": "largest", "emit": "norm"}
    clipped = clip_gradients(own(), ONE, gradients={"W_grad": "W"}, **how)
    fields = fields_of(clipped) | {"format": number}
    for name, claimed in more.items():
        fields[name] = (
            fields[name] | claimed if isinstance(claimed, dict) else fields[name] + claimed
        )
    put(clipped, fields, seal=seal)
    return clipped


FORGED = {
    "an input that nothing reads": ({"inputs": ["x"]}, "the input 'x'"),
    "an input with its own default": (
        {"inputs": ["unused"], "initializers": ["unused"]},
        "the input 'unused'",
    ),
    "an output": ({"outputs": ["W_new"]}, "the output 'W_new'"),
    "an output as a measure": (
        {"outputs": ["said"], "emitted": [["said", "norm", ["W_grad"], ""]]},
        "the output 'said'",
    ),
    "an output as a measure with its node": (
        {"outputs": ["said"], "emitted": [["said", "norm", ["W_grad"], ""]], "nodes": ["namesake"]},
        "the node 'namesake'",
    ),
    "an initializer": ({"initializers": ["unread"]}, "the initializer 'unread'"),
    "the declaration of a value": ({"values": ["step"]}, "the value 'step'"),
    "another name of a value": ({"renamed": {"W_new": "W"}}, "the name 'W_new'"),
    "our name of a value of theirs": ({"renamed": {"clip/step": "step"}}, "the name 'clip/step'"),
}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("more", "named"), FORGED.values(), ids=FORGED)
def test_a_forged_record_cannot_remove_what_is_the_models_own(more, named, number):
    model = forge(more, number=number)
    for act in (strip, lambda model: clip_gradients(model, ONE)):
        with pytest.raises(OnnxClipError, match=f"none that onnx-clip wrote: .*{named}"):
            act(model)


@pytest.mark.parametrize("more", [more for more, _ in FORGED.values()], ids=FORGED)
def test_a_record_that_was_changed_alone_does_not_fit_its_digest(more):
    with pytest.raises(OnnxClipError, match="or its record of them, have been changed"):
        strip(forge(more, seal=False))


def test_what_is_not_forged_is_undone():
    assert strip(forge({})) == own()
